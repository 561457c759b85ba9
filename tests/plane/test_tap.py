"""Taps, on every plane: each datagram of the UDP leg both ways, and nothing that media would feel."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from relay._fastpath import live_objects
from relay.addresses import Address
from relay.plane.api import CloseReason, ConnectionId, DropReason, TurnOpened
from relay.plane.taps import Tap, TappedDatagram
from relay.quality.stream import Direction
from relay.wire.channeldata import build_channel_data
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.benches.taps import is_tapped
from tests.support.messages import HELLO, answer, stun
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

UP, DOWN = Direction.UPLINK, Direction.DOWNLINK
BIG = build_channel_data(0x4001, bytes(range(256)) * 240)
# Of 1 MiB.
BIG_THAT_FIT = (1 << 20) // (len(BIG) + 24)


def open_tap(bench: Bench) -> Tap:
    """The tap of the one flow."""
    [flow] = bench.plane.snapshot().flows
    tap = bench.plane.tap(flow.connection)
    assert tap is not None
    return tap


async def taken(tap: Tap, count: int) -> list[TappedDatagram]:
    """So many datagrams, and no more."""
    found: list[TappedDatagram] = []

    def is_all() -> bool:
        found.extend(tap.take(7))
        return len(found) >= count

    await eventually(is_all, f"{count} datagrams are copied")
    assert len(found) == count
    return found


async def test_both_ways_byte_for_byte_in_order_with_addresses(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        tap = open_tap(bench)
        await is_tapped(bench, tap, flow)
        assert tap.upstream.address == bench.upstream.address
        assert (tap.server_name, tap.client) == ("relay.test", Address(*client.socket.getsockname()))
        expected = []
        for size in (0, 1, 2, 3, 4, 172, 1200):
            frame = build_channel_data(0x4001, bytes([size & 255]) * size)
            await client.send(frame + bytes(-len(frame) & 3))
            await bench.upstream.expect(frame)
            # Padding, too: it is what came.
            bench.upstream.send(flow, frame + b"\xee" * (-len(frame) & 3))
            expected += [(UP, frame), (DOWN, frame + b"\xee" * (-len(frame) & 3))]
            await client.receive_unit()
        found = await taken(tap, len(expected))
        assert [(one.direction, one.data) for one in found] == expected
        assert {(one.local, one.missed) for one in found} == {(flow, 0)}
        assert [one.at_us for one in found] == sorted(one.at_us for one in found)
        assert abs(found[-1].at_us / 1e6 - asyncio.get_running_loop().time()) < 60
        assert (tap.missed, tap.ended) == (0, False)
        tap.close()


async def test_what_is_not_forwarded_and_what_is_sent_again(make: MakePlane, tmp_path: Path) -> None:
    # A third copy would come two seconds after the second.
    async with plane_bench(make, tmp_path, bounds(initial_rto_s=1)) as bench, bench.flow(HELLO) as (client, flow):
        tap = open_tap(bench)
        await is_tapped(bench, tap, flow)
        await client.send(stun(5))
        for _ in range(2):
            await bench.upstream.expect(stun(5))
        reply = answer(stun(5))
        for datagram in (b"neither STUN nor ChannelData", b"", reply, reply):
            bench.upstream.send(flow, datagram)
        found = await taken(tap, 6)
        down = [b"neither STUN nor ChannelData", b"", reply, reply]
        assert [one.data for one in found] == [stun(5), stun(5), *down]
        tap.close()


async def test_over_ipv6(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, host="::1") as bench, bench.flow(HELLO) as (client, flow):
        tap = open_tap(bench)
        await is_tapped(bench, tap, flow)
        await client.send(BIG)
        await bench.upstream.expect(BIG)
        [one] = await taken(tap, 1)
        assert (one.local, one.data) == (flow, BIG)
        tap.close()


async def test_a_fresh_port_is_told_from_its_first_packet_on(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, stale):
        tap = open_tap(bench)
        await is_tapped(bench, tap, stale)
        request = stun(1, method=3)
        await client.send(request)
        await bench.upstream.expect(request)
        refusal = answer(request, error=437)
        bench.upstream.send(stale, refusal)
        fresh = await bench.upstream.expect(request)
        found = await taken(tap, 3)
        expected = [(stale, UP, request), (stale, DOWN, refusal), (fresh, UP, request)]
        assert [(one.local, one.direction, one.data) for one in found] == expected
        assert fresh != stale
        tap.close()


async def test_what_nobody_takes_is_missed_and_media_does_not_feel_it(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        tap = open_tap(bench)
        await is_tapped(bench, tap, flow)
        for _ in range(BIG_THAT_FIT + 5):
            await client.send(BIG)
            await bench.upstream.expect(BIG)
        await eventually(lambda: tap.missed == 5)
        small = build_channel_data(0x4001, b"small")
        found = tap.take(10_000)
        assert [one.data for one in found] == [BIG] * BIG_THAT_FIT
        assert sum(one.missed for one in found) == 0
        bench.upstream.send(flow, small)
        while await client.receive_unit() != small:
            pass
        # And where they are missing.
        [one] = await taken(tap, 1)
        assert (one.data, one.missed, tap.missed) == (small, 5, 5)
        [snapshot] = bench.plane.snapshot().flows
        assert set(snapshot.totals.drops) == {DropReason.DOWNLINK_MALFORMED}  # what is_tapped sent
        tap.close()


async def test_the_ring_goes_round(make: MakePlane, tmp_path: Path) -> None:
    """Odd sizes, three times what it holds: no byte of a record comes from another one."""
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        tap = open_tap(bench)
        await is_tapped(bench, tap, flow)
        for number in range(60):
            frame = build_channel_data(0x4001, bytes([number]) * (50_001 + number * 7))
            await client.send(frame + bytes(-len(frame) & 3))
            await bench.upstream.expect(frame)
            [one] = await taken(tap, 1)
            assert one.data == frame
        assert tap.missed == 0
        tap.close()


async def test_the_end_of_the_flow_ends_it_and_nothing_is_lost(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        tap = open_tap(bench)
        await is_tapped(bench, tap, flow)
        await client.send(BIG)
        await bench.upstream.expect(BIG)
        client.abort()
        closed = await bench.closed()
        assert tap.ended
        assert [one.data for one in tap.take(10)] == [BIG]
        assert bench.plane.tap(closed.connection) is None
        tap.close()
        tap.close()
        assert (tap.take(10), tap.ended, tap.missed) == ([], True, 0)


async def test_no_flow_no_tap(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        for number in (0, 1, 5 << 56, (1 << 64) - 1, 1 << 70):
            assert bench.plane.tap(ConnectionId(number)) is None
        bench.attaches = False
        async with bench.client() as client:
            await client.send(HELLO)
            opened = await bench.event(TurnOpened)
            assert bench.plane.tap(opened.connection) is None


async def test_a_second_tap_ends_the_first(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        first, second = open_tap(bench), open_tap(bench)
        await is_tapped(bench, second, flow)
        assert first.ended
        # The first one's end is not that of the second.
        first.close()
        await client.send(BIG)
        await bench.upstream.expect(BIG)
        [one] = await taken(second, 1)
        assert one.data == BIG
        second.close()


async def test_closed_in_every_state_nothing_is_left(make: MakePlane, tmp_path: Path) -> None:
    """What this leaves is counted by ``plane_bench``, in a debug build."""
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        # At once, before the plane has seen it; and while it copies.
        open_tap(bench).close()
        tap = open_tap(bench)
        await is_tapped(bench, tap, flow)
        tap.close()
        # A tap that comes while its flow ends, one that is never closed, and one that is closed after the plane's end.
        [snapshot] = bench.plane.snapshot().flows
        bench.plane.close(snapshot.connection, CloseReason.STOPPED)
        late = bench.plane.tap(snapshot.connection)
        await bench.closed()
        if late is not None:
            await eventually(partial(getattr, late, "ended"))
        client.abort()
        async with bench.client() as again:
            await again.send(HELLO)
            await bench.upstream.expect(HELLO)
            forgotten, last = open_tap(bench), open_tap(bench)
            await bench.plane.stop()
            assert bench.plane.tap(snapshot.connection) is None
            assert last.ended
            last.close()
        del late, forgotten, last


async def test_a_closed_tap_gives_its_memory_back_at_once(make: MakePlane, tmp_path: Path) -> None:
    if not live_objects() or make is not PLANES["compiled"]:
        pytest.skip("only a debug build of the compiled plane counts")
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        # The turn in which the flow began has let go of what it had taken when the next one has been forwarded.
        await client.send(HELLO)
        await bench.upstream.expect(HELLO)
        before = live_objects()["buffers"]
        tap = open_tap(bench)
        await is_tapped(bench, tap, flow)
        # The last datagram is copied before it is sent, and may wait in memory for a moment.
        await eventually(lambda: live_objects()["buffers"] == before + 1)
        tap.close()
        await eventually(lambda: live_objects()["buffers"] == before)
