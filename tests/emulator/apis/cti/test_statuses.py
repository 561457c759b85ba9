"""The status of each user's call, from the state of a line."""

from __future__ import annotations

import pytest

from relay.emulator.apis.cti.statuses import statuses_of
from relay.emulator.lines import LineKind
from relay.emulator.signaling.messages import LineStatus, PartyRole
from relay.emulator.signaling.state import Call, Line, LineSpec, Member, Party

USERS = ("anna", "ben", "chen")
SPEC = LineSpec("sPK-1-1", LineKind.HOOT, "Hoot", tuple(Member(user, user, "atlas", "Atlas") for user in USERS))
CALL = Call("c", "use1", 0.0)


def codes(status: LineStatus, offline: tuple[str, ...] = (), /, **parties: tuple[PartyRole, bool]) -> dict[str, int]:
    line = Line(status, 1, 0.0, {user: Party(*party) for user, party in parties.items()}, CALL if parties else None)
    return {each.user_id: each.call_status_code for each in statuses_of(SPEC, line, USERS, offline=offline)}


@pytest.mark.parametrize(
    ("parties", "expected"),
    [
        ({"anna": (PartyRole.TALKER, True), "ben": (PartyRole.LISTENER, False)}, (16, 17, 1)),
        (
            {"anna": (PartyRole.TALKER, True), "ben": (PartyRole.TALKER, True), "chen": (PartyRole.LISTENER, False)},
            (18, 18, 17),
        ),
        ({"anna": (PartyRole.LISTENER, False), "ben": (PartyRole.LISTENER, False)}, (17, 17, 1)),
        ({"anna": (PartyRole.TALKER, True)}, (16, 1, 1)),
    ],
)
def test_who_talks_and_who_listens(parties: dict[str, tuple[PartyRole, bool]], expected: tuple[int, ...]) -> None:
    assert tuple(codes(LineStatus.TALKING, **parties).values()) == expected


def test_a_line_that_rings_or_is_connected() -> None:
    two = {"anna": (PartyRole.CALLER, False), "ben": (PartyRole.CALLEE, False)}
    assert codes(LineStatus.RINGING, **two) == {"anna": 2, "ben": 3, "chen": 1}
    assert codes(LineStatus.CONNECTED, **two) == {"anna": 18, "ben": 18, "chen": 1}


def test_who_is_offline_has_no_idle_line() -> None:
    assert codes(LineStatus.IDLE, ("ben",)) == {"anna": 1, "ben": 0, "chen": 1}


def test_only_those_who_are_asked_for_are_told_of() -> None:
    assert [each.user_id for each in statuses_of(SPEC, Line(), ("ben", "fay"), guests=["fay"])] == ["ben", "fay"]
    assert [each.user_id for each in statuses_of(SPEC, Line(), ("ben", "fay"))] == ["ben"]
