"""Running calls of the compiled plane are not disturbed: by a Python that hangs, by crowds, by verbs that come late."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from relay.addresses import Address
from relay.demo.authority import Authority
from relay.errors import OperatorError
from relay.plane.api import (
    Carrier,
    Closed,
    CloseReason,
    ConnectionId,
    EventSink,
    StunReceived,
    TextReceived,
    TurnOpened,
    Upstream,
)
from relay.plane.certificates import HandshakeFailure, ServerCertificate, read_certificate
from relay.plane.compiled.numbers import Notice
from relay.plane.compiled.plane import CompiledPlane
from relay.plane.reference.reserve import RESERVED_DESCRIPTORS
from relay.plane.settings import PlaneSettings
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import MessageClass, Method
from tests.support.benches.plane import Bench, bounds, commands_are_taken, exchange, plane_bench
from tests.support.descriptors import room_for
from tests.support.messages import HELLO, stun
from tests.support.peers.carriers import carried, moved_session
from tests.support.peers.scripted_upstream import scripted_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes

BLOCK_S = 3.0
# A call sends faster than voice does, and leaves the processor to the others of this process.
ROUND_EACH_S = 0.005
CALLS = 10
CROWD = 1500
SOCKET_TIMEOUT_S = 30.0
# The longest text, of 64 KiB, and how many of them a client may send between two pings: 8 MiB.
MASKED_TEXT = b"\x81\xff" + (65_536).to_bytes(8)
TEXTS_AT_ONCE = 128


def make_with(workers: int) -> type[CompiledPlane]:
    """The compiled plane with so many workers, whatever the machine."""

    class Sized(CompiledPlane):
        def __init__(self, settings: PlaneSettings, certificates: Sequence[ServerCertificate], sink: EventSink) -> None:
            super().__init__(settings, certificates, sink, workers=workers)

    return Sized


def slot_of(connection: ConnectionId) -> int:
    return connection & 0xFFFFFFFF


def worker_of(connection: ConnectionId) -> int:
    return connection >> 56


# ---- A Python that hangs


class EchoUpstream(threading.Thread):
    """Sends every datagram back, on a thread of its own and without asyncio."""

    def __init__(self) -> None:
        super().__init__(name="echo upstream", daemon=True)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = Address(*self._socket.getsockname())

    def run(self) -> None:
        while True:
            data, sender = self._socket.recvfrom(65536)
            if not data:
                return
            self._socket.sendto(data, sender)

    def end(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopping:
            stopping.sendto(b"", self.address)
        self.join()
        self._socket.close()


@dataclass
class Talk:
    """One packet of a call: when it left, and when it was back."""

    call: int
    sent_at: float
    answered_at: float


class Callers(threading.Thread):
    """Calls with blocking sockets on a thread of their own; each sends its next packet when the last is back."""

    def __init__(self, server: Address, context: ssl.SSLContext) -> None:
        super().__init__(name="callers", daemon=True)
        self.talks: list[Talk] = []
        self.error: BaseException | None = None
        self.running, self._enough = threading.Event(), threading.Event()
        self._server, self._context = server, context

    def run(self) -> None:
        try:
            with contextlib.ExitStack() as calls:
                self._talk([calls.enter_context(self._open()) for _ in range(CALLS)])
        except BaseException as error:  # told by ``end``
            self.error = error
            self.running.set()

    def _open(self) -> ssl.SSLSocket:
        connected = socket.create_connection(self._server, SOCKET_TIMEOUT_S)
        client = self._context.wrap_socket(connected, server_hostname="relay.test")
        client.sendall(HELLO)
        assert self._receive(client, len(HELLO)) == HELLO
        return client

    def _talk(self, calls: list[ssl.SSLSocket]) -> None:
        self.running.set()
        number = 0
        while not self._enough.is_set():
            for call, client in enumerate(calls):
                frame = build_channel_data(0x4001, number.to_bytes(4) * 43)
                sent_at = time.monotonic()
                client.sendall(frame)
                assert self._receive(client, len(frame)) == frame
                self.talks.append(Talk(call, sent_at, time.monotonic()))
            number += 1
            time.sleep(ROUND_EACH_S)

    @staticmethod
    def _receive(client: ssl.SSLSocket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = client.recv(size - len(data))
            assert chunk, "the server closed the connection"
            data += chunk
        return data

    def end(self) -> None:
        self._enough.set()
        self.join()
        if self.error is not None:
            raise self.error


@contextlib.asynccontextmanager
async def talking(folder: Path, settings: PlaneSettings | None = None) -> AsyncIterator[tuple[Bench, Callers]]:
    """Ten calls that talk while the block runs; where a packet is not answered, the block fails at its end."""
    echo = EchoUpstream()
    echo.start()
    try:
        async with plane_bench(make_with(2), folder, settings) as bench:
            bench.target = Upstream("echo", echo.address)
            callers = Callers(bench.server, bench.authority.client_context())
            callers.start()
            await asyncio.to_thread(callers.running.wait)
            try:
                yield bench, callers
            finally:
                await asyncio.to_thread(callers.end)
    finally:
        echo.end()


def hang() -> tuple[float, float]:
    """Block the thread of the loop; from when to when."""
    begun = time.monotonic()
    time.sleep(BLOCK_S)
    return begun, time.monotonic()


async def test_calls_go_on_while_python_hangs(tmp_path: Path) -> None:
    async with talking(tmp_path) as (_, callers):
        begun, ended = hang()
    during = [talk.call for talk in callers.talks if begun < talk.sent_at and talk.answered_at < ended]
    for call in range(CALLS):
        assert during.count(call) > 1, f"call {call} had to wait for Python"


async def test_what_happened_meanwhile_is_told_afterwards(tmp_path: Path) -> None:
    """Clients that come, wait and go while Python hangs: each is told of, in order, when it is back."""
    async with plane_bench(make_with(2), tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        await bench.event(TurnOpened)
        bench.plane.configure(bounds(control_timeout_s=0.1))
        guests = threading.Thread(target=come_and_go, args=(bench.server, bench.authority.client_context()))
        guests.start()
        guests.join()
        opened = [await bench.event(TurnOpened) for _ in range(CALLS)]
        closed = {one.connection: one for one in [await bench.closed() for _ in range(CALLS)]}
        assert {closed[one.connection].reason for one in opened} == {CloseReason.CONTROL_TIMEOUT}
        # Control has answered, too late: bench attaches what opens.
        bench.plane.configure(bounds())
        await commands_are_taken(bench)
        assert len(bench.plane.snapshot().flows) == 1
        await exchange(bench, client, flow)


def come_and_go(server: Address, context: ssl.SSLContext) -> None:
    """Speak TURN until the server gives up; nobody attaches."""
    for _ in range(CALLS):
        with socket.create_connection(server, SOCKET_TIMEOUT_S) as connected:
            client = context.wrap_socket(connected, server_hostname="relay.test")
            client.sendall(HELLO)
            assert client.recv(1) == b""
            client.close()


# ---- Crowds


async def silent(bench: Bench, count: int) -> list[socket.socket]:
    """TCP connections that say nothing, from many addresses."""
    crowd = []
    for number in range(count):
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        crowd.append(one)
        one.bind((f"127.0.0.{2 + number % 200}", 0))
        await asyncio.get_running_loop().sock_connect(one, bench.server)
    return crowd


def connections_and_flows(bench: Bench) -> tuple[int, int]:
    snapshot = bench.plane.snapshot()
    return snapshot.connections, len(snapshot.flows)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_silent_crowd_is_shown_out(tmp_path: Path) -> None:
    """Most do not even begin a handshake, some end theirs and say nothing. Slots and descriptors are used again."""
    # The handshakes of those who end theirs have time enough on a machine that stands still for a while.
    settings = bounds(handshake_timeout_s=2.5, first_bytes_timeout_s=0.5)
    with room_for((3 + RESERVED_DESCRIPTORS) * CROWD):
        await show_out_a_crowd(tmp_path, settings)


async def show_out_a_crowd(folder: Path, settings: PlaneSettings) -> None:
    async with talking(folder) as (bench, _):
        bench.plane.configure(settings)
        before = descriptors()
        slots: set[tuple[int, int]] = set()
        for _ in range(2):
            crowd = await silent(bench, CROWD)
            quiet = [await bench.connect() for _ in range(50)]
            ended = [await bench.closed() for _ in range(CROWD + len(quiet))]
            reasons = [closed.reason for closed in ended]
            assert reasons.count(CloseReason.HANDSHAKE_FAILED) == CROWD
            assert reasons.count(CloseReason.FIRST_BYTES_TIMEOUT) == len(quiet)
            assert {one.handshake_failure for one in ended} == {HandshakeFailure.TIMEOUT, None}
            for one in crowd:
                one.close()
            for client in quiet:
                client.abort()
            await becomes(lambda: connections_and_flows(bench), (CALLS, CALLS))
            await becomes(descriptors, before)
            slots |= {(worker_of(closed.connection), slot_of(closed.connection)) for closed in ended}
        # Two crowds would have two slots for each place in one, if none were used again. How many a crowd needs depends
        # on how many of it are there at once, and how the kernel shares them out among the workers.
        assert len(slots) < 2 * CROWD


async def test_stop_with_more_connections_than_a_ring_has_room(tmp_path: Path) -> None:
    crowd_size = 4096 + 500
    with room_for((2 + RESERVED_DESCRIPTORS) * crowd_size + 500):
        async with plane_bench(make_with(1), tmp_path) as bench:
            crowd = await silent(bench, crowd_size)
            (await bench.connect()).abort()
            await bench.plane.stop()
            assert len([event for event in bench.events if isinstance(event, Closed)]) == crowd_size + 1
            assert bench.plane.snapshot().connections == 0
            for one in crowd:
                one.close()


# ---- Late verbs


async def test_late_verbs_never_reach_a_newer_owner(tmp_path: Path) -> None:
    """The slots of thousands that have gone are used again; whatever control still says to the old ids is lost."""
    async with (
        plane_bench(make_with(1), tmp_path) as bench,
        scripted_upstream() as elsewhere,
        bench.flow(HELLO) as (client, flow),
    ):
        await bench.event(TurnOpened)
        wrong = Upstream("elsewhere", elsewhere.address)
        gone: list[ConnectionId] = []
        slots: set[int] = set()
        for _ in range(10):
            for _ in range(4):
                crowd = await silent(bench, 50)
                for one in crowd:
                    one.close()
                gone += [(await bench.closed()).connection for _ in crowd]
            async with owners(bench) as (waiting, running):
                for old in gone:
                    bench.plane.attach(old, wrong)
                    bench.plane.upgrade(old, b"HTTP/1.1 101 .\r\n\r\n", Carrier.TURN, wrong)
                    bench.plane.close(old, CloseReason.DRAINING)
                slots |= {slot_of(opened.connection) for opened in waiting}
                for caller, its_flow in [*running, (client, flow)]:
                    await exchange(bench, caller, its_flow)
                for opened in waiting:
                    bench.plane.attach(opened.connection, bench.target)
                    await bench.upstream.expect(HELLO)
            gone += [(await bench.closed()).connection for _ in range(len(waiting) + len(running))]
        assert elsewhere.received.empty()
        assert slots <= {slot_of(connection) for connection in gone}
        assert len(gone) == len(set(gone))


@contextlib.asynccontextmanager
async def owners(bench: Bench) -> AsyncIterator[tuple[list[TurnOpened], list[tuple[TlsClient, Address]]]]:
    """Newer connections: some wait for control, some are calls."""
    async with contextlib.AsyncExitStack() as stack:
        running = [await stack.enter_async_context(bench.flow(HELLO)) for _ in range(5)]
        for _ in running:
            await bench.event(TurnOpened)
        bench.attaches = False
        for _ in range(5):
            await (await stack.enter_async_context(bench.client())).send(HELLO)
        waiting = [await bench.event(TurnOpened) for _ in range(5)]
        bench.attaches = True
        yield waiting, running


# ---- Start, stop, and two of them


START_AND_STOP = """
import asyncio, sys, uvloop
from pathlib import Path
from relay.addresses import Address
from relay.plane.certificates import Certificate, read_certificate
from relay.plane.compiled.plane import CompiledPlane
from relay.plane.settings import PlaneSettings

