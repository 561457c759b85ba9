"""What a check is, in the manner of a linter's rule: a class with a code, whose docstring is its explanation.

The first line of the docstring is the title. Then come three paragraphs: what is tested, why it matters, and what to
change. `relay doctor explain CODE` and docs/doctor.md are made of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from relay.catalog import Service
from relay.doctor.plan import Plan
from relay.doctor.report import Actor, Area, Finding, Item, Status
from relay.doctor.rules import Rule
from relay.doctor.seen import Seen

AREA_OF_SERVICE = {
    Service.API: Area.API,
    Service.LOGIN: Area.SIGNALING,
    Service.PORTAL: Area.PORTAL,
    Service.RECORDING: Area.RECORDING,
    Service.SIGNALING: Area.SIGNALING,
    Service.MEDIA: Area.VOICE_PROXY,
}
# A finding names this many of the things that it is about, and counts the others.
MAX_NAMED = 3


@dataclass(frozen=True, slots=True)
class Remedy:
    """Who acts, what to change, and the change as rules."""

    actor: Actor
    change: str
    rules: tuple[Rule, ...] = ()


class Check(ABC):
    """One check. It reads what probes saw, and opens no socket itself."""

    code: ClassVar[str]

    @abstractmethod
    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """An item for each thing that this check is about; none if there is nothing of the kind."""

    @abstractmethod
    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """What to do about the items that failed, or warn; there is at least one."""

    def judge(self, plan: Plan, seen: Seen) -> tuple[list[Item], list[Finding]]:
        """The items, and one finding if something is wrong with any of them."""
        items = list(self.items(plan, seen))
        bad = [item for item in items if item.status in {Status.FAILED, Status.WARNING}]
        if not bad:
            return items, []
        remedy = self.remedy(plan, seen, bad)
        areas = tuple(area for area in Area if any(area in item.areas for item in bad))
        failed = any(item.status is Status.FAILED and item.decides for item in bad)
        status = Status.FAILED if failed else Status.WARNING
        return items, [Finding(self.code, status, areas, _problem(bad), remedy.actor, remedy.change, remedy.rules)]

    def item(
        self, subject: str, areas: Iterable[Area], status: Status, detail: str = "", *, decides: bool = True
    ) -> Item:
        """An item of this check."""
        return Item(self.code, subject, tuple(dict.fromkeys(areas)), status, detail, decides)


def areas_of(plan: Plan, site: str) -> tuple[Area, ...]:
    """The areas that need a site. The relay carries voice, and signaling as well."""
    if plan.relay is not None and site == plan.relay.label:
        return (Area.VOICE_PROXY,)
    return tuple(dict.fromkeys(AREA_OF_SERVICE[one.service] for one in plan.sites if one.name == site))


def named(subjects: Sequence[str]) -> str:
    """The first of these, and how many more there are."""
    shown = ", ".join(subjects[:MAX_NAMED])
    more = len(subjects) - MAX_NAMED
    return shown if more <= 0 else f"{shown} and {more} more"


def _problem(bad: Sequence[Item]) -> str:
    """What is wrong, with the subjects of each detail together."""
    subjects: dict[str, list[str]] = {}
    for item in bad:
        subjects.setdefault(item.detail, []).append(item.subject)
    return "; ".join(f"{named(ones)}: {detail}" for detail, ones in subjects.items())
