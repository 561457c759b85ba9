"""A bad path whose faults are known exactly: it writes down what became of each packet of voice that came to it.

    client --UDP--> path --UDP--> TURN server
    client --TLS--> path --TLS--> relay            it ends TLS, as a web proxy does that inspects

While it is bad, it drops packets, or passes nothing on for a while. Voice is known by its RTP header, which SRTP leaves
readable (RFC 3711 section 3.1). It runs on a loop and in a thread of its own.
"""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
import contextlib
import functools
import socket
import ssl
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

import uvloop

from relay.addresses import Address
from relay.plane.certificates import Certificate
from relay.tasks import Tasks
from relay.wire.channeldata import HEADER_BYTES, is_channel_data, pad
from relay.wire.stream import StreamCutter
from tests.support.network.bursts import give_room
from tests.support.peers.bad_proxies import until_one_ends

HOST = "127.0.0.1"
MAX_CLIENTS = 1024
READ_BYTES = 65536
DATAGRAM_BYTES = 2048
DATAGRAMS_AT_ONCE = 64
RTP_BYTES = 12
# RFC 7983: what begins with these is RTP or RTCP. RFC 5761: what goes on with those is RTCP.
RTP_FIRST = range(128, 192)
RTCP_SECOND = range(192, 224)


class Way(StrEnum):
    """Which way a packet goes."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True)
class Faults:
    """What a path does while it is bad.

    Of each ``period`` packets of a stream it drops the last ``run``. Every ``stall_every_s`` it passes nothing on for
    ``stall_s``, and then all that has waited. With 0 it does not.
    """

    period: int = 0
    run: int = 1
    stall_s: float = 0.0
    stall_every_s: float = 1.0


@dataclass(slots=True)
class Passage:
    """One packet of voice: its RTP timestamp, when it came, and when it left; None if it was dropped, or waits still.

    Times are in seconds of CLOCK_MONOTONIC.
    """

    timestamp: int
    came_s: float
    left_s: float | None = None


@dataclass
class Voice:
    """One stream, one way: its packets in the order in which they came."""

    passages: list[Passage] = field(default_factory=list)
    # Since the path is bad.
    counted: int = 0


Ledger = dict[tuple[Way, int], Voice]


def rtp_of(unit: bytes) -> tuple[int, int] | None:
    """The SSRC and the timestamp of the RTP in a ChannelData message; None for anything else."""
    if not is_channel_data(unit) or len(unit) < HEADER_BYTES + RTP_BYTES:
        return None
    packet = unit[HEADER_BYTES:]
    if packet[0] not in RTP_FIRST or packet[1] in RTCP_SECOND:
        return None
    return int.from_bytes(packet[8:12]), int.from_bytes(packet[4:8])


class KnownPath(abc.ABC):
    """What both paths have in common. ``ledger`` has what was done; read it when the path has ended."""

    def __init__(self, server: Address, faults: Faults) -> None:
        self.address = Address("", 0)
        self.server = server
        self.ledger: Ledger = defaultdict(Voice)
        self._faults = faults
        self._bad = False
        self._stalled_until = 0.0
        self._held: deque[Callable[[], None]] = deque()
        self._tasks = Tasks()
        self._loop: asyncio.AbstractEventLoop
        self._ending: asyncio.Event

    def misbehave(self, bad: bool) -> None:
        """Begin to be bad, or end it. For any other thread; when this returns, it is so."""
        asyncio.run_coroutine_threadsafe(self._misbehave(bad), self._loop).result()

    async def _misbehave(self, bad: bool) -> None:
        begins, self._bad = bad and not self._bad, bad
        if begins and self._faults.stall_s:
            self._stall()

    def _stall(self) -> None:
        if self._bad:
            self._stalled_until = self._loop.time() + self._faults.stall_s
            self._loop.call_at(self._stalled_until, self._release)
            self._loop.call_later(self._faults.stall_every_s, self._stall)

    # The way of a packet

    def carry(self, way: Way, unit: bytes, send: Callable[[], object]) -> None:
        """Pass a unit on, now or when the stall is over; or drop it."""
        passage = None
        if (found := rtp_of(unit)) is not None:
            voice = self.ledger[way, found[0]]
            passage = Passage(found[1], self._loop.time())
            voice.passages.append(passage)
            if self._drops(voice):
                return
        leave = functools.partial(self._leave, passage, send)
        # Nothing overtakes what waits.
        if self._held or self._stalled_until > self._loop.time():
            self._held.append(leave)
        else:
            leave()

    def _drops(self, voice: Voice) -> bool:
        if not (self._bad and self._faults.period):
            return False
        voice.counted += 1
        return (voice.counted - 1) % self._faults.period >= self._faults.period - self._faults.run

    def _leave(self, passage: Passage | None, send: Callable[[], object]) -> None:
        if passage is not None:
            passage.left_s = self._loop.time()
        # Its receiver may be gone. That is for the others to notice.
        with contextlib.suppress(OSError):
            send()

    def _release(self) -> None:
        while self._held:
            self._held.popleft()()

    # Its life

    @abc.abstractmethod
    def _listening(self) -> contextlib.AbstractAsyncContextManager[Address]:
        """Where it listens, while the block runs."""

    async def serve(self, ready: concurrent.futures.Future[None]) -> None:
        """Serve until ``stop``. ``ready`` is told when it listens, or why it does not."""
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with self._listening() as self.address:
                ready.set_result(None)
                await self._ending.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise
        finally:
            self._held.clear()
            await self._tasks.cancel()

    def stop(self) -> None:
        """End it. For any thread."""
        self._loop.call_soon_threadsafe(self._ending.set)


class UdpPath(KnownPath):
    """Datagrams. Each client has a socket of its own towards the server, as after a NAT."""

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[Address]:
        with contextlib.ExitStack() as sockets:
            self._sockets, self._lines = sockets, dict[Address, socket.socket]()
            self._near = self._open(self._on_client)
            self._near.bind((HOST, 0))
            yield Address(*self._near.getsockname())

    def _open(self, on_readable: Callable[[], None]) -> socket.socket:
        opened = self._sockets.enter_context(socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        give_room(opened)
        self._loop.add_reader(opened, on_readable)
        self._sockets.callback(self._loop.remove_reader, opened)
        return opened

    def _on_client(self) -> None:
        for data, client in _datagrams(self._near):
            if client not in self._lines:
                if len(self._lines) == MAX_CLIENTS:
                    continue
                self._lines[client] = self._open(functools.partial(self._on_server, client))
                self._lines[client].connect(self.server)
            self.carry(Way.UP, data, functools.partial(self._lines[client].send, data))

    def _on_server(self, client: Address) -> None:
        for data, _ in _datagrams(self._lines[client]):
            self.carry(Way.DOWN, data, functools.partial(self._near.sendto, data, client))


def _datagrams(source: socket.socket) -> Iterator[tuple[bytes, Address]]:
    for _ in range(DATAGRAMS_AT_ONCE):
        try:
            data, sender = source.recvfrom(DATAGRAM_BYTES)
        except BlockingIOError:
            return
        except OSError:
            continue  # ICMP: an earlier one did not arrive
        yield data, Address(*sender)


class TlsPath(KnownPath):
    """TURN over TLS. ``certificate`` is the path's own; ``trust`` and ``name`` are for the server's."""

    def __init__(
        self, server: Address, faults: Faults, certificate: Certificate, trust: ssl.SSLContext, name: str
    ) -> None:
        super().__init__(server, faults)
        self._certificate = certificate
        self._trust = trust
        self._name = name

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[Address]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate.chain, self._certificate.private_key)
        server = await asyncio.start_server(self._on_connection, HOST, 0, ssl=context)
        try:
            yield Address(*server.sockets[0].getsockname()[:2])
        finally:
            server.close()
            await self._tasks.cancel()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.start(self._tunnel(reader, writer), "known path")

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            found = await asyncio.open_connection(*self.server, ssl=self._trust, server_hostname=self._name)
            writers.append(found[1])
            await until_one_ends(self._pump(Way.UP, reader, found[1]), self._pump(Way.DOWN, found[0], writer))
        except OSError:
            pass
        finally:
            for one in writers:
                one.transport.abort()

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cutter = StreamCutter()
        while cutter.fault is None and (data := await reader.read(READ_BYTES)):
            for unit in cutter.feed(data):
                self.carry(way, unit, functools.partial(_write, writer, pad(unit)))
            await writer.drain()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    # What waited may outlive its connection.
    if not writer.transport.is_closing():
        writer.write(data)


AnyPath = TypeVar("AnyPath", bound=KnownPath)


@contextlib.contextmanager
def open_path(path: AnyPath) -> Iterator[AnyPath]:
    """Run a path while the block does. Raises OSError if it cannot listen."""
    with concurrent.futures.ThreadPoolExecutor(1, "known path") as thread:
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        running = thread.submit(uvloop.run, path.serve(ready))
        ready.result()
        try:
            yield path
        finally:
            path.stop()
            running.result()
