"""Reads an event log and says what should never have happened. It knows the rules, but not the machines' tables.

    violations = check(read_event_log(path, ...), finished=True)

An empty list: nothing was found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Entry = dict[str, Any]
MAX_TALKERS = 12
MAX_SUBSCRIBERS = 800
# More are not told: the first ones say what is wrong.
MAX_VIOLATIONS = 1000

# The states that each kind can have, and what may follow on what.
_EDGES: dict[str, dict[str, str]] = {
    "ringdown": {"idle": "ringing", "ringing": "ringing connected idle", "connected": "idle"},
    "shoutdown": {"idle": "talking", "talking": "talking connected idle", "connected": "connected talking idle"},
    "hoot": {"idle": "connected", "connected": "connected talking idle", "talking": "talking connected idle"},
    "intercom": {"idle": "connected", "connected": "connected idle"},
    "dial_tone": {"idle": "ringing", "ringing": "connected idle", "connected": "idle"},
    "broadcast": {"idle": "talking", "talking": "talking connected idle", "connected": "connected talking idle"},
}
_RINGING_ENDS = {"removed", "released", "declined", "timeout", "gone", "busy", "unreachable"}
_ANSWERED_BY = {"ringdown": {"line.answer", "line.ring"}, "dial_tone": {"line.answer", "deadline"}}


@dataclass
class _LineSeen:
    """One line as its entries so far have made it."""

    number: str
    kind: str
    members: set[str]
    seq: int | None = None
    state: str = "idle"
    call_id: str | None = None
    # User to role and whether they talk. None: the log begins in the middle of a call, so nobody knows.
    parties: dict[str, tuple[str, bool]] | None = field(default_factory=dict)


class _Checker:
    def __init__(self, members: dict[str, set[str]]) -> None:
        self.violations: list[str] = []
        self.lines: dict[str, _LineSeen] = {}
        self._members = members
        self._begun: set[str] = set()
        self._ended: set[str] = set()

    def on_transition(self, entry: Entry) -> None:
        number, seq = entry["line"], entry["seq"]
        line = self.lines.get(number)
        if line is None:
            line = self.lines[number] = _LineSeen(number, entry["kind"], self._members.get(number, set()))
            if seq != 1:
                line.seq, line.parties = seq - 1, None
        expected = (line.seq or 0) + 1
        if seq != expected:
            self._say(entry, f"seq {seq}, but {expected} was expected")
            line.parties = None
        if line.parties is not None:
            self._check_parties_change(entry, line)
            self._check_edge(entry, line)
            self._check_call(entry, line)
        elif entry["state"] == "idle":
            line.parties = {}
        line.seq, line.state, line.call_id = seq, entry["state"], entry["call_id"]
        if line.parties is not None:
            for rule in _RULES:
                if wrong := rule(line):
                    self._say(entry, wrong)

    def finish(self, entries: Iterable[Entry]) -> None:
        """Nobody whose session has ended is left in a call, and no call is left open."""
        present: dict[str, str] = {}
        for entry in entries:
            if entry["entry"] == "session":
                present[entry["user_id"]] = entry["what"]
        for line in self.lines.values():
            if line.state != "idle":
                self._tell(f"{line.number}: call {line.call_id} has not ended")
            for user, (role, _) in (line.parties or {}).items():
                if present.get(user) == "ended" and not (line.state == "ringing" and role == "callee"):
                    self._tell(f"{line.number}: {user} is in a call, but their session has ended")
        for call_id in sorted(self._begun - self._ended):
            self._tell(f"call {call_id} has no record")

    def _check_parties_change(self, entry: Entry, line: _LineSeen) -> None:
        assert line.parties is not None
        for user, change in entry["parties"].items():
            if change is None:
                if line.parties.pop(user, None) is None:
                    self._say(entry, f"{user} left, but was not in the call")
                continue
            role, talking, is_new = change
            if is_new == (user in line.parties):
                self._say(entry, f"{user} entered twice" if is_new else f"{user} changed, but was not in the call")
            if user not in line.members and not (line.kind == "dial_tone" and role == "callee"):
                self._say(entry, f"{user} is in a call of a line that they do not have")
            line.parties[user] = (role, talking)

    def _check_edge(self, entry: Entry, line: _LineSeen) -> None:
        before, after = line.state, entry["state"]
        if after not in _EDGES[line.kind].get(before, "").split():
            self._say(entry, f"a {line.kind} line went from {before} to {after}")
        if before == "ringing" and after == "idle" and entry["reason"] not in _RINGING_ENDS:
            self._say(entry, f"ringing ended with {entry['reason']}")
        if before == "ringing" and after == "connected" and entry["event"] not in _ANSWERED_BY[line.kind]:
            self._say(entry, f"ringing was answered by {entry['event']}")

    def _check_call(self, entry: Entry, line: _LineSeen) -> None:
        call_id, ended = entry["call_id"], entry["ended"]
        if line.call_id is None and call_id is not None:
            if call_id in self._begun:
                self._say(entry, f"call {call_id} began twice")
            self._begun.add(call_id)
        elif call_id is not None and call_id != line.call_id:
            self._say(entry, f"call {line.call_id} became {call_id}")
        if (line.call_id is not None and call_id is None) != (ended is not None):
            self._say(entry, "a call ended without a record, or a record came without an end")
        if ended is not None:
            self._check_record(entry, line, ended)

    def _check_record(self, entry: Entry, line: _LineSeen, record: Entry) -> None:
        if record["call_id"] != line.call_id:
            self._say(entry, f"the record is of {record['call_id']}, but the call was {line.call_id}")
        if record["call_id"] in self._ended:
            self._say(entry, f"call {record['call_id']} ended twice")
        self._ended.add(record["call_id"])
        if record["end_reason"] != entry["reason"]:
            self._say(entry, f"the record says {record['end_reason']}, the line {entry['reason']}")
        times = [record["started_at"], record["answered_at"], record["ended_at"]]
        known = [time for time in times if time is not None]
        if known != sorted(known):
            self._say(entry, f"the record's times are out of order: {times}")
        strangers = set(record["participants"]) - line.members
        if strangers and line.kind != "dial_tone":
            self._say(entry, f"the record has {sorted(strangers)}, who do not have the line")

    def _say(self, entry: Entry, wrong: str) -> None:
        self._tell(f"{entry['line']} seq {entry['seq']} ({entry['event']} by {entry['user_id']}): {wrong}")

    def _tell(self, wrong: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(wrong)


# Rules for the state of a line after each transition: what is wrong, or nothing


def _talkers(line: _LineSeen) -> list[str]:
    return [user for user, (_, talking) in (line.parties or {}).items() if talking]


def _idle_means_empty(line: _LineSeen) -> str:
    empty = not line.parties and line.call_id is None
    return "" if (line.state == "idle") == empty else f"{line.state} with {len(line.parties or {})} in the call"


def _not_too_many(line: _LineSeen) -> str:
    if line.kind == "hoot" and len(_talkers(line)) > MAX_TALKERS:
        return f"{len(_talkers(line))} talk at once"
    if len(line.parties or {}) > MAX_SUBSCRIBERS:
        return f"{len(line.parties or {})} subscribers"
    return ""


def _two_in_a_conversation(line: _LineSeen) -> str:
    count = len(line.parties or {})
    if line.kind == "ringdown" and line.state == "connected" and count != 2:
        return f"a connected ringdown line with {count} in the call"
    if line.kind in {"intercom", "shoutdown"} and line.state != "idle" and count < 2:
        return f"{line.kind} with {count} in the call"
    return ""


def _nobody_talks_while_it_rings(line: _LineSeen) -> str:
    return "someone talks while the line rings" if line.state == "ringing" and _talkers(line) else ""


def _talking_means_someone_talks(line: _LineSeen) -> str:
    if line.state == "talking" and not _talkers(line):
        return "talking, but nobody talks"
    if line.kind in {"hoot", "broadcast"} and line.state == "connected" and _talkers(line):
        return "someone talks, but the state is connected"
    return ""


def _one_caller(line: _LineSeen) -> str:
    callers = [user for user, (role, _) in (line.parties or {}).items() if role == "caller"]
    wanted = 0 if line.kind == "hoot" or line.state == "idle" else 1
    if len(callers) != wanted:
        return f"{len(callers)} callers"
    if line.kind == "broadcast" and set(_talkers(line)) - set(callers):
        return "a listener talks on a broadcast"
    return ""


_RULES: tuple[Callable[[_LineSeen], str], ...] = (
    _idle_means_empty,
    _not_too_many,
    _two_in_a_conversation,
    _nobody_talks_while_it_rings,
    _talking_means_someone_talks,
    _one_caller,
)


def check(entries: Iterable[Entry], *, finished: bool = False) -> list[str]:
    """What is wrong with these entries, of one process or several. ``finished``: no call may be left open."""
    entries = list(entries)
    members: dict[str, set[str]] = defaultdict(set)
    transitions = []
    for entry in entries:
        if entry["entry"] == "line":
            members[entry["line"]] |= set(entry["members"])
        elif entry["entry"] == "transition":
            transitions.append(entry)
    checker = _Checker(members)
    for entry in sorted(transitions, key=lambda entry: (entry["line"], entry["seq"])):
        checker.on_transition(entry)
    if finished:
        checker.finish(sorted(entries, key=lambda entry: entry.get("at", 0.0)))
    return checker.violations
