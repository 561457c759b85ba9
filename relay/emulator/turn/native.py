"""The host whose data a native thread carries, and that thread: the packet path of ``_native``.

Python decides on every request with the same state machine as the slow host. What the machine grants is told to the
path before the answer leaves through it, so a client never hears of a channel that does not exist yet. The path ends
what has expired by its own clock. A Send indication with attributes that are seldom seen also goes to Python, and so
does each one if the settings say which peers may be reached.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections import Counter, deque
from typing import Unpack

from relay import deadlines
from relay.addresses import Address
from relay.emulator.turn import sockets
from relay.emulator.turn._native import PacketPath
from relay.emulator.turn.counters import Counters
from relay.emulator.turn.host import Host, HostOptions, Started
from relay.errors import OperatorError
from relay.sockaddr import from_sockaddr
from relay.tasks import in_daemon_thread
from relay.timer import DeadlineTimer
from relay.turn.allocation import Allocation, Channel
from relay.turn.commands import CloseRelayed, Command, OpenRelayed, SendToClient, SendToPeer
from relay.turn.credentials import CredentialStore
from relay.turn.drops import Drop
from relay.turn.observer import Observer
from relay.turn.server import TurnServer

# Requests that are decided before the rest of the loop has its turn: about ten milliseconds.
REQUESTS_A_TURN = 64
# The thread carries out commands after each turn, which takes a millisecond. A stopped machine may take longer.
SETTLE_TIMEOUT_S = 30.0
# As ``path.pxd`` has them.
MAX_HOSTS = 1024
DROPS = (
    Drop.MALFORMED,
    Drop.NO_ALLOCATION,
    Drop.NO_CHANNEL,
    Drop.NOT_PERMITTED,
    Drop.OVERSIZE,
    Drop.REFUSED,
    Drop.REQUEST_FLOOD,
    Drop.PAUSED,
)


class NativePath(Started):
    """The thread, and the numbers of hosts and allocations on it. Several hosts share one."""

    def __init__(self) -> None:
        self._hosts: list[TurnHost] = []
        self._free: deque[int] = deque()
        self._numbers = itertools.count()
        self._marks = itertools.count(1)
        self._reached: dict[int, asyncio.Future[None]] = {}
        self._path: PacketPath | None = None
        self._thread: threading.Thread
        self._loop: asyncio.AbstractEventLoop

    @property
    def path(self) -> PacketPath:
        """The running path."""
        assert self._path is not None, "the path does not run"
        return self._path

    @property
    def runs(self) -> bool:
        """True between ``start`` and ``stop``."""
        return self._path is not None

    def add(self, host: TurnHost) -> int:
        """Give a host its number. It keeps it."""
        if len(self._hosts) == MAX_HOSTS:
            raise ValueError(f"a path has at most {MAX_HOSTS} hosts")
        self._hosts.append(host)
        return len(self._hosts) - 1

    def take_number(self) -> int:
        """A number for an allocation."""
        return self._free.popleft() if self._free else next(self._numbers)

    def give_back(self, number: int) -> None:
        """The allocation of this number was removed: commands are carried out in their order."""
        self._free.append(number)

    async def start(self) -> None:
        """Begin. Raises OperatorError if the process has no descriptors left."""
        if self._path is not None:
            return
        try:
            self._path = PacketPath()
        except OSError as error:
            raise OperatorError(f"TURN hosts: {error.strerror}") from error
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._path.run, name="TURN packet path", daemon=True)
        self._thread.start()
        self._loop.add_reader(self._path.event_fd, self._on_event)

    async def stop(self) -> None:
        """Let the thread end. Hosts must have stopped before. May be repeated."""
        if self._path is None:
            return
        path, self._path = self._path, None
        self._loop.remove_reader(path.event_fd)
        path.stop()
        await in_daemon_thread(self._thread.join, "TURN packet path join")

    async def settle(self) -> None:
        """Wait until all earlier commands were carried out."""
        mark = next(self._marks)
        self._reached[mark] = asyncio.get_running_loop().create_future()
        self.path.set_mark(mark)
        async with deadlines.timeout(SETTLE_TIMEOUT_S):
            await self._reached[mark]

    def _on_event(self) -> None:
        for number, ip, port, data in self.path.take_requests(REQUESTS_A_TURN):
            try:
                self._hosts[number].on_request(Address(socket.inet_ntoa(ip), port), data)
            except Exception as error:
                # A fault of ours with one request. The others are decided all the same.
                self._loop.call_exception_handler({"message": "a TURN request was not decided", "exception": error})
        for mark in [mark for mark in self._reached if mark <= self.path.mark]:
            reached = self._reached.pop(mark)
            if not reached.done():
                reached.set_result(None)


class TurnHost(Host, Observer):
    """A host whose data the path carries. Without a ``path`` it has one of its own. It serves IPv4 only."""

    def __init__(
        self,
        address: Address,
        credentials: CredentialStore,
        *,
        path: NativePath | None = None,
        **options: Unpack[HostOptions],
    ) -> None:
        super().__init__(address, credentials, **options)
        for host in (address.host, *self._settings.relayed_hosts):
            if ":" in host:
                raise OperatorError(f"TURN host on {address}: the native packet path serves IPv4 only, not {host}")
        self._owns_path = path is None
        self._path = path or NativePath()
        self._number = self._path.add(self)
        self._server: TurnServer | None = None
        # Sockets whose allocation has not begun, such as reserved ones, and the numbers of those that have.
        self._opened: dict[Address, socket.socket] = {}
        self._numbers: dict[Address, int] = {}
        self._before = Counters()
        self._timer: DeadlineTimer

    # Lifetime

    async def _start_udp(self, address: Address) -> Address:
        try:
            opened = sockets.open_udp_socket(address, sockets.HOST_BUFFER_BYTES)
        except OSError as error:
            raise OperatorError(f"TURN host on {address}: {error.strerror}") from error
        with opened:
            if self._owns_path:
                await self._path.start()
            self._server = TurnServer(self._settings, self._credentials, nonces=self._nonces, observer=self)
            self._timer = DeadlineTimer(self._on_deadline)
            bound = from_sockaddr(opened.getsockname())
            self._path.path.ask_sends(self._number, self._settings.may_reach is not None)
            self._path.path.open_host(self._number, opened.fileno())
            opened.detach()
        return bound

    async def _stop_udp(self) -> None:
        if self._server is None:
            return
        # From here requests that wait are nobody's.
        server, self._server = self._server, None
        self._timer.cancel()
        for number in self._numbers.values():
            self._remove(number)
        self._numbers.clear()
        while self._opened:
            self._opened.popitem()[1].close()
        self._path.path.close_host(self._number)
        await self._path.settle()
        self._before += self._native_counters() + Counters(drops=server.drops)
        self._path.path.reset_counters(self._number)
        if self._owns_path:
            await self._path.stop()

    def _udp_allocations(self) -> int:
        return self._path.path.counters(self._number)[0] if self._path.runs else 0

    def _udp_relays(self, address: Address) -> bool:
        return address in self._numbers

    def _udp_counters(self) -> Counters:
        counted = self._before if self._server is None else self._before + Counters(drops=self._server.drops)
        return counted + self._native_counters() if self._path.runs else counted

    def _native_counters(self) -> Counters:
        counted = self._path.path.counters(self._number)
        drops = Counter({drop: count for drop, count in zip(DROPS, counted[5:], strict=True) if count})
        return Counters(counted[1], counted[2], counted[3], counted[4], drops)

    def _pause_udp(self, paused: bool) -> None:
        if self._path.runs:
            self._path.path.pause(self._number, paused)

    # Requests

    def on_request(self, client: Address, data: bytes) -> None:
        """Decide on a request that the path has received."""
        if self._server is None:
            return
        now = asyncio.get_running_loop().time()
        self._perform(now, self._server, self._server.receive(now, client, data))
        self._timer.set(self._server.next_deadline())

    def _on_deadline(self, now: float) -> None:
        if self._server is not None:
            self._perform(now, self._server, self._server.on_deadline(now))
            self._timer.set(self._server.next_deadline())

    def _perform(self, now: float, server: TurnServer, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, SendToClient):
                ip, port = _packed(command.client)
                self._path.path.send_to_client(self._number, ip, port, command.data)
            elif isinstance(command, SendToPeer):
                ip, port = _packed(command.peer)
                self._path.path.send_to_peer(self._numbers[command.relayed_address], ip, port, command.data)
            elif isinstance(command, OpenRelayed):
                self._open_relayed(now, server, command.relayed_address)
            elif isinstance(command, CloseRelayed):
                self._close_relayed(command.relayed_address)

    def _open_relayed(self, now: float, server: TurnServer, relayed_address: Address) -> None:
        try:
            self._opened[relayed_address] = sockets.open_udp_socket(relayed_address)
        except OSError as error:
            self._perform(now, server, server.on_relayed_failed(now, relayed_address, sockets.lacking(error)))
            return
        self._perform(now, server, server.on_relayed_opened(now, relayed_address))

    def _close_relayed(self, relayed_address: Address) -> None:
        number = self._numbers.pop(relayed_address, None)
        if number is not None:
            self._remove(number)
        else:
            self._opened.pop(relayed_address).close()

    def _remove(self, number: int) -> None:
        self._path.path.remove(number)
        self._path.give_back(number)

    # What the machine grants

    def on_allocation(self, allocation: Allocation) -> None:
        """The path carries its data from now on."""
        (relayed,) = allocation.relayed.values()
        number = self._path.take_number()
        ip, port = _packed(allocation.client)
        opened = self._opened.pop(relayed.address)
        self._path.path.install(number, self._number, opened.fileno(), ip, port, relayed.expires)
        opened.detach()
        self._numbers[relayed.address] = number

    def on_refresh(self, allocation: Allocation) -> None:
        """It lives longer."""
        (relayed,) = allocation.relayed.values()
        self._path.path.refresh(self._numbers[relayed.address], relayed.expires)

    def on_permission(self, allocation: Allocation, host: str) -> None:
        """Data may pass to and from this address."""
        (relayed,) = allocation.relayed.values()
        expires = allocation.permissions[host]
        self._path.path.permit(self._numbers[relayed.address], socket.inet_aton(host), expires)

    def on_channel(self, allocation: Allocation, channel: Channel) -> None:
        """A channel stands for a peer."""
        (relayed,) = allocation.relayed.values()
        ip, port = _packed(channel.peer)
        self._path.path.bind(self._numbers[relayed.address], channel.number, ip, port, channel.expires)
        self.on_permission(allocation, channel.peer.host)


def _packed(address: Address) -> tuple[bytes, int]:
    return socket.inet_aton(address.host), address.port
