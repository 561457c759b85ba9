"""The checker of event logs finds what should never have happened, and nothing in what is right."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.emulator.lines import LineKind
from relay.emulator.signaling.event_log import EventLog, read_event_log
from relay.emulator.signaling.inputs import (
    EVENTS,
    Answer,
    Deadline,
    Gone,
    Input,
    Join,
    Leave,
    Release,
    Removed,
    Ring,
    Talk,
)
from relay.emulator.signaling.invariants import check
from relay.emulator.signaling.machines import decide
from relay.emulator.signaling.state import Line, LineSpec
from tests.support.emulated_lines import line

USERS = frozenset({"a1", "a2", "b1", "b2"})
Entries = list[dict[str, Any]]


def run(log: EventLog, spec: LineSpec, *inputs: Input) -> None:
    """Note what the machine makes of these inputs, one each minute."""
    current = Line()
    for number, told in enumerate(inputs):
        decision = decide(spec, current, told, 60.0 * number)
        user = None if isinstance(told, Deadline | Removed) else told.user_id
        event = EVENTS.get(type(told), "deadline" if user is None else "gone")
        log.transition(spec, decision, event, user, 60.0 * number)
        current = decision.line


def call(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def ring(user: str, number: int) -> Ring:
    return Ring(user, call(number), reachable=USERS, disturbable=USERS)


def good_log(path: Path | None = None) -> EventLog:
    log = EventLog(path)
    for user in sorted(USERS):
        log.session(user, "opened", 0.0)
    run(
        log,
        line(LineKind.RINGDOWN, *sorted(USERS)),
        ring("a1", 1),
        Answer("b1"),
        Release("a1"),
        ring("b1", 2),
        Deadline(),
    )
    run(
        log,
        line(LineKind.HOOT, *sorted(USERS)),
        Join("a1", call(3)),
        Join("b1", call(4)),
        Talk("b1", on=True),
        Talk("b1", on=False),
        Leave("a1"),
        Leave("b1"),
    )
    run(log, line(LineKind.SHOUTDOWN, *sorted(USERS)), ring("a1", 5), Talk("b1", on=True), Gone("a1"))
    log.session("a1", "ended", 1000.0)
    return log


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert check(good_log().entries, finished=True) == []


def test_files_of_several_processes_are_read_together(tmp_path: Path) -> None:
    path, others = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    good_log(path).close()
    lines = path.read_text().splitlines(keepends=True)
    # The other process has every second entry, and was killed while it wrote one more.
    others.write_text("".join(lines[1::2]) + '{"entry": "transi')
    path.write_text("".join(lines[::2]))
    entries = read_event_log(path, others)
    assert len(entries) == len(lines)
    assert check(entries, finished=True) == []


def of(entries: Entries, kind: str, seq: int) -> dict[str, Any]:
    """The entry of a line's transition."""
    return next(entry for entry in entries if entry.get("seq") == seq and entry["kind"] == kind)


def change(kind: str, seq: int, **fields: object) -> Callable[[Entries], None]:
    return lambda entries: of(entries, kind, seq).update(copy.deepcopy(fields))


def change_record(kind: str, seq: int, **fields: object) -> Callable[[Entries], None]:
    return lambda entries: of(entries, kind, seq)["ended"].update(fields)


def remove(kind: str, seq: int) -> Callable[[Entries], None]:
    return lambda entries: entries.remove(of(entries, kind, seq))


def repeat(kind: str, seq: int) -> Callable[[Entries], None]:
    return lambda entries: entries.append(of(entries, kind, seq))


def cut(kind: str, after_seq: int) -> Callable[[Entries], None]:
    def keep(entries: Entries) -> None:
        entries[:] = [entry for entry in entries if entry.get("kind") != kind or entry.get("seq", 0) <= after_seq]

    return keep


