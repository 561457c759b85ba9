"""Sessions on every plane: the client has channels only, control holds the allocation."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.plane.api import (
    AllocationOrphaned,
    Carrier,
    Closed,
    CloseReason,
    ConnectionId,
    DropReason,
    Event,
    StunReceived,
    TextReceived,
    Traffic,
    Upstream,
    UpstreamLost,
)
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import MessageClass, Method
from relay.wire.websocket import Message, Opcode, build_close, build_frame
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.benches.taps import tapped
from tests.support.messages import HELLO, VOICE, allocated, answer, stun
from tests.support.peers.carriers import Carried, binary, carried, masked, move, moved_session, text
from tests.support.peers.scripted_upstream import scripted_upstream
from tests.support.waiting import becomes

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

FRAME = build_channel_data(0x4001, VOICE)
MESSAGE = b"\x40\x01" + VOICE


async def receive_text(bench: Bench, content: str) -> ConnectionId:
    """The next text that control hears; who has sent it."""
    event = await bench.event(TextReceived)
    assert event.text == content
    return event.connection


async def receive_stun(bench: Bench, message: bytes) -> None:
    """The next STUN message that control hears must be this one."""
    assert (await bench.event(StunReceived)).message == message


# ---- Media


async def test_channel_and_data_both_ways(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, moved_session(bench) as (client, flow):
        for size in (0, 1, 2, 3, 4, 5, 123, 124, 172, 1200, 2046):
            data = bytes([size & 255]) * size
            await client.send(binary(b"\x40\x01" + data))
            assert await bench.upstream.expect(build_channel_data(0x4001, data)) == flow
            bench.upstream.send(flow, build_channel_data(0x7FFF, data, padded=True))
            expected = build_frame(Opcode.BINARY, b"\x7f\xff" + data)
            assert await client.tls.receive_exactly(len(expected)) == expected


@pytest.mark.parametrize("channel_number", [0x4000, 0x4FFF, 0x5000, 0x7FFF])
async def test_channel_numbers_that_are_framed(make: MakePlane, tmp_path: Path, channel_number: int) -> None:
    async with plane_bench(make, tmp_path) as bench, moved_session(bench) as (client, _):
        await client.send(binary(channel_number.to_bytes(2) + b"data"))
        await bench.upstream.expect(build_channel_data(channel_number, b"data"))


@pytest.mark.parametrize("message", [b"", b"\x40", b"\x3f\xff", b"\x80\x00data", b"\xff\xff", VOICE, HELLO])
async def test_no_channel_number(make: MakePlane, tmp_path: Path, message: bytes) -> None:
    async with plane_bench(make, tmp_path) as bench, moved_session(bench) as (client, _):
        await client.send(binary(MESSAGE) + binary(message) + binary(MESSAGE))
        await client.expect_close(1007, "no channel number")
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.BROKEN_FRAME, "websocket: no channel number")
        assert closed.totals.uplink_packets == 1  # what control asks is in no count


async def test_every_split_across_tls_records(make: MakePlane, tmp_path: Path) -> None:
    stream = binary(MESSAGE) + masked(Opcode.TEXT, "€".encode()[:2], final=False) + masked(Opcode.PING, b"?")
    stream += masked(Opcode.CONTINUATION, "€".encode()[2:]) + binary(b"\x40\x02")
    async with (
        plane_bench(make, tmp_path, bounds(websocket_ping_s=3600)) as bench,
        carried(bench, Carrier.SESSION) as client,
    ):
        await move(bench, client, bench.target, bench.upstream)
        for at in range(150, len(stream) - 8):  # as many texts as are allowed are in it
            await client.send(stream[:at], stream[at:])
            await bench.upstream.expect(FRAME)
            await bench.upstream.expect(build_channel_data(0x4002, b""))
            await client.expect(Opcode.PONG, b"?")
            await receive_text(bench, "€")


async def test_media_before_the_first_move_is_forgotten(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.SESSION) as client:
        await client.send(binary(MESSAGE), text("done"))
        await receive_text(bench, "done")
        assert list(bench.plane.snapshot().flows) == []
        assert bench.plane.tap(client.connection) is None
        await move(bench, client, bench.target, bench.upstream)
        await client.send(binary(b"\x40\x01next"))
        await bench.upstream.expect(build_channel_data(0x4001, b"next"))
        await becomes(lambda: bench.plane.snapshot().totals.drops, {})


async def test_what_control_sees(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, moved_session(bench) as (client, flow):
        tap = await tapped(bench, client.connection, flow)
        await client.send(binary(MESSAGE))
        await bench.upstream.expect(FRAME)
        bench.upstream.send(flow, FRAME)
        assert await client.binary() == MESSAGE
        (snapshot,) = bench.plane.snapshot().flows
        assert (snapshot.carrier, snapshot.upstream) == (Carrier.SESSION, bench.target)
        totals = snapshot.totals
        assert (totals.uplink_packets, totals.uplink_bytes) == (1, len(FRAME))
        assert (totals.downlink_packets, totals.downlink_bytes) == (1, len(FRAME))
        assert {stream.direction for stream in snapshot.streams} == {"uplink", "downlink"}
        assert [one.data for one in tap.take(9)] == [FRAME, FRAME]
        tap.close()


@pytest.mark.parametrize("datagram", [b"", b"\x80" + bytes(30), FRAME[:-1], HELLO[:-1], b"\x17" + bytes(30)])
async def test_other_datagrams_are_malformed(make: MakePlane, tmp_path: Path, datagram: bytes) -> None:
    async with plane_bench(make, tmp_path) as bench, moved_session(bench) as (client, flow):
        bench.upstream.send(flow, datagram)
        bench.upstream.send(flow, FRAME)
        assert await client.binary() == MESSAGE
        await becomes(lambda: bench.plane.snapshot().totals.drops, {DropReason.DOWNLINK_MALFORMED: 1})


# ---- Text


async def test_texts_go_both_ways(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.SESSION) as client:
        for content in ("", "hello", '{"type":"hello"}', "€ \U0001f600", "x" * 65_536):
            await client.send(text(content))
            assert await receive_text(bench, content) == client.connection
            bench.plane.tell(client.connection, content)
            await client.expect(Opcode.TEXT, content.encode())


async def test_128_texts_between_two_pings(make: MakePlane, tmp_path: Path) -> None:
    async with (
        plane_bench(make, tmp_path, bounds(websocket_ping_s=3600)) as bench,
        carried(bench, Carrier.SESSION) as client,
    ):
        await client.send(*[text(str(number)) for number in range(130)])
        for number in range(128):
            await receive_text(bench, str(number))
        await client.expect_close(1008, "too many text messages")
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.BROKEN_FRAME, "websocket: too many text messages")
        assert not bench.events


async def test_the_texts_are_counted_anew_with_each_ping(make: MakePlane, tmp_path: Path) -> None:
    async with (
        plane_bench(make, tmp_path, bounds(websocket_ping_s=1)) as bench,
        carried(bench, Carrier.SESSION) as client,
    ):
        for _ in range(3):
            await client.expect(Opcode.PING, b"")
            await client.send(text("x") * 32)
            for _ in range(32):
                await receive_text(bench, "x")


# ---- STUN, which is control's


async def test_control_speaks_stun(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, moved_session(bench) as (client, flow):
        request = stun(1, Method.ALLOCATE)
        bench.plane.request(client.connection, request)
        assert await bench.upstream.expect(request) == flow
        bench.upstream.send(flow, allocated(request))
        await receive_stun(bench, allocated(request))
        data = stun(2, Method.DATA, MessageClass.INDICATION)
        bench.upstream.send(flow, data)
        await receive_stun(bench, data)
        # Nothing of it is the client's.
        bench.upstream.send(flow, FRAME)
        assert await client.binary() == MESSAGE
        await becomes(lambda: bench.plane.snapshot().totals.downlink_packets, 1)


async def test_requests_are_sent_again_and_copies_of_answers_dropped(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(initial_rto_s=0.5)
    async with plane_bench(make, tmp_path, settings) as bench, moved_session(bench) as (client, flow):
        request = stun(1)
        bench.plane.request(client.connection, request)
        for _ in range(3):
            await bench.upstream.expect(request)
        for _ in range(3):
            bench.upstream.send(flow, answer(request))
        bench.upstream.send(flow, answer(stun(9)))
        await receive_stun(bench, answer(request))
        await receive_stun(bench, answer(stun(9)))
        assert not bench.events
        totals = bench.plane.snapshot().totals
        assert (totals.retransmissions, totals.drops) == (2, {DropReason.DOWNLINK_DUPLICATE: 2})
        # Of all this nothing is the client's: neither the requests and their copies nor the answers count.
        assert (totals.uplink_packets, totals.uplink_bytes) == (0, 0)
        assert (totals.downlink_packets, totals.downlink_bytes) == (0, 0)


async def test_totals_count_the_same_both_ways(make: MakePlane, tmp_path: Path) -> None:
    """What the client and its peer say, and nothing that control or the flow itself asks, or hears of it."""
    settings = bounds(initial_rto_s=0.05, upstream_silence_s=2.0)
    async with plane_bench(make, tmp_path, settings) as bench, moved_session(bench) as (client, flow):
        tap = await tapped(bench, client.connection, flow)
        refresh = stun(1, Method.REFRESH)
        bench.plane.request(client.connection, refresh)
        asked = refresh
        while asked == refresh:  # and its copies, until the flow asks by itself
            asked, _ = await bench.upstream.receive()
        bench.upstream.send(flow, answer(asked, error=400))
        bench.upstream.send(flow, answer(refresh))
        await receive_stun(bench, answer(refresh))
        for _ in range(3):
            await client.send(binary(MESSAGE))
            bench.upstream.send(flow, FRAME)
            assert await client.binary() == MESSAGE
        await becomes(lambda: bench.plane.snapshot().totals.uplink_packets, 3)
        # A tap sees all of it.
        seen = [one.data for one in tap.take(100)]
        assert (seen.count(FRAME), asked in seen, answer(refresh) in seen) == (6, True, True)
        await client.send(masked(Opcode.CLOSE))
        totals = (await bench.closed()).totals
        assert (totals.uplink_packets, totals.uplink_bytes) == (3, 3 * len(FRAME))
        assert (totals.downlink_packets, totals.downlink_bytes) == (3, 3 * len(FRAME))
        assert totals.retransmissions > 0
        tap.close()


async def test_stun_that_nobody_asked_for_does_not_flood_control(make: MakePlane, tmp_path: Path) -> None:
    """At most 256 between two pings; answers are heard all the same."""
    async with plane_bench(make, tmp_path) as bench, moved_session(bench) as (client, flow):
        for number in range(259):
            bench.upstream.send(flow, stun(number, Method.DATA, MessageClass.INDICATION))
            await asyncio.sleep(0)
        request = stun(1)
        bench.plane.request(client.connection, request)
        bench.upstream.send(await bench.upstream.expect(request), answer(request))
        await bench.event(StunReceived, lambda received: received.message == answer(request))
        assert len([event for event in bench.events if isinstance(event, StunReceived)]) == 256
        totals = bench.plane.snapshot().totals
        assert (totals.drops, totals.drops_by_traffic) == ({DropReason.DOWNLINK_FULL: 3}, {Traffic.MEDIA: 3})


async def test_437_is_controls_to_judge(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, moved_session(bench) as (client, flow):
        request = stun(1, Method.ALLOCATE)
        bench.plane.request(client.connection, request)
        await bench.upstream.expect(request)
        bench.upstream.send(flow, answer(request, error=437))
        await receive_stun(bench, answer(request, error=437))


async def test_requests_before_the_first_move_do_nothing(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.SESSION) as client:
        bench.plane.request(client.connection, stun(1))
        await move(bench, client, bench.target, bench.upstream)  # HELLO comes first


# ---- Upstreams that are lost


async def test_an_unreachable_upstream_is_told_and_the_client_stays(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, scripted_upstream() as other:
        gone = Upstream("other", other.address)
        async with carried(bench, Carrier.SESSION) as client:
            await move(bench, client, gone, other)
            other.close()
            await client.send(binary(MESSAGE))  # the answer is ICMP
            lost = await bench.event(UpstreamLost)
            assert (lost.connection, lost.reason) == (client.connection, CloseReason.UPSTREAM_UNREACHABLE)
            assert lost.detail == "Connection refused"
            # Media is dropped without a counter meanwhile, and the flow is still to be seen.
            await client.send(binary(MESSAGE), text("still here"))
            await receive_text(bench, "still here")
            bench.plane.request(client.connection, stun(1))
            (snapshot,) = bench.plane.snapshot().flows
            assert (snapshot.upstream, snapshot.totals.uplink_packets, snapshot.totals.drops) == (gone, 1, {})
            assert bench.plane.tap(client.connection) is None
            bench.plane.tell(client.connection, "wait")
            await client.expect(Opcode.TEXT, b"wait")
            flow = await move(bench, client, bench.target, bench.upstream)
            bench.upstream.send(flow, FRAME)
            assert await client.binary() == MESSAGE


async def test_a_silent_upstream_is_told(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(upstream_silence_s=0.2)
    async with plane_bench(make, tmp_path, settings) as bench, moved_session(bench) as (client, _):
        bench.plane.request(client.connection, stun(1, Method.REFRESH))
        lost = await bench.event(UpstreamLost)
        assert (lost.reason, lost.detail) == (CloseReason.UPSTREAM_SILENT, "no answer for 0.2 s")
        await client.send(text("still here"))
        await receive_text(bench, "still here")


async def test_control_must_answer_a_lost_upstream(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(upstream_silence_s=0.2, control_timeout_s=0.2)
    async with plane_bench(make, tmp_path, settings) as bench, moved_session(bench) as (client, _):
        bench.plane.request(client.connection, stun(1, Method.REFRESH))
        await client.expect_close(1011, "control_timeout")
        await bench.event(UpstreamLost)
        assert (await bench.closed()).reason is CloseReason.CONTROL_TIMEOUT
        assert not bench.events  # no socket is left behind


async def test_a_move_ends_the_deadline_of_a_lost_upstream(make: MakePlane, tmp_path: Path) -> None:
    # Time enough to answer in, on a machine that stands still for a moment.
    settings = bounds(upstream_silence_s=0.2, control_timeout_s=1.5)
    async with plane_bench(make, tmp_path, settings) as bench, moved_session(bench) as (client, _):
        bench.plane.request(client.connection, stun(1, Method.REFRESH))
        await bench.event(UpstreamLost)
        while not bench.upstream.received.empty():
            bench.upstream.received.get_nowait()
        await move(bench, client, bench.target, bench.upstream)
        await asyncio.sleep(2)  # the deadline that must not come
        await client.send(binary(MESSAGE))
        await bench.upstream.expect(FRAME)


async def test_no_way_to_the_upstream(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(source_ipv4="192.0.2.77", upstream_silence_s=0.3)  # not ours
    async with plane_bench(make, tmp_path, settings) as bench, carried(bench, Carrier.SESSION) as client:
        bench.plane.move(client.connection, bench.target)
        bench.plane.request(client.connection, stun(1, Method.ALLOCATE))
        lost = await bench.event(UpstreamLost)
        assert lost.reason is CloseReason.UPSTREAM_SILENT
        assert lost.detail.startswith("no answer for 0.3 s; our own machine did not send: ")
        assert bench.plane.snapshot().totals.drops == {DropReason.UPLINK_REFUSED: 1}
        bench.plane.configure(bounds())
        await move(bench, client, bench.target, bench.upstream)


# ---- Moves


async def test_a_move_takes_counters_along_and_forgets_requests(make: MakePlane, tmp_path: Path) -> None:
    async with (
        plane_bench(make, tmp_path) as bench,
        scripted_upstream() as other,
        moved_session(bench) as (client, first),
    ):
        tap = bench.plane.tap(client.connection)
        assert tap is not None
        await client.send(binary(MESSAGE))
        await bench.upstream.expect(FRAME)
        pending = stun(1)
        bench.plane.request(client.connection, pending)
        await bench.upstream.expect(pending)
        second = await move(bench, client, Upstream("other", other.address), other)
        assert second != first
        assert tap.ended
        tap.close()
        await client.send(binary(MESSAGE))
        assert await other.expect(FRAME) == second
        # What was asked of the first is not asked again of the second, and an answer to it is nobody's copy.
        other.send(second, answer(pending))
        await receive_stun(bench, answer(pending))
        (snapshot,) = bench.plane.snapshot().flows
        assert (snapshot.upstream.name, snapshot.totals.uplink_packets) == ("other", 2)
        # The first socket is closed.
        bench.upstream.send(first, FRAME)
        other.send(second, build_channel_data(0x4001, b"only this"))
        assert await client.binary() == b"\x40\x01only this"
        await client.send(masked(Opcode.CLOSE))
        closed = await bench.closed()
        assert closed.flow is not None
        assert (closed.flow.upstream.name, closed.totals.uplink_packets) == ("other", 2)


async def left_behind(bench: Bench, client: Carried) -> AllocationOrphaned:
    """What a session leaves that is cut off; ``Closed`` comes behind it."""
    client.tls.reset()
    orphan = await bench.event(AllocationOrphaned, lambda event: event.connection == client.connection)
    await bench.event(Closed, lambda event: event.connection == client.connection)
    return orphan


async def test_a_client_that_comes_back_goes_on_with_its_allocation(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        async with moved_session(bench) as (client, flow):
            orphan = await left_behind(bench, client)
        assert (orphan.upstream, orphan.request) == (bench.target, b"")
        # What comes meanwhile waits in the socket.
        bench.upstream.send(flow, FRAME)
        async with carried(bench, Carrier.SESSION) as again:
            assert await move(bench, again, bench.target, bench.upstream, orphan.fd) == flow
            assert await again.binary() == MESSAGE
            await again.send(binary(MESSAGE))
            assert await bench.upstream.expect(FRAME) == flow
            bench.upstream.send(flow, FRAME)
            assert await again.binary() == MESSAGE
            # And once more.
            parked = await left_behind(bench, again)
        with socket.socket(fileno=parked.fd) as left:
            assert Address(*left.getsockname()[:2]) == flow


@pytest.mark.parametrize("how", ["close frame", "reset", "control", "broken frame"])
async def test_every_end_leaves_the_socket(make: MakePlane, tmp_path: Path, how: str) -> None:
    async with plane_bench(make, tmp_path) as bench, moved_session(bench) as (client, flow):
        if how == "close frame":
            await client.send(masked(Opcode.CLOSE, build_close(1000)))
        elif how == "reset":
            client.tls.reset()
        elif how == "control":
            bench.plane.close(client.connection, CloseReason.DRAINING)
        else:
            await client.send(b"\xff")
        # First the socket, then the end: a client that comes back at once finds it.
        told = [event async for event in two_events(bench)]
        assert [type(event) for event in told] == [AllocationOrphaned, Closed]
        orphan = told[0]
        assert isinstance(orphan, AllocationOrphaned)
        with socket.socket(fileno=orphan.fd) as left:
            assert Address(*left.getsockname()[:2]) == flow
            assert Address(*left.getpeername()[:2]) == bench.upstream.address


async def two_events(bench: Bench) -> AsyncIterator[Event]:
    """The next two of any kind, in their order."""
    for _ in range(2):
        yield await bench.event(Event)  # type: ignore[arg-type]


async def test_a_session_that_never_moved_leaves_nothing(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.SESSION) as client:
        await client.send(masked(Opcode.CLOSE, build_close(1000)))
        await client.expect_close(1000)
        closed = await bench.closed()
        assert (closed.reason, closed.flow) == (CloseReason.CLIENT_CLOSED, None)
        assert not bench.events


async def test_coming_back_takes_no_further_descriptor(
    make: MakePlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is none left, a call would end, and the socket that was handed over stay open for ever."""

    def exhausted(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with plane_bench(make, tmp_path) as bench:
        async with moved_session(bench) as (client, flow):
            orphan = await left_behind(bench, client)
        async with carried(bench, Carrier.SESSION) as again:
            monkeypatch.setattr(os, "dup", exhausted)
            assert await move(bench, again, bench.target, bench.upstream, orphan.fd) == flow
            monkeypatch.undo()


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("who", ["nobody", "another carrier"])
async def test_a_descriptor_that_comes_too_late_is_closed(make: MakePlane, tmp_path: Path, who: str) -> None:
    async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        connection = ConnectionId(10**6) if who == "nobody" else client.connection
        bench.plane.move(connection, bench.target, theirs.detach())
        with ours:
            # The other end of a pair notices: it cannot send any more.
            while True:
                try:
                    ours.send(b"x")
                except ConnectionRefusedError:
                    break
                except BlockingIOError:
                    pass
                await asyncio.sleep(0.01)


async def test_verbs_that_come_too_late_do_nothing(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, moved_session(bench) as (client, _):
        bench.plane.admit(client.connection)
        bench.plane.refuse(client.connection, HELLO)
        bench.plane.close(client.connection, CloseReason.RESUMED)
        bench.plane.tell(client.connection, "too late")
        bench.plane.request(client.connection, stun(1))
        bench.plane.move(client.connection, bench.target)
        await client.expect_close(1000, "resumed")
        for late in (ConnectionId(10**6), client.connection):
            bench.plane.tell(late, "x")
            bench.plane.request(late, HELLO)
            bench.plane.admit(late)
            bench.plane.refuse(late, HELLO)
            bench.plane.move(late, bench.target)
        assert list(bench.plane.snapshot().flows) == []


async def test_a_slow_client_hears_control_before_media(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(max_media_age_s=3600, downlink_media_bytes=50_000)
    unit = build_channel_data(0x4001, b"\x80" + bytes(1199))
    async with (
        plane_bench(make, tmp_path, settings) as bench,
        moved_session(bench, receive_buffer=4096) as (client, flow),
    ):
        while not bench.plane.snapshot().totals.drops:
            for _ in range(50):
                bench.upstream.send(flow, unit)
            await asyncio.sleep(0.01)
        bench.plane.tell(client.connection, "moved")
        messages: list[Message] = []
        while not messages or messages[-1].opcode is Opcode.BINARY:
            messages.append(await client.message())
        assert messages[-1] == Message(Opcode.TEXT, b"moved")
        for _ in range(30):
            assert await client.binary() == unit[:2] + unit[4:]
