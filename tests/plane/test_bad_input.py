"""What clients and upstreams may send, however odd, on every plane: units, records, floods and datagrams."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from relay.plane.api import CloseReason, DropReason
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import AttributeType, MessageClass, build_message
from tests.support.benches.plane import PATIENT, PLANES, Bench, MakePlane, bounds, exchange, flood, plane_bench
from tests.support.messages import HELLO, VOICE, answer, stun
from tests.support.waiting import becomes

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

# Datagrams that a UDP socket surely takes before it is read.
BATCH = 40


# ---- Units and records


async def test_channel_data_of_every_length_both_ways(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        for first in range(0, 1501, BATCH):
            payloads = [bytes([size & 255]) * size for size in range(first, min(first + BATCH, 1501))]
            frames = [build_channel_data(0x4001 + len(payload), payload) for payload in payloads]
            padded = [frame + bytes(-len(frame) & 3) for frame in frames]
            await client.send(*padded)
            for frame in frames:
                await bench.upstream.expect(frame)
            for frame in frames:
                bench.upstream.send(flow, frame)
            whole = b"".join(padded)
            assert await client.receive_exactly(len(whole)) == whole
        assert not bench.plane.snapshot().totals.drops


@pytest.mark.parametrize("record_bytes", [1000, 16_384])
async def test_channel_data_of_65535_bytes(make: MakePlane, tmp_path: Path, record_bytes: int) -> None:
    """No datagram carries it; the stream behind it is cut at the right place."""
    stream = 3 * build_channel_data(0x4001, b"\xff" * 65_535, padded=True)
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        await client.send(*(stream[at : at + record_bytes] for at in range(0, len(stream), record_bytes)))
        await exchange(bench, client, flow)
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.UPLINK_OVERSIZE: 3})


@pytest.mark.parametrize("length", [65_520, 65_524, 65_528, 65_532])
async def test_the_longest_stun_cut_where_16_bits_would_wrap(make: MakePlane, tmp_path: Path, length: int) -> None:
    head = stun(1, message_class=MessageClass.INDICATION)
    unit = head[:2] + length.to_bytes(2) + head[4:] + b"\xff" * length
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        for at in (1, 3, 4, 8, 19, 20, length, 65_535, len(unit) - 1):
            await client.send(unit[:at], unit[at:])
        await exchange(bench, client, flow)
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.UPLINK_OVERSIZE: 9})


@pytest.mark.parametrize("records", [1, 2])
async def test_records_split_at_every_byte_of_the_tcp_stream(make: MakePlane, tmp_path: Path, records: int) -> None:
    """The second part comes when the plane has seen the first: another call has had a packet in between."""
    frames = [build_channel_data(0x4001 + number, VOICE) for number in range(records)]
    async with (
        plane_bench(make, tmp_path) as bench,
        bench.flow(HELLO) as (client, flow),
        bench.flow(HELLO) as (other, at_other),
    ):
        at, size = 1, 2
        while at < size:
            wire = b"".join(client.record(frame) for frame in frames)
            size = len(wire)
            await client.send_wire(wire[:at])
            bench.upstream.send(at_other, frames[0])
            assert await other.receive_unit() == frames[0]
            await client.send_wire(wire[at:])
            for frame in frames:
                assert await bench.upstream.expect(frame) == flow
            at += 1


async def test_garbage_at_each_byte_of_a_unit_header(make: MakePlane, tmp_path: Path) -> None:
    """A fault closes with its name, a wrong length waits for bytes that never come, and the rest passes unread."""
    indication, media = stun(1, message_class=MessageClass.INDICATION), build_channel_data(0x4001, VOICE)
    faults = {0: "first_byte", 3: "stun_length", 4: "magic_cookie", 5: "magic_cookie", 6: "magic_cookie"}
    faults[7] = "magic_cookie"
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (other, at_other):
        for at in range(20):
            await send_broken(bench, indication, at, faults.get(at), waits=at == 2)
        for at in range(4):
            await send_broken(bench, media, at, faults.get(at) if at == 0 else None, waits=at >= 2)
        await exchange(bench, other, at_other)


async def send_broken(bench: Bench, unit: bytes, at: int, fault: str | None, *, waits: bool) -> None:
    broken = unit[:at] + b"\xff" + unit[at + 1 :]
    async with bench.flow(HELLO) as (client, _):
        await client.send(HELLO + broken)
        await bench.upstream.expect(HELLO)
        if fault is not None:
            assert await client.closed_by_server()
            closed = await bench.closed()
            assert (closed.reason, closed.detail) == (CloseReason.BROKEN_FRAME, fault)
            return
        if not waits:
            await bench.upstream.expect(broken)
        await client.close()
        assert (await bench.closed()).reason is CloseReason.CLIENT_CLOSED
        assert bench.upstream.received.empty()


# ---- Requests


async def test_1000_requests_at_once(make: MakePlane, tmp_path: Path) -> None:
    """Each goes up, the last 32 are sent again, and every answer comes back."""
    requests = [stun(number) for number in range(1000)]
    async with plane_bench(make, tmp_path, bounds(initial_rto_s=0.5)) as bench, bench.flow(HELLO) as (client, flow):
        seen: list[bytes] = []
        for first in range(0, 1000, BATCH):
            await client.send(b"".join(requests[first : first + BATCH]))
            while requests[min(first + BATCH, 1000) - 1] not in seen:
                seen.append((await bench.upstream.receive())[0])
        assert list(dict.fromkeys(seen)) == requests
        again = {(await bench.upstream.receive())[0] for _ in range(32)}
        assert again <= set(requests[-32:])
        for first in range(0, 1000, BATCH):
            for request in requests[first : first + BATCH]:
                bench.upstream.send(flow, answer(request))
            for request in requests[first : first + BATCH]:
                assert await client.receive_unit() == answer(request)
        totals = bench.plane.snapshot().totals
        assert (totals.downlink_packets, totals.drops) == (1000, {})


async def test_a_transaction_id_is_used_again_after_its_answer(make: MakePlane, tmp_path: Path) -> None:
    request, marker = stun(7), build_channel_data(0x4001, b"mark")
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        for _ in range(100):
            await client.send(request)
            await bench.upstream.expect(request)
            bench.upstream.send(flow, answer(request))
            bench.upstream.send(flow, answer(request))
            bench.upstream.send(flow, marker)
            assert [await client.receive_unit(), await client.receive_unit()] == [answer(request), marker]
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.DOWNLINK_DUPLICATE: 100})


# ---- The upstream


async def test_foreign_late_and_repeated_answers(make: MakePlane, tmp_path: Path) -> None:
    """An answer to nobody is the client's to judge; a second one is dropped, for as many ids as are remembered."""
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        foreign = answer(stun(999), error=400)
        bench.upstream.send(flow, foreign)
        bench.upstream.send(flow, foreign)
        assert [await client.receive_unit(), await client.receive_unit()] == [foreign, foreign]
        requests = [stun(number) for number in range(64)]
        for request in requests:
            await client.send(request)
            await bench.upstream.expect(request)
            bench.upstream.send(flow, answer(request))
            assert await client.receive_unit() == answer(request)
        for request in requests:
            bench.upstream.send(flow, answer(request, error=500))
        await exchange(bench, client, flow)
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.DOWNLINK_DUPLICATE: 64})