WRONG = [
    (remove("ringdown", 2), "seq 3, but 2 was expected"),
    (repeat("ringdown", 2), "seq 2, but 3 was expected"),
    (change("ringdown", 1, state="connected"), "went from idle to connected"),
    (change("ringdown", 3, state="talking"), "went from connected to talking"),
    (change("ringdown", 1, parties={"a1": ["caller", False, True], "x9": ["callee", False, True]}), "do not have"),
    (change("ringdown", 2, event="deadline"), "answered by deadline"),
    (change("ringdown", 5, reason="left"), "ringing ended with left"),
    (change("ringdown", 2, parties={}), "connected ringdown line with 3"),
    (change("ringdown", 2, call_id=call(9)), f"call {call(1)} became {call(9)}"),
    (change("ringdown", 4, call_id=call(1)), "began twice"),
    (change("ringdown", 3, ended=None), "without a record"),
    (
        change("ringdown", 1, parties={"a1": ["caller", True, True], "b1": ["callee", False, True]}),
        "while the line rings",
    ),
    (change("ringdown", 1, parties={"a1": ["callee", False, True], "b1": ["callee", False, True]}), "0 callers"),
    (change_record("ringdown", 3, call_id=call(8)), f"the record is of {call(8)}"),
    (change_record("ringdown", 5, call_id=call(1)), "ended twice"),
    (change_record("ringdown", 3, end_reason="timeout"), "the record says timeout"),
    (change_record("ringdown", 3, started_at=1e6), "out of order"),
    (change_record("ringdown", 3, participants={"x9": ["caller", 0, 1]}), "the record has ['x9']"),
    (change("hoot", 2, parties={"a1": ["listener", False, True]}), "a1 entered twice"),
    (change("hoot", 5, parties={"a2": None}), "a2 left, but was not in the call"),
    (change("hoot", 3, parties={"a2": ["talker", True, False]}), "a2 changed, but was not in the call"),
    (change("hoot", 3, parties={}), "talking, but nobody talks"),
    (change("hoot", 4, parties={}), "someone talks, but the state is connected"),
    (change("hoot", 3, parties={f"t{n}": ["talker", True, True] for n in range(13)}), "13 talk at once"),
    (change("hoot", 2, parties={f"t{n}": ["listener", False, True] for n in range(800)}), "801 subscribers"),
    (change("hoot", 6, parties={}), "idle with 1 in the call"),
    (cut("hoot", 5), f"call {call(3)} has not ended"),
    (change("shoutdown", 1, parties={"a1": ["caller", True, True]}), "shoutdown with 1 in the call"),
    (cut("shoutdown", 2), "a1 is in a call, but their session has ended"),
]


@pytest.mark.parametrize(("spoil", "expected"), WRONG, ids=[expected for _, expected in WRONG])
def test_what_is_wrong_is_found(spoil: Callable[[Entries], None], expected: str) -> None:
    entries = json.loads(json.dumps(good_log().entries))
    spoil(entries)
    found = check(entries, finished=True)
    assert any(expected in violation for violation in found), found


def test_a_broadcast_has_one_talker() -> None:
    log = EventLog()
    run(log, line(LineKind.BROADCAST, *sorted(USERS)), ring("a1", 1), Leave("b1"))
    assert check(log.entries) == []
    entries = json.loads(json.dumps(log.entries))
    of(entries, "broadcast", 1)["parties"]["b2"][1] = True
    assert any("a listener talks" in violation for violation in check(entries))


def test_a_log_that_begins_in_the_middle_of_a_call_is_checked_from_the_next_one() -> None:
    log = EventLog(max_entries=3)
    run(
        log,
        line(LineKind.RINGDOWN, *sorted(USERS)),
        ring("a1", 1),
        Answer("b1"),
        Release("a1"),
        ring("b1", 2),
        Deadline(),
    )
    assert [entry["seq"] for entry in log.entries[1:]] == [3, 4, 5]
    assert check(log.entries, finished=True) == []
    entries = json.loads(json.dumps(log.entries))
    of(entries, "ringdown", 4)["state"] = "connected"
    assert check(entries) != []


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.emulator.signaling.event_log.MAX_FILE_BYTES", 2000)
    log = good_log(tmp_path / "events.jsonl")
    log.close()
    assert log.dropped > 0
    assert (tmp_path / "events.jsonl").stat().st_size <= 2000
    assert check(log.entries, finished=True) == []
