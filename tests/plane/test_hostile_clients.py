"""Clients and networks that mean no good, or have bad luck: what they do ends their own connection, if any.

What escapes from a callback fails each of these tests, and so does a descriptor that stays open (see conftest).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.plane.api import (
    AllocationOrphaned,
    Carrier,
    CloseReason,
    ConnectionId,
    DropReason,
    HttpOpened,
    Upstream,
)
from relay.plane.reference.media import MAX_UNITS_PER_TURN
from relay.wire.channeldata import build_channel_data
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, forging_client, http_stream, plane_bench
from tests.support.descriptors import no_descriptors
from tests.support.messages import HELLO
from tests.support.peers.forging_client import APPLICATION_DATA, HANDSHAKE
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes

every_plane = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())
reference_plane = pytest.mark.parametrize("make", [PLANES["reference"]], ids=["reference"])

VOICE = build_channel_data(0x4001, b"\x80" + bytes(171))
REQUEST = b"GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n"


# ---- TLS


async def adopt_one(bench: Bench, listener: socket.socket) -> None:
    """Hand the next connection to the plane."""
    listener.setblocking(False)
    accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
    bench.plane.adopt(accepted.detach())


@every_plane
async def test_a_key_update_that_never_ends(make: MakePlane, tmp_path: Path) -> None:
    """Nothing can be written to a client that has sent the head of a KeyUpdate: it is closed with the next packet."""
    async with plane_bench(make, tmp_path) as bench:
        client = await forging_client(bench, ssl.TLSVersion.TLSv1_3, tmp_path)
        await client.send_wire(client.forge(APPLICATION_DATA, HELLO))
        flow = await bench.upstream.expect(HELLO)
        await client.send_wire(client.forge(HANDSHAKE, bytes([24, 0, 0, 1])))
        sending = asyncio.ensure_future(keep_sending(bench, flow))
        assert (await bench.closed()).reason is CloseReason.TLS_BROKEN
        sending.cancel()
        client.abort()


async def keep_sending(bench: Bench, flow: Address) -> None:
    while True:
        bench.upstream.send(flow, VOICE)
        await asyncio.sleep(0.001)


@every_plane
async def test_a_client_that_asks_to_renegotiate_and_does_not_listen(make: MakePlane, tmp_path: Path) -> None:
    """Each attempt is answered with an alert. They must not pile up: it may try a few times only."""
    settings = bounds(downlink_media_bytes=4096, downlink_control_bytes=16_384)
    async with plane_bench(make, tmp_path, settings) as bench:
        client = await forging_client(bench, ssl.TLSVersion.TLSv1_2, tmp_path)
        await client.send_wire(client.forge(APPLICATION_DATA, HELLO))
        await bench.upstream.expect(HELLO)
        body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\xc0\x2b" + b"\x01\0"
        again = b"\x01" + len(body).to_bytes(3) + body
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                await client.send_wire(b"".join(client.forge(HANDSHAKE, again) for _ in range(100)))
        assert (await bench.closed()).reason is CloseReason.TLS_FLOOD
        client.abort()


@every_plane
async def test_a_server_name_that_is_not_ascii(
    make: MakePlane, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ends the handshake without a word on stderr, where a log line for each would be a flood."""
    async with plane_bench(make, tmp_path) as bench:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        hello = bench.authority.client_context().wrap_bio(incoming, outgoing, server_hostname="relay.test")
        with pytest.raises(ssl.SSLWantReadError):
            hello.do_handshake()
        with socket.create_connection(bench.server) as connected:
            connected.sendall(outgoing.read().replace(b"relay.test", b"\xff\xfelay.test"))
            closed = await bench.closed()
        assert closed.reason is CloseReason.HANDSHAKE_FAILED
        (await bench.connect()).abort()
        await bench.closed()
    assert capfd.readouterr().err == ""


def test_the_request_of_an_orphan_is_not_shown() -> None:
    upstream = Upstream("stun1", Address("192.0.2.1", 3478), releases_allocations=True)
    assert "trader" not in repr(AllocationOrphaned(ConnectionId(1), 99, upstream, b"1700000000:trader"))


# ---- Time and memory


