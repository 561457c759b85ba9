"""Flows without an allocation end, on every plane and carrier: whoever holds a UDP socket uses it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.plane.api import Carrier, CloseReason, TurnOpened
from relay.wire.capsule import build_datagram
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import AttributeType, MessageClass, Method, build_message, build_uint32
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.messages import HELLO, allocated, answer, stun
from tests.support.peers.carriers import binary, carried
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

CARRIERS = [Carrier.TURN, Carrier.WEBSOCKET, Carrier.CONNECT_UDP]
every_carrier = pytest.mark.parametrize("carrier", CARRIERS)
VOICE = build_channel_data(0x4001, b"\x80" + bytes(171))
SHORT_S = 0.3
ALLOCATE = stun(7, Method.ALLOCATE)
BINDING = stun(8)


@dataclass
class Caller:
    """A client of any carrier."""

    tls: TlsClient
    wrap: Callable[[bytes], bytes]

    async def send(self, unit: bytes) -> None:
        await self.tls.send(self.wrap(unit))


@contextlib.asynccontextmanager
async def caller(bench: Bench, carrier: Carrier) -> AsyncIterator[Caller]:
    """A client that has a flow, or will have one with its first unit."""
    if carrier is Carrier.TURN:
        async with bench.client() as tls:
            yield Caller(tls, bytes)
        return
    async with carried(bench, carrier) as client:
        yield Caller(client.tls, binary if carrier is Carrier.WEBSOCKET else build_datagram)


async def allocate(bench: Bench, client: Caller, lifetime_s: int = 600) -> Address:
    """Ask for an allocation, and get one; the flow's address."""
    await client.send(ALLOCATE)
    flow = await bench.upstream.expect(ALLOCATE)
    bench.upstream.send(flow, allocated(ALLOCATE, lifetime_s))
    while not any(one.allocated for one in bench.plane.snapshot().flows):  # noqa: ASYNC110
        await asyncio.sleep(0)
    return flow


