"""Places the demo's calls: for each path two softphones, each with an allocation of its own, 50 packets a second.

A path is a carrier: how media travels between a softphone and the upstream.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypedDict

from relay.addresses import Address
from relay.client.carriers import open_turn_connect_udp, open_turn_websocket
from relay.client.session import Session, open_session
from relay.client.turn import OnData, open_turn_tls, open_turn_udp
from relay.demo.softphone import PACKETS_PER_SECOND, Line, Softphone, Stream

# After the last packet has left, packets on their way have this long to arrive. Later ones are of no use.
STRAGGLERS_S = 2.0

OpenLine = Callable[[OnData], Awaitable[Line]]


@dataclass(frozen=True)
class Path:
    """A way to the upstream, and how to open it."""

    name: str
    open_line: OpenLine


@dataclass(frozen=True)
class Heard:
    """One direction of one call, after it has ended."""

    path: str
    direction: str
    stream: Stream


@dataclass(frozen=True)
class Account:
    """Who calls."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class RelayAccess:
    """A relay, and how to know it."""

    address: Address
    server_name: str
    trust: ssl.SSLContext


def udp_path(upstream: Address, account: Account) -> Path:
    """Over UDP, directly to the upstream."""
    username, password = account.username, account.password
    return Path("UDP direct", lambda on_data: open_turn_udp(upstream, username, password, on_data=on_data))


def relay_paths(relay: RelayAccess, upstream: Address, account: Account) -> list[Path]:
    """Over each carrier, through the relay. CONNECT-UDP names its upstream; for the others the relay chooses one."""
    username, password, tls = account.username, account.password, relay.address
    trusted: _Trusted = {"ssl_context": relay.trust, "server_hostname": relay.server_name}

    async def session(on_data: OnData) -> Line:
        opened = await open_session(
            f"wss://{tls}/media", username=username, password=password, on_data=on_data, **trusted
        )
        return _SessionLine(opened)

    return [
        Path("TURN/TLS relay", lambda on_data: open_turn_tls(tls, username, password, on_data=on_data, **trusted)),
        Path(
            "WebSocket relay",
            lambda on_data: open_turn_websocket(f"wss://{tls}/turn", username, password, on_data=on_data, **trusted),
        ),
        Path("session relay", session),
        Path(
            "CONNECT-UDP",
            lambda on_data: open_turn_connect_udp(
                f"https://{tls}", upstream, username, password, on_data=on_data, **trusted
            ),
        ),
    ]


class _Trusted(TypedDict):
    ssl_context: ssl.SSLContext
    server_hostname: str


class _SessionLine:
    """A session, which has its allocation when it opens."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.send = session.send
        self.close = session.close
        self.bind_channel = session.bind

    async def allocate(self) -> Address:
        return self._session.relayed_address


async def place_call(path: Path, seconds: float, on_tick: Callable[[], None]) -> list[Heard]:
    """Call for some seconds. Returns what each side heard. Raises UpstreamError if a call cannot be set up."""
    packets = round(seconds * PACKETS_PER_SECOND)
    there, back = Stream(packets), Stream(packets)
    caller, callee = Softphone(there, back), Softphone(back, there)
    async with _line(path, caller) as caller_line, _line(path, callee) as callee_line:
        caller_address, callee_address = await caller_line.allocate(), await callee_line.allocate()
        await caller.dial(caller_line, callee_address)
        await callee.dial(callee_line, caller_address)
        await _talk((caller, callee), packets, on_tick)
        await _wait_for_stragglers(there, back)
    return [Heard(path.name, "A→B", there), Heard(path.name, "B→A", back)]


@contextlib.asynccontextmanager
async def _line(path: Path, phone: Softphone) -> AsyncIterator[Line]:
    line = await path.open_line(phone.hear)
    try:
        yield line
    finally:
        await line.close()


async def _talk(phones: tuple[Softphone, ...], packets: int, on_tick: Callable[[], None]) -> None:
    """Wait for absolute deadlines, so that one late packet does not make the next ones late."""
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
