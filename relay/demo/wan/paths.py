"""A simulated path, for where there are no network namespaces: UDP and TCP on loopback, as a long path passes them on.

Each listens on an address of its own and leads to one server. UDP loses and delays datagrams (``link``). TCP cannot
lose segments here, so the stream stalls as it would after a loss (``tcp_model``).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from dataclasses import replace
from typing import Self

from relay.addresses import Address
from relay.demo.wan.link import Link, LinkModel
from relay.demo.wan.tcp_model import TcpModel
from relay.emulator.turn.sockets import open_udp_socket, take_datagrams
from relay.tasks import Tasks
from relay.timer import DeadlineTimer

LOOPBACK = Address("127.0.0.1", 0)
# A call has one. More would be others on this machine, who have no business here.
MAX_CLIENTS = 8
# Of one direction of a stream: seven seconds of voice. Then its source must wait.
MAX_WAITING_BYTES = 64 * 1024
MAX_READ_BYTES = 16 * 1024


class UdpPath:
    """The path of datagrams to a server, from ``address``. Each client has a socket towards the server."""

    def __init__(self, server: Address, link: Link, seed: int) -> None:
        self.server = server
        self.link = link
        self.seed = seed
        self._loop = asyncio.get_running_loop()
        self.near = open_udp_socket(LOOPBACK)
        self.address = Address(*self.near.getsockname())
        self._clients: dict[Address, _UdpClient] = {}
        self._loop.add_reader(self.near.fileno(), self._on_near)

    @property
    def lost_packets(self) -> int:
        """How many datagrams were lost on the way from the server."""
        return sum(client.down.counters.lost_packets for client in self._clients.values())

    def set_loss(self, loss: float) -> None:
        """Lose this share in both directions from now on."""
        self.link = replace(self.link, loss=loss)
        for client in self._clients.values():
            client.change(self.link)

    def close(self) -> None:
        """Close all sockets; what is on the way is lost. May be repeated."""
        self._loop.remove_reader(self.near.fileno())
        self.near.close()
        while self._clients:
            self._clients.popitem()[1].close()

    def _on_near(self) -> None:
        for data, sender in take_datagrams(self.near):
            if sender not in self._clients and len(self._clients) < MAX_CLIENTS:
                self._clients[sender] = _UdpClient(self, sender)
            if (client := self._clients.get(sender)) is not None:
                client.take_up(data)


class _UdpClient:
    """A client, its socket towards the server, and both directions."""

    def __init__(self, path: UdpPath, address: Address) -> None:
        self._path = path
        self._address = address
        self._loop = asyncio.get_running_loop()
        # Two seeds, or both directions would lose packets of the same numbers.
        self._up, self.down = LinkModel(path.link, 2 * path.seed), LinkModel(path.link, 2 * path.seed + 1)
        self._far = open_udp_socket(LOOPBACK)
        self._far.connect(path.server)
        self._loop.add_reader(self._far.fileno(), self._on_far)
        self._timer = DeadlineTimer(self._carry)

    def take_up(self, data: bytes) -> None:
        """A datagram of the client."""
        self._up.offer(data, self._loop.time())
        self._carry(self._loop.time())

    def change(self, link: Link) -> None:
        for model in (self._up, self.down):
            model.change(link, self._loop.time())

    def close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._far.fileno())
        self._far.close()

    def _on_far(self) -> None:
        for data, _ in take_datagrams(self._far):
            self.down.offer(data, self._loop.time())
        self._carry(self._loop.time())

    def _carry(self, now: float) -> None:
        # A full socket, or one that nobody listens at: a network would drop it silently, too.
        for data in self._up.take(now):
            with contextlib.suppress(OSError):
                self._far.send(data)
        for data in self.down.take(now):
            with contextlib.suppress(OSError):
                self._path.near.sendto(data, self._address)
        self._timer.set(min(self._up.next_deadline(), self.down.next_deadline()))


class TcpPath:
    """The path of connections to a server, from ``address``, within ``async with``."""

    def __init__(self, server: Address, link: Link, seed: int) -> None:
        self.link = link
        self._server = server
        self._up, self._down = _Luck(self, 2 * seed), _Luck(self, 2 * seed + 1)
        self._loop = asyncio.get_running_loop()
        self._listener: asyncio.Server
        self._clients: dict[asyncio.StreamWriter, asyncio.StreamReader] = {}
        self._tasks = Tasks()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(*self._listener.sockets[0].getsockname())

    @property
    def lost_packets(self) -> int:
        """How many segments and acknowledgements were lost on the way from the server."""
        return self._down.lost

    def set_loss(self, loss: float) -> None:
        """Lose this share in both directions from now on."""
        self.link = replace(self.link, loss=loss)

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._welcome, LOOPBACK.host, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self._tasks.cancel()
        # Those whose task had not begun.
        while self._clients:
            await _hang_up(self._clients.popitem()[0])
        await self._listener.wait_closed()

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients[writer] = reader
        self._tasks.start(self._serve(reader, writer), "a client of a path")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until both directions have ended or either has failed."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._clients.pop, writer)
            stack.push_async_callback(_hang_up, writer)
            try:
                far_reader, far_writer = await asyncio.open_connection(*self._server)
                stack.push_async_callback(_hang_up, far_writer)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._carry(reader, far_writer, self._up, self._down))
                    group.create_task(self._carry(far_reader, writer, self._down, self._up))
            # Each side is told of the other's failure by the end of its stream.
            except* OSError:
                pass

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, forth: _Luck, back: _Luck
    ) -> None:
        """One direction, to its end."""
        model = TcpModel(self.link.delay_s, forth.is_bad, back.is_bad)
        reading: asyncio.Task[bytes] | None = None
        ended = False
        try:
            while not (ended and not model.waiting_bytes):
                if reading is None and not ended and model.waiting_bytes < MAX_WAITING_BYTES:
                    reading = asyncio.ensure_future(source.read(MAX_READ_BYTES))
                await self._wait(reading, model.next_deadline())
                if reading is not None and reading.done():
                    data, reading = reading.result(), None
                    ended = not data
                    model.write(data, self._loop.time())
                if came := model.read(self._loop.time()):
                    target.write(came)
                    await target.drain()
        finally:
            if reading is not None:
                reading.cancel()
        target.write_eof()

    async def _wait(self, reading: asyncio.Task[bytes] | None, deadline: float) -> None:
        """Until something was read, or the deadline has come."""
        left = max(0.0, deadline - self._loop.time())
        if reading is not None:
            await asyncio.wait([reading], timeout=None if left == math.inf else left)
        else:
            await asyncio.sleep(left)


class _Luck:
    """Decides what is lost in one direction."""

    def __init__(self, path: TcpPath, seed: int) -> None:
        self.lost = 0
        self._path = path
        self._random = random.Random(seed)  # noqa: S311

    def is_bad(self) -> bool:
        """Decide about one packet."""
        bad = self._random.random() < self._path.link.loss
        self.lost += bad
        return bad


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
