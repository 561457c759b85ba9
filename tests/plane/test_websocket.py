"""TURN over WebSocket on every plane: each binary message is one STUN or ChannelData message."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.plane.api import (
    CLOSE_CODES,
    AllocationOrphaned,
    Carrier,
    CloseReason,
    DropReason,
    HttpOpened,
    Traffic,
    Upstream,
)
from relay.wire.channeldata import build_channel_data, pad
from relay.wire.stun import MessageClass, Method
from relay.wire.websocket import Message, Opcode, build_close, build_frame
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.benches.taps import tapped
from tests.support.messages import HELLO, VOICE, allocated, answer, stun
from tests.support.peers.carriers import RESPONSE, Carried, binary, carried, masked, text
from tests.support.peers.scripted_upstream import scripted_upstream
from tests.support.waiting import becomes

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

FRAME = build_channel_data(0x4001, VOICE)


async def opened_flow(bench: Bench, client: Carried) -> Address:
    """The client's address at the upstream."""
    await client.send(binary(HELLO))
    return await bench.upstream.expect(HELLO)


# ---- Forwarding


async def test_a_message_is_a_datagram_both_ways(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        flow = await opened_flow(bench, client)
        for size in (0, 1, 2, 3, 4, 5, 121, 122, 172, 1200, 1400, 2044):
            unit = build_channel_data(0x4001, bytes([size & 255]) * size)
            await client.send(binary(unit))
            assert await bench.upstream.expect(unit) == flow
            bench.upstream.send(flow, unit)
            assert await client.tls.receive_exactly(len(build_frame(Opcode.BINARY, unit))) == build_frame(
                Opcode.BINARY, unit
            )
        request = stun(1)
        await client.send(binary(request))
        await bench.upstream.expect(request)
        bench.upstream.send(flow, answer(request))
        assert await client.binary() == answer(request)


async def test_long_datagrams_go_down_whole(make: MakePlane, tmp_path: Path) -> None:
    """The caps are the client's: what an upstream sends is framed, with 16 and with 64 bits of length."""
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        flow = await opened_flow(bench, client)
        for size in (2045, 9000, 65_503):
            unit = build_channel_data(0x4001, bytes(size))
            bench.upstream.send(flow, unit)
            assert await client.binary() == unit


async def test_padding_is_accepted_and_removed(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        flow = await opened_flow(bench, client)
        for size in range(5):
            unit = build_channel_data(0x4001, b"x" * size)
            await client.send(binary(pad(unit)))
            await bench.upstream.expect(unit)
            bench.upstream.send(flow, pad(unit))
            assert await client.binary() == unit


async def test_every_split_across_tls_records(make: MakePlane, tmp_path: Path) -> None:
    unit = build_channel_data(0x4001, bytes(range(130)))
    stream = binary(unit) + masked(Opcode.BINARY, unit[:7], final=False) + masked(Opcode.PING, b"?")
    stream += masked(Opcode.CONTINUATION, b"", final=False) + masked(Opcode.CONTINUATION, unit[7:]) + binary(HELLO)
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        for at in range(1, len(stream)):
            await client.send(stream[:at], stream[at:])
        for _ in range(1, len(stream)):
            await bench.upstream.expect(unit)
            await bench.upstream.expect(unit)
            await bench.upstream.expect(HELLO)
            await client.expect(Opcode.PONG, b"?")
        for byte in stream:
            await client.send(bytes([byte]))
        await bench.upstream.expect(unit)


async def test_300_messages_in_one_record(make: MakePlane, tmp_path: Path) -> None:
    units = [build_channel_data(0x4001, bytes([n & 255, n >> 8]) * 20) for n in range(300)]
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        await client.send(b"".join(map(binary, units)))
        for unit in units:
            await bench.upstream.expect(unit)


async def test_the_duties_of_a_gateway(make: MakePlane, tmp_path: Path) -> None:
    """Requests are sent again, second answers are dropped, and a stale allocation is avoided."""
    async with (
        plane_bench(make, tmp_path, bounds(initial_rto_s=0.5)) as bench,
        carried(bench, Carrier.WEBSOCKET) as client,
    ):
        request = stun(1, Method.ALLOCATE)
        await client.send(binary(request))
        flow = await bench.upstream.expect(request)
        assert await bench.upstream.expect(request) == flow
        bench.upstream.send(flow, answer(request, error=437))
        fresh = await bench.upstream.expect(request)
        assert fresh != flow
        for _ in range(2):
            bench.upstream.send(fresh, allocated(request))
        bench.upstream.send(fresh, FRAME)
        assert await client.binary() == allocated(request)
        assert await client.binary() == FRAME
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.DOWNLINK_DUPLICATE: 1})


