"""What a client gets that takes less than comes for it, on every plane: whole frames, in order, and none too old."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from relay._fastpath import live_objects
from relay.addresses import Address
from relay.plane.api import Carrier, CloseReason, DropReason, FlowSnapshot, Snapshot, Totals, Traffic
from relay.plane.reference.traffic import traffic_of
from relay.plane.settings import PlaneSettings
from relay.quality.stream import Direction
from relay.wire.channeldata import build_channel_data, pad
from relay.wire.rtp import RtpHeader, build_packet
from relay.wire.stun import AttributeType, MessageClass, Method, build_message
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, http_stream, only_flow, plane_bench
from tests.support.messages import FRAME_BYTES, HELLO, SSRC, VOICE, answer, number_of, stun, voice
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

# Nothing is ever too old, or all that has waited at all.
PATIENT = bounds(max_media_age_s=3600, max_data_age_s=3600)
HASTY = bounds(max_media_age_s=0.001)
# More than a record can take out of a queue, so that what is put behind it waits.
BACKLOG_BYTES = 20_000
# A minute of a call in three seconds.
HURRY = 20


def rtcp(number: int) -> bytes:
    return build_channel_data(0x4001, b"\x81\xc9\x00\x07" + number.to_bytes(4))


def dtls(number: int, size: int = 64) -> bytes:
    return build_channel_data(0x4001, b"\x16\xfe\xfd" + number.to_bytes(4) + bytes(size - 11))


def data(number: int, size: int = 64) -> bytes:
    """What a data channel carries, and what is of no known kind."""
    first = (b"\x17\xfe\xfd", b"\0\1\0", b"\xc3\0\0")[number % 3]
    return build_channel_data(0x4001, first + number.to_bytes(4) + bytes(size - 11))


def own_stun(number: int, size: int) -> bytes:
    """What the upstream says itself, unasked."""
    filler = (AttributeType.SOFTWARE, bytes(size - 24))
    return build_message(Method.BINDING, MessageClass.INDICATION, number.to_bytes(12), [filler])


def ice(number: int) -> bytes:
    return build_channel_data(0x4001, stun(number))


def passed_on(flow: FlowSnapshot) -> int:
    """Bytes of voice that have come from the upstream: delivered, waiting or dropped."""
    return flow.totals.downlink_bytes + flow.queued_bytes + FRAME_BYTES * sum(flow.totals.drops.values())


async def until(bench: Bench, predicate: Callable[[Snapshot], bool]) -> Snapshot:
    """The first snapshot for which it is true."""
    while not predicate(snapshot := bench.plane.snapshot()):  # noqa: ASYNC110 - a plane is asked, it does not tell
        await asyncio.sleep(0.001)
    return snapshot


@contextlib.asynccontextmanager
async def deaf_flow(
    make: MakePlane, folder: Path, settings: PlaneSettings
) -> AsyncIterator[tuple[Bench, TlsClient, Address]]:
    """A client that reads nothing until the test does, and takes little."""
    async with plane_bench(make, folder, settings) as bench, bench.client(receive_buffer=4096) as client:
        await client.send(HELLO)
        yield bench, client, await bench.upstream.expect(HELLO)


async def send_voice(bench: Bench, flow: Address, numbers: range) -> None:
    """Send frames, and see them arrive in the plane: none is lost before it."""
    for number in numbers:
        bench.upstream.send(flow, voice(number))
        # The UDP socket of a flow holds a hundred of them.
        if number == numbers[-1] or number % 32 == 0:
            expected = FRAME_BYTES * (number + 1)
            await until(bench, lambda s, expected=expected: passed_on(s.flows[0]) == expected)  # type: ignore[misc]


async def stall(bench: Bench, flow: Address, backlog_bytes: int = BACKLOG_BYTES) -> int:
    """Send numbered voice until so much waits in the plane; how many were sent."""
    number = 0
    while only_flow(bench).queued_bytes < backlog_bytes:
        await send_voice(bench, flow, range(number, number + 1))
        number += 1
        assert number < 100_000, "the kernel's buffers are larger than this"
    return number


async def stall_until_old(bench: Bench, flow: Address) -> int:
    """The same where nothing may wait: until media was dropped for its age."""
    number = 0
    while not only_flow(bench).totals.drops.get(DropReason.DOWNLINK_OLD):
        bench.upstream.send(flow, voice(number))
        number += 1
        await asyncio.sleep(0.002)
        assert number < 100_000, "the kernel's buffers are larger than this"
    return number


@contextlib.asynccontextmanager
async def reading(client: TlsClient) -> AsyncIterator[list[bytes]]:
    """All units that the client gets, from now on. The stream must be whole."""
    units: list[bytes] = []

    async def read() -> None:
        while True:
            units.append(await client.receive_unit())

    task = asyncio.ensure_future(read())
    try:
        yield units
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def read_all(bench: Bench, client: TlsClient, last: bytes) -> list[bytes]:
    """The client reads until ``last`` has come and nothing waits any more."""
    units: list[bytes] = []
    while last not in units or len(units) < only_flow(bench).totals.downlink_packets or only_flow(bench).queued_bytes:
        units.append(await client.receive_unit())
    return units


def ranks(units: list[bytes]) -> list[int]:
    order = [Traffic.CONTROL, Traffic.RTCP, Traffic.MEDIA, Traffic.DATA]
    return [order.index(traffic_of(unit)) for unit in units]


def is_dropped_consistently(totals: Totals) -> bool:
    return sum(totals.drops.values()) == sum(totals.drops_by_traffic.values())


# ---- Age


async def test_media_that_is_too_old_is_never_delivered(make: MakePlane, tmp_path: Path) -> None:
    async with deaf_flow(make, tmp_path, HASTY) as (bench, client, flow):
        fresh = await stall_until_old(bench, flow)
        for number in range(fresh, fresh + 20):
            bench.upstream.send(flow, voice(number))
        # All that came so far grows too old; more of it does not come, so that the plane cannot have dropped it yet.
        await asyncio.sleep(0.05)
        given_away = only_flow(bench).totals.downlink_packets
        first_live = last = fresh + 20
        async with reading(client) as units:
            while voice(last) not in units:
                last += 1
                bench.upstream.send(flow, voice(last))
                await asyncio.sleep(0.01)
            await until(bench, lambda s: len(units) == s.totals.downlink_packets)
        numbers = [number_of(unit) for unit in units]
        assert units == [voice(number) for number in numbers]
        assert numbers == sorted(set(numbers))
        # What the kernel or TLS had already, and nothing else from before.
        assert len([number for number in numbers if number < first_live]) == given_away
        totals = only_flow(bench).totals
        assert set(totals.drops) == {DropReason.DOWNLINK_OLD}
        assert totals.drops_by_traffic == {Traffic.MEDIA: totals.drops[DropReason.DOWNLINK_OLD]}
        # To the ear it is lost.
        (stream,) = only_flow(bench).streams
        assert (stream.packets, stream.lost) == (len(units), last + 1 - len(units))


async def test_control_is_never_too_old(make: MakePlane, tmp_path: Path) -> None:
    async with deaf_flow(make, tmp_path, HASTY) as (bench, client, flow):
        number = await stall_until_old(bench, flow)
        control = [make_one(n) for n in range(20) for make_one in (dtls, ice, late_indication)]
        for unit in control:
            bench.upstream.send(flow, unit)
            await asyncio.sleep(0.002)
            number += 1
            bench.upstream.send(flow, voice(number))
        await until(bench, lambda s: s.totals.drops[DropReason.DOWNLINK_OLD] >= 50)
        async with reading(client) as units:
            await until(bench, lambda _: control[-1] in units)
        assert [unit for unit in units if traffic_of(unit) is Traffic.CONTROL] == control
        assert set(only_flow(bench).totals.drops_by_traffic) == {Traffic.MEDIA}


def late_indication(number: int) -> bytes:
    return stun(number, message_class=MessageClass.INDICATION)


async def test_rtcp_grows_old_too(make: MakePlane, tmp_path: Path) -> None:
    async with deaf_flow(make, tmp_path, HASTY) as (bench, _, flow):
        number = await stall_until_old(bench, flow)
        for n in range(10):
            bench.upstream.send(flow, rtcp(n))
        while only_flow(bench).totals.drops_by_traffic.get(Traffic.RTCP, 0) + only_flow(bench).downlink_rtcp < 10:
            bench.upstream.send(flow, voice(number))
            await asyncio.sleep(0.005)
        totals = only_flow(bench).totals
        assert totals.drops_by_traffic[Traffic.RTCP] >= 9
        assert set(totals.drops) == {DropReason.DOWNLINK_OLD}
        assert is_dropped_consistently(totals)


@pytest.mark.parametrize(("plane_age_s", "own_age_s"), [(3600, 0.001), (0.001, 3600)])
async def test_an_upstream_may_have_an_age_of_its_own(
    make: MakePlane, tmp_path: Path, plane_age_s: float, own_age_s: float
) -> None:
    settings = bounds(max_media_age_s=plane_age_s)
    async with plane_bench(make, tmp_path, settings) as bench, bench.client(receive_buffer=4096) as client:
        bench.target = dataclasses.replace(bench.target, max_media_age_s=own_age_s)
        await client.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        if own_age_s < 1:
            await stall_until_old(bench, flow)
        else:
            sent = await stall(bench, flow)
            await until(bench, lambda s: s.flows[0].queue_age_s > 0.05)
            last = voice(sent)
            bench.upstream.send(flow, last)
            assert await read_all(bench, client, last) == [voice(number) for number in range(sent + 1)]
            assert only_flow(bench).totals.drops == {}


# ---- Order


async def test_what_waits_leaves_in_the_order_of_its_class(make: MakePlane, tmp_path: Path) -> None:
    async with deaf_flow(make, tmp_path, PATIENT) as (bench, client, flow):
        request = stun(1)
        await client.send(request)
        await bench.upstream.expect(request)
        sent = await stall(bench, flow)
        reply = answer(request)
        waiting = [rtcp(1), dtls(1), *(data(n) for n in range(3)), voice(sent)]
        waiting += [reply, rtcp(2), ice(2), late_indication(3), voice(sent + 1)]
        before = passed_on(only_flow(bench))
        for unit in waiting:
            bench.upstream.send(flow, unit)
        # Some more voice may still have left meanwhile. Padding counts only while it waits: at most 3 bytes a unit.
        most = before + sum(len(pad(unit)) for unit in waiting)
        await until(bench, lambda s: passed_on(s.flows[0]) >= most - 3 * len(waiting))
        given_away = only_flow(bench).totals.downlink_packets
        units = await read_all(bench, client, data(2))
        assert len(units) == sent + len(waiting)
        behind = units[given_away:]
        assert ranks(behind) == sorted(ranks(behind))
        # If TCP had a little room again, the first of them did not have to wait.
        urgent = [dtls(1), reply, ice(2), late_indication(3), rtcp(1), rtcp(2)]
        still = [unit for unit in urgent if unit in behind]
        assert behind[: len(still)] == still
        assert behind[-3:] == [data(n) for n in range(3)]
        assert [unit for unit in units if len(unit) == FRAME_BYTES] == [voice(number) for number in range(sent + 2)]
        await becomes(lambda: bench.plane.snapshot().totals.drops, {})


async def test_data_indications_are_media(make: MakePlane, tmp_path: Path) -> None:
    data = build_message(Method.DATA, MessageClass.INDICATION, bytes(12), [(AttributeType.DATA, stun(1))])
    async with deaf_flow(make, tmp_path, PATIENT) as (bench, client, flow):
        sent = await stall(bench, flow)
        before = only_flow(bench).queued_bytes
        bench.upstream.send(flow, data)
        bench.upstream.send(flow, dtls(1))
        await until(bench, lambda s: s.flows[0].queued_bytes == before + len(data) + 64)
        units = await read_all(bench, client, data)
        assert units[-1] == data
        assert units.index(dtls(1)) < sent


async def test_media_behind_a_response_that_is_not_read_yet(make: MakePlane, tmp_path: Path) -> None:
    """What TLS has been given goes first; nothing overtakes it, and nothing is forgotten behind it."""
    response = b"HTTP/1.1 101 Switching Protocols\r\nX-Filler: " + b"A" * 60_000 + b"\r\n\r\n"
    async with plane_bench(make, tmp_path, PATIENT) as bench, bench.client(receive_buffer=4096) as client:
        opened, stream = await http_stream(bench, client, b"GET /turn HTTP/1.1\r\n\r\n")
        with stream:
            bench.plane.upgrade(opened.connection, response, Carrier.TURN, bench.target)
            # Nothing may be sent before the 101: the plane's end of the pair is closed when it has been written.
            while await asyncio.get_running_loop().sock_recv(stream, 100):
                pass
            await client.send(HELLO)
            flow = await bench.upstream.expect(HELLO)
        units = [voice(0), rtcp(1), dtls(1)]
        waiting = sum(len(pad(unit)) for unit in units)
        for unit in units:
            bench.upstream.send(flow, unit)
        await until(bench, lambda s: s.flows[0].queued_bytes == waiting)
        expected = response + b"".join(pad(unit) for unit in (dtls(1), rtcp(1), voice(0)))
        assert await client.receive_exactly(len(expected)) == expected
        assert (only_flow(bench).queued_bytes, only_flow(bench).totals.drops) == (0, {})


# ---- Room


async def test_a_burst_fits(make: MakePlane, tmp_path: Path) -> None:
    """170 packets of 1200 bytes to a client whose window is closed: nothing is lost, nothing out of order."""
    async with deaf_flow(make, tmp_path, PATIENT) as (bench, client, flow):
        burst = range(170)
        await send_voice(bench, flow, burst)
        assert only_flow(bench).queued_bytes > 100_000, "the kernel took it: nothing was tested"
        units = await read_all(bench, client, voice(burst[-1]))
        assert units == [voice(number) for number in burst]
        assert only_flow(bench).totals.drops == {}


async def test_the_oldest_media_makes_room(make: MakePlane, tmp_path: Path) -> None:
    bound = 16_384
    settings = bounds(max_media_age_s=3600, downlink_media_bytes=bound)
    async with deaf_flow(make, tmp_path, settings) as (bench, client, flow):
        sent = await stall(bench, flow, bound - FRAME_BYTES + 1)
        for number in range(sent, sent + 20):
            await send_voice(bench, flow, range(number, number + 1))
            assert only_flow(bench).queued_bytes <= bound
        given_away = only_flow(bench).totals.downlink_packets
        last = sent + 19
        units = await read_all(bench, client, voice(last))
        kept = bound // FRAME_BYTES
        assert units == [voice(n) for n in [*range(given_away), *range(last + 1 - kept, last + 1)]]
        totals = only_flow(bench).totals
        assert totals.drops == {DropReason.DOWNLINK_FULL: last + 1 - len(units)}
        assert totals.drops_by_traffic == {Traffic.MEDIA: last + 1 - len(units)}


async def test_a_unit_longer_than_the_room_drops_itself(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(max_media_age_s=3600, downlink_media_bytes=16_384)
    long = voice(0, 16_388)
    async with deaf_flow(make, tmp_path, settings) as (bench, client, flow):
        sent = await stall(bench, flow, 10_000)
        bench.upstream.send(flow, long)
        await until(bench, lambda s: s.totals.drops == {DropReason.DOWNLINK_FULL: 1})
        assert await read_all(bench, client, voice(sent - 1)) == [voice(number) for number in range(sent)]


async def test_a_flow_holds_no_more_than_576_kib(make: MakePlane, tmp_path: Path) -> None:
    """With the settings as they are but for the age, and a flood of everything."""
    async with deaf_flow(make, tmp_path, PATIENT) as (bench, _, flow):
        held = []
        number = 0
        while only_flow(bench).totals.drops.get(DropReason.DOWNLINK_FULL, 0) < 100:
            bench.upstream.send(flow, voice(number))
            number += 1
            await asyncio.sleep(0)
            held.append(only_flow(bench).queued_bytes)
            assert number < 100_000, "the kernel's buffers are larger than this"
        for n in range(63):
            bench.upstream.send(flow, own_stun(n, 1024))
            bench.upstream.send(flow, rtcp(n))
            bench.upstream.send(flow, voice(number))
            await asyncio.sleep(0.001)
            held.append(only_flow(bench).queued_bytes)
        await until(bench, lambda s: s.flows[0].totals.drops_by_traffic[Traffic.MEDIA] >= 150)
        held.append(only_flow(bench).queued_bytes)
        assert 300 * 1024 < max(held) <= 320 * 1024
        while only_flow(bench).totals.drops_by_traffic.get(Traffic.DATA, 0) < 100:
            bench.upstream.send(flow, data(number))
            bench.upstream.send(flow, dtls(number, 1000))
            number += 1
            await asyncio.sleep(0)
            held.append(only_flow(bench).queued_bytes)
        assert 500 * 1024 < max(held) <= 576 * 1024


def taken(flow: FlowSnapshot) -> int:
    """Packets that have come from the upstream, of which those that wait are voice of 182 bytes."""
    return flow.totals.downlink_packets + sum(flow.totals.drops.values()) + flow.queued_bytes // 184


async def test_a_stalled_call_holds_no_more_after_a_minute(make: MakePlane, tmp_path: Path) -> None:
    """Two streams of voice for a minute, at 20 times the pace; 200 ms of age are 10 then."""
    settings = bounds(max_media_age_s=0.2 / HURRY)
    async with deaf_flow(make, tmp_path, settings) as (bench, _, flow):
        before = await stall_until_old(bench, flow)
        await asyncio.sleep(5 * settings.max_media_age_s)
        blocks_before, sent = live_objects().get("buffers", 0), 0
        loop = asyncio.get_running_loop()
        began = loop.time()
        bytes_held, blocks_held = [], []
        while sent < 2 * 50 * 60:
            # Where this test is late, the packets come no closer together: what waits would not be a call's.
            await asyncio.sleep(max(0.0, began + 0.02 / HURRY - loop.time()))
            began = loop.time()
            for ssrc in (1, 2):
                bench.upstream.send(flow, build_channel_data(0x4000 + ssrc, voice(sent // 2, 182)[4:]))
                sent += 1
            # All of it has come: none lies in the flow's socket and comes younger than it is.
            snapshot = await until(bench, lambda s, expected=before + sent: taken(s.flows[0]) == expected)  # type: ignore[misc]
            bytes_held.append(snapshot.flows[0].queued_bytes)
            blocks_held.append(live_objects().get("buffers", 0) - blocks_before)
        assert max(bytes_held) > 0
        # What TLS and the meters hold beside that are 48 KiB: two buffers of a record, one record, 3 KiB of figures.
        assert max(bytes_held) <= 16 * 1024
        # In the debug build: chunks of 4 KiB.
        assert max(blocks_held) <= 4
        assert abs(blocks_held[-1]) <= 4
        dropped = only_flow(bench).totals.drops
        assert set(dropped) == {DropReason.DOWNLINK_OLD}
        assert dropped[DropReason.DOWNLINK_OLD] > sent - 100
        assert not bench.plane.snapshot().closed


async def test_control_beyond_its_bound_closes(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(max_media_age_s=3600, downlink_control_bytes=16_384)
    async with deaf_flow(make, tmp_path, settings) as (bench, _, flow):
        await stall(bench, flow)
        before = only_flow(bench).queued_bytes
        for number in range(16):
            bench.upstream.send(flow, own_stun(number, 1024))
        await until(bench, lambda s: s.flows[0].queued_bytes == before + 16_384)
        bench.upstream.send(flow, stun(1, message_class=MessageClass.INDICATION))
        closed = await bench.closed()
        assert closed.reason is CloseReason.SLOW_CLIENT
        assert closed.flow is not None
        assert closed.flow.queued_bytes == before + 16_384
        assert closed.detail == f"{before + 16_384} bytes unread"


@pytest.mark.parametrize("make_one", [dtls, data, lambda n, size: build_channel_data(0x4001, own_stun(n, size - 4))])
async def test_a_flood_of_a_peer_does_not_end_the_connection(
    make: MakePlane, tmp_path: Path, make_one: Callable[[int, int], bytes]
) -> None:
    """Whatever it looks like: a peer with a permission cannot end a call, nor keep the upstream's answers back."""
    settings = bounds(max_media_age_s=3600, downlink_control_bytes=16_384, downlink_data_bytes=30_000)
    async with deaf_flow(make, tmp_path, settings) as (bench, client, flow):
        request = stun(1)
        await client.send(request)
        await bench.upstream.expect(request)
        await stall(bench, flow)
        for number in range(200):
            bench.upstream.send(flow, make_one(number, 1024))
            if number % 32 == 0:
                await asyncio.sleep(0.005)
        await until(bench, lambda s: s.totals.drops.get(DropReason.DOWNLINK_FULL, 0) >= 100)
        reply = answer(request)
        bench.upstream.send(flow, reply)
        async with reading(client) as units:
            await until(bench, lambda s: reply in units and not s.flows[0].queued_bytes)
        assert not bench.plane.snapshot().closed
        totals = only_flow(bench).totals
        assert set(totals.drops_by_traffic) == {Traffic.DATA}
        assert totals.drops_by_traffic[Traffic.DATA] == sum(totals.drops.values())


