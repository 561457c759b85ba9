"""CONNECT-UDP on every plane: each DATAGRAM capsule is one UDP datagram, as it is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.plane.api import (
    AllocationOrphaned,
    Carrier,
    CloseReason,
    DropReason,
    Traffic,
)
from relay.wire.capsule import build_capsule, build_datagram, build_varint
from relay.wire.channeldata import build_channel_data, pad
from relay.wire.stun import AttributeType, Method, build_uint32
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.benches.taps import tapped
from tests.support.messages import HELLO, VOICE, allocated, answer, stun
from tests.support.peers.carriers import Carried, carried
from tests.support.waiting import becomes

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

FRAME = build_channel_data(0x4001, VOICE)
DTLS = b"\x16\xfe\xfd" + bytes(50)
RTCP = b"\x80\xc8" + bytes(26)


async def opened_flow(bench: Bench, client: Carried) -> Address:
    """The client's address at the upstream."""
    await client.send(build_datagram(HELLO))
    return await bench.upstream.expect(HELLO)


async def test_datagrams_both_ways_as_they_are(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        flow = await opened_flow(bench, client)
        for payload in (b"", b"\0", HELLO, FRAME, pad(FRAME), FRAME[:3], FRAME + b"more", DTLS, VOICE, RTCP, b"\x80"):
            await client.send(build_datagram(payload))
            assert await bench.upstream.expect(payload) == flow
            bench.upstream.send(flow, payload)
            expected = build_datagram(payload)
            assert await client.tls.receive_exactly(len(expected)) == expected


@pytest.mark.parametrize("size", [0, 1, 61, 62, 63, 64, 1200, 2047, 2048])
async def test_lengths_at_the_boundaries(make: MakePlane, tmp_path: Path, size: int) -> None:
    payload = (b"\x80" + bytes(index & 255 for index in range(size)))[:size]
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        await client.send(build_datagram(payload))
        flow = await bench.upstream.expect(payload)
        bench.upstream.send(flow, payload)
        assert await client.payload() == payload


async def test_long_datagrams_go_down_whole(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        flow = await opened_flow(bench, client)
        for size in (2049, 16_382, 16_383, 16_384, 65_507):
            bench.upstream.send(flow, b"\x80" + bytes(size - 1))
            assert await client.payload() == b"\x80" + bytes(size - 1)


async def test_every_split_across_tls_records(make: MakePlane, tmp_path: Path) -> None:
    stream = build_capsule(0x2A, b"unknown") + build_datagram(VOICE[:70]) + build_capsule(0, build_varint(4) + b"x")
    stream += b"\x40\x00\x80\x00\x00\x08\xc0" + bytes(7)  # nothing is said in its shortest form
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        for at in range(1, len(stream)):
            await client.send(stream[:at], stream[at:])
        for _ in range(1, len(stream)):
            await bench.upstream.expect(VOICE[:70])
            await bench.upstream.expect(b"")
        for byte in stream:
            await client.send(bytes([byte]))
        await bench.upstream.expect(VOICE[:70])


async def test_what_is_not_known_is_skipped(make: MakePlane, tmp_path: Path) -> None:
    other = build_capsule(7, bytes(100_000)) + build_capsule(0, build_varint(2) + bytes(100_000))
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        for start in range(0, len(other), 16_000):
            await client.send(other[start : start + 16_000])
        await client.send(build_datagram(VOICE))
        await bench.upstream.expect(VOICE)
        await becomes(lambda: bench.plane.snapshot().totals.drops, {})


async def test_too_long_payloads_are_skipped_and_counted(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        await client.send(build_datagram(b"\x80" + bytes(2048)))
        longest = build_datagram(b"\x80" + bytes(65_526))
        await client.send(*(longest[at : at + 16_000] for at in range(0, len(longest), 16_000)))
        await client.send(build_datagram(VOICE))
        await bench.upstream.expect(VOICE)
        totals = bench.plane.snapshot().totals
        assert (totals.drops, totals.drops_by_traffic) == ({DropReason.UPLINK_OVERSIZE: 2}, {})
        # VOICE, which is counted when it has been sent.
        await becomes(lambda: bench.plane.snapshot().totals.uplink_packets, 1)


FAULTS = {
    "no UDP payload is so long": (build_varint(0) + build_varint(65_529) + b"\0", "capsule: datagram of 65528 bytes"),
    "nothing in it": (b"\0\0", "capsule: no context id"),
    "half a context id": (b"\0\x01\x40", "capsule: no context id"),
}


@pytest.mark.parametrize(("data", "detail"), FAULTS.values(), ids=FAULTS.keys())
async def test_faults(make: MakePlane, tmp_path: Path, data: bytes, detail: str) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        await client.send(build_datagram(VOICE) + data + build_datagram(VOICE))
        assert await client.tls.closed_by_server()
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.BROKEN_FRAME, detail)
        assert closed.totals.uplink_packets == 1


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", ""),
        (b"\0", "within a capsule"),
        (build_datagram(VOICE)[:-1], "within a capsule"),
        (build_capsule(7, b"x" * 9)[:-1], "within a capsule"),
        (build_datagram(VOICE), ""),
    ],
)
async def test_a_client_that_ends(make: MakePlane, tmp_path: Path, data: bytes, detail: str) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        await client.send(build_datagram(HELLO) + data)
        await client.tls.end()
        assert await client.tls.closed_by_server()
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.CLIENT_CLOSED, detail)


