"""How connections end, on every plane: half-closed, reset, and closed by control, in each state and in any order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.plane.api import (
    Carrier,
    Closed,
    CloseReason,
    ConnectionId,
    DropReason,
    TurnOpened,
    Upstream,
)
from relay.plane.certificates import HandshakeFailure
from relay.plane.reference.plane import ReferencePlane
from relay.wire.channeldata import build_channel_data
from tests.support.benches.plane import (
    PATIENT,
    PLANES,
    Bench,
    MakePlane,
    bounds,
    commands_are_taken,
    exchange,
    flood,
    http_stream,
    plane_bench,
    raw_client,
)
from tests.support.messages import HELLO, VOICE
from tests.support.peers.scripted_upstream import scripted_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

STATES = ["handshake", "deciding", "waiting", "media", "http"]
RESPONSE = b"HTTP/1.1 204 No Content\r\n\r\n"
# A record in plain, as an alert of a client that has no keys yet: warning, close_notify.
PLAIN_CLOSE_NOTIFY = b"\x15\x03\x03\x00\x02\x01\x00"


@dataclass
class Guest:
    """A client that has come as far as ``state``; in HTTP ``stream`` is control's end."""

    client: TlsClient
    state: str
    connection: ConnectionId | None = None
    stream: socket.socket | None = None
    rest_of_hello: bytes = b""


@contextlib.asynccontextmanager
async def guest(bench: Bench, state: str) -> AsyncIterator[Guest]:
    """A client in this state, and the plane knows it."""
    bench.attaches = state == "media"
    before = bench.plane.snapshot().accepted
    one = await _handshaking(bench) if state == "handshake" else Guest(await bench.connect(), state)
    try:
        if state == "handshake":
            # Nobody is told of a client that has said nothing yet.
            while bench.plane.snapshot().accepted == before:  # noqa: ASYNC110
                await asyncio.sleep(0)
        elif state == "deciding":
            # The session tickets say that the server has seen the end of the handshake.
            with pytest.raises(ssl.SSLWantReadError):
                one.client.tls.read(1)
            await one.client._fill()
        elif state == "waiting":
            await one.client.send(HELLO)
            one.connection = (await bench.event(TurnOpened)).connection
        elif state == "media":
            await one.client.send(HELLO)
            await bench.upstream.expect(HELLO)
            one.connection = (await bench.event(TurnOpened)).connection
        elif state == "http":
            opened, one.stream = await http_stream(bench, one.client, b"GET / HTTP/1.1\r\n\r\n")
            one.connection = opened.connection
        yield one
    finally:
        one.client.abort()
        if one.stream is not None:
            one.stream.close()


