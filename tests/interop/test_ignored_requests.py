"""Requests that a real coturn ignores: the relay asks something itself, which coturn answers, and the call goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.plane.taps import Tap
from relay.quality.stream import Direction
from relay.wire.stun import MessageClass, Method, build_message
from tests.support.benches.gateway import running_relay
from tests.support.peers.coturn import PASSWORD, USERNAME, open_coturn
from tests.support.waiting import eventually

SILENCE_S = 1.0
TRANSACTION = b"ignored 0001"


def with_attribute(message: bytes, kind: int, value: bytes) -> bytes:
    """A message with one more attribute, whose length is what it is and whose place is made up to a whole word."""
    attribute = kind.to_bytes(2) + len(value).to_bytes(2) + value + bytes(-len(value) & 3)
    length = len(message) - 20 + len(attribute)
    return message[:2] + length.to_bytes(2) + message[4:] + attribute


# A CreatePermission that is authenticated by nobody, and damaged: its FINGERPRINT (0x8028) fits nothing.
IGNORED = with_attribute(
    build_message(Method.CREATE_PERMISSION, MessageClass.REQUEST, TRANSACTION), 0x8028, b"\x12\x34\x56\x78"
)


class Watched:
    """What a tap has seen so far: the relay's questions, and which of them were answered."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._asked: list[bytes] = []
        self.answered: list[bytes] = []

    def look(self) -> int:
        """How many questions have been answered."""
        for datagram in self._tap.take(1000):
            identity = datagram.data[8:20]
            if datagram.direction is Direction.UPLINK and len(datagram.data) == 20 and identity != TRANSACTION:
                self._asked.append(datagram.data)
            elif datagram.direction is Direction.DOWNLINK:
                self.answered += [asked for asked in self._asked if asked[8:20] == identity]
        return len(self.answered)


def methods(asked: list[bytes]) -> Iterator[int]:
    return (int.from_bytes(one[:2]) for one in asked)


@pytest.mark.parametrize("plane", ["compiled", "reference"])
@pytest.mark.parametrize(
    ("option", "answers"), [("", {Method.BINDING, Method.CREATE_PERMISSION}), ("no-stun", {Method.CREATE_PERMISSION})]
)
async def test_a_request_that_coturn_ignores_ends_no_call(
    tmp_path: Path, plane: str, option: str, answers: set[Method]
) -> None:
    """With ``no-stun`` it leaves every Binding unanswered, and refuses what names no peer."""
    sections = {"limits": {"upstream_silence_s": SILENCE_S}, "listen": {"plane": plane}}
    async with (
        open_coturn(options=[option]) as coturn,
        running_relay(tmp_path, coturn.address, health={"fall": 100}, **sections) as relay,
        await relay.open_turn(USERNAME, PASSWORD) as turn,
    ):
        await turn.allocate()
        (flow,) = relay.gateway.plane.snapshot().flows
        tap = relay.gateway.plane.tap(flow.connection)
        assert tap is not None
        watched = Watched(tap)
        turn._link.send(IGNORED)
        await eventually(lambda: watched.look() >= 3)
        tap.close()
        assert set(methods(watched.answered)) == answers
        assert await turn.refresh() > 0
        assert not turn.closed.done()
