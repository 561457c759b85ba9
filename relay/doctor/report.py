"""What was found: an item for each thing that was tested, a finding for what is to be changed, a verdict for each area.

An area is ready only if all that it depends on was tested and works: what was not tested is never called good.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from relay import __version__
from relay.doctor.plan import Skipped
from relay.doctor.rules import Rule
from relay.errors import OperatorError

# The form of the JSON. It grows when a field changes its meaning or goes.
FORMAT = 1


class Area(StrEnum):
    """A part of the service. Its value is how people call it."""

    VOICE_UDP = "voice over UDP"
    VOICE_PROXY = "voice over web proxy"
    SIGNALING = "signaling and login"
    API = "APIs"
    PORTAL = "portal"
    RECORDING = "recording"


class Status(StrEnum):
    """What was found of an item. WARNING works, but needs somebody's attention."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    NOT_TESTED = "not tested"


class Verdict(StrEnum):
    """What is to be said of an area."""

    READY = "ready"
    READY_WITH_WARNINGS = "ready, with warnings"
    INCOMPLETE = "incomplete"
    NOT_READY = "not ready"
    NOT_TESTED = "not tested"


class Actor(StrEnum):
    """Who can change it."""

    FIREWALL = "firewall"
    WEB_PROXY = "web proxy"
    DESKTOP = "desktop"
    RELAY = "relay"
    NETWORK = "network"
    VENDOR = "vendor"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that a check has looked at. ``decides`` is false for what an area works without."""

    check: str
    subject: str
    areas: tuple[Area, ...]
    status: Status
    detail: str
    decides: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, who acts, and what exactly to change."""

    code: str
    status: Status
    areas: tuple[Area, ...]
    problem: str
    actor: Actor
    change: str
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Voice:
    """How voice over one path sounded. A figure that is not known is None; delays are there and back."""

    path: str
    sent: int
    lost_percent: float
    delay_p50_ms: float | None
    delay_p99_ms: float | None
    jitter_ms: float | None
    mos: float | None
    delays_ms: tuple[float | None, ...]


@dataclass(frozen=True)
class Report:
    """All of it, as values that JSON can hold."""

    target: str
    kind: str
    catalog: str
    started_at: float
    took_s: float
    items: tuple[Item, ...]
    findings: tuple[Finding, ...]
    voice: tuple[Voice, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    proxy: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def verdicts(self) -> dict[Area, Verdict]:
        """The verdict of each area."""
        return {area: verdict_of([item for item in self.items if area in item.areas]) for area in Area}

    @property
    def worst(self) -> Verdict:
        """The verdict of all: areas that nobody has asked for do not count."""
        found = set(self.verdicts.values())
        order = (Verdict.NOT_READY, Verdict.INCOMPLETE, Verdict.READY_WITH_WARNINGS, Verdict.READY)
        return next((one for one in order if one in found), Verdict.NOT_TESTED)

    @property
    def untested(self) -> list[Skipped]:
        """What was not tested, and why: by the plan, or because something else did not work."""
        found = [Skipped(f"{item.check} {item.subject}", item.detail) for item in self.items if _is_untested(item)]
        return [*self.skipped, *found]


def verdict_of(items: Sequence[Item]) -> Verdict:
    """The verdict of the items of one area."""
    deciding = {item.status for item in items if item.decides}
    if not deciding - {Status.NOT_TESTED}:
        return Verdict.NOT_TESTED
    if Status.FAILED in deciding:
        return Verdict.NOT_READY
    if Status.NOT_TESTED in deciding:
        return Verdict.INCOMPLETE
    warned = any(item.status in {Status.WARNING, Status.FAILED} for item in items)
    return Verdict.READY_WITH_WARNINGS if warned else Verdict.READY


def _is_untested(item: Item) -> bool:
    return item.status is Status.NOT_TESTED


# JSON


def to_json(report: Report) -> str:
    """The report as JSON, with the verdicts that follow from it."""
    tree = {
        "format": FORMAT,
        "version": __version__,
        "verdicts": {area.value: verdict.value for area, verdict in report.verdicts.items()},
        "worst": report.worst.value,
        **dataclasses.asdict(report),
        "untested": [dataclasses.asdict(one) for one in report.untested],
    }
    return json.dumps(tree, indent=2) + "\n"


def from_json(text: str, where: str) -> Report:
    """Read what ``to_json`` has written. Raises OperatorError, which names ``where``."""
    try:
        tree = json.loads(text)
        if tree["format"] != FORMAT:
            raise OperatorError(f"{where}: a report of the format {tree['format']}, expected {FORMAT}")
        return Report(
            **{name: tree[name] for name in ("target", "kind", "catalog", "started_at", "took_s", "proxy")},
            items=tuple(_item(one) for one in tree["items"]),
            findings=tuple(_finding(one) for one in tree["findings"]),
            voice=tuple(Voice(**{**one, "delays_ms": tuple(one["delays_ms"])}) for one in tree["voice"]),
            skipped=tuple(Skipped(**one) for one in tree["skipped"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OperatorError(f"{where}: not a report of `relay doctor --json`: {error!r}") from None


def _item(tree: Mapping[str, Any]) -> Item:
    return Item(**{**tree, "areas": _areas(tree["areas"]), "status": Status(tree["status"])})


def _finding(tree: Mapping[str, Any]) -> Finding:
    return Finding(
        **{
            **tree,
            "areas": _areas(tree["areas"]),
            "status": Status(tree["status"]),
            "actor": Actor(tree["actor"]),
            "rules": tuple(Rule(**one) for one in tree["rules"]),
        }
    )


def _areas(names: Iterable[str]) -> tuple[Area, ...]:
    return tuple(map(Area, names))