@every_plane
async def test_the_kernel_does_not_hold_minutes_of_voice(make: MakePlane, tmp_path: Path) -> None:
    """A client that reads at first and then does not: what it is sent before anything is dropped is seconds old."""
    settings = bounds(max_media_age_s=3600)
    async with plane_bench(make, tmp_path, settings) as bench, bench.client(receive_buffer=4096) as client:
        await client.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        for _ in range(100):
            bench.upstream.send(flow, VOICE)
            await client.receive_unit()
        while not bench.plane.snapshot().totals.drops.get(DropReason.DOWNLINK_FULL):
            bench.upstream.send(flow, VOICE)
            await asyncio.sleep(0)
            assert bench.plane.snapshot().totals.downlink_packets < 2000, "the kernel takes it all"


@every_plane
async def test_a_unit_longer_than_the_buffer_reaches_a_client_that_reads(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(downlink_media_bytes=4096)
    async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, flow):
        long = build_channel_data(0x4001, b"\x80" + bytes(8191))
        bench.upstream.send(flow, long)
        assert await client.receive_unit() == long


@reference_plane
async def test_a_flood_of_tiny_units_leaves_others_their_turn(make: MakePlane, tmp_path: Path) -> None:
    """65,000 units fit into one read; forwarded in one go they would hold up every other call for half a second."""
    flood, records = build_channel_data(0x4001, b"") * 4096, 8
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _):
        # The upstream does not read: datagrams that it has no room for are lost, but were sent.
        bench.upstream.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind(bench.upstream.address)
            await client.send(*[flood] * records)
            before, largest = 1, 0
            while before < 1 + records * 4096:
                await asyncio.sleep(0)
                sent = bench.plane.snapshot().totals.uplink_packets
                before, largest = sent, max(largest, sent - before)
        # Those of a read and those that were left of the last.
        assert largest <= 2 * MAX_UNITS_PER_TURN


# ---- HTTP


@every_plane
async def test_upgrade_for_a_client_that_has_ended(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        opened, stream = await http_stream(bench, client, REQUEST)
        with stream:
            with contextlib.suppress(ssl.SSLError):
                client.tls.unwrap()
            await client.flush()
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(stream, 1000) == REQUEST
            assert await loop.sock_recv(stream, 1000) == b""
            bench.plane.upgrade(opened.connection, b"HTTP/1.1 101 .\r\n\r\n", Carrier.TURN, bench.target)
            assert (await bench.closed()).reason is CloseReason.CLIENT_CLOSED


@every_plane
@pytest.mark.parametrize("size", [1000, 200_000])
async def test_a_response_to_a_request_that_was_not_read_to_its_end(make: MakePlane, tmp_path: Path, size: int) -> None:
    """The kernel reports an error for the pair then, before the response is read: it arrives whole all the same."""
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        _, stream = await http_stream(bench, client, REQUEST)
        with stream:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sent = stream.send(b"r" * size)
        assert await client.receive_exactly(sent) == b"r" * sent
        assert await client.closed_by_server()
        assert (await bench.closed()).reason is CloseReason.HTTP_CLOSED


@every_plane
async def test_control_gives_up_on_a_client_that_neither_reads_nor_pauses(make: MakePlane, tmp_path: Path) -> None:
    """Both ways are full when control closes; once the client reads, it gets the response to its end."""
    loop = asyncio.get_running_loop()
    async with plane_bench(make, tmp_path) as bench, bench.client(receive_buffer=4096) as client:
        _, stream = await http_stream(bench, client, REQUEST)
        uploading = asyncio.ensure_future(client.send(*[bytes(16_384)] * 200))
        with stream:
            written = 0
            # Until nothing more is taken from control: the client's upload waits for it in turn.
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.2):
                        await loop.sock_sendall(stream, b"r" * 1000)
                    written += 1000
        got = 0
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            while data := await client.receive():
                got += len(data)
        assert got >= written
        assert (await bench.closed()).reason is CloseReason.HTTP_CLOSED
        uploading.cancel()
        await asyncio.gather(uploading, return_exceptions=True)


# ---- The network and the machine


