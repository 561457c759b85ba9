"""A bad line between desks and TURN hosts, over UDP: it loses, delays, stalls and blocks datagrams, or passes them on.

Each client of a host has a socket of its own towards the host, like behind a NAT. So the host sees another address for
each, and the address is forgotten when nothing has passed for a while.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import random
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from relay.addresses import Address
from relay.emulator.faults.board import FaultBoard
from relay.emulator.faults.kinds import Hop, Kind
from relay.emulator.turn.sockets import open_udp_socket, take_datagrams
from relay.errors import OperatorError
from relay.timer import DeadlineTimer

# A NAT of a firm has two minutes or more (RFC 4787 section 4.3). TURN clients say something much more often.
FORGET_S = 120.0
# Desks of a laptop. Each takes a descriptor.
MAX_CLIENTS = 1024
# What waits because of delays and stalls: 5 s of 100 streams, some 5 MiB. Beyond it, the line drops.
MAX_HELD = 25_000
# On all lines together, whatever the size of datagrams. A datagram that waits takes some 600 bytes more than it has.
MAX_HELD_BYTES = 64 << 20
OVERHEAD_BYTES = 600


class Waiting:
    """The bytes that wait on all lines of one emulator."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> bool:
        """Whether so much may wait. Give it back later."""
        if self.size + size > MAX_HELD_BYTES:
            return False
        self.size += size
        return True


@dataclass(frozen=True)
class Line:
    """A TURN host as desks reach it: its names for targets of faults, and where it is."""

    name: str
    region: str
    host: Address


class UdpHop:
    """The bad line to one host: ``start`` it on an address and ``close`` it. ``counts`` says what became of datagrams.

    ``waiting`` is shared by all lines. ``seed`` makes losses repeat: the same datagrams in the same order lose the same
    ones.
    """

    def __init__(
        self, line: Line, board: FaultBoard, *, waiting: Waiting | None = None, seed: int | None = None
    ) -> None:
        self.line = line
        self.counts: Counter[str] = Counter()
        self.address = line.host
        self._board = board
        self._random = random.Random(seed)  # noqa: S311
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket
        self._clients: dict[Address, _Client] = {}
        # By time, then in the order of arrival.
        self._held: list[tuple[float, int, int, Callable[[], None]]] = []
        self._waiting = waiting or Waiting()
        self._numbers = itertools.count()
        self._timer = DeadlineTimer(self._release)
        self._sweep: asyncio.TimerHandle | None = None
        board.on_change(self._on_board)

    @property
    def clients(self) -> int:
        """How many clients have a socket towards the host."""
        return len(self._clients)

    def start(self, address: Address) -> None:
        """Listen. Raises OperatorError if the address cannot be bound."""
        try:
            self._socket = open_udp_socket(address)
        except OSError as error:
            raise OperatorError(f"bad line on {address}: {error.strerror}") from error
        self.address = Address(*self._socket.getsockname())
        self._loop.add_reader(self._socket.fileno(), self._on_desk)
        self._sweep = self._loop.call_later(FORGET_S / 2, self._forget)

    def close(self) -> None:
        """Close all sockets. What waits is lost. May be repeated."""
        if self._sweep is None:
            return
        self._sweep.cancel()
        self._sweep = None
        self._timer.cancel()
        while self._held:
            self._waiting.size -= self._held.pop()[2]
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        while self._clients:
            self._clients.popitem()[1].close()

    # The way of a datagram

    def _on_desk(self) -> None:
        for data, sender in take_datagrams(self._socket):
            client = self._client(sender)
            if client is not None:
                self._pass(len(data), functools.partial(self._send_up, client, data))

    def _client(self, sender: Address) -> _Client | None:
        client = self._clients.get(sender)
        if client is None:
            if len(self._clients) >= MAX_CLIENTS:
                self.counts["too_many_clients"] += 1
                return None
            try:
                client = _Client(self, sender)
            except OSError:
                self.counts["no_socket"] += 1
                return None
            self._clients[sender] = client
        client.heard_at = self._loop.time()
        return client

    def on_host(self, client: _Client) -> None:
        """The host has sent something for this client."""
        for data, _ in take_datagrams(client.socket):
            client.heard_at = self._loop.time()
            self._pass(len(data), functools.partial(self._send_down, client, data))

    def _pass(self, size: int, send: Callable[[], None]) -> None:
        names = (self.line.name, self.line.region)
        if self._board.find(Hop.DESK_UDP, Kind.UDP_BLOCKED, *names) is not None:
            self.counts["blocked"] += 1
            return
        loss = self._board.find(Hop.DESK_UDP, Kind.LOSS, *names)
        if loss is not None and self._random.random() * 100 < (loss.setting.percent or 0):
            self.counts["lost"] += 1
            return
        due = self._due(names)
        # Nothing overtakes what waits already.
        if due is None and not self._held:
            send()
        elif len(self._held) >= MAX_HELD or not self._waiting.take(size + OVERHEAD_BYTES):
            self.counts["overflow"] += 1
        else:
            now = self._loop.time()
            heapq.heappush(self._held, (now if due is None else due, next(self._numbers), size + OVERHEAD_BYTES, send))
            self._timer.set(self._held[0][0])

    def _due(self, names: tuple[str, str]) -> float | None:
        """When a datagram that comes now may leave, or None: at once."""
        now, due = self._loop.time(), None
        delay = self._board.find(Hop.DESK_UDP, Kind.DELAY, *names)
        if delay is not None:
            due = now + (delay.setting.delay_ms or 0) / 1000
        stall = self._board.find(Hop.DESK_UDP, Kind.STALL, *names)
        if stall is not None and stall.until is not None:
            due = max(due or now, stall.until)
        return due

    def _release(self, now: float) -> None:
        while self._held and self._held[0][0] <= now:
            _, _, size, send = heapq.heappop(self._held)
            self._waiting.size -= size
            send()
        self._timer.set(self._held[0][0] if self._held else None)

    def _on_board(self) -> None:
        """A stall or a delay may have been taken off early. Then nothing waits any longer."""
        if self._held and self._due((self.line.name, self.line.region)) is None:
            self._release(float("inf"))

    def _send_up(self, client: _Client, data: bytes) -> None:
        self._send(lambda: client.socket.send(data))

    def _send_down(self, client: _Client, data: bytes) -> None:
        self._send(lambda: self._socket.sendto(data, client.desk))

    def _send(self, send: Callable[[], int]) -> None:
        try:
            send()
        except OSError:
            # The socket is full or closed, or ICMP says that nobody listens. A network would also drop it silently.
            self.counts["refused"] += 1
        else:
            self.counts["passed"] += 1

    def _forget(self) -> None:
        before = self._loop.time() - FORGET_S
        for desk in [desk for desk, client in self._clients.items() if client.heard_at <= before]:
            self._clients.pop(desk).close()
        self._sweep = self._loop.call_later(FORGET_S / 2, self._forget)


class _Client:
    """A desk's socket towards the host."""

    def __init__(self, hop: UdpHop, desk: Address) -> None:
        self.desk = desk
        self.heard_at = 0.0
        self.socket = open_udp_socket(Address(hop.line.host.host, 0))
        self.socket.connect(hop.line.host)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.socket.fileno(), hop.on_host, self)

    def close(self) -> None:
        self._loop.remove_reader(self.socket.fileno())
        self.socket.close()
