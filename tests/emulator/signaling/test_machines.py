"""The machines of lines: each input in each state, the rules of each kind, and any sequence of inputs."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.emulator.lines import MAX_SUBSCRIBERS, MAX_TALKERS, LineKind
from relay.emulator.signaling.event_log import build_transition
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
    Silenced,
    Talk,
)
from relay.emulator.signaling.invariants import check
from relay.emulator.signaling.machines import TABLES, decide
from relay.emulator.signaling.messages import (
    EndReason,
    ErrorCode,
    LineState,
    LineStatus,
    PartyRole,
)
from relay.emulator.signaling.state import (
    Decision,
    Line,
    LineSpec,
    Refusal,
    Stay,
    build_line_state,
    dump_line,
    dump_record,
    load_line,
    load_record,
)
from relay.emulator.signaling.transitions import DIAL_ANSWER_S, RING_TIMEOUT_S
from tests.support.emulated_lines import line
from tests.support.properties import repeatable

USERS = ("a1", "a2", "b1", "b2")
EVERYONE = frozenset(USERS)
CALL = "0b0fa6b2-7f0b-4a7b-9d3c-2f6b1c9f7a10"
START = 1_700_000_000.0

# Shorthands


def ring(user: str, call_id: str = CALL, **fields: object) -> Ring:
    known = {"reachable": EVERYONE, "disturbable": EVERYONE, "region": "london", **fields}
    return Ring(user, call_id, **known)  # type: ignore[arg-type]


def join(user: str) -> Join:
    return Join(user, CALL, "london")


def after(spec: LineSpec, *inputs: Input, at: float = START) -> Line:
    """The line after these inputs, one a second."""
    now = Line()
    for number, told in enumerate(inputs):
        now = decide(spec, now, told, at + number).line
    return now


def refused(spec: LineSpec, before: Line, told: Input) -> ErrorCode:
    with pytest.raises(Refusal) as refusal:
        decide(spec, before, told, START + 100)
    assert refusal.value.info.message
    assert refusal.value.info.expected
    return refusal.value.info.code


def who(now: Line) -> dict[str, tuple[PartyRole, bool]]:
    return {user: (party.role, party.talking) for user, party in now.parties.items()}


SPECS = {kind: line(kind, *USERS) for kind in LineKind}
NUMBER = {LineKind.DIAL_TONE: "+442071234567"}
# A way into each state of each kind.
WAYS: dict[tuple[LineKind, LineStatus], tuple[Input, ...]] = {
    **{(kind, LineStatus.IDLE): () for kind in LineKind},
    (LineKind.RINGDOWN, LineStatus.RINGING): (ring("a1"),),
    (LineKind.RINGDOWN, LineStatus.CONNECTED): (ring("a1"), Answer("b1")),
    (LineKind.SHOUTDOWN, LineStatus.TALKING): (ring("a1"),),
    (LineKind.SHOUTDOWN, LineStatus.CONNECTED): (ring("a1"), Talk("b1", on=True)),
    (LineKind.HOOT, LineStatus.CONNECTED): (join("a1"), join("b1")),
    (LineKind.HOOT, LineStatus.TALKING): (join("a1"), join("b1"), Talk("a1", on=True)),
    (LineKind.INTERCOM, LineStatus.CONNECTED): (ring("a1"),),
    (LineKind.DIAL_TONE, LineStatus.RINGING): (ring("a1", number="+442071234567"),),
    (LineKind.DIAL_TONE, LineStatus.CONNECTED): (ring("a1", number="+442071234567"), Deadline()),
    (LineKind.BROADCAST, LineStatus.TALKING): (ring("a1"),),
    (LineKind.BROADCAST, LineStatus.CONNECTED): (ring("a1"), Talk("a1", on=False)),
}
# What each input by each of three users does: the next state, or why it is refused, or "=" for nothing. a1 is in the
# call and began it, b1 is in it too (or it rings for them), a2 is a colleague of a1.
CASES = """
kind      state     input    a1            b1            a2
ringdown  idle      ring     ringing       ringing       ringing
ringdown  ringing   ring     wrong_state   connected     not_in_call
ringdown  ringing   answer   wrong_state   connected     not_in_call
ringdown  ringing   release  idle          ringing       not_in_call
ringdown  ringing   gone     idle          =             =
ringdown  ringing   deadline idle          idle          idle
ringdown  connected release  idle          idle          not_in_call
ringdown  connected gone     idle          idle          =
shoutdown idle      ring     talking       talking       talking
shoutdown talking   talk     =             connected     not_in_call
shoutdown talking   quiet    connected     =             not_in_call
shoutdown talking   release  idle          talking       not_in_call
shoutdown talking   gone     idle          talking       =
shoutdown connected talk     =             =             not_in_call
shoutdown connected quiet    talking       talking       not_in_call
shoutdown connected release  idle          talking       not_in_call
shoutdown connected gone     idle          talking       =
hoot      idle      join     connected     connected     connected
hoot      connected join     =             =             connected
hoot      connected talk     talking       talking       not_in_call
hoot      connected quiet    =             =             not_in_call
hoot      connected leave    connected     connected     not_in_call
hoot      connected release  connected     connected     not_in_call
hoot      connected gone     connected     connected     =
hoot      talking   join     =             =             talking
hoot      talking   talk     =             talking       not_in_call
hoot      talking   quiet    connected     =             not_in_call
hoot      talking   leave    connected     talking       not_in_call
hoot      talking   release  connected     talking       not_in_call
hoot      talking   gone     connected     talking       =
intercom  idle      ring     connected     connected     connected
intercom  connected release  idle          connected     not_in_call
intercom  connected gone     idle          connected     =
dial_tone idle      ring     ringing       ringing       ringing
dial_tone ringing   answer   wrong_state   not_in_call   not_in_call
dial_tone ringing   release  idle          not_in_call   not_in_call
dial_tone ringing   gone     idle          =             =
dial_tone ringing   deadline connected     connected     connected
dial_tone connected release  idle          not_in_call   not_in_call
dial_tone connected gone     idle          =             =
broadcast idle      ring     talking       talking       talking
broadcast talking   join     =             =             talking
broadcast talking   talk     =             wrong_state   not_in_call
broadcast talking   quiet    connected     wrong_state   not_in_call
broadcast talking   leave    idle          talking       not_in_call
broadcast talking   release  idle          talking       not_in_call
broadcast talking   gone     idle          talking       =
broadcast connected join     =             =             connected
broadcast connected talk     talking       wrong_state   not_in_call
broadcast connected quiet    =             wrong_state   not_in_call
broadcast connected leave    idle          connected     not_in_call
broadcast connected release  idle          connected     not_in_call
broadcast connected gone     idle          connected     =
"""
MAKERS: dict[str, Callable[[str], Input]] = {
    "ring": ring,
    "answer": Answer,
    "release": Release,
    "talk": lambda user: Talk(user, on=True),
    "quiet": lambda user: Talk(user, on=False),
    "join": join,
    "leave": Leave,
    "gone": Gone,
    "deadline": lambda _: Deadline(),
}


def expectations() -> dict[tuple[LineKind, LineStatus, str], list[str]]:
    """The table above, completed: what is not in it is refused, or nothing if nobody asked for it."""
    told = [row.split() for row in CASES.strip().splitlines()[1:]]
    known = {(LineKind(kind), LineStatus(state), name): list(rest) for kind, state, name, *rest in told}
    for (kind, state), name in itertools.product(WAYS, MAKERS):
        otherwise = "=" if name in {"gone", "deadline"} else "wrong_state"
        known.setdefault((kind, state, name), [otherwise] * 3)
    return known


EXPECTATIONS = expectations()


def prepared(kind: LineKind, state: LineStatus) -> Line:
    """A line in a state: a1 and b1 are in the call, and a2 is not."""
    inputs = WAYS[kind, state]
    if kind in {LineKind.SHOUTDOWN, LineKind.INTERCOM, LineKind.BROADCAST}:
        inputs = tuple(
            replace(told, reachable=EVERYONE - {"a2"}) if isinstance(told, Ring) else told for told in inputs
        )
    before = after(SPECS[kind], *inputs, at=START)
    assert before.status is state
    return before


@pytest.mark.parametrize(("kind", "state", "name"), EXPECTATIONS)
def test_each_input_in_each_state(kind: LineKind, state: LineStatus, name: str) -> None:
    spec, before = SPECS[kind], prepared(kind, state)
    for user, expected in zip(("a1", "b1", "a2"), EXPECTATIONS[kind, state, name], strict=True):
        told = MAKERS[name](user)
        if isinstance(told, Ring):
            told = replace(told, number=NUMBER.get(kind))
        if expected in set(ErrorCode):
            assert refused(spec, before, told) == expected
            continue
        decision = decide(spec, before, told, START + 1000)
        if expected == "=":
            assert decision.line == before
            assert not decision.changed
        else:
            assert decision.line.status == expected
            assert decision.line.seq == before.seq + 1
            assert (decision.ended is not None) == (expected == "idle")


def test_tables_have_no_state_that_is_not_tried() -> None:
    assert {(kind, state) for kind, table in TABLES.items() for state in table} == set(WAYS)
    assert set(EVENTS) == set(Input.__args__) - {Gone, Silenced, Deadline, Removed}


@pytest.mark.parametrize(("kind", "state"), WAYS)
def test_a_line_that_is_removed_ends_its_call(kind: LineKind, state: LineStatus) -> None:
    decision = decide(SPECS[kind], prepared(kind, state), Removed(), START + 1000)
    assert decision.line.status is LineStatus.IDLE
    assert (decision.ended is not None) == decision.changed == (state is not LineStatus.IDLE)
    assert decision.ended is None or decision.ended.end_reason is EndReason.REMOVED


@pytest.mark.parametrize("kind", LineKind)
def test_strangers_have_no_line(kind: LineKind) -> None:
    for name, make in MAKERS.items():
        if name not in {"gone", "deadline"}:
            assert refused(SPECS[kind], Line(), make("c1")) is ErrorCode.UNKNOWN_LINE
    assert not decide(SPECS[kind], Line(), Gone("c1"), START).changed
    assert not decide(SPECS[kind], Line(), Silenced("c1"), START).changed


# Ringdown


def test_ringdown_rings_at_the_other_end_only() -> None:
    ringing = after(SPECS[LineKind.RINGDOWN], ring("a1"))
    assert who(ringing) == {
        "a1": (PartyRole.CALLER, False),
        "b1": (PartyRole.CALLEE, False),
        "b2": (PartyRole.CALLEE, False),
    }
    assert ringing.deadline == START + RING_TIMEOUT_S


def test_ringdown_within_a_firm_rings_for_all_others() -> None:
    assert set(
        after(line(LineKind.RINGDOWN, "a1", "a2", "a3"), ring("a2", disturbable=frozenset({"a1", "a3"}))).parties
    ) == {
        "a1",
        "a2",
        "a3",
    }


def test_ringdown_does_not_ring_for_those_who_do_not_want_to_be_disturbed() -> None:
    spec = SPECS[LineKind.RINGDOWN]
    assert set(after(spec, ring("a1", disturbable=frozenset({"b2"}))).parties) == {"a1", "b2"}
    assert refused(spec, Line(), ring("a1", disturbable=frozenset({"a2"}))) is ErrorCode.NOBODY_THERE


def test_who_answers_first_is_connected_and_the_record_knows_for_whom_it_rang() -> None:
    spec = SPECS[LineKind.RINGDOWN]
    connected = after(spec, ring("a1"), Answer("b2"))
    assert who(connected) == {"a1": (PartyRole.CALLER, True), "b2": (PartyRole.CALLEE, True)}
    assert connected.deadline is None
    assert refused(spec, connected, Answer("b1")) is ErrorCode.WRONG_STATE
    ended = decide(spec, connected, Release("b2"), START + 9).ended
    assert ended is not None
    assert (ended.started_at, ended.answered_at, ended.ended_at) == (START, START + 1, START + 9)
    assert ended.end_reason is EndReason.RELEASED
    assert ended.region == "london"
    assert dict(ended.participants) == {
        "a1": Stay(PartyRole.CALLER, START, START + 9),
        "b1": Stay(PartyRole.CALLEE, None, None),
        "b2": Stay(PartyRole.CALLEE, START + 1, START + 9),
    }


def test_ringing_ends_when_all_have_declined() -> None:
    spec = SPECS[LineKind.RINGDOWN]
    ringing = after(spec, ring("a1"), Release("b1"))
    assert set(ringing.parties) == {"a1", "b2"}
    decision = decide(spec, ringing, Release("b2"), START + 3)
    assert decision.ended is not None
    assert decision.ended.end_reason is decision.line.reason is EndReason.DECLINED
    assert decision.ended.answered_at is None


def test_ringing_ends_at_its_deadline_and_not_before() -> None:
    spec = SPECS[LineKind.RINGDOWN]
    ringing = after(spec, ring("a1"))
    assert not decide(spec, ringing, Deadline(), START + RING_TIMEOUT_S - 0.001).changed
    assert decide(spec, ringing, Deadline(), START + RING_TIMEOUT_S).line.reason is EndReason.TIMEOUT


def test_the_reason_is_told_until_the_next_call() -> None:
    spec = SPECS[LineKind.RINGDOWN]
    idle = after(spec, ring("a1"), Release("a1"))
    assert (idle.status, idle.reason, idle.seq) == (LineStatus.IDLE, EndReason.RELEASED, 2)
    assert decide(spec, idle, ring("b1"), START + 5).line.reason is None


# Shoutdown


def test_shoutdown_is_directional() -> None:
    spec = SPECS[LineKind.SHOUTDOWN]
    one_way = after(spec, ring("a1", reachable=frozenset({"a2", "b1"})))
    assert who(one_way) == {"a1": (PartyRole.CALLER, True), "b1": (PartyRole.CALLEE, False)}
    both = decide(spec, one_way, Talk("b1", on=True), START + 1).line
    assert (one_way.status, both.status) == (LineStatus.TALKING, LineStatus.CONNECTED)
    other_way = decide(spec, both, Talk("a1", on=False), START + 2).line
    assert (other_way.status, other_way.talkers) == (LineStatus.TALKING, ("b1",))


def test_two_talkers_of_one_side_are_one_direction() -> None:
    both = after(SPECS[LineKind.SHOUTDOWN], ring("a1"), Talk("a1", on=False), Talk("b1", on=True), Talk("b2", on=True))
    assert both.status is LineStatus.TALKING


@pytest.mark.parametrize("kind", [LineKind.SHOUTDOWN, LineKind.INTERCOM, LineKind.BROADCAST])
def test_nothing_connects_to_nobody(kind: LineKind) -> None:
    assert refused(SPECS[kind], Line(), ring("a1", reachable=frozenset({"a1"}))) is ErrorCode.NOBODY_THERE


# Hoot


def hoot_of(count: int) -> tuple[LineSpec, Line]:
    users = [f"a{number}" for number in range(count + 1)]
    spec = line(LineKind.HOOT, *users)
    return spec, after(spec, *(join(user) for user in users[:count]))


def test_at_most_twelve_talk_at_once() -> None:
    spec, joined = hoot_of(20)
    talking = joined
    for number in range(MAX_TALKERS):
        talking = decide(spec, talking, Talk(f"a{number}", on=True), START + 100).line
    assert len(talking.talkers) == MAX_TALKERS
    assert refused(spec, talking, Talk("a12", on=True)) is ErrorCode.FLOOR_FULL
    # One of the twelve may say so again, and whoever stops makes room.
    assert not decide(spec, talking, Talk("a3", on=True), START + 100).changed
    room = decide(spec, talking, Talk("a3", on=False), START + 100).line
    assert "a12" in decide(spec, room, Talk("a12", on=True), START + 100).line.talkers


def test_a_hoot_has_at_most_800_subscribers() -> None:
    spec, joined = hoot_of(MAX_SUBSCRIBERS)
    assert refused(spec, joined, join(f"a{MAX_SUBSCRIBERS}")) is ErrorCode.LINE_FULL
    left = decide(spec, joined, Leave("a5"), START + 1000)
    assert left.only_listeners_changed
    assert decide(spec, left.line, join(f"a{MAX_SUBSCRIBERS}"), START + 1001).changed


def test_the_last_who_leaves_ends_the_hoot() -> None:
    spec = SPECS[LineKind.HOOT]
    decision = decide(spec, after(spec, join("a1"), join("b1"), Leave("a1")), Leave("b1"), START + 9)
    assert decision.ended is not None
    assert decision.ended.end_reason is EndReason.LEFT
    assert dict(decision.ended.participants)["a1"] == Stay(PartyRole.LISTENER, START, START + 2)


def test_the_record_of_a_hoot_tells_who_has_talked_and_who_came_back() -> None:
    spec = SPECS[LineKind.HOOT]
    now = after(spec, join("a1"), join("b1"), Talk("a1", on=True), Leave("a1"), Leave("b1"))
    assert now.status is LineStatus.IDLE
    back = after(spec, join("a1"), join("b1"), Talk("b1", on=True), Talk("b1", on=False), Leave("a1"), join("a1"))
    ended = decide(spec, decide(spec, back, Gone("b1"), START + 8).line, Gone("a1"), START + 9).ended
    assert ended is not None
    assert ended.end_reason is EndReason.GONE
    assert dict(ended.participants) == {
        "a1": Stay(PartyRole.LISTENER, START, START + 9),
        "b1": Stay(PartyRole.TALKER, START + 1, START + 8),
    }


@pytest.mark.parametrize(
    ("kind", "count"),
    [(LineKind.RINGDOWN, 51), (LineKind.BROADCAST, MAX_SUBSCRIBERS + 1), (LineKind.HOOT, 2 * MAX_SUBSCRIBERS + 1)],
)
def test_a_line_has_no_more_members_than_its_messages_can_list(kind: LineKind, count: int) -> None:
    with pytest.raises(ValueError, match="members"):
        line(kind, *(f"a{number}" for number in range(count)))


# Dial tone


@pytest.mark.parametrize(
    ("number", "after_s", "state", "reason"),
    [
        ("+442071234567", DIAL_ANSWER_S, LineStatus.CONNECTED, None),
        ("5550486", DIAL_ANSWER_S, LineStatus.IDLE, EndReason.BUSY),
        ("5550404", DIAL_ANSWER_S, LineStatus.IDLE, EndReason.UNREACHABLE),
        ("5550408", RING_TIMEOUT_S, LineStatus.IDLE, EndReason.TIMEOUT),
    ],
)
def test_what_becomes_of_a_number(number: str, after_s: float, state: LineStatus, reason: EndReason | None) -> None:
    spec = SPECS[LineKind.DIAL_TONE]
    ringing = after(spec, ring("a1", number=number))
    assert ringing.deadline == START + after_s
    assert not decide(spec, ringing, Deadline(), START + after_s - 0.001).changed
    decision = decide(spec, ringing, Deadline(), START + after_s)
    assert (decision.line.status, decision.line.reason) == (state, reason)
    assert build_line_state(spec, ringing)["number"] == number


def test_an_extension_rings_for_its_user_who_need_not_have_the_line() -> None:
    spec = line(LineKind.DIAL_TONE, "a1")
    dialled = ring("a1", number="2001", callee="b1")
    ringing = after(spec, dialled)
    assert who(ringing) == {"a1": (PartyRole.CALLER, False), "b1": (PartyRole.CALLEE, False)}
    assert ringing.deadline == START + RING_TIMEOUT_S
    assert refused(spec, ringing, Answer("b2")) is ErrorCode.UNKNOWN_LINE
    connected = decide(spec, ringing, Answer("b1"), START + 1).line
    assert who(connected) == {"a1": (PartyRole.CALLER, True), "b1": (PartyRole.CALLEE, True)}
    assert decide(spec, connected, Release("b1"), START + 2).line.reason is EndReason.RELEASED
    assert decide(spec, ringing, Release("b1"), START + 2).line.reason is EndReason.DECLINED
    assert decide(spec, ringing, Deadline(), START + RING_TIMEOUT_S).line.reason is EndReason.TIMEOUT
    assert refused(spec, Line(), replace(dialled, disturbable=frozenset({"a2"}))) is ErrorCode.NOBODY_THERE
    assert refused(spec, Line(), replace(dialled, callee="a1")) is ErrorCode.BAD_MESSAGE


def test_listeners_do_not_talk() -> None:
    hoot = line(LineKind.HOOT, *USERS, listeners=("b1",))
    assert refused(hoot, after(hoot, join("b1")), Talk("b1", on=True)) is ErrorCode.WRONG_STATE
    shout = line(LineKind.SHOUTDOWN, *USERS, listeners=("b1",))
    assert refused(shout, Line(), ring("b1")) is ErrorCode.WRONG_STATE
    assert refused(shout, after(shout, ring("a1")), Talk("b1", on=True)) is ErrorCode.WRONG_STATE
    broadcast = line(LineKind.BROADCAST, *USERS, listeners=("a2", "b1", "b2"))
    assert refused(broadcast, Line(), ring("b1")) is ErrorCode.WRONG_STATE


@pytest.mark.parametrize(("kind", "state"), WAYS)
def test_who_may_only_listen_now_loses_the_floor(kind: LineKind, state: LineStatus) -> None:
    before, listeners = prepared(kind, state), line(kind, *USERS, listeners=("a1",))
    assert not decide(SPECS[kind], before, Silenced("a1"), START + 1000).changed
    decision = decide(listeners, before, Silenced("a1"), START + 1000)
    one_way = kind in {LineKind.HOOT, LineKind.SHOUTDOWN, LineKind.BROADCAST}
    assert decision.changed == (one_way and "a1" in before.talkers)
    if decision.changed:
        role = PartyRole.LISTENER if kind is LineKind.HOOT else PartyRole.CALLER
        assert who(decision.line) == {**who(before), "a1": (role, False)}
        # On a shoutdown the other end may talk still.
        talks_still = LineStatus.TALKING if decision.line.talkers else LineStatus.CONNECTED
        assert decision.line.status is talks_still
        assert decision.ended is None
        assert not decide(listeners, decision.line, Silenced("a1"), START + 1001).changed
        assert refused(listeners, decision.line, Talk("a1", on=True)) is ErrorCode.WRONG_STATE
        # Whoever still talks may stop by themselves, too.
        stopped = decide(listeners, before, Talk("a1", on=False), START + 1000).line
        assert "a1" not in stopped.talkers


def test_only_dial_tone_has_numbers() -> None:
    assert refused(SPECS[LineKind.DIAL_TONE], Line(), ring("a1")) is ErrorCode.BAD_MESSAGE
    for kind in (LineKind.RINGDOWN, LineKind.INTERCOM):
        assert refused(SPECS[kind], Line(), ring("a1", number="1")) is ErrorCode.BAD_MESSAGE


# Whatever happens


@st.composite
def histories(draw: st.DrawFn) -> tuple[LineKind, list[tuple[float, Input]]]:
    kind = draw(st.sampled_from(LineKind))
    users = st.sampled_from((*USERS, "c1"))
    some = st.frozensets(st.sampled_from(USERS))
    ids = st.uuids(version=4).map(str)
    numbers = st.sampled_from([None, "+442071234567", "5550486", "5550404", "5550408"])
    callees = st.sampled_from([None, "b1", "c1"])
    told = st.one_of(
        st.builds(Ring, users, ids, number=numbers, reachable=some, disturbable=some, callee=callees),
        st.builds(Answer, users),
        st.builds(Release, users),
        st.builds(Talk, users, on=st.booleans()),
        st.builds(Join, users, ids),
        st.builds(Leave, users),
        st.builds(Gone, users),
        st.builds(Silenced, users),
        st.just(Deadline()),
    )
    waits = st.sampled_from([0.0, 0.01, 1.0, 29.0, 31.0])
    return kind, draw(st.lists(st.tuples(waits, told), max_size=40))


def run_history(
    spec: LineSpec, inputs: list[tuple[float, Input]]
) -> tuple[Line, list[Decision], list[dict[str, object]]]:
    """What comes of it, and the entries of its log. The line hears its deadline as a hub tells it."""
    now, current = START, Line()
    entries: list[dict[str, object]] = [
        {"entry": "line", "line": spec.number, "kind": spec.kind, "members": spec.firm_of}
    ]
    decisions = []
    for wait, told in inputs:
        now += wait
        for one in (Deadline(), told):
            try:
                decision = decide(spec, current, one, now)
            except Refusal:
                continue
            if decision.changed:
                user = None if isinstance(one, Deadline | Removed) else one.user_id
                event = EVENTS.get(type(one), "deadline" if user is None else "gone")
                entries.append(build_transition(spec, decision, event, user, now))
                decisions.append(decision)
            current = decision.line
    return current, decisions, entries


@repeatable
@given(histories())
def test_any_history_keeps_the_rules(history: tuple[LineKind, list[tuple[float, Input]]]) -> None:
    kind, inputs = history
    spec = SPECS[kind]
    current, decisions, entries = run_history(spec, inputs)
    assert check(entries) == []
    for decision in decisions:
        assert decision.line.seq == decision.before.seq + 1
        assert load_line(json.loads(json.dumps(dump_line(decision.line)))) == decision.line
        LineState.model_validate_json(json.dumps(build_line_state(spec, decision.line)))
        if decision.ended is not None:
            assert load_record(json.loads(json.dumps(dump_record(decision.ended)))) == decision.ended
    # When all are gone, and every deadline has passed, nothing is left.
    end = [(100.0, Gone(user)) for user in USERS]
    current, _, entries = run_history(spec, [*inputs, *end])
    assert current.status is LineStatus.IDLE
    assert current.deadline is None
    assert check(entries, finished=True) == []


def test_states_of_crowds_list_talkers_only() -> None:
    spec, joined = hoot_of(60)
    talking = decide(spec, joined, Talk("a7", on=True), START + 100).line
    state = LineState.model_validate_json(json.dumps(build_line_state(spec, talking)))
    assert [party.user_id for party in state.participants] == ["a7"]
    assert state.subscribers == 60
    assert len(state.model_dump_json()) < 600


def test_call_ids_are_uuids() -> None:
    assert uuid.UUID(CALL).version == 4