def icmp_too_big(sender: Address, receiver: Address) -> bytes:
    """What a router says to the sender of a datagram that does not fit the next link (RFC 1191 section 4)."""
    udp = struct.pack("!HHHH", sender.port, receiver.port, 1400, 0)
    addresses = socket.inet_aton(sender.host) + socket.inet_aton(receiver.host)
    quoted = struct.pack("!BBHHHBBH", 0x45, 0, 1420, 1, 0x4000, 64, socket.IPPROTO_UDP, 0) + addresses + udp
    message = struct.pack("!BBHHH", 3, 4, 0, 0, 1300) + quoted
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return message[:2] + (~total & 0xFFFF).to_bytes(2) + message[4:]


@every_plane
async def test_a_packet_too_long_for_a_link_further_on(make: MakePlane, tmp_path: Path) -> None:
    """A router says so by ICMP: that packet is lost, and the call goes on, both ways."""
    try:
        router = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError:
        pytest.skip("raw sockets are for root")
    # The kernel remembers the path's MTU for ten minutes: for an address that no other test uses.
    host = "127.77.1.1"
    async with plane_bench(make, tmp_path, host=host) as bench, bench.flow(HELLO) as (client, flow):
        with router:
            router.bind((host, 0))
            router.sendto(icmp_too_big(flow, bench.upstream.address), (flow.host, 0))
        while not bench.plane.snapshot().totals.drops:
            assert bench.plane.snapshot().flows, bench.events
            await asyncio.sleep(0)
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.UPLINK_OVERSIZE: 1})
        await client.send(VOICE)
        await bench.upstream.expect(VOICE)
        bench.upstream.send(flow, VOICE)
        assert await client.receive_unit() == VOICE


@every_plane
async def test_what_comes_right_behind_such_an_error_is_not_left_lying(make: MakePlane, tmp_path: Path) -> None:
    try:
        router = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError:
        pytest.skip("raw sockets are for root")
    host = "127.77.1.2"
    async with plane_bench(make, tmp_path, host=host) as bench, bench.flow(HELLO) as (client, flow):
        with router:
            router.bind((host, 0))
            for _ in range(300):
                router.sendto(icmp_too_big(flow, bench.upstream.address), (flow.host, 0))
                bench.upstream.send(flow, VOICE)
                assert await client.receive_unit() == VOICE


@every_plane
@pytest.mark.parametrize("first", [HELLO, REQUEST], ids=["turn", "http"])
async def test_descriptors_that_run_out_behind_the_handshake(make: MakePlane, tmp_path: Path, first: bytes) -> None:
    """What the next step needs was kept free when the client was accepted."""
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (running, _), bench.client() as client:
        with no_descriptors():
            await client.send(first)
            if first == HELLO:
                await bench.upstream.expect(HELLO)
            else:
                socket.socket(fileno=(await bench.event(HttpOpened)).fd).close()
                assert (await bench.closed()).reason is CloseReason.HTTP_CLOSED
            await running.send(VOICE)
            await bench.upstream.expect(VOICE)
        async with bench.flow(HELLO):
            pass


@every_plane
@pytest.mark.parametrize("first", [HELLO, REQUEST], ids=["turn", "http"])
async def test_no_descriptor_for_the_next_step(make: MakePlane, tmp_path: Path, first: bytes) -> None:
    """Of a connection that was accepted elsewhere nothing was kept free: it is closed, and those that run go on."""
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (running, _):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            adopting = asyncio.ensure_future(adopt_one(bench, listener))
            client = await TlsClient.open(Address(*listener.getsockname()), bench.authority.client_context())
            await adopting
        with no_descriptors():
            await client.send(first)
            assert (await bench.closed()).reason is CloseReason.NO_DESCRIPTORS
            await running.send(VOICE)
            await bench.upstream.expect(VOICE)
        client.abort()
        async with bench.flow(HELLO):
            pass


@every_plane
async def test_no_descriptor_to_accept_with(make: MakePlane, tmp_path: Path) -> None:
    """The clients of that time may be turned away; the listener stays."""
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (running, _):
        waiting = [socket.socket() for _ in range(5)]
        with no_descriptors():
            for one in waiting:
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect(bench.server)
            for _ in range(3):
                await running.send(VOICE)
                await bench.upstream.expect(VOICE)
        for one in waiting:
            one.close()
        async with bench.flow(HELLO):
            pass
