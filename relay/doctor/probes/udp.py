"""STUN and TURN over UDP, and packets between this machine and a relayed port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from relay.addresses import Address
from relay.client.requests import TurnRequestError
from relay.client.turn import TurnConnection, open_turn_udp
from relay.doctor.plan import Credentials, TurnSite
from relay.doctor.probes.context import Context
from relay.doctor.seen import StunSeen, TurnSeen
from relay.errors import UpstreamError
from relay.logs import printable
from relay.sockaddr import from_sockaddr

# Packets each way to a relayed port: some may be lost on a good line, all only if they are blocked.
PACKETS = 10
# 20 ms, as voice has, and of the size of voice. They begin like RTP, which some firewalls let pass and others do not.
INTERVAL_S = 0.02
PAYLOAD = bytes([0x80, 0]) + bytes(170)


async def binding(context: Context, site: TurnSite) -> StunSeen:
    """Ask a host for our address as it sees it."""
    address = context.located(site.name, site.address)
    loop = asyncio.get_running_loop()
    async with context.slots:
        try:
            async with await open_turn_udp(address, timeout_s=context.plan.limits.probe_s) as turn:
                started = loop.time()
                mapped = await turn.binding()
                took_ms = (loop.time() - started) * 1000
        except UpstreamError as error:
            return StunSeen(site.name, site.region, address, None, None, printable(str(error)))
    return StunSeen(site.name, site.region, address, took_ms, mapped)


async def allocation(context: Context, site: TurnSite, credentials: Credentials) -> TurnSeen:
    """Allocate, and send packets past the allocation's own 5-tuple to its relayed port, and back."""
    address = context.located(site.name, site.address)
    back = _Back()
    try:
        async with await open_turn_udp(
            address,
            credentials.username,
            credentials.password,
            on_data=back.on_data,
            timeout_s=context.plan.limits.probe_s,
        ) as turn:
            relayed = await turn.allocate()
            with _connected(relayed) as past:
                await _permit(turn, past)
                up, down = await _exchange(turn, past, back, context.plan.limits.answer_s)
    except TurnRequestError as error:
        return TurnSeen(site.name, site.region, None, fault=printable(str(error)), code=error.code)
    except (UpstreamError, OSError) as error:
        return TurnSeen(site.name, site.region, None, fault=printable(str(error)))
    return TurnSeen(site.name, site.region, relayed, PACKETS, up, down)


class _Back:
    """Counts what the TURN server hands on, and notes from where: a NAT may have changed the port."""

    def __init__(self) -> None:
        self.count = 0
        self.peer: Address | None = None

    def on_data(self, peer: Address, data: bytes) -> None:
        self.count += data == PAYLOAD
        self.peer = peer


async def _permit(turn: TurnConnection, past: socket.socket) -> None:
    """Let our own packets reach the allocation. Raises TurnRequestError if the server permits none of our addresses.

    It sees a NAT's address, or our own one if it is on this side of the NAT. A private address may be refused.
    """
    refusal: TurnRequestError | None = None
    wanted = {await turn.binding(), from_sockaddr(past.getsockname())}
    permitted = 0
    for address in wanted - {None}:
        assert address is not None
        try:
            await turn.create_permission(address)
            permitted += 1
        except TurnRequestError as error:
            refusal = error
    if not permitted and refusal is not None:
        raise refusal


async def _exchange(turn: TurnConnection, past: socket.socket, back: _Back, answer_s: float) -> tuple[int, int]:
    """How many packets came up and down. From the relayed port they can only come where one has gone there."""
    came = 0
    loop = asyncio.get_running_loop()

    def on_readable() -> None:
        nonlocal came
        with contextlib.suppress(OSError):
            while True:
                came += past.recv(2048) == PAYLOAD

    loop.add_reader(past.fileno(), on_readable)
    try:
        await _send(lambda: past.send(PAYLOAD), lambda: back.count, answer_s)
        peer = back.peer or from_sockaddr(past.getsockname())
        await _send(lambda: turn.send(peer, PAYLOAD), lambda: came, answer_s)
    finally:
        loop.remove_reader(past.fileno())
    return back.count, came


def _connected(address: Address) -> socket.socket:
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


async def _send(send: Callable[[], object], arrived: Callable[[], int], answer_s: float) -> None:
    """Send all packets at the pace of voice, and wait until they have come, or for as long as an answer may take."""
    loop = asyncio.get_running_loop()
    for _ in range(PACKETS):
        # ICMP's refusal of an earlier one shows here. What counts is what arrives.
        with contextlib.suppress(OSError):
            send()
        await asyncio.sleep(INTERVAL_S)
    deadline = loop.time() + answer_s
    while arrived() < PACKETS and loop.time() < deadline:  # noqa: ASYNC110 - what arrives is counted in a callback
        await asyncio.sleep(INTERVAL_S)