def bytes_kept(flow: FlowSnapshot) -> int:
    """Bytes that wait, or have gone to TCP: a client that reads nothing may still take a little, much later."""
    return flow.queued_bytes + flow.totals.downlink_bytes


def data_that_came(flow: FlowSnapshot, before: int) -> int:
    """How many packets of 1000 bytes were kept or dropped since so many bytes were kept."""
    return (bytes_kept(flow) - before) // 1000 + flow.totals.drops_by_traffic.get(Traffic.DATA, 0)


async def test_data_that_is_too_much_drops_the_newest_and_voice_passes_it(make: MakePlane, tmp_path: Path) -> None:
    settings = dataclasses.replace(PATIENT, downlink_data_bytes=20_000)
    async with deaf_flow(make, tmp_path, settings) as (bench, client, flow):
        sent = await stall(bench, flow)
        before = bytes_kept(only_flow(bench))
        for number in range(40):
            bench.upstream.send(flow, data(number, 1000))
            while data_that_came(only_flow(bench), before) < number + 1:  # noqa: ASYNC110 - a plane is asked
                await asyncio.sleep(0.001)
        bench.upstream.send(flow, voice(sent))
        await until(bench, lambda s: bytes_kept(s.flows[0]) == before + 20_000 + FRAME_BYTES)
        totals = only_flow(bench).totals
        assert (totals.drops, totals.drops_by_traffic) == ({DropReason.DOWNLINK_FULL: 20}, {Traffic.DATA: 20})
        async with reading(client) as units:
            await until(bench, lambda s: len(units) == s.totals.downlink_packets and not s.flows[0].queued_bytes)
        assert units[: sent + 1] == [voice(number) for number in range(sent + 1)]
        kept = [number for number in range(40) if data(number, 1000) in units]
        assert units[sent + 1 :] == [data(number, 1000) for number in kept]
        # One beyond a quarter of the room, perhaps more where this took long; and what has come last.
        assert kept[:7] == [0, 1, 2, 3, 4, 5, 7]
        assert max(kept) < 30


