"""The library of Redis is needed where ``[cluster]`` is set, and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import relay.gateway
from relay.config import ClusterSettings
from relay.errors import OperatorError
from relay.gateway.cluster.opening import check_cluster
from tests.support.imports import imported_modules

GATEWAY = Path(relay.gateway.__file__).parent


def test_one_module_imports_the_library() -> None:
    found = set[str]()
    for path in GATEWAY.rglob("*.py"):
        modules = imported_modules(
            path.read_text(), ".".join(["relay.gateway", *path.parent.relative_to(GATEWAY).parts])
        )
        if any(name.partition(".")[0] == "redis" for name in modules):
            found.add(path.name)
        if "relay.gateway.cluster.redis_client" in modules:
            assert path.name == "opening.py"
    assert found == {"redis_client.py"}


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    monkeypatch.delitem(sys.modules, "relay.gateway.cluster.redis_client", raising=False)
    check_cluster(ClusterSettings())
    with pytest.raises(OperatorError, match=r"cluster.redis needs redis: install cloud9-relay\[cluster\]"):
        check_cluster(ClusterSettings(redis="redis://a.test"))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    no_ca = tmp_path / "ca.pem"
    with pytest.raises(OperatorError, match=r"ca.pem \(cluster.ca_file\): no such file or directory"):
        check_cluster(ClusterSettings(redis="rediss://a.test", ca_file=no_ca))
    no_ca.write_text("not a certificate")
    with pytest.raises(OperatorError, match=r"ca.pem \(cluster.ca_file\): expected certificates in PEM"):
        check_cluster(ClusterSettings(redis="rediss://a.test", ca_file=no_ca))
    with pytest.raises(OperatorError, match=r"\(cluster.password_file\): no such file or directory"):
        check_cluster(ClusterSettings(redis="rediss://a.test", password_file=tmp_path / "nothing"))