async def test_empty_and_longest_datagrams(make: MakePlane, tmp_path: Path) -> None:
    longest = build_channel_data(0x4001, bytes(range(256)) * 255 + bytes(223))
    assert len(longest) == 65_507
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        for datagram in (b"", b"\xff" * 65_507, b"\0" * 65_507, b"\x40\x01\xff\xff" + bytes(65_503)):
            bench.upstream.send(flow, datagram)
        await exchange(bench, client, flow)
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.DOWNLINK_MALFORMED: 4})
        for _ in range(5):
            bench.upstream.send(flow, longest)
            assert await client.receive_exactly(65_508) == longest + b"\0"


def taken_down(bench: Bench) -> int:
    """Bytes that the one flow has handed on or lets wait."""
    (flow,) = bench.plane.snapshot().flows
    return flow.totals.downlink_bytes + flow.queued_bytes


async def test_long_stun_waits_whole_for_a_slow_client(make: MakePlane, tmp_path: Path) -> None:
    """Writes of several records that the socket refuses half-way are gone on with just where they stopped."""
    long = build_message(0x0B, MessageClass.INDICATION, bytes(12), [(AttributeType.SOFTWARE, bytes(30_000))])
    # It must not be taken for a client that never reads while the test still sends, so little media makes it stop.
    settings = bounds(max_media_age_s=3600, downlink_media_bytes=16, downlink_control_bytes=1 << 25)
    async with plane_bench(make, tmp_path, settings) as bench, bench.client(receive_buffer=4096) as client:
        await client.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        sent = 0
        # Nothing is read until media is dropped behind what waits.
        while not bench.plane.snapshot().totals.drops:
            bench.upstream.send(flow, long)
            bench.upstream.send(flow, build_channel_data(0x4001, b"\x80ate"))
            sent += 1
            # No more of it than a flow may hold: each must have come before the next.
            while taken_down(bench) < sent * len(long):  # noqa: ASYNC110 - a plane is asked, it does not tell
                await asyncio.sleep(0.001)
            assert sent < 1000, "the kernel's buffers are larger than this"
        closing = build_message(0x0B, MessageClass.INDICATION, b"\xff" * 12)
        bench.upstream.send(flow, closing)
        units = []
        while (unit := await client.receive_unit()) != closing:
            units.append(unit)
        assert units.count(long) == sent
        # Media that has not been dropped is still to come.
        dropped = bench.plane.snapshot().totals.drops[DropReason.DOWNLINK_FULL]
        while len(units) + dropped < 2 * sent:
            units.append(await client.receive_unit())
        await becomes(lambda: bench.plane.snapshot().totals.downlink_packets, len(units) + 1)