async def main():
    # A slow machine is no mistake of ours.
    asyncio.get_running_loop().slow_callback_duration = float("inf")
    certificate = read_certificate(Certificate(Path(sys.argv[1]), Path(sys.argv[2])))
    for _ in range(5):
        plane = CompiledPlane(PlaneSettings(), [certificate], print)
        await plane.listen(Address("127.0.0.1", 0))
        await plane.stop()

uvloop.run(main())
"""


async def test_50_starts_and_stops_leave_nothing(tmp_path: Path) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("data plane")]

    async def once() -> None:
        async with plane_bench(make_with(2), tmp_path) as bench, bench.flow(HELLO) as (client, flow):
            assert threads() == ["data plane 0", "data plane 1"]
            await exchange(bench, client, flow)

    await once()
    gc.collect()
    before = descriptors()
    for _ in range(50):
        await once()
        assert not threads()
    gc.collect()
    assert descriptors() == before


def test_start_and_stop_in_development_mode(tmp_path: Path) -> None:
    certificate = Authority(tmp_path).issue("relay.test")
    arguments = [sys.executable, "-X", "dev", "-W", "error", "-c", START_AND_STOP]
    done = subprocess.run(
        [*arguments, certificate.chain, certificate.private_key], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_connections_land_on_both_workers(tmp_path: Path) -> None:
    async with plane_bench(make_with(2), tmp_path) as bench, contextlib.AsyncExitStack() as calls:
        landed: list[int] = []
        while set(landed) != {0, 1}:
            assert len(landed) < 200, "connections land on one worker only"
            client, flow = await calls.enter_async_context(bench.flow(HELLO))
            landed.append(worker_of((await bench.event(TurnOpened)).connection))
            await exchange(bench, client, flow)


async def test_a_second_plane_on_the_port_is_refused(tmp_path: Path) -> None:
    async with plane_bench(make_with(2), tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        second = CompiledPlane(PlaneSettings(), [read_certificate(bench.certificate)], lambda _: None)
        for _ in range(3):
            with pytest.raises(OperatorError, match="address already in use"):
                await second.listen(bench.server)
        await second.stop()
        del second  # a debug build counts what it keeps
        await exchange(bench, client, flow)
        async with bench.flow(HELLO):
            pass


async def test_a_notice_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    """A mistake of ours reaches the loop's handler; what the worker has told of others in the same batch is heard."""
    failures: list[type[BaseException]] = []
    loop = asyncio.get_running_loop()
    async with plane_bench(make_with(1), tmp_path) as bench:
        worker = mock.Mock()
        assert isinstance(bench.plane, CompiledPlane)
        # A worker passes on no text that is not UTF-8.
        worker.take_events.return_value = [
            (Notice.TEXT, n, text, 0, 0) for n, text in enumerate((b"one", b"\xff", b"three"))
        ]
        before = loop.get_exception_handler()
        loop.set_exception_handler(lambda _, context: failures.append(type(context["exception"])))
        try:
            bench.plane._notices.read(worker)
        finally:
            loop.set_exception_handler(before)
        assert failures == [UnicodeDecodeError]
        assert [(await bench.event(TextReceived)).text for _ in range(2)] == ["one", "three"]


