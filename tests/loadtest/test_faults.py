"""The bench of faults, on a small stage: what holds is found to hold, and what does not is told."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench import bench, servers
from loadtest.bench.faults.calls import OTHERS, STRUCK
from loadtest.bench.faults.kinds import KINDS, bad_configurations
from loadtest.bench.faults.measuring import Outcome, measure
from loadtest.bench.faults.scene import Plan, Reading
from relay import config
from relay.demo.authority import Authority
from relay.errors import OperatorError
from tests.support.benches.gateway import settings_tree, write_config

SMALL = Plan(others=4, struck=2, fault_s=0.5, quiet_s=0.3)


@pytest.fixture
def _programs() -> None:
    if not shutil.which("gcc") or not shutil.which("make"):
        pytest.skip("gcc or make is not installed")
    servers.build()


@pytest.mark.usefixtures("_programs")
@pytest.mark.parametrize("kind", ["killed", "configuration"])
def test_a_fault_is_made_and_judged(kind: str) -> None:
    """How long anything took, and memory, are not judged here: the machine may be busy."""
    found = measure(kind, SMALL, bench.Cores.choose())
    assert found.struck_truly
    assert found.lost[OTHERS] == found.cut[OTHERS] == found.wrong == 0
    assert found.cut[STRUCK] == (2 if KINDS[kind].cuts else 0)
    assert found.unaccounted[OTHERS] == {"up": 0, "down": 0}
    assert found.after.flows == found.before.flows == 6
    assert found.recovered_s is not None
    assert found.others["due"] > 4 * 50 * SMALL.fault_s


def test_each_bad_configuration_is_refused(tmp_path: Path) -> None:
    """Were one good, the bench would wait for a refusal that does not come."""
    tree = settings_tree(Authority(tmp_path), {"address": "127.0.0.1:1"}, {"address": "127.0.0.1:2"})
    tree["routes"] = []
    kinds = bad_configurations(tree)
    assert len(kinds) == 12
    for name, file in kinds.items():
        path = tmp_path / f"{name}.toml"
        if isinstance(file, bytes):
            path.write_bytes(file)
        elif file is not None:
            write_config(path, file)
        with pytest.raises(OperatorError):
            config.load(path)


BEFORE = Reading(descriptors=50, tasks=20, flows=30, rss_kib=100_000)
GOOD = Outcome(
    kind="garbage",
    others={"due": 100, "sent": 100, "received": 100},
    struck={"due": 50, "sent": 50, "received": 40},
    wrong=0,
    cut={OTHERS: 0, STRUCK: 0},
    served_s=0.1,
    recovered_s=0.9,
    heard_s=0.1,
    before=BEFORE,
    after=replace(BEFORE, descriptors=49, rss_kib=104_000),
    unaccounted={OTHERS: {"up": 0, "down": 0}, STRUCK: {"up": 0, "down": 0}},
    dropped={OTHERS: 0, STRUCK: 3},
    struck_truly=True,
    late_p99_us=300,
)


def test_what_holds_has_no_faults() -> None:
    assert GOOD.faults() == []
    in_flight = {**GOOD.unaccounted, STRUCK: {"up": 3, "down": 0}}
    assert replace(GOOD, kind="killed", cut={OTHERS: 0, STRUCK: 1}, unaccounted=in_flight).faults() == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"others": {"due": 100, "sent": 100, "received": 98}}, "2 lost"),
        ({"wrong": 1}, "1 wrong"),
        ({"cut": {OTHERS: 1, STRUCK: 0}}, "1 of the others cut off"),
        ({"cut": {OTHERS: 0, STRUCK: 2}}, "2 cut off"),
        ({"served_s": None}, "newcomers wait"),
        ({"recovered_s": 1.2}, "served again after 1.20 s"),
        ({"heard_s": None}, "heard again after - s"),
        ({"after": replace(BEFORE, descriptors=51)}, "descriptors 50 to 51"),
        ({"after": replace(BEFORE, tasks=21)}, "tasks 20 to 21"),
        ({"after": replace(BEFORE, flows=29)}, "flows 30 to 29"),
        ({"after": replace(BEFORE, rss_kib=105_001)}, "memory 100000 to 105001 KiB"),
        ({"unaccounted": {OTHERS: {"up": 1, "down": 0}}}, "1 unaccounted up, others"),
        ({"struck_truly": False}, "it did not strike"),
    ],
)
def test_what_does_not_hold_is_told(changes: dict[str, Any], told: str) -> None:
    assert replace(GOOD, **changes).faults() == [told]