async def test_only_media_passes(make: MakePlane, tmp_path: Path) -> None:
    """By the first byte, as in RFC 7983, in both directions."""
    media = [first for first in range(256) if first <= 3 or 20 <= first <= 79 or 128 <= first <= 191]
    others = 256 - len(media)
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        await client.send(b"".join(build_datagram(bytes([first]) + b"xyz") for first in [*range(256), 0]))
        for first in [*media, 0]:
            flow = await bench.upstream.expect(bytes([first]) + b"xyz")
        for first in [*range(256), 0]:
            bench.upstream.send(flow, bytes([first]) + b"xyz")
        for first in [*media, 0]:
            assert await client.payload() == bytes([first]) + b"xyz"
        totals = bench.plane.snapshot().totals
        assert totals.drops == {DropReason.UPLINK_MALFORMED: others, DropReason.DOWNLINK_MALFORMED: others}
        assert totals.drops_by_traffic == {}


# ---- No gateway: the client believes that this is UDP


async def test_nothing_is_sent_again_and_copies_pass(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(initial_rto_s=0.1, upstream_silence_s=0.2)
    async with plane_bench(make, tmp_path, settings) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        request = stun(1)
        await client.send(build_datagram(request))
        flow = await bench.upstream.expect(request)
        # When a neighbour's upstream has been silent for too long, so has ours, and requests have been sent again.
        async with bench.flow(stun(2, Method.ALLOCATE)):
            assert (await bench.closed()).reason is CloseReason.UPSTREAM_SILENT
        while not bench.upstream.received.empty():
            assert (await bench.upstream.receive())[0] != request
        for _ in range(2):
            bench.upstream.send(flow, answer(request))
            assert await client.payload() == answer(request)
        (snapshot,) = bench.plane.snapshot().flows
        assert (snapshot.totals.retransmissions, snapshot.totals.drops) == (0, {})


async def test_437_reaches_the_client(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        request = stun(1, Method.ALLOCATE)
        await client.send(build_datagram(request))
        flow = await bench.upstream.expect(request)
        bench.upstream.send(flow, answer(request, error=437))
        assert await client.payload() == answer(request, error=437)


async def test_an_unreachable_upstream_ends_it(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        await opened_flow(bench, client)
        bench.upstream.close()
        await client.send(build_datagram(VOICE))  # the answer is ICMP
        assert await client.tls.closed_by_server()
        assert (await bench.closed()).reason is CloseReason.UPSTREAM_UNREACHABLE


async def test_control_closes_without_a_word(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        bench.plane.close(client.connection, CloseReason.DRAINING)
        assert await client.tls.receive() == b""
        assert (await bench.closed()).reason is CloseReason.DRAINING


# ---- What is known of it nevertheless


async def test_an_allocation_is_left_to_control(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, releases_allocations=True) as bench:
        async with carried(bench, Carrier.CONNECT_UDP) as client:
            request = stun(1, Method.ALLOCATE)
            await client.send(build_datagram(request))
            flow = await bench.upstream.expect(request)
            bench.upstream.send(flow, allocated(request))
            assert await client.payload() == allocated(request)
        orphan = await bench.event(AllocationOrphaned)
        os.close(orphan.fd)
        assert (orphan.request, orphan.upstream) == (request, bench.target)
        await bench.closed()


async def test_an_allocation_that_was_released_is_not(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, releases_allocations=True) as bench:
        async with carried(bench, Carrier.CONNECT_UDP) as client:
            request = stun(1, Method.ALLOCATE)
            await client.send(build_datagram(request))
            flow = await bench.upstream.expect(request)
            bench.upstream.send(flow, allocated(request))
            await client.payload()
            release = stun(2, Method.REFRESH)
            await client.send(build_datagram(release))
            await bench.upstream.expect(release)
            bench.upstream.send(flow, answer(release, (AttributeType.LIFETIME, build_uint32(0))))
            await client.payload()
        await bench.closed()
        assert not bench.events


async def test_what_control_sees(make: MakePlane, tmp_path: Path) -> None:
    rtp = b"\x80\x08" + bytes(range(10)) + bytes(160)
    in_channel = build_channel_data(0x4001, b"\x80\x08" + bytes(range(10, 20)) + bytes(160))
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        flow = await opened_flow(bench, client)
        tap = await tapped(bench, client.connection, flow)
        payloads = [rtp, in_channel, RTCP, build_channel_data(0x4001, RTCP), b""]
        for payload in payloads:
            await client.send(build_datagram(payload))
            await bench.upstream.expect(payload)
            bench.upstream.send(flow, payload)
            assert await client.payload() == payload
        (snapshot,) = bench.plane.snapshot().flows
        assert snapshot.carrier is Carrier.CONNECT_UDP
        assert (snapshot.totals.uplink_packets, snapshot.totals.downlink_packets) == (6, 5)
        assert snapshot.totals.downlink_bytes == sum(map(len, payloads))
        assert (snapshot.uplink_rtcp, snapshot.downlink_rtcp) == (2, 2)
        sources = [int.from_bytes(packet[8:12]) for packet in (rtp, in_channel[4:])]
        assert sorted((stream.direction, stream.ssrc) for stream in snapshot.streams) == [
            (direction, ssrc) for direction in ("downlink", "uplink") for ssrc in sources
        ]
        assert [one.data for one in tap.take(99)] == [payload for payload in payloads for _ in range(2)]
        tap.close()


async def test_a_slow_client_gets_what_is_urgent_first(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(max_media_age_s=3600, downlink_media_bytes=50_000)
    async with (
        plane_bench(make, tmp_path, settings) as bench,
        carried(bench, Carrier.CONNECT_UDP, receive_buffer=4096) as client,
    ):
        flow = await opened_flow(bench, client)
        media = b"\x80" + bytes(1199)
        while not bench.plane.snapshot().totals.drops:
            for _ in range(50):
                bench.upstream.send(flow, media)
            await asyncio.sleep(0.01)
        tap = bench.plane.tap(client.connection)
        assert tap is not None
        # The kernel drops what comes to a full socket: what counts is sent when the plane has taken all before it.
        last = b"\x80" + bytes(1198) + b"\1"
        while not any(one.data == last for one in tap.take(999)):
            bench.upstream.send(flow, last)
            await asyncio.sleep(0.01)
        for payload in (RTCP, DTLS, HELLO):
            bench.upstream.send(flow, payload)
        while not any(one.data == HELLO for one in tap.take(999)):  # noqa: ASYNC110 - nothing tells of a tap
            await asyncio.sleep(0.01)
        tap.close()
        received = [await client.payload()]
        while received[-1][0] == 0x80:
            received.append(await client.payload())
        assert [received[-1], await client.payload(), await client.payload()] == [DTLS, HELLO, RTCP]
        assert await client.payload() in {media, last}
        assert set(bench.plane.snapshot().totals.drops_by_traffic) == {Traffic.MEDIA}