@every_carrier
async def test_a_flow_without_an_allocation_ends(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    """Also one that goes on asking, and is answered."""
    async with plane_bench(make, tmp_path, bounds(allocation_timeout_s=SHORT_S)) as bench:
        async with caller(bench, carrier) as client:
            await client.send(HELLO)
            await bench.upstream.expect(HELLO)

            async def ask() -> None:
                for number in range(1000):
                    request = stun(100 + number)
                    await client.send(request)
                    bench.upstream.send(await bench.upstream.expect(request), answer(request))

            asking = asyncio.ensure_future(ask())
            closed = await bench.closed()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        assert (closed.reason, closed.detail) == (CloseReason.NO_ALLOCATION, "")
        assert closed.flow is not None
        assert not closed.flow.allocated
        assert not bench.plane.snapshot().flows


@every_carrier
async def test_one_with_an_allocation_stays(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    """It outlives one that begins later and gets none."""
    async with (
        plane_bench(make, tmp_path, bounds(allocation_timeout_s=SHORT_S)) as bench,
        caller(bench, carrier) as client,
    ):
        flow = await allocate(bench, client)
        async with caller(bench, carrier) as idle:
            await idle.send(HELLO)
            await bench.upstream.expect(HELLO)
            assert (await bench.closed()).reason is CloseReason.NO_ALLOCATION
        await client.send(VOICE)
        assert await bench.upstream.expect(VOICE) == flow


@every_carrier
@pytest.mark.parametrize("how", ["refused", "given up", "lapsed"])
async def test_one_that_has_none_any_more_ends(make: MakePlane, tmp_path: Path, carrier: Carrier, how: str) -> None:
    async with (
        plane_bench(make, tmp_path, bounds(allocation_timeout_s=SHORT_S)) as bench,
        caller(bench, carrier) as client,
    ):
        if how == "refused":
            await client.send(ALLOCATE)
            bench.upstream.send(await bench.upstream.expect(ALLOCATE), answer(ALLOCATE, error=401))
        elif how == "given up":
            flow = await allocate(bench, client)
            refresh = build_message(
                Method.REFRESH, MessageClass.REQUEST, bytes(12), [(AttributeType.LIFETIME, build_uint32(0))]
            )
            await client.send(refresh)
            await bench.upstream.expect(refresh)
            bench.upstream.send(flow, answer(refresh, (AttributeType.LIFETIME, build_uint32(0))))
        else:
            await allocate(bench, client, lifetime_s=1)
        assert (await bench.closed()).reason is CloseReason.NO_ALLOCATION


async def test_over_connect_udp_what_is_heard_counts(make: MakePlane, tmp_path: Path) -> None:
    """The other side may be no TURN server at all: media that comes from there is as good as an allocation."""
    async with (
        plane_bench(make, tmp_path, bounds(allocation_timeout_s=SHORT_S)) as bench,
        caller(bench, Carrier.CONNECT_UDP) as client,
    ):
        packet = b"\x80\0" + bytes(170)
        await client.send(packet)
        flow = await bench.upstream.expect(packet)
        bench.upstream.send(flow, packet)
        assert await client.tls.receive()
        async with caller(bench, Carrier.CONNECT_UDP) as idle:
            await idle.send(packet)
            await bench.upstream.expect(packet)
            assert (await bench.closed()).reason is CloseReason.NO_ALLOCATION
        await client.send(packet)
        assert await bench.upstream.expect(packet) == flow


@every_carrier
async def test_a_first_unit_that_does_not_end(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    """It has the deadline of first bytes, from the first of them."""
    async with (
        plane_bench(make, tmp_path, bounds(first_bytes_timeout_s=SHORT_S)) as bench,
        caller(bench, carrier) as client,
    ):
        await client.tls.send(client.wrap(BINDING)[:-1])
        closed = await bench.closed()
        assert closed.reason is CloseReason.FIRST_BYTES_TIMEOUT
        assert closed.totals.uplink_packets == 0
        assert closed.flow is not None


@every_carrier
async def test_a_later_unit_may_take_its_time(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    """A call that is slow in the middle is no harm: another's first unit ends before it."""
    async with (
        plane_bench(make, tmp_path, bounds(first_bytes_timeout_s=SHORT_S)) as bench,
        caller(bench, carrier) as client,
    ):
        await client.send(HELLO)
        await bench.upstream.expect(HELLO)
        wire = client.wrap(BINDING)
        await client.tls.send(wire[:-1])
        async with caller(bench, carrier) as other:
            await other.tls.send(wire[:-1])
            assert (await bench.closed()).reason is CloseReason.FIRST_BYTES_TIMEOUT
        await client.tls.send(wire[-1:])
        await bench.upstream.expect(BINDING)


async def test_silence_behind_the_alpn_of_turn(make: MakePlane, tmp_path: Path) -> None:
    """That alone makes a flow, which ends as one without an allocation."""
    async with plane_bench(make, tmp_path, bounds(allocation_timeout_s=SHORT_S)) as bench:
        context = bench.authority.client_context()
        context.set_alpn_protocols(["stun.turn"])
        client = await TlsClient.open(bench.server, context)
        await bench.event(TurnOpened)
        assert (await bench.closed()).reason is CloseReason.NO_ALLOCATION
        client.abort()


async def test_a_session_is_controls(make: MakePlane, tmp_path: Path) -> None:
    """Control holds its allocation, so the plane knows of none: it stays longer than a flow that has none."""
    async with (
        plane_bench(make, tmp_path, bounds(allocation_timeout_s=SHORT_S)) as bench,
        carried(bench, Carrier.SESSION),
    ):
        async with caller(bench, Carrier.TURN) as idle:
            await idle.send(HELLO)
            await bench.upstream.expect(HELLO)
            assert (await bench.closed()).reason is CloseReason.NO_ALLOCATION
        assert bench.plane.snapshot().connections


# What control can ask


@every_carrier
async def test_a_flow_carries_something_once_it_has_an_allocation(
    make: MakePlane, tmp_path: Path, carrier: Carrier
) -> None:
    async with plane_bench(make, tmp_path) as bench:
        async with caller(bench, carrier) as client:
            await client.send(HELLO)
            await bench.upstream.expect(HELLO)
            [flow] = bench.plane.snapshot().flows
            assert not bench.plane.carries(flow.connection)
            await allocate(bench, client)
            await becomes(lambda: bench.plane.carries(flow.connection), True)
        await bench.closed()
        assert not bench.plane.carries(flow.connection)


async def test_media_over_connect_udp_needs_no_allocation(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, caller(bench, Carrier.CONNECT_UDP) as client:
        await client.send(VOICE)
        address = await bench.upstream.expect(VOICE)
        [flow] = bench.plane.snapshot().flows
        bench.upstream.send(address, answer(BINDING))
        assert not bench.plane.carries(flow.connection)
        bench.upstream.send(address, VOICE)
        await becomes(lambda: bench.plane.carries(flow.connection), True)
