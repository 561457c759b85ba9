"""Places the demo's calls: for each path two softphones that log in, ring, answer, talk, and hang up.

A path is a carrier: how media travels between a softphone and the TURN hosts.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from relay.addresses import Address
from relay.emulator.softphone import (
    Call,
    Carrier,
    ConnectUdp,
    MediaSession,
    Pacer,
    Softphone,
    Trust,
    TurnTls,
    TurnWebSocket,
    UdpTurn,
)
from relay.emulator.softphone.voice import PACKETS_PER_SECOND, Speaker

# After the last packet has left, packets on their way have this long to arrive. Later ones are of no use.
STRAGGLERS_S = 2.0
# A line rings at once; on a machine that is busy with ten logins it may take a while.
RING_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Heard:
    """One direction of one call, after it has ended: for each packet sent its delay, or None if it never came."""

    path: str
    direction: str
    delays_ms: Sequence[float | None]
    wrong: int


@dataclass(frozen=True)
class Pair:
    """Two users who share a ringdown line."""

    caller: str
    callee: str
    line: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class RelayAccess:
    """A relay, and how to know it."""

    address: Address
    server_name: str
    trust: ssl.SSLContext


def paths(relay: RelayAccess) -> list[Carrier]:
    """Directly over UDP, and over each carrier through the relay. Only CONNECT-UDP names its TURN host there."""
    trust, tls = Trust(relay.trust, relay.server_name), relay.address
    return [
        UdpTurn(),
        TurnTls(tls, trust, name="TURN/TLS relay"),
        TurnWebSocket(f"wss://{tls}/turn", trust, name="WebSocket relay"),
        MediaSession(f"wss://{tls}/media", trust, name="session relay"),
        ConnectUdp(f"https://{tls}", trust),
    ]


async def place_call(
    url: str, pair: Pair, path: Carrier, seconds: float, *, on_tick: Callable[[], None], pacer: Pacer
) -> list[Heard]:
    """Call for some seconds. Returns what each side heard. Raises SoftphoneError if a call cannot be set up."""
    packets = round(seconds * PACKETS_PER_SECOND)
    async with (
        Softphone(url, pair.caller, pair.password, carrier=path, pacer=pacer, speaks=False) as caller,
        Softphone(url, pair.callee, pair.password, carrier=path, pacer=pacer, speaks=False) as callee,
    ):
        there = await caller.ring(pair.line)
        here = await callee.next_incoming(RING_TIMEOUT_S)
        await here.answer()
        await asyncio.gather(there.ready(), here.ready())
        progress = _Progress(there.legs[pair.callee].speaker, on_tick)
        pacer.add(progress.look)
        try:
            await asyncio.gather(there.say(packets), here.say(packets))
        finally:
            pacer.discard(progress.look)
        progress.look()
        await asyncio.gather(
            here.heard(pair.caller, packets, STRAGGLERS_S), there.heard(pair.callee, packets, STRAGGLERS_S)
        )
        heard = [
            _heard(path.name, "A→B", here, pair.caller, packets),
            _heard(path.name, "B→A", there, pair.callee, packets),
        ]
        await there.release()
        await here.ended(RING_TIMEOUT_S)
    return heard


def _heard(path: str, direction: str, call: Call, user_id: str, packets: int) -> Heard:
    listener = call.legs[user_id].listener
    assert listener is not None
    return Heard(path, direction, listener.delays_ms(packets), listener.wrong)


class _Progress:
    """Tells of each packet that a speaker has sent."""

    def __init__(self, speaker: Speaker, on_tick: Callable[[], None]) -> None:
        self._speaker = speaker
        self._on_tick = on_tick
        self._told = 0

    def look(self) -> None:
        """Tell of those that have not been told."""
        while self._told < self._speaker.sent:
            self._told += 1
            self._on_tick()
