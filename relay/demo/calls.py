"""Places the demo's calls: for each path two softphones, each with an allocation of its own, 50 packets a second."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from relay.addresses import Address
from relay.client.turn import OnData, TurnConnection, open_turn_tls, open_turn_udp
from relay.demo.softphone import PACKETS_PER_SECOND, Softphone, Stream

# What is under way when the last packet has left has this long to arrive; later it is of no use to anybody.
STRAGGLERS_S = 2.0

OpenTurn = Callable[[OnData], Awaitable[TurnConnection]]


@dataclass(frozen=True)
class Path:
    """A way to the upstream, and how to open it."""

    name: str
    open_turn: OpenTurn


@dataclass(frozen=True)
class Heard:
    """One direction of one call, after it has ended."""

    path: str
    direction: str
    stream: Stream


def udp_path(upstream: Address, username: str, password: str) -> Path:
    """Over UDP, directly to the upstream."""
    return Path(
        "UDP direct",
        lambda on_data: open_turn_udp(upstream, username, password, on_data=on_data),
    )


def tls_path(relay: Address, server_name: str, trust: ssl.SSLContext, username: str, password: str) -> Path:
    """Over TURN/TLS, through the relay."""
    return Path(
        "TURN/TLS relay",
        lambda on_data: open_turn_tls(
            relay, username, password, ssl_context=trust, server_hostname=server_name, on_data=on_data
        ),
    )


async def place_call(path: Path, seconds: float, on_tick: Callable[[], None]) -> list[Heard]:
    """Call for so many seconds; what each side heard of the other. Raises UpstreamError if it cannot be set up."""
    packets = round(seconds * PACKETS_PER_SECOND)
    there, back = Stream(packets), Stream(packets)
    caller, callee = Softphone(there, back), Softphone(back, there)
    async with _turn(path, caller) as caller_turn, _turn(path, callee) as callee_turn:
        caller_address, callee_address = await caller_turn.allocate(), await callee_turn.allocate()
        await caller.dial(caller_turn, callee_address)
        await callee.dial(callee_turn, caller_address)
        await _talk((caller, callee), packets, on_tick)
        await _wait_for_stragglers(there, back)
    return [Heard(path.name, "A→B", there), Heard(path.name, "B→A", back)]


@contextlib.asynccontextmanager
async def _turn(path: Path, phone: Softphone) -> AsyncIterator[TurnConnection]:
    async with await path.open_turn(phone.hear) as turn:
        yield turn


async def _talk(phones: tuple[Softphone, ...], packets: int, on_tick: Callable[[], None]) -> None:
    """Absolute deadlines: a late packet does not make the next ones late."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(packets):
        await asyncio.sleep(start + number / PACKETS_PER_SECOND - loop.time())
        for phone in phones:
            phone.speak()
        on_tick()


async def _wait_for_stragglers(*streams: Stream) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STRAGGLERS_S):
            for stream in streams:
                await stream.complete.wait()