async def _handshaking(bench: Bench) -> Guest:
    """A client that has said half of its hello."""
    client = TlsClient(await raw_client(bench, b""), bench.authority.client_context(), "relay.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    hello = client._outgoing.read()
    await client.send_wire(hello[: len(hello) // 2])
    return Guest(client, "handshake", rest_of_hello=hello[len(hello) // 2 :])


async def read_to_the_end(stream: socket.socket) -> bytes:
    data = b""
    while chunk := await asyncio.get_running_loop().sock_recv(stream, 65536):
        data += chunk
    return data


# ---- The client ends


@pytest.mark.parametrize("how", ["close_notify", "fin", "both"])
@pytest.mark.parametrize("state", STATES)
async def test_half_closed(make: MakePlane, tmp_path: Path, state: str, how: str) -> None:
    """A client that says no more is gone; in HTTP it still gets its response."""
    async with plane_bench(make, tmp_path) as bench, guest(bench, state) as one:
        await half_close(one, how)
        if one.stream is not None:
            assert await read_to_the_end(one.stream) == b"GET / HTTP/1.1\r\n\r\n"
            await asyncio.get_running_loop().sock_sendall(one.stream, RESPONSE)
            assert await one.client.receive_exactly(len(RESPONSE)) == RESPONSE
            one.stream.close()
        elif state == "waiting" and one.connection is not None:
            # Nobody reads while control thinks: the end is seen behind what came before it.
            bench.plane.attach(one.connection, bench.target)
        closed = await bench.closed()
        if state == "handshake":
            assert closed.reason is CloseReason.HANDSHAKE_FAILED
            assert closed.handshake_failure is HandshakeFailure.CLIENT_CLOSED
        else:
            assert await one.client.closed_by_server()
            assert closed.reason is (CloseReason.HTTP_CLOSED if state == "http" else CloseReason.CLIENT_CLOSED)


async def half_close(one: Guest, how: str) -> None:
    client = one.client
    if how != "fin":
        if one.state == "handshake":
            await client.send_wire(one.rest_of_hello + PLAIN_CLOSE_NOTIFY)
        else:
            with contextlib.suppress(ssl.SSLError):
                client.tls.unwrap()
            await client.flush()
    if how != "close_notify":
        client.socket.shutdown(socket.SHUT_WR)


async def test_what_came_before_the_end_is_forwarded(make: MakePlane, tmp_path: Path) -> None:
    """Units, close_notify and FIN in one segment, behind a decision that is not made yet."""
    frame = build_channel_data(0x4001, VOICE)
    async with plane_bench(make, tmp_path) as bench, bench.client() as client:
        wire = client.record(HELLO) + client.record(frame)
        with contextlib.suppress(ssl.SSLError):
            client.tls.unwrap()
        await client.send_wire(wire + client._outgoing.read())
        await bench.upstream.expect(HELLO)
        await bench.upstream.expect(frame)
        assert (await bench.closed()).reason is CloseReason.CLIENT_CLOSED


@pytest.mark.parametrize("state", STATES)
async def test_reset(make: MakePlane, tmp_path: Path, state: str) -> None:
    async with (
        plane_bench(make, tmp_path) as bench,
        bench.flow(HELLO) as (other, at_other),
        guest(bench, state) as one,
    ):
        one.client.reset()
        if state == "waiting" and make is ReferencePlane and one.connection is not None:
            # It does not read while control thinks, and sees no reset either.
            bench.plane.attach(one.connection, bench.target)
        closed = await bench.closed()
        if state == "handshake":
            assert closed.reason is CloseReason.HANDSHAKE_FAILED
            assert closed.handshake_failure is HandshakeFailure.CLIENT_CLOSED
        else:
            assert closed.reason is CloseReason.CLIENT_LOST
        while not bench.upstream.received.empty():
            await bench.upstream.receive()
        await exchange(bench, other, at_other)


# ---- Control and the client at once


async def test_close_before_attach(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, guest(bench, "waiting") as one:
        assert one.connection is not None
        bench.plane.close(one.connection, CloseReason.NO_UPSTREAM)
        bench.plane.attach(one.connection, bench.target)
        assert await one.client.closed_by_server()
        assert (await bench.closed()).reason is CloseReason.NO_UPSTREAM
        bench.plane.attach(one.connection, bench.target)
        await commands_are_taken(bench)
        assert not bench.plane.snapshot().flows
        assert bench.upstream.received.empty()


async def test_attach_and_close_in_one_breath(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, guest(bench, "waiting") as one:
        assert one.connection is not None
        bench.plane.attach(one.connection, bench.target)
        bench.plane.close(one.connection, CloseReason.DRAINING)
        bench.plane.close(one.connection, CloseReason.STOPPED)
        assert await one.client.closed_by_server()
        closed = await bench.closed()
        assert closed.flow is not None
        assert (closed.reason, closed.flow.upstream) == (CloseReason.DRAINING, bench.target)


@pytest.mark.parametrize("state", ["waiting", "http"])
async def test_the_second_flow_of_a_connection_is_refused(make: MakePlane, tmp_path: Path, state: str) -> None:
    """Attached twice or upgraded twice, to two upstreams: the first counts."""
    async with plane_bench(make, tmp_path) as bench, scripted_upstream() as second, guest(bench, state) as one:
        elsewhere = Upstream("elsewhere", second.address)
        assert one.connection is not None
        for target in (bench.target, elsewhere, elsewhere):
            bench.plane.attach(one.connection, target)
            bench.plane.upgrade(one.connection, RESPONSE, Carrier.TURN, target)
        if state == "http":
            assert await one.client.receive_exactly(len(RESPONSE)) == RESPONSE
            await one.client.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        await exchange(bench, one.client, flow)
        assert [flow.upstream for flow in bench.plane.snapshot().flows] == [bench.target]
        assert second.received.empty()


@pytest.mark.parametrize("state", ["waiting", "http"])
async def test_a_dead_upstream_address(make: MakePlane, tmp_path: Path, state: str) -> None:
    async with plane_bench(make, tmp_path) as bench, guest(bench, state) as one:
        assert one.connection is not None
        bench.upstream.close()
        bench.plane.attach(one.connection, bench.target)
        bench.plane.upgrade(one.connection, RESPONSE, Carrier.TURN, bench.target)
        if state == "http":
            assert await one.client.receive_exactly(len(RESPONSE)) == RESPONSE
            await one.client.send(HELLO)
        assert await one.client.closed_by_server()
        closed = await bench.closed()
        assert closed.flow is not None
        assert (closed.reason, closed.flow.upstream) == (CloseReason.UPSTREAM_UNREACHABLE, bench.target)


async def test_upgrade_of_a_client_that_says_no_more(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, guest(bench, "http") as one:
        assert one.connection is not None
        assert one.stream is not None
        await half_close(one, "close_notify")
        await read_to_the_end(one.stream)
        bench.plane.upgrade(one.connection, RESPONSE, Carrier.TURN, bench.target)
        assert (await bench.closed()).reason is CloseReason.CLIENT_CLOSED
        await becomes(lambda: len(bench.plane.snapshot().flows), 0)


async def test_upgrade_with_nothing_to_say(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, guest(bench, "http") as one:
        assert one.connection is not None
        assert one.stream is not None
        bench.plane.upgrade(one.connection, b"", Carrier.TURN, bench.target)
        # Its end of the pair is closed when the upgrade is done.
        assert await read_to_the_end(one.stream) == b"GET / HTTP/1.1\r\n\r\n"
        await one.client.send(HELLO)
        await exchange(bench, one.client, await bench.upstream.expect(HELLO))


async def test_attach_when_the_client_has_gone(make: MakePlane, tmp_path: Path) -> None:
    """In the turn that reports both, and later: no flow, and nothing is left behind."""
    async with plane_bench(make, tmp_path, bounds(control_timeout_s=0.05)) as bench:
        bench.attaches = False
        for _ in range(10):
            async with bench.client() as client:
                await client.send(HELLO)
                opened = await bench.event(TurnOpened)
                closed = await bench.closed()
                bench.plane.attach(opened.connection, bench.target)
                bench.plane.upgrade(opened.connection, RESPONSE, Carrier.TURN, bench.target)
            assert closed.reason is CloseReason.CONTROL_TIMEOUT
        bench.plane.configure(bounds())
        await commands_are_taken(bench)
        assert not bench.plane.snapshot().flows
        assert bench.upstream.received.empty()


async def test_what_was_written_before_a_close_still_arrives(make: MakePlane, tmp_path: Path) -> None:
    media = build_channel_data(0x4001, b"\x80" + bytes(1199))
    async with plane_bench(make, tmp_path, PATIENT) as bench, bench.client(receive_buffer=4096) as client:
        await client.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        opened = await bench.event(TurnOpened)
        await flood(bench, flow, media, DropReason.DOWNLINK_FULL, 1)
        bench.plane.close(opened.connection, CloseReason.DRAINING)
        closed = await bench.closed()
        units = 0
        with contextlib.suppress(EOFError):
            while await client.receive_unit() == media:
                units += 1
        assert (closed.reason, closed.totals.downlink_packets) == (CloseReason.DRAINING, units)


async def test_a_response_still_arrives_when_control_has_closed(make: MakePlane, tmp_path: Path) -> None:
    body = bytes(range(256)) * 400
    async with plane_bench(make, tmp_path) as bench, bench.client(receive_buffer=4096) as client:
        _, stream = await http_stream(bench, client, b"GET / HTTP/1.1\r\n\r\n")
        with stream:
            await asyncio.get_running_loop().sock_sendall(stream, body)
        assert await client.receive_exactly(len(body)) == body
        assert await client.closed_by_server()
        assert (await bench.closed()).reason is CloseReason.HTTP_CLOSED


async def test_a_broken_record_of_a_client_that_does_not_read(make: MakePlane, tmp_path: Path) -> None:
    """What waits cannot be said any more, so the connection does not wait for it either."""
    media = build_channel_data(0x4001, b"\x80" + bytes(1199))
    async with plane_bench(make, tmp_path, PATIENT) as bench, bench.client(receive_buffer=4096) as client:
        await client.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        await flood(bench, flow, media, DropReason.DOWNLINK_FULL, 1)
        await client.send_wire(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert (await bench.closed()).reason is CloseReason.TLS_BROKEN
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(client.socket, 65536):
                pass


# ---- Stop


@pytest.mark.parametrize("state", STATES)
async def test_stop_in_each_state(make: MakePlane, tmp_path: Path, state: str) -> None:
    async with plane_bench(make, tmp_path) as bench, guest(bench, state) as one:
        await asyncio.gather(bench.plane.stop(), bench.plane.stop())
        closed = await bench.closed()
        assert closed.reason is CloseReason.STOPPED
        if one.connection is not None:
            assert closed.connection == one.connection
            bench.plane.attach(one.connection, bench.target)
        snapshot = bench.plane.snapshot()
        assert (snapshot.connections, len(snapshot.flows)) == (0, 0)
        with pytest.raises(ConnectionRefusedError):
            await bench.connect()


async def test_stop_when_control_answers_the_last_moment(make: MakePlane, tmp_path: Path) -> None:
    """TurnOpened and stop cross: attach comes while the plane ends, or after."""
    for _ in range(20):
        async with plane_bench(make, tmp_path) as bench:
            clients = [await bench.connect() for _ in range(4)]
            for client in clients:
                await client.send(HELLO)
            stopping = asyncio.ensure_future(bench.plane.stop())
            ended = [await bench.closed() for _ in clients]
            await stopping
            assert {closed.reason for closed in ended} == {CloseReason.STOPPED}
            for client in clients:
                client.abort()


async def test_stop_during_200_handshakes(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        guests = [await _handshaking(bench) for _ in range(100)]
        storm = [asyncio.ensure_future(bench.connect()) for _ in range(100)]
        await asyncio.wait(storm, return_when=asyncio.FIRST_COMPLETED)
        await bench.plane.stop()
        for met in await asyncio.gather(*storm, return_exceptions=True):
            assert isinstance(met, TlsClient | OSError), met
            if isinstance(met, TlsClient):
                met.abort()
        for one in guests:
            one.client.abort()
        snapshot = bench.plane.snapshot()
        assert snapshot.connections == 0
        assert sum(snapshot.closed.values()) == snapshot.accepted
        assert len([event for event in bench.events if isinstance(event, Closed)]) == snapshot.accepted


async def test_adopt_when_stopped(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        await bench.plane.stop()
        ours, theirs = socket.socketpair()
        bench.plane.adopt(theirs.detach())
        ours.setblocking(False)
        with ours:
            assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
