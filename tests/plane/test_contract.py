"""The contract of ``relay.plane.api``, on every plane, with real TLS clients and a real UDP upstream."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.plane.api import (
    AllocationOrphaned,
    Carrier,
    CloseReason,
    ConnectionId,
    DropReason,
    Traffic,
    TurnOpened,
)
from relay.plane.certificates import ALPN_PROTOCOLS, HandshakeFailure, read_certificate, read_certificates
from relay.plane.listening import open_listeners
from relay.plane.reference.turn_flow import MAX_FRESH_PORTS
from relay.plane.settings import PlaneSettings
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import (
    AttributeType,
    MessageClass,
    Method,
    build_message,
    build_uint32,
)
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, http_stream, plane_bench, raw_client
from tests.support.messages import HELLO, VOICE, allocated, answer, stun
from tests.support.peers.scripted_upstream import scripted_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())


# ---- Forwarding


async def test_channel_data_loses_its_padding_uplink_and_gains_zeroes_downlink(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        for size in (0, 1, 2, 3, 4, 5, 172, 1200, 1400):
            frame = build_channel_data(0x4001, bytes([size & 255]) * size)
            padding = bytes(-len(frame) & 3)
            await client.send(frame + b"\xff" * len(padding))
            await bench.upstream.expect(frame)
            bench.upstream.send(flow, frame)
            assert await client.receive_exactly(len(frame) + len(padding)) == frame + padding


async def test_stun_passes_unchanged_both_ways(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        request = stun(1)
        await client.send(request)
        assert await bench.upstream.expect(request) == flow
        reply = answer(request, (AttributeType.SOFTWARE, b"any"))
        bench.upstream.send(flow, reply)
        assert await client.receive_unit() == reply


async def test_every_unit_split_at_every_byte_across_tls_records(make: MakePlane, tmp_path: Path) -> None:
    units = [stun(1, message_class=MessageClass.INDICATION)]
    units += [build_channel_data(0x4000 + size, bytes(range(size)), padded=True) for size in range(10)]
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _):
        for unit in units:
            whole = unit if unit[0] < 0x40 else unit[: 4 + unit[3]]
            for at in range(1, len(unit)):
                await client.send(unit[:at])
                await client.send(unit[at:])
                await bench.upstream.expect(whole)


async def test_300_units_in_one_record(make: MakePlane, tmp_path: Path) -> None:
    frames = [build_channel_data(0x4001, bytes([n & 255, n >> 8]) * 20, padded=True) for n in range(300)]
    record = b"".join(frames)
    assert len(record) <= 16384
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        await client.send(record)
        for frame in frames:
            await bench.upstream.expect(frame)
        for frame in frames[:80]:
            bench.upstream.send(flow, frame)
        for frame in frames[:80]:
            assert await client.receive_unit() == frame


async def test_one_byte_each_50_ms(make: MakePlane, tmp_path: Path) -> None:
    frame = build_channel_data(0x4001, b"slow")
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        for byte in HELLO + frame:
            await client.send(bytes([byte]))
            await asyncio.sleep(0.05)  # the pace is what is tested
        await bench.upstream.expect(HELLO)
        await bench.upstream.expect(frame)


async def test_handshake_and_records_byte_by_byte_in_tcp(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.client(byte_by_byte=True) as client:
        for byte in client.record(HELLO):
            await client.send_wire(bytes([byte]))
        await bench.upstream.expect(HELLO)


async def test_the_longest_units(make: MakePlane, tmp_path: Path) -> None:
    """65,507 bytes are what UDP carries on loopback; what is longer is dropped whole, counted, and harms nothing."""
    longest = build_channel_data(0x4001, bytes(65_503))
    too_long = build_channel_data(0x4001, bytes(65_535))
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _):
        await client.send(too_long + b"\0" + longest + b"\0")
        await bench.upstream.expect(longest)
        totals = bench.plane.snapshot().totals
        assert totals.drops == {DropReason.UPLINK_OVERSIZE: 1}


async def test_stun_lengths_that_wrap_at_16_bits_elsewhere(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _):
        for length in (65520, 65524, 65528, 65532):
            head = stun(1, message_class=MessageClass.INDICATION)
            await client.send(head[:2] + length.to_bytes(2) + head[4:] + bytes(length))
        await client.send(HELLO)
        await bench.upstream.expect(HELLO)
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.UPLINK_OVERSIZE: 4})


async def test_malformed_datagrams_of_the_upstream_never_reach_the_client(make: MakePlane, tmp_path: Path) -> None:
    good = build_channel_data(0x4001, b"good")
    bad = [b"", b"\x80abc", b"\x40\x01\x00", b"\x40\x01\x00\x05abcd", stun(1)[:-1], b"\x01\x01\x00\x04" + stun(1)[4:]]
    bad.append(b"\x00\x01\x00\x00\x21\x12\xa4\x43" + bytes(12))
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        for datagram in bad:
            bench.upstream.send(flow, datagram)
        bench.upstream.send(flow, good)
        assert await client.receive_unit() == good
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.DOWNLINK_MALFORMED: len(bad)})


async def test_padding_of_a_datagram_is_not_doubled(make: MakePlane, tmp_path: Path) -> None:
    """Over UDP padding is optional: an upstream may send it."""
    frame = build_channel_data(0x4001, b"12345")
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        bench.upstream.send(flow, frame + b"\1\2\3")
        bench.upstream.send(flow, frame)
        assert await client.receive_exactly(24) == 2 * (frame + bytes(3))


async def test_ipv6_on_both_sides(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, host="::1") as bench, bench.flow(HELLO) as (client, flow):
        assert flow.is_ipv6
        frame = build_channel_data(0x4001, VOICE)
        await client.send(frame)
        await bench.upstream.expect(frame)
        bench.upstream.send(flow, frame)
        assert await client.receive_unit() == frame


async def test_each_flow_has_a_socket_of_its_own(make: MakePlane, tmp_path: Path) -> None:
    async with (
        plane_bench(make, tmp_path) as bench,
        bench.flow(HELLO) as (one, at_one),
        bench.flow(HELLO) as (two, at_two),
    ):
        assert at_one != at_two
        first, second = build_channel_data(0x4001, b"one."), build_channel_data(0x4001, b"two.")
        bench.upstream.send(at_one, first)
        bench.upstream.send(at_two, second)
        assert await one.receive_unit() == first
        assert await two.receive_unit() == second


async def test_strangers_are_not_heard(make: MakePlane, tmp_path: Path) -> None:
    """The socket is connected: only the upstream can send to it."""
    async with (
        plane_bench(make, tmp_path) as bench,
        bench.flow(HELLO) as (client, flow),
        scripted_upstream() as stranger,
    ):
        stranger.send(flow, build_channel_data(0x4001, b"evil"))
        frame = build_channel_data(0x4001, b"good")
        bench.upstream.send(flow, frame)
        assert await client.receive_unit() == frame


# ---- Gateway duties


async def test_requests_are_sent_again_until_they_are_answered(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, bounds(initial_rto_s=0.5)) as bench, bench.flow(HELLO) as (client, flow):
        request = stun(7)
        await client.send(request)
        for _ in range(3):
            await bench.upstream.expect(request)
        bench.upstream.send(flow, answer(request))
        assert await client.receive_unit() == answer(request)
        after = stun(8)
        await client.send(after)
        await bench.upstream.expect(after)
        await becomes(lambda: bench.plane.snapshot().totals.retransmissions, 2)


async def test_second_answers_are_dropped(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        request, marker = stun(7), build_channel_data(0x4001, b"mark")
        await client.send(request)
        await bench.upstream.expect(request)
        for _ in range(3):
            bench.upstream.send(flow, answer(request))
        bench.upstream.send(flow, marker)
        assert await client.receive_unit() == answer(request)
        assert await client.receive_unit() == marker
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.DOWNLINK_DUPLICATE: 2})


async def test_indications_are_not_sent_again(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, bounds(initial_rto_s=0.1)) as bench, bench.flow(HELLO) as (client, _):
        request = stun(1)
        await client.send(HELLO, request)
        await bench.upstream.expect(HELLO)
        await bench.upstream.expect(request)
        await bench.upstream.expect(request)


async def test_a_stale_allocation_is_avoided_from_a_fresh_port(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        request = stun(1, Method.ALLOCATE)
        await client.send(request)
        stale = await bench.upstream.expect(request)
        bench.upstream.send(stale, answer(request, error=437))
        fresh = await bench.upstream.expect(request)
        assert fresh != stale
        bench.upstream.send(fresh, allocated(request))
        assert await client.receive_unit() == allocated(request)
        # Now the allocation is the client's own, and a second Allocate is its own mistake.
        second = stun(2, Method.ALLOCATE)
        await client.send(second)
        assert await bench.upstream.expect(second) == fresh
        bench.upstream.send(fresh, answer(second, error=437))
        assert await client.receive_unit() == answer(second, error=437)


async def test_437_everywhere_reaches_the_client_in_the_end(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        request = stun(1, Method.ALLOCATE)
        await client.send(request)
        seen = []
        for _ in range(MAX_FRESH_PORTS + 1):
            seen.append(await bench.upstream.expect(request))
            bench.upstream.send(seen[-1], answer(request, error=437))
        assert await client.receive_unit() == answer(request, error=437)
        assert len(set(seen)) == MAX_FRESH_PORTS + 1


async def test_the_retransmission_interval_is_a_setting(make: MakePlane, tmp_path: Path) -> None:
    """A plane that kept to half a second would close the client before the fifth copy."""
    settings = bounds(initial_rto_s=0.01, upstream_silence_s=4)
    async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, _):
        await client.send(stun(1))
        for _ in range(5):
            await bench.upstream.expect(stun(1))


async def test_an_unreachable_upstream_closes_the_client(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _):
        bench.upstream.close()
        await client.send(stun(1), stun(2))
        assert await client.closed_by_server()
        closed = await bench.closed()
        assert closed.reason is CloseReason.UPSTREAM_UNREACHABLE
        assert closed.flow is not None
        assert closed.flow.upstream == bench.target


async def test_a_silent_upstream_closes_the_client(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(upstream_silence_s=0.6)
    async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, _):
        await client.send(stun(1, Method.ALLOCATE))
        assert await client.closed_by_server()
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.UPSTREAM_SILENT, "no answer for 0.6 s")


async def test_an_upstream_that_still_sends_media_is_not_silent(make: MakePlane, tmp_path: Path) -> None:
    """It answers only after half as long again as it may be silent, with media in between."""
    settings = bounds(upstream_silence_s=2)
    frame = build_channel_data(0x4001, VOICE)
    loop = asyncio.get_running_loop()
    async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, flow):
        request = stun(1, Method.REFRESH)
        await client.send(request)
        await bench.upstream.expect(request)
        asked = loop.time()
        while loop.time() < asked + 3:
            bench.upstream.send(flow, frame)
            assert await client.receive_unit() == frame
            await asyncio.sleep(0.05)
        bench.upstream.send(flow, answer(request))
        assert await client.receive_unit() == answer(request)


async def test_a_vanished_client_leaves_its_allocation_to_control(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, releases_allocations=True) as bench:
        client = await bench.connect()
        request = build_message(Method.ALLOCATE, MessageClass.REQUEST, bytes(12), [(AttributeType.USERNAME, b"user")])
        await client.send(request)
        flow = await bench.upstream.expect(request)
        bench.upstream.send(flow, allocated(request))
        await client.receive_unit()
        client.reset()
        orphan = await bench.event(AllocationOrphaned)
        assert (await bench.closed()).reason is CloseReason.CLIENT_LOST
        with socket.socket(fileno=orphan.fd) as left_behind:
            assert Address(*left_behind.getsockname()) == flow
            assert Address(*left_behind.getpeername()) == bench.upstream.address
        assert orphan.request == request
        assert orphan.upstream == bench.target


@pytest.mark.parametrize("how", ["refused", "released", "never"])
async def test_no_allocation_no_orphan(make: MakePlane, tmp_path: Path, how: str) -> None:
    async with plane_bench(make, tmp_path, releases_allocations=True) as bench, bench.client() as client:
        request, release = stun(1, Method.ALLOCATE), stun(2, Method.REFRESH)
        if how == "never":
            await client.send(HELLO)
            await bench.upstream.expect(HELLO)
        else:
            await client.send(request)
            flow = await bench.upstream.expect(request)
            bench.upstream.send(flow, answer(request, error=486) if how == "refused" else allocated(request))
            await client.receive_unit()
        if how == "released":
            await client.send(release)
            await bench.upstream.expect(release)
            bench.upstream.send(flow, answer(release, (AttributeType.LIFETIME, build_uint32(0))))
            await client.receive_unit()
        await client.close()
        await bench.closed()
        assert not [event for event in bench.events if isinstance(event, AllocationOrphaned)]


# ---- A client that does not read


async def test_media_is_dropped_whole_and_stun_is_not(make: MakePlane, tmp_path: Path) -> None:
    frame = build_channel_data(0x4001, b"\x80" + bytes(1199))
    settings = bounds(max_media_age_s=3600)
    async with plane_bench(make, tmp_path, settings) as bench, bench.client(receive_buffer=4096) as client:
        await client.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        sent = 0
        while not bench.plane.snapshot().totals.drops.get(DropReason.DOWNLINK_FULL):
            bench.upstream.send(flow, frame)
            sent += 1
            await asyncio.sleep(0)
            assert sent < 100_000, "the kernel's buffers are larger than this"
        request = stun(1)
        await client.send(request)
        await bench.upstream.expect(request)
        bench.upstream.send(flow, answer(request))
        units = 0
        while (unit := await client.receive_unit()) != answer(request):
            assert unit == frame
            units += 1
        # The answer has overtaken what still waits.
        while (
            bench.plane.snapshot().totals.downlink_packets > units + 1 or bench.plane.snapshot().flows[0].queued_bytes
        ):
            assert await client.receive_unit() == frame
            units += 1
        totals = bench.plane.snapshot().totals
        assert 0 < units < sent
        assert units + totals.drops[DropReason.DOWNLINK_FULL] <= sent


async def test_a_client_that_reads_no_stun_either_is_closed(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(downlink_media_bytes=4096, downlink_control_bytes=16_384)
    message = build_message(Method.BINDING, MessageClass.INDICATION, bytes(12), [(AttributeType.SOFTWARE, bytes(700))])
    async with plane_bench(make, tmp_path, settings) as bench, bench.client(receive_buffer=4096) as client:
        await client.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        while bench.plane.snapshot().flows:
            for _ in range(50):
                bench.upstream.send(flow, message)
            await asyncio.sleep(0)
        assert (await bench.closed()).reason is CloseReason.SLOW_CLIENT


# ---- First bytes, HTTP, upgrade, adopt


async def test_garbage_after_a_good_start_closes_that_connection_only(make: MakePlane, tmp_path: Path) -> None:
    good, bad = build_channel_data(0x4001, b"good"), b"\xff\xff\xff\xff"
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (victim, _), bench.flow(HELLO) as (other, _):
        await victim.send(good + bad + good)
        await bench.upstream.expect(good)
        assert await victim.closed_by_server()
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.BROKEN_FRAME, "first_byte")
        await other.send(good)
        await bench.upstream.expect(good)
        assert bench.upstream.received.empty()
        await becomes(lambda: bench.plane.snapshot().closed, {CloseReason.BROKEN_FRAME: 1})


@pytest.mark.parametrize(
    "first", [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"\x40\x01\x00\x00", b"PRI * HTTP/2.0\r\n", b"\xff"]
)
async def test_unknown_first_bytes_close(make: MakePlane, tmp_path: Path, first: bytes) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        await client.send(first)
        assert await client.closed_by_server()
        assert (await bench.closed()).reason is CloseReason.FIRST_BYTES_UNKNOWN


@pytest.mark.parametrize("protocol", ALPN_PROTOCOLS)
async def test_control_is_told_the_protocol(make: MakePlane, tmp_path: Path, protocol: str) -> None:
    async with plane_bench(make, tmp_path) as bench:
        context = bench.authority.client_context()
        context.set_alpn_protocols([protocol])
        client = await TlsClient.open(bench.server, context)
        await client.send(HELLO)
        assert (await bench.event(TurnOpened)).alpn == protocol
        await client.close()


async def test_turn_by_alpn_needs_no_first_byte(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        context = bench.authority.client_context()
        context.set_alpn_protocols(["stun.turn"])
        client = await TlsClient.open(bench.server, context)
        opened = await bench.event(TurnOpened)
        assert opened.alpn == "stun.turn"
        client.abort()
        await bench.closed()


async def test_control_hears_who_comes_and_by_what_name(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        bench.attaches = False
        async with bench.client() as client:
            await client.send(HELLO + build_channel_data(0x4001, b"soon"))
            opened = await bench.event(TurnOpened)
            assert opened.client == Address(*client.socket.getsockname())
            assert (opened.server_name, opened.alpn) == ("relay.test", None)
            # What came before the answer is not lost.
            bench.plane.attach(opened.connection, bench.target)
            await bench.upstream.expect(HELLO)
            await bench.upstream.expect(build_channel_data(0x4001, b"soon"))
            bench.plane.close(opened.connection, CloseReason.DRAINING)
            assert await client.closed_by_server()
            assert (await bench.closed()).reason is CloseReason.DRAINING


async def test_control_that_does_not_answer(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, bounds(control_timeout_s=0.1)) as bench:
        bench.attaches = False
        async with bench.client() as client:
            await client.send(HELLO)
            assert await client.closed_by_server()
            assert (await bench.closed()).reason is CloseReason.CONTROL_TIMEOUT


async def test_verbs_that_come_too_late_do_nothing(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        for connection in (ConnectionId(1), ConnectionId(99)):
            bench.plane.attach(connection, bench.target)
            bench.plane.upgrade(connection, b"", Carrier.TURN, bench.target)
            bench.plane.close(connection, CloseReason.STOPPED)
        async with bench.flow(HELLO):
            pass
        closed = await bench.closed()
        bench.plane.attach(closed.connection, bench.target)
        bench.plane.close(closed.connection, CloseReason.STOPPED)
        assert list(bench.plane.snapshot().flows) == []


async def test_http_is_handed_over_and_back(make: MakePlane, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        opened, stream = await http_stream(bench, client, b"GET / HTTP/1.1\r\n")
        with stream:
            assert (opened.server_name, opened.tls_version) == ("relay.test", "TLSv1.3")
            assert opened.client == Address(*client.socket.getsockname())
            await client.send(b"Host: relay.test\r\n\r\n")
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += await loop.sock_recv(stream, 1000)
            assert request == b"GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n"
            body = bytes(range(256)) * 4096
            sending = asyncio.ensure_future(loop.sock_sendall(stream, body))
            assert await client.receive_exactly(len(body)) == body
            await sending
        assert await client.closed_by_server()
        assert (await bench.closed()).reason is CloseReason.HTTP_CLOSED


async def test_http_body_larger_than_every_buffer_goes_uplink(make: MakePlane, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        _, stream = await http_stream(bench, client, b"PUT /")
        body = bytes(range(256)) * 8192
        sending = asyncio.ensure_future(client.send(*(body[at : at + 16384] for at in range(0, len(body), 16384))))
        with stream:
            got = b""
            while len(got) < 5 + len(body):
                got += await loop.sock_recv(stream, 65536)
            assert got == b"PUT /" + body
            await sending
            await client.end()
            assert await loop.sock_recv(stream, 1) == b""
        assert await client.closed_by_server()
        assert (await bench.closed()).reason is CloseReason.HTTP_CLOSED


async def test_upgrade_continues_as_media(make: MakePlane, tmp_path: Path) -> None:
    response = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
    frame = build_channel_data(0x4001, VOICE)
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        opened, stream = await http_stream(bench, client, b"GET /turn HTTP/1.1\r\n\r\n")
        with stream:
            bench.plane.upgrade(opened.connection, response, Carrier.TURN, bench.target)
            assert await client.receive_exactly(len(response)) == response
            await client.send(frame)
            flow = await bench.upstream.expect(frame)
            bench.upstream.send(flow, frame)
            assert await client.receive_unit() == frame
            assert await asyncio.get_running_loop().sock_recv(stream, 100) == b"GET /turn HTTP/1.1\r\n\r\n"
            assert await asyncio.get_running_loop().sock_recv(stream, 100) == b""


@contextlib.asynccontextmanager
async def accepted_elsewhere(bench: Bench) -> AsyncIterator[tuple[TlsClient, socket.socket]]:
    """A client that has said its ClientHello, and the server's end of its connection."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        connected = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        await loop.sock_connect(connected, listener.getsockname())
        accepted, _ = await loop.sock_accept(listener)
    client = TlsClient(connected, bench.authority.client_context(), "relay.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    await client.flush()
    try:
        yield client, accepted
    finally:
        client.abort()


# The length of a record's header, the whole ClientHello (it is shorter), and what splits it.
@pytest.mark.parametrize("size", [0, 1, 5, 6, 100, 4096])
async def test_adopted_connection_with_bytes_already_read(make: MakePlane, tmp_path: Path, size: int) -> None:
    async with plane_bench(make, tmp_path) as bench, accepted_elsewhere(bench) as (client, accepted):
        preread = await asyncio.get_running_loop().sock_recv(accepted, size) if size else b""
        connection = bench.plane.adopt(accepted.detach(), preread)
        await client.shake_hands()
        await client.send(HELLO)
        await bench.upstream.expect(HELLO)
        client.abort()
        assert (await bench.closed()).connection == connection


async def test_adopted_and_closed_at_once(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, accepted_elsewhere(bench) as (client, accepted):
        connection = bench.plane.adopt(accepted.detach())
        bench.plane.close(connection, CloseReason.DRAINING)
        closed = await bench.closed()
        assert (closed.connection, closed.reason) == (connection, CloseReason.DRAINING)
        assert not await client.closed_by_server()  # in TLS: there was no handshake


# ---- TLS


async def test_server_name_chooses_the_certificate(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        exact, wild = bench.authority.issue("a.firm.test"), bench.authority.issue("*.firm.test")
        bench.plane.set_certificates(read_certificates([bench.certificate, exact, wild]))
        wanted = {"a.firm.test": "a.firm.test", "b.firm.test": "*.firm.test", "A.FIRM.test": "a.firm.test"}
        for name, certificate in wanted.items():
            client = await bench.connect(name)
            assert ("DNS", certificate) in (client.tls.getpeercert() or {})["subjectAltName"]
            client.abort()
        context = bench.authority.client_context()
        context.check_hostname = False
        for unknown in ("elsewhere.test", "a.b.firm.test", None):
            client = await TlsClient.open(bench.server, context, unknown)
            assert ("DNS", "relay.test") in (client.tls.getpeercert() or {})["subjectAltName"]
            client.abort()


async def test_new_certificates_do_not_touch_live_connections(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _):
        bench.plane.set_certificates([read_certificate(bench.authority.issue("new.test"))])
        frame = build_channel_data(0x4001, VOICE)
        await client.send(frame)
        await bench.upstream.expect(frame)
        (await bench.connect("new.test")).abort()
        with pytest.raises(ssl.SSLCertVerificationError):
            await bench.connect("relay.test")


def old_context(bench: Bench, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = bench.authority.client_context()
    # Debian's OpenSSL does not speak it otherwise.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.maximum_version = version
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_tls_1_1_is_refused(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await TlsClient.open(bench.server, old_context(bench, ssl.TLSVersion.TLSv1_1))
        closed = await bench.closed()
        assert closed.reason is CloseReason.HANDSHAKE_FAILED
        assert closed.handshake_failure is HandshakeFailure.UNSUPPORTED_PROTOCOL


async def test_tls_1_2_is_welcome(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        client = await TlsClient.open(bench.server, old_context(bench, ssl.TLSVersion.TLSv1_2))
        assert client.tls.version() == "TLSv1.2"
        await client.send(HELLO)
        await bench.upstream.expect(HELLO)
        client.abort()


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (b"GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n", HandshakeFailure.PLAIN_HTTP),
        (b"CONNECT relay.test:443 HTTP/1.1\r\n\r\n", HandshakeFailure.PLAIN_HTTP),
        (stun(1), HandshakeFailure.PLAIN_STUN),
        (stun(1)[:8], HandshakeFailure.PLAIN_STUN),
        (b"P", HandshakeFailure.PLAIN_HTTP),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1024 443\r\n", HandshakeFailure.PROXY_HEADER),
        (b"PROXY ", HandshakeFailure.PROXY_HEADER),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", HandshakeFailure.PROXY_HEADER),
        (b"\r\n\r\n\0\r\nQUIT\n", HandshakeFailure.PROXY_HEADER),
        (b"\r\n\r\n\0\r\nQUIT", HandshakeFailure.NOT_TLS),
        (b"SSH-2.0-OpenSSH_9.2\r\n", HandshakeFailure.NOT_TLS),
        (b"\x15", HandshakeFailure.NOT_TLS),
        (b"\x80\x2e\x01\x03\x03", HandshakeFailure.NOT_TLS),
        (bytes(64), HandshakeFailure.NOT_TLS),
    ],
)
async def test_what_is_not_tls_is_told_apart(
    make: MakePlane, tmp_path: Path, data: bytes, failure: HandshakeFailure
) -> None:
    async with plane_bench(make, tmp_path) as bench:
        with await raw_client(bench, data):
            assert (await bench.closed()).handshake_failure is failure


async def test_a_client_that_refuses_the_certificate_is_told_apart(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        with pytest.raises(ssl.SSLCertVerificationError):
            await open_and_alert(bench)
        assert (await bench.closed()).handshake_failure is HandshakeFailure.CERTIFICATE_REFUSED


async def open_and_alert(bench: Bench) -> None:
    """Shake hands with a client that trusts nobody and says so."""
    connected = await raw_client(bench, b"")
    client = TlsClient(connected, ssl.create_default_context(), "relay.test")
    try:
        await client.shake_hands()
    finally:
        await client.flush()
        client.abort()


async def test_leaving_in_the_handshake(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        (await raw_client(bench, b"\x16\x03\x01")).close()
        closed = await bench.closed()
        assert closed.handshake_failure is HandshakeFailure.CLIENT_CLOSED


async def test_a_broken_record_closes(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _):
        record = bytearray(client.record(HELLO))
        record[-1] ^= 1
        await client.send_wire(bytes(record))
        assert (await bench.closed()).reason is CloseReason.TLS_BROKEN


# ---- Deadlines and bounds


async def test_deadlines_of_the_beginning(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, bounds(handshake_timeout_s=0.2)) as bench:
        with await raw_client(bench, b"\x16"):
            closed = await bench.closed()
            assert closed.handshake_failure is HandshakeFailure.TIMEOUT
        bench.plane.configure(bounds(first_bytes_timeout_s=0.2))
        async with bench.client() as client:
            await client.send(HELLO[:7])
            assert await client.closed_by_server()
            assert (await bench.closed()).reason is CloseReason.FIRST_BYTES_TIMEOUT


@pytest.mark.parametrize("settings", [bounds(max_connections=2), bounds(max_connections_per_source=2)])
async def test_bounds_on_connections(make: MakePlane, tmp_path: Path, settings: PlaneSettings) -> None:
    async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (one, _):
        async with bench.flow(HELLO):
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await bench.connect()
            assert (await bench.closed()).reason is CloseReason.TOO_MANY_CONNECTIONS
        await bench.closed()
        async with bench.flow(HELLO):
            await one.send(HELLO)
            await bench.upstream.expect(HELLO)


async def test_new_bounds_count_for_new_connections(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO):
        bench.plane.configure(bounds(max_connections=1))
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await bench.connect()


async def test_drain_takes_nobody_and_leaves_the_running(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _):
        bench.plane.drain()
        # A worker takes the verb in its next turn; who came before that may be turned away later in the handshake.
        refused = False
        while not refused:
            try:
                (await bench.connect()).abort()
            except ConnectionRefusedError:
                refused = True
            except (ConnectionError, ssl.SSLError):
                continue
        with pytest.raises(ConnectionRefusedError):
            await bench.connect()
        await client.send(HELLO)
        await bench.upstream.expect(HELLO)


async def test_sockets_that_are_given(make: MakePlane, tmp_path: Path) -> None:
    """All of them are served, however many workers there are: each has a queue of its own."""
    async with plane_bench(make, tmp_path) as bench:
        given = open_listeners(Address("127.0.0.1", 0), 5)
        bench.server = await bench.plane.listen(Address("127.0.0.1", 0), given)
        clients = await asyncio.gather(*(bench.connect() for _ in range(20)))
        for client in clients:
            client.abort()


async def test_sockets_that_others_have_too(make: MakePlane, tmp_path: Path) -> None:
    """After a drain the newcomers of a shared socket are the other's, and this plane does not even look at them."""
    async with plane_bench(make, tmp_path) as bench:
        [shared] = open_listeners(Address("127.0.0.1", 0), 1)
        with shared:
            bench.server = await bench.plane.listen(Address("127.0.0.1", 0), [shared.dup()])
            (await bench.connect()).abort()
            bench.plane.drain()
            # Each worker has taken the verb when it has gone round.
            first = bench.plane.turns()
            await eventually(lambda: min(map(operator.sub, bench.plane.turns(), first)) > 1)
            with socket.create_connection(bench.server):
                begin = bench.plane.turns()
                await asyncio.sleep(0.5)  # the turns of this time are what is tested
                spent = list(map(operator.sub, bench.plane.turns(), begin))
                shared.accept()[0].close()
            assert max(spent) < 1000
            assert bench.plane.snapshot().accepted == 1


async def test_stop_ends_everybody_in_order(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _), bench.client() as idle:
        stopping = asyncio.ensure_future(bench.plane.stop())
        assert await client.closed_by_server()
        assert await idle.closed_by_server()
        await stopping
        assert {(await bench.closed()).reason, (await bench.closed()).reason} == {CloseReason.STOPPED}


async def test_snapshot_counts(make: MakePlane, tmp_path: Path) -> None:
    frame = build_channel_data(0x4001, VOICE)
    async with plane_bench(make, tmp_path) as bench:
        async with bench.flow(HELLO) as (client, flow):
            await client.send(frame)
            await bench.upstream.expect(frame)
            bench.upstream.send(flow, frame)
            await client.receive_unit()
            snapshot = bench.plane.snapshot()
            (only,) = snapshot.flows
            assert only.upstream == bench.target
            assert (only.totals.uplink_packets, only.totals.uplink_bytes) == (2, len(HELLO) + len(frame))
            assert (only.totals.downlink_packets, only.totals.downlink_bytes) == (1, len(frame))
            assert (snapshot.connections, snapshot.accepted) == (1, 1)
        closed = await bench.closed()
        assert closed.totals == only.totals
        after = bench.plane.snapshot()
        assert (after.connections, list(after.flows), after.totals) == (0, [], only.totals)
        assert sum(after.closed.values()) == 1


async def test_no_way_to_the_upstream(make: MakePlane, tmp_path: Path) -> None:
    """A source address that this machine does not have now: the flow starts, and what it sends again is lost too."""
    settings = bounds(source_ipv4="192.0.2.1", initial_rto_s=0.1, upstream_silence_s=0.5)
    async with plane_bench(make, tmp_path, settings) as bench, bench.client() as client:
        await client.send(stun(1, Method.ALLOCATE))
        assert await client.closed_by_server()
        closed = await bench.closed()
        assert closed.reason is CloseReason.UPSTREAM_SILENT
        assert closed.detail.startswith("no answer for 0.5 s; our own machine did not send: ")
        assert closed.totals.uplink_packets == 0
        assert closed.totals.retransmissions >= 1
        lost = closed.totals.retransmissions + 1
        assert closed.totals.drops == {DropReason.UPLINK_REFUSED: lost}
        assert closed.totals.drops_by_traffic == {Traffic.CONTROL: lost}


async def test_a_session_is_resumed(make: MakePlane, tmp_path: Path) -> None:
    """Also on the compiled plane, where the second connection may land on another worker."""
    async with plane_bench(make, tmp_path) as bench:
        context = old_context(bench, ssl.TLSVersion.TLSv1_2)
        first = await TlsClient.open(bench.server, context)
        session = first.tls.session
        assert not first.tls.session_reused
        first.abort()
        for _ in range(8):
            again = await TlsClient.open(bench.server, context, session=session)
            assert again.tls.session_reused
            again.abort()
