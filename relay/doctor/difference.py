"""What has changed between two reports: verdicts, findings, and items; for before and after a change."""

from __future__ import annotations

from dataclasses import dataclass

from relay.doctor.report import Report, Status, Verdict

_BETTER = (Status.FAILED, Status.WARNING, Status.NOT_TESTED, Status.OK)
_VERDICTS = (
    Verdict.NOT_READY,
    Verdict.INCOMPLETE,
    Verdict.NOT_TESTED,
    Verdict.READY_WITH_WARNINGS,
    Verdict.READY,
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One change. ``worse`` is true if it has become worse, or has come newly and is not good."""

    what: str
    before: str
    after: str
    worse: bool

    def __str__(self) -> str:
        mark = "-" if self.worse else "+"
        return f"{mark} {self.what}: {self.before} -> {self.after}"


def compare(old: Report, new: Report) -> list[Difference]:
    """Changes of areas first, then those of items, in the order of the new report. Details alone are no change."""
    found = []
    for area, verdict in new.verdicts.items():
        before = old.verdicts[area]
        if verdict is not before:
            worse = _VERDICTS.index(verdict) < _VERDICTS.index(before)
            found.append(Difference(area, before, verdict, worse))
    return [*found, *_items(old, new)]


def _items(old: Report, new: Report) -> list[Difference]:
    before = {(item.check, item.subject): item.status for item in old.items}
    after = {(item.check, item.subject): item.status for item in new.items}
    found = []
    for key in dict.fromkeys([*after, *before]):
        was, is_now = before.get(key, Status.NOT_TESTED), after.get(key, Status.NOT_TESTED)
        if was is not is_now:
            worse = _BETTER.index(is_now) < _BETTER.index(was)
            found.append(Difference(" ".join(key), was, is_now, worse))
    return found
