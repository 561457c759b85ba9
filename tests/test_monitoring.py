"""What ``deploy/`` has for Prometheus and Grafana: its rules hold, and ask for metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.addresses import Address
from tests.support.benches.gateway import running_relay
from tests.support.grafana import DASHBOARD, panels, queries

DEPLOY = Path(__file__).parent.parent / "deploy"
RULES = sorted((DEPLOY / "prometheus").glob("*.yml"))

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="prometheus is not installed")

# These have values only where something of theirs is configured.
ONLY_SOMETIMES = {"relay_ocsp_staple_expiry_seconds", "relay_cluster_up"}


def names_in(query: str) -> set[str]:
    """The metrics that a query, or a file of rules, asks for."""
    without_texts = re.sub(r'"[^"]*"|#.*', "", query)
    return set(re.findall(r"(?<![\w:])(?:relay|process|instance\w*:relay)_?[\w:]*_[\w:]+", without_texts))


def recorded() -> set[str]:
    """The names under which rules keep what they have worked out."""
    return set(re.findall(r"record: (\S+)", (DEPLOY / "prometheus" / "recording.yml").read_text()))


async def exported(folder: Path) -> set[str]:
    """The names of all samples that a relay has for Prometheus."""
    async with (
        running_relay(folder, Address("127.0.0.1", 9), signaling={"upstreams": ["http://127.0.0.1:9"]}) as relay,
        aiohttp.ClientSession() as session,
        session.get(f"http://{relay.admin}/metrics") as response,
    ):
        families = text_string_to_metric_families(await response.text())
        return {sample.name for family in families for sample in family.samples}


def test_names_are_found() -> None:
    query = 'sum by (job) (rate(relay_calls{relay_no="relay_text"}[5m])) / instance:relay_old:ratio5m # relay_comment'
    assert names_in(query) == {"relay_calls", "relay_no", "instance:relay_old:ratio5m"}


async def test_all_metrics_that_are_asked_for_exist(tmp_path: Path) -> None:
    known = await exported(tmp_path) | recorded() | ONLY_SOMETIMES | {"relay_upstream_rtt_seconds"}
    asked = {name for path in RULES for name in names_in(path.read_text())} | {
        name for query in queries() for name in names_in(query)
    }
    assert len(asked) > 30
    assert asked - known == set()


def test_each_panel_says_what_it_shows() -> None:
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"])
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))


def test_panels_do_not_cover_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def alerts() -> Iterator[tuple[str, str]]:
    """Each alert, with its text in the file."""
    text = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    for part in text.split("- alert: ")[1:]:
        yield part.split()[0], part


def test_each_alert_is_tried() -> None:
    cases = (DEPLOY / "prometheus" / "alerts.test.yml").read_text()
    for name, text in alerts():
        assert re.search(rf"alertname: {name}\n +exp_alerts:\n +- exp_labels", cases), f"{name} is never seen to fire"
        assert re.search(r"severity: (critical|warning)}", text)
        for page in re.findall(r"\b(?:docs|deploy)/[\w./]+\w", text):
            assert (DEPLOY.parent / page).exists(), page


def promtool(*command: str) -> tuple[int, str]:
    """Its status, and what it has said."""
    done = subprocess.run(
        ["promtool", *command],
        cwd=DEPLOY / "prometheus",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@needs_promtool
def test_promtool_takes_the_rules_and_the_configuration() -> None:
    for command in (("rules", "recording.yml", "alerts.yml"), ("config", "prometheus.yml")):
        status, said = promtool("check", *command)
        assert status == 0, said


@needs_promtool
def test_alerts_fire_when_they_must_and_only_then() -> None:
    status, said = promtool("test", "rules", "alerts.test.yml")
    assert status == 0, said
