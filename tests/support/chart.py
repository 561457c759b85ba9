"""The Helm chart of ``deploy/helm`` as Helm renders it, and the folder that a pod of it would see."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import helm_python

from tests.support.volumes import Volume

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "cloud9-relay"
# Of the release.
NAME, NAMESPACE = "voice", "trading"

Manifest = dict[str, Any]


@functools.cache
def chart() -> helm_python.Chart:
    """The chart, read once."""
    return helm_python.Chart.load(CHART)


class Rendered:
    """All manifests of a release with these values."""

    def __init__(self, values: dict[str, Any]) -> None:
        """Raises HelmError, as ``helm install`` would fail."""
        texts: dict[str, str] = chart().render(values, name=NAME, namespace=NAMESPACE)
        self.notes = next(text for name, text in texts.items() if name.endswith("/NOTES.txt"))
        parts = [
            part
            for name, text in sorted(texts.items())
            if name.endswith(".yaml")
            for part in re.split(r"(?m)^---$", text)
            if part.strip()
        ]
        self.manifests: list[Manifest] = [helm_python.values_from_yaml(part) for part in parts]

    def all_of(self, kind: str) -> list[Manifest]:
        """The manifests of a kind."""
        return [one for one in self.manifests if one["kind"] == kind]

    def one(self, kind: str, name: str = f"{NAME}-cloud9-relay") -> Manifest:
        """The manifest of this kind and name. Raises ValueError if there is none, or more than one."""
        [found] = [one for one in self.all_of(kind) if one["metadata"]["name"] == name]
        return found

    @property
    def pod(self) -> Manifest:
        """The specification of a relay's pod."""
        pod: Manifest = self.one("Deployment")["spec"]["template"]["spec"]
        return pod

    @property
    def container(self) -> Manifest:
        """The relay's container."""
        [container] = self.pod["containers"]
        assert isinstance(container, dict)
        return container

    @property
    def relay_toml(self) -> str:
        """The relay's configuration."""
        return str(self.one("ConfigMap")["data"]["relay.toml"])

    def mount(self, folder: Path, secrets: dict[str, dict[str, str | bytes]]) -> Volume:
        """What is mounted at /etc/cloud9-relay, with these Secrets and ConfigMaps beside the chart's own."""
        there = {**secrets, f"{NAME}-cloud9-relay": self.one("ConfigMap")["data"]}
        [volume] = [one for one in self.pod["volumes"] if one["name"] == "config"]
        files: dict[str, str | bytes] = {}
        for source in volume["projected"]["sources"]:
            [given] = source.values()
            content = there[given["name"]]
            items = given.get("items") or [{"key": key, "path": key} for key in content]
            files |= {item["path"]: content[item["key"]] for item in items}
        return Volume(folder, files)