def hang_until_one_is_closed(bench: Bench) -> None:
    """Block the thread of the loop meanwhile."""
    deadline = time.monotonic() + SOCKET_TIMEOUT_S
    while not bench.plane.snapshot().closed and time.monotonic() < deadline:
        time.sleep(0.005)


async def test_texts_leave_room_for_what_upstreams_say(tmp_path: Path) -> None:
    """While Python hangs: who sends more texts than may wait ends, and a call beside them does not."""
    text = MASKED_TEXT + bytes(4) + b"x" * 65_536
    async with (
        plane_bench(make_with(1), tmp_path) as bench,
        moved_session(bench) as (call, flow),
        carried(bench, Carrier.SESSION) as one,
        carried(bench, Carrier.SESSION) as other,
    ):
        for client in (one, other):
            client.tls.socket.settimeout(SOCKET_TIMEOUT_S)
            with contextlib.suppress(ConnectionError):
                for _ in range(TEXTS_AT_ONCE):
                    client.tls.socket.sendall(client.tls.record(text))
        hang_until_one_is_closed(bench)
        indication = stun(7, Method.DATA, MessageClass.INDICATION)
        bench.upstream.send(flow, indication)
        assert (await bench.event(StunReceived)).message == indication
        closed = await bench.closed()
        # They speak at the same time: either may be the one that finds no more room.
        assert closed.connection in {one.connection, other.connection}
        assert closed.reason is CloseReason.CONTROL_TIMEOUT
        assert call.connection in [flow.connection for flow in bench.plane.snapshot().flows]