# ---- Clients that do not read


async def test_a_client_that_never_reads(make: MakePlane, tmp_path: Path) -> None:
    """Media for it is dropped and STUN is kept up to the limit; then it goes, and others never noticed."""
    media = build_channel_data(0x4001, b"\x80" + bytes(1199))
    message = build_message(0x0B, MessageClass.INDICATION, bytes(12), [(AttributeType.SOFTWARE, bytes(1200))])
    async with (
        plane_bench(make, tmp_path, PATIENT) as bench,
        bench.flow(HELLO) as (other, at_other),
        bench.client(receive_buffer=4096) as deaf,
    ):
        await deaf.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        await flood(bench, flow, media, DropReason.DOWNLINK_FULL, 1)
        before = bench.plane.snapshot().totals
        await flood(bench, flow, media, DropReason.DOWNLINK_FULL, 1000)
        await exchange(bench, other, at_other)
        taken = bench.plane.snapshot().totals.downlink_bytes - before.downlink_bytes
        assert taken < 256 * 1024
        while len(bench.plane.snapshot().flows) == 2:
            for _ in range(10):
                bench.upstream.send(flow, message)
            await exchange(bench, other, at_other)
        closed = await bench.closed()
        assert closed.reason is CloseReason.SLOW_CLIENT
        await exchange(bench, other, at_other)


async def test_a_client_that_resets_in_the_middle_of_a_write(make: MakePlane, tmp_path: Path) -> None:
    media = build_channel_data(0x4001, b"\x80" + bytes(1199))
    async with plane_bench(make, tmp_path, PATIENT) as bench, bench.flow(HELLO) as (other, at_other):
        for drops in range(1, 6):
            deaf = await bench.connect(receive_buffer=4096)
            await deaf.send(HELLO)
            flow = await bench.upstream.expect(HELLO)
            await flood(bench, flow, media, DropReason.DOWNLINK_FULL, drops)
            deaf.reset()
            assert (await bench.closed()).reason is CloseReason.CLIENT_LOST
            with contextlib.suppress(ConnectionRefusedError):
                bench.upstream.send(flow, media)
            await exchange(bench, other, at_other)