async def test_malformed_datagrams_never_reach_the_client(make: MakePlane, tmp_path: Path) -> None:
    broken = [b"", b"\x80", b"\x40\x01\x00\x05abcd", HELLO[:-1], HELLO + b"\0\0\0\0"]
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        flow = await opened_flow(bench, client)
        for datagram in [*broken, FRAME]:
            bench.upstream.send(flow, datagram)
        assert await client.binary() == FRAME
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.DOWNLINK_MALFORMED: len(broken)})


async def test_a_vanished_client_leaves_its_allocation_to_control(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, releases_allocations=True) as bench:
        async with carried(bench, Carrier.WEBSOCKET) as client:
            request = stun(1, Method.ALLOCATE)
            await client.send(binary(request))
            flow = await bench.upstream.expect(request)
            bench.upstream.send(flow, allocated(request))
            await client.binary()
            await client.send(masked(Opcode.CLOSE))
            await client.expect_close(None)
        orphan = await bench.event(AllocationOrphaned)
        bench.events.append(orphan)  # its descriptor is the bench's to close
        assert orphan.request == request
        assert (await bench.closed()).connection == client.connection


async def test_what_control_sees(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        flow = await opened_flow(bench, client)
        tap = await tapped(bench, client.connection, flow)
        await client.send(binary(pad(FRAME)))
        await bench.upstream.expect(FRAME)
        bench.upstream.send(flow, FRAME)
        await client.binary()
        (snapshot,) = bench.plane.snapshot().flows
        assert snapshot.carrier is Carrier.WEBSOCKET
        assert (snapshot.totals.uplink_bytes, snapshot.totals.downlink_bytes) == (len(HELLO + FRAME), len(FRAME))
        assert [one.data for one in tap.take(9)] == [FRAME, FRAME]
        tap.close()
        await client.send(masked(Opcode.CLOSE, build_close(1000)))
        await client.expect_close(1000)
        closed = await bench.closed()
        assert closed.flow is not None
        assert (closed.flow.carrier, closed.totals.downlink_packets) == (Carrier.WEBSOCKET, 1)


# ---- Pings


async def test_pings_are_answered_with_what_they_carry(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        for payload in (b"", b"1", bytes(125)):
            await client.send(masked(Opcode.PONG, payload), masked(Opcode.PING, payload))
            await client.expect(Opcode.PONG, payload)
        await becomes(lambda: bench.plane.snapshot().totals.downlink_packets, 0)


@pytest.mark.parametrize("carrier", [Carrier.WEBSOCKET, Carrier.SESSION])
async def test_a_client_that_says_nothing_is_gone(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    settings = bounds(websocket_ping_s=0.5)
    async with plane_bench(make, tmp_path, settings) as bench, carried(bench, carrier) as client:
        await client.expect(Opcode.PING, b"")
        await client.expect(Opcode.PING, b"")
        with pytest.raises(EOFError):
            await client.message()
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.CLIENT_LOST, "no pong")


@pytest.mark.parametrize("sign", [masked(Opcode.PONG), binary(FRAME), masked(Opcode.PING), FRAME[:0]])
async def test_any_sign_of_life_will_do(make: MakePlane, tmp_path: Path, sign: bytes) -> None:
    """Three pings are never sent to a client that says nothing (the last case)."""
    # One that answers must have time to do so, also on a machine that stands still.
    settings = bounds(websocket_ping_s=1 if sign else 0.2)
    async with plane_bench(make, tmp_path, settings) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        pings = 0
        while pings < 3:
            try:
                message = await client.message()
            except EOFError:
                break
            if message.opcode is Opcode.PING:
                pings += 1
                if sign:
                    await client.send(sign)
        assert pings == (3 if sign else 2)


# ---- Ends


@pytest.mark.parametrize("code", [None, 1000, 1001, 1011, 3000, 4999])
async def test_a_client_that_closes_gets_its_code_back(make: MakePlane, tmp_path: Path, code: int | None) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        close = build_close(code, "" if code is None else "good bye")
        await client.send(masked(Opcode.CLOSE, close) + binary(FRAME))
        await client.expect_close(code)
        closed = await bench.closed()
        assert closed.reason is CloseReason.CLIENT_CLOSED
        assert closed.detail == ("websocket close" if code is None else f"websocket close {code}")
        assert closed.totals.uplink_packets == 0


@pytest.mark.parametrize("carrier", [Carrier.WEBSOCKET, Carrier.SESSION])
@pytest.mark.parametrize("reason", CLOSE_CODES)
async def test_control_closes_with_the_code_of_the_reason(
    make: MakePlane, tmp_path: Path, carrier: Carrier, reason: CloseReason
) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, carrier) as client:
        bench.plane.close(client.connection, reason)
        await client.expect_close(CLOSE_CODES[reason], reason.value)
        assert (await bench.closed()).reason is reason


async def test_the_close_frame_is_not_lost_to_what_the_client_goes_on_saying(make: MakePlane, tmp_path: Path) -> None:
    """Bytes that nobody reads would have the kernel reset the connection, and take the Close frame with it."""
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        bench.plane.close(client.connection, CloseReason.DRAINING)
        for _ in range(20):
            await client.send(binary(FRAME) * 50)
            await asyncio.sleep(0)
        assert (await bench.closed()).reason is CloseReason.DRAINING
        for _ in range(20):
            await client.send(binary(FRAME) * 50)
            await asyncio.sleep(0)
        await client.expect_close(1001, "draining")


async def test_a_client_that_never_ends_after_a_close_frame_is_let_go(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        bench.plane.close(client.connection, CloseReason.DRAINING)
        await client.expect_close(1001, "draining")
        assert await asyncio.get_running_loop().sock_recv(client.tls.socket, 1) == b""
        while bench.plane.snapshot().connections:  # noqa: ASYNC110 - nothing tells of a transport's end
            await asyncio.sleep(0.05)


async def test_stop_says_good_bye(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        stopping = asyncio.ensure_future(bench.plane.stop())
        await client.expect_close(1001, "stopped")
        client.tls.abort()
        await stopping


async def test_a_client_that_just_ends(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        await client.send(binary(FRAME)[:9])
        await client.tls.end()
        assert await client.tls.closed_by_server()
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.CLIENT_CLOSED, "")


async def test_an_unreachable_upstream_closes_with_1013(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        await opened_flow(bench, client)
        bench.upstream.close()
        await client.send(binary(FRAME))  # the answer is ICMP
        await client.expect_close(1013, "upstream_unreachable")
        assert (await bench.closed()).reason is CloseReason.UPSTREAM_UNREACHABLE


async def test_a_silent_upstream_closes_with_1013(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(upstream_silence_s=0.2)
    async with plane_bench(make, tmp_path, settings) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        await client.send(binary(stun(1, Method.ALLOCATE)))
        await client.expect_close(1013, "upstream_silent")
        assert (await bench.closed()).reason is CloseReason.UPSTREAM_SILENT


async def test_no_way_to_the_upstream(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(source_ipv4="192.0.2.77", upstream_silence_s=0.2)  # not ours
    async with plane_bench(make, tmp_path, settings) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        await client.send(binary(stun(1, Method.ALLOCATE)))
        await client.expect_close(1013, "upstream_silent")
        closed = await bench.closed()
        assert closed.reason is CloseReason.UPSTREAM_SILENT
        assert closed.detail.startswith("no answer for 0.2 s; our own machine did not send: ")
        assert closed.totals.drops == {DropReason.UPLINK_REFUSED: 1}


async def test_text_is_refused(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        await client.send(binary(FRAME) + text("hello"))
        await bench.upstream.expect(FRAME)
        await client.expect_close(1003, "text message")
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.BROKEN_FRAME, "websocket: text message")


NO_TURN = {
    "empty": b"",
    "three bytes of ChannelData": FRAME[:3],
    "ChannelData cut short": FRAME[:-1],
    "ChannelData and more": FRAME + b"x",
    "padding beyond four": build_channel_data(0x4001, b"x") + bytes(7),
    "two messages": FRAME + FRAME,
    "STUN cut short": HELLO[:-4],
    "STUN and more": HELLO + bytes(4),
    "no cookie": HELLO[:4] + bytes(16),
    "STUN of an odd length": b"\0\x11\0\x02" + HELLO[4:] + b"ab",
    "bare RTP": VOICE,
}


@pytest.mark.parametrize("message", NO_TURN.values(), ids=NO_TURN.keys())
async def test_what_is_no_turn_message_ends_it(make: MakePlane, tmp_path: Path, message: bytes) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        await client.send(binary(FRAME) + binary(message) + binary(FRAME))
        await client.expect_close(1007, "no TURN message")
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.BROKEN_FRAME, "websocket: no TURN message")
        assert closed.totals.uplink_packets == 1


# ---- Slow clients


async def fill(bench: Bench, flow: Address, unit: bytes) -> None:
    """Send so much media that some of it must wait, and some is dropped."""
    while not bench.plane.snapshot().totals.drops:
        for _ in range(50):
            bench.upstream.send(flow, unit)
        await asyncio.sleep(0.01)


async def test_a_slow_client_gets_pongs_before_media(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(max_media_age_s=3600, downlink_media_bytes=50_000)
    async with (
        plane_bench(make, tmp_path, settings) as bench,
        carried(bench, Carrier.WEBSOCKET, receive_buffer=4096) as client,
    ):
        flow = await opened_flow(bench, client)
        unit = build_channel_data(0x4001, b"\x80" + bytes(1199))
        await fill(bench, flow, unit)
        await client.send(masked(Opcode.PING, b"still there?") + binary(stun(1)))
        await bench.upstream.expect(stun(1))
        (waiting,) = bench.plane.snapshot().flows
        assert waiting.queued_bytes > 40_000
        messages: list[Message] = []
        while not messages or messages[-1].opcode is Opcode.BINARY:
            messages.append(await client.message())
        assert messages[-1] == Message(Opcode.PONG, b"still there?")
        # The media that had waited comes behind it.
        for _ in range(30):
            assert await client.binary() == unit
        dropped = bench.plane.snapshot().totals.drops_by_traffic
        assert set(dropped) == {Traffic.MEDIA}


async def test_a_client_that_pings_and_does_not_read_is_closed(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(downlink_media_bytes=20_000, downlink_control_bytes=5000, max_media_age_s=3600)
    async with (
        plane_bench(make, tmp_path, settings) as bench,
        carried(bench, Carrier.WEBSOCKET, receive_buffer=4096) as client,
    ):
        flow = await opened_flow(bench, client)
        await fill(bench, flow, build_channel_data(0x4001, b"\x80" + bytes(999)))
        await client.send(masked(Opcode.PING, bytes(125)) * 100)
        assert (await bench.closed()).reason is CloseReason.SLOW_CLIENT


# ---- Upgrades


async def test_an_upstream_goes_with_every_carrier_but_sessions(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        opened = await bench.event(HttpOpened)
        bench.events.append(opened)
        for carrier in Carrier:
            upstream = bench.target if carrier is Carrier.SESSION else None
            with pytest.raises(ValueError, match="upstream"):
                bench.plane.upgrade(opened.connection, RESPONSE, carrier, upstream)


async def test_the_media_age_of_the_upstream_counts(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(max_media_age_s=3600, downlink_media_bytes=1 << 20)
    async with plane_bench(make, tmp_path, settings) as bench, scripted_upstream() as other:
        bench.target = Upstream("hurried", other.address, max_media_age_s=0.001)
        async with carried(bench, Carrier.WEBSOCKET, receive_buffer=4096) as client:
            await client.send(binary(HELLO))
            flow = await other.expect(HELLO)
            while DropReason.DOWNLINK_OLD not in bench.plane.snapshot().totals.drops:
                other.send(flow, build_channel_data(0x4001, b"\x80" + bytes(999)))
                await asyncio.sleep(0.001)


async def test_a_broken_record_behind_an_upgrade(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        record = bytearray(client.tls.record(binary(FRAME)))
        record[-1] ^= 1
        await client.tls.send_wire(bytes(record))
        with pytest.raises(ssl.SSLError):
            await client.message()
        assert (await bench.closed()).reason is CloseReason.TLS_BROKEN


async def test_an_indication_of_the_client_is_sent_once(make: MakePlane, tmp_path: Path) -> None:
    message = stun(7, Method.SEND, MessageClass.INDICATION)
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        await client.send(binary(message) + binary(FRAME))
        await bench.upstream.expect(message)
        await bench.upstream.expect(FRAME)
        await becomes(lambda: bench.plane.snapshot().totals.retransmissions, 0)