async def test_data_grows_old_too(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(max_media_age_s=3600, max_data_age_s=0.001)
    async with deaf_flow(make, tmp_path, settings) as (bench, client, flow):
        sent = await stall(bench, flow)
        bench.upstream.send(flow, data(0))
        while not only_flow(bench).totals.drops_by_traffic.get(Traffic.DATA):
            bench.upstream.send(flow, voice(sent))
            sent += 1
            await asyncio.sleep(0.002)
        assert only_flow(bench).totals.drops == {DropReason.DOWNLINK_OLD: 1}
        assert await read_all(bench, client, voice(sent - 1)) == [voice(number) for number in range(sent)]


# ---- Nothing stays behind


def any_unit(source: random.Random, number: int) -> bytes:
    """Of any class and length, the longest that a datagram carries among them."""
    size = source.choice((4, 5, 8, 20, 182, 182, 182, 1200, 1200, 4072, 4073, 4088, 16_380, 16_385, 20_001, 65_000))
    first = source.choice((b"\x80\x00", b"\x80\xc8", b"", b"\x80\x6f", b"\x17\xfe"))
    if not first:
        return own_stun(number, max(24, size + -size % 4))
    return build_channel_data(0x4001, (first + number.to_bytes(4) * (size // 4))[: size - 4])


def came_to(flow: FlowSnapshot) -> int:
    """Bytes that have come from the upstream, and the padding of those that wait."""
    return flow.totals.downlink_bytes + flow.queued_bytes


@pytest.mark.parametrize("seed", range(4))
async def test_a_client_that_reads_by_fits_and_starts_gets_all(make: MakePlane, tmp_path: Path, seed: int) -> None:
    """Wherever it stops and goes on, what waits is not forgotten: a wake-up that is lost would be a call that is."""
    source = random.Random(seed)
    settings = dataclasses.replace(
        PATIENT, downlink_control_bytes=200_000, downlink_media_bytes=200_000, downlink_data_bytes=1_000_000
    )
    async with deaf_flow(make, tmp_path, settings) as (bench, client, flow):
        sent: list[bytes] = []
        received: list[bytes] = []
        came = 0
        for number in range(400):
            unit = any_unit(source, number)
            bench.upstream.send(flow, unit)
            sent.append(unit)
            came += len(unit)
            if len(unit) > 4000 or source.random() < 0.7:
                # Else it comes together with others, unless it is long: a flow's socket does not hold many of those.
                await until(bench, lambda s, came=came: came_to(s.flows[0]) >= came)  # type: ignore[misc]
            if source.random() < 0.1 or only_flow(bench).queued_bytes > 30_000:
                while received_less := len(sent) - len(received):
                    received.append(await client.receive_unit())
                    if received_less < source.randrange(20):
                        break
        while len(received) < len(sent):
            received.append(await client.receive_unit())
        assert len(received) == len(sent)
        seen = only_flow(bench)
        assert (seen.queued_bytes, seen.totals.drops, seen.totals.downlink_packets) == (0, {}, len(sent))
        for traffic in Traffic:
            mine = [unit for unit in received if traffic_of(unit) is traffic]
            assert mine == [unit for unit in sent if traffic_of(unit) is traffic]


@pytest.mark.parametrize("by_client", [False, True])
async def test_an_end_while_media_waits(make: MakePlane, tmp_path: Path, by_client: bool) -> None:
    """What was given to TLS still leaves, in whole units; what waited behind it is gone, and its memory too."""
    async with deaf_flow(make, tmp_path, PATIENT) as (bench, client, flow):
        await stall(bench, flow)
        given_away = only_flow(bench).totals.downlink_packets
        if by_client:
            await client.send_wire(close_notify(client))
            closed = await bench.closed()
            assert closed.reason is CloseReason.CLIENT_CLOSED
        else:
            bench.plane.close(only_flow(bench).connection, CloseReason.DRAINING)
            closed = await bench.closed()
            assert closed.reason is CloseReason.DRAINING
        assert closed.flow is not None
        assert closed.flow.queued_bytes >= BACKLOG_BYTES
        units: list[bytes] = []
        with contextlib.suppress(EOFError):
            while True:
                units.append(await client.receive_unit())
        assert units == [voice(number) for number in range(given_away)]


def close_notify(client: TlsClient) -> bytes:
    """The client's last word in TLS; it goes on reading."""
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.unwrap()
    return client._outgoing.read()


# ---- Records


async def test_what_has_waited_leaves_in_small_records(make: MakePlane, tmp_path: Path) -> None:
    async with deaf_flow(make, tmp_path, PATIENT) as (bench, client, flow):
        small = [build_channel_data(0x4001, VOICE[:-4] + number.to_bytes(4)) for number in range(200)]
        await stall(bench, flow)
        before = only_flow(bench).queued_bytes
        for unit in small:
            bench.upstream.send(flow, unit)
            await asyncio.sleep(0)
        waiting = sum(len(unit) for unit in small)
        await until(bench, lambda s: s.flows[0].queued_bytes == before + waiting)
        await client.send(stun(1))
        sizes: list[int] = []
        async with asyncio.timeout(60):
            while not sizes or sum(sizes[-20:]) < waiting / 2 or only_flow(bench).queued_bytes:
                data = b""
                while len(data) < 5 or len(data) < 5 + int.from_bytes(data[3:5]):
                    missing = 5 - len(data) if len(data) < 5 else 5 + int.from_bytes(data[3:5]) - len(data)
                    data += await asyncio.get_running_loop().sock_recv(client.socket, missing)
                sizes.append(len(data))
        # A record of TLS 1.3 is 22 bytes longer than what it says.
        assert max(sizes) <= FRAME_BYTES + 22
        assert max(sizes[-10:]) <= 1024 + 22
        assert sum(sizes[-10:]) > 10 * 512, "each frame in a record of its own"


# ---- Figures


async def test_how_long_packets_waited(make: MakePlane, tmp_path: Path) -> None:
    async with deaf_flow(make, tmp_path, PATIENT) as (bench, client, flow):
        sent = await stall(bench, flow)
        waiting = only_flow(bench).queued_bytes // FRAME_BYTES
        await until(bench, lambda s: s.flows[0].queue_age_s > 0.1)
        # The youngest has waited for less than the oldest, so it is waited for once more.
        await asyncio.sleep(0.1)
        assert await read_all(bench, client, voice(sent - 1)) == [voice(number) for number in range(sent)]
        delay = only_flow(bench).queue_delay
        assert delay.count == sent
        ends = [end for end, _ in delay.buckets]
        assert ends == sorted(ends)
        assert set(ends) <= {128 << power for power in range(18)}
        late = [count for end, count in delay.buckets if end > 65_536]
        assert sum(late) >= waiting
        assert delay.sum_us >= waiting * 65_536
        assert only_flow(bench).queued_bytes == 0
        assert only_flow(bench).queue_age_s == 0
        assert bench.plane.snapshot().queue_delay == delay
        await client.close()
        closed = await bench.closed()
        assert closed.flow is not None
        assert closed.flow.queue_delay == delay == bench.plane.snapshot().queue_delay


async def test_each_unit_of_a_client_that_reads_has_its_delay(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        for unit in [voice(1), rtcp(1), dtls(1), ice(1), HELLO, rtcp(2)]:
            bench.upstream.send(flow, unit)
            assert await client.receive_unit() == unit
        for unit in [rtcp(1), voice(1), dtls(1), rtcp(2), rtcp(3)]:
            await client.send(pad(unit) if unit[0] >= 0x40 else unit)
            await bench.upstream.expect(unit)
        snapshot = only_flow(bench)
        assert snapshot.queue_delay.count == snapshot.totals.downlink_packets == 6
        assert (snapshot.downlink_rtcp, snapshot.uplink_rtcp) == (2, 3)
        assert (snapshot.queued_bytes, snapshot.queue_age_s) == (0, 0)


async def test_the_link_is_known_after_traffic(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        bench.upstream.send(flow, voice(1))
        await client.receive_unit()
        await until(bench, lambda s: s.flows[0].link is not None)
        link = only_flow(bench).link
        assert link is not None
        assert 0 < link.rtt_us < 10_000_000
        assert link.rtt_variation_us >= 0
        assert (link.retransmits, link.unsent_bytes) == (0, 0)
        await client.close()
        closed = await bench.closed()
        assert closed.flow is not None
        assert closed.flow.link is not None


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([b"1700000000:trader"], "1700000000:trader"),
        ([b"first", b"second"], "second"),
        ([b"first", None], "first"),
        ([None], ""),
        ([b""], ""),
        ([b"\xff<b>\xc3\xa9"], "�<b>é"),
        ([b"x" * 500], "x" * 128),
        (["é".encode() * 200], "é" * 128),
    ],
)
async def test_the_name_of_the_last_allocate(
    make: MakePlane, tmp_path: Path, names: list[bytes | None], shown: str
) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _):
        # Names elsewhere are not the user's.
        for method, message_class in [(Method.BINDING, MessageClass.REQUEST), (Method.ALLOCATE, MessageClass.SUCCESS)]:
            other = build_message(method, message_class, b"o" * 12, [(AttributeType.USERNAME, b"other")])
            await client.send(other)
            await bench.upstream.expect(other)
        for number, name in enumerate(names):
            attributes = [] if name is None else [(AttributeType.USERNAME, name)]
            request = build_message(Method.ALLOCATE, MessageClass.REQUEST, number.to_bytes(12), attributes)
            await client.send(request)
            await bench.upstream.expect(request)
        assert only_flow(bench).username == shown
        await client.close()
        closed = await bench.closed()
        assert closed.flow is not None
        assert closed.flow.username == shown


async def test_streams_as_they_came_from_the_client(make: MakePlane, tmp_path: Path) -> None:
    opus = build_channel_data(0x4001, build_packet(RtpHeader(111, 9, 0, 8), bytes(20)))
    settings = bounds(payload_clocks={111: 48_000})
    async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, _):
        for unit in [voice(0), voice(1), rtcp(1), voice(4), voice(3), voice(3), opus, dtls(1), ice(1)]:
            await client.send(unit)
            await bench.upstream.expect(unit)
        await client.close()
        closed = await bench.closed()
        assert closed.flow is not None
        g711, other = closed.flow.streams
        assert (g711.direction, g711.ssrc, g711.payload_type, g711.clock_hz) == (Direction.UPLINK, SSRC, 0, 8000)
        assert (g711.packets, g711.duplicates, g711.reordered, g711.expected, g711.lost) == (5, 1, 1, 5, 1)
        assert (other.direction, other.ssrc, other.clock_hz, other.packets) == (Direction.UPLINK, 8, 48_000, 1)


async def test_what_waited_is_late_in_the_downlinks_streams(make: MakePlane, tmp_path: Path) -> None:
    async with deaf_flow(make, tmp_path, PATIENT) as (bench, client, flow):
        sent = await stall(bench, flow)
        waiting = only_flow(bench).queued_bytes // FRAME_BYTES
        (stream,) = only_flow(bench).streams
        assert stream.packets == sent - waiting
        # Long enough that it does not matter how long it took to fill the queue, on a slow machine.
        await until(bench, lambda s: s.flows[0].queue_age_s > 3)
        await read_all(bench, client, voice(sent - 1))
        (stream,) = only_flow(bench).streams
        assert (stream.direction, stream.ssrc) == (Direction.DOWNLINK, SSRC)
        assert (stream.packets, stream.lost) == (sent, 0)
        assert stream.late >= waiting
        assert stream.longest_pause_us > 900_000


# ---- Uplink


async def test_a_client_that_floods_does_not_lose_its_requests(make: MakePlane, tmp_path: Path) -> None:
    """It is not read while what it has said is forwarded; none of it is dropped in the relay."""
    requests = [stun(number) for number in range(8)]
    chaff = build_channel_data(0x4001, b"") * 1000
    async with plane_bench(make, tmp_path, bounds(initial_rto_s=0.5)) as bench, bench.flow(HELLO) as (client, _):
        missing = set(requests)
        sending = asyncio.ensure_future(client.send(*[chaff + request for request in requests]))
        while missing:
            missing.discard((await bench.upstream.receive())[0])
        await sending
        # A packet is counted when it has been sent.
        await becomes(lambda: sent_once(only_flow(bench).totals), 1 + 8 * 1001)
        assert Traffic.CONTROL not in only_flow(bench).totals.drops_by_traffic


def sent_once(totals: Totals) -> int:
    """Packets of the uplink that were not sent again."""
    return totals.uplink_packets - totals.retransmissions
