"""TURN hosts: the server of ``relay.turn.server`` on real UDP sockets, one host or a cloud of them on 127.0.x.y.

Life of a packet, uplink: the host's socket wakes up → a bounded number of datagrams is taken → the server decides →
``sendto`` on the socket of the relayed address. Downlink: the same, from a relayed socket to the host's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from relay.addresses import LOOPBACK, Address, RelayPolicy
from relay.errors import OperatorError
from relay.sockaddr import from_sockaddr, to_sockaddr
from relay.timer import DeadlineTimer
from relay.turn.commands import CloseRelayed, Command, OpenRelayed, SendToClient, SendToPeer
from relay.turn.credentials import CredentialStore, NonceMint
from relay.turn.server import ServerSettings, TurnServer

# The longest possible datagram, so that none is cut off.
MAX_DATAGRAM_BYTES = 65535
# Datagrams taken from one socket before the others have their turn: 64 take about two milliseconds.
MAX_DATAGRAMS_PER_WAKE_UP = 64
# The kernel counts 768 bytes for a voice packet, so 1 MiB holds 1,300 of them: 270 ms of 100 calls. This is a request:
# the kernel grants at most net.core.rmem_max and net.core.wmem_max.
SOCKET_BUFFER_BYTES = 1 << 20

# Why no socket can be opened at all. Any other error is about the port that was tried.
_LACKING = {
    errno.EMFILE: "no file descriptors left in this process",
    errno.ENFILE: "no file descriptors left on this machine",
    errno.ENOBUFS: "no memory for sockets",
    errno.ENOMEM: "no memory for sockets",
}

_Decide = Callable[[float, Address, bytes], list[Command]]


def open_udp_socket(address: Address) -> socket.socket:
    """A bound non-blocking socket with room for a burst. Raises OSError."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if address.is_ipv6:
            # Otherwise "::" would also receive IPv4 datagrams, and report their senders as ::ffff:a.b.c.d.
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        opened.bind(to_sockaddr(address))
    except OSError:
        opened.close()
        raise
    return opened


class _Started(ABC):
    """What runs inside ``async with``."""

    @abstractmethod
    async def start(self) -> None:
        """Begin. Raises OperatorError if an address cannot be bound."""

    @abstractmethod
    async def stop(self) -> None:
        """End. May be repeated."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


class TurnHost(_Started):
    """One TURN server on one UDP address: ``start`` it once and ``stop`` it, or use it as a context manager.

    ``settings`` are the server's, except for the policy, which ``allow_loopback_peers`` makes, and the relayed hosts,
    which by default are the host's own address. ``dropped`` counts datagrams that a socket refused. Raises
    OperatorError for an address that is not loopback, unless ``exposed``: an emulator is not meant to serve others.
    """

    def __init__(
        self,
        address: Address,
        credentials: CredentialStore,
        *,
        name: str = "",
        region: str = "",
        allow_loopback_peers: bool = False,
        exposed: bool = False,
        relayed_hosts: tuple[str, ...] = (),
        settings: ServerSettings | None = None,
        nonces: NonceMint | None = None,
    ) -> None:
        if not exposed and not ipaddress.ip_address(address.host).is_loopback:
            raise OperatorError(f"TURN host on {address}: not a loopback address; it would be open to others")
        self.name = name
        self.region = region
        self.dropped = 0
        self._address = address
        settings = replace(
            settings or ServerSettings(),
            policy=RelayPolicy(LOOPBACK if allow_loopback_peers else ()),
            relayed_hosts=relayed_hosts or (address.host,),
        )
        self._server = TurnServer(settings, credentials, nonces=nonces)
        self._relayed: dict[Address, socket.socket] = {}
        self._socket: socket.socket
        self._loop: asyncio.AbstractEventLoop
        self._timer: DeadlineTimer
        self._running = False

    @property
    def address(self) -> Address:
        """The bound address, once started; before that the one that was asked for."""
        return self._address

    @property
    def allocations(self) -> int:
        """How many allocations there are now."""
        return len(self._relayed)

    async def start(self) -> None:
        """Bind and serve. Raises OperatorError if the address cannot be bound."""
        try:
            self._socket = open_udp_socket(self._address)
        except OSError as error:
            raise OperatorError(f"TURN host on {self._address}: {error.strerror}") from error
        self._address = from_sockaddr(self._socket.getsockname())
        self._loop = asyncio.get_running_loop()
        self._timer = DeadlineTimer(self._on_deadline)
        self._loop.add_reader(self._socket.fileno(), self._drain, self._socket, self._server.receive)
        self._running = True

    async def stop(self) -> None:
        """Close all sockets, without a word to the clients. May be repeated."""
        if not self._running:
            return
        self._running = False
        self._timer.cancel()
        self._close(self._socket)
        while self._relayed:
            self._close(self._relayed.popitem()[1])

    # The way of a packet

    def _drain(self, source: socket.socket, decide: _Decide) -> None:
        now = self._loop.time()
        for _ in range(MAX_DATAGRAMS_PER_WAKE_UP):
            try:
                data, sender = source.recvfrom(MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError:
                # ICMP says that an earlier datagram did not arrive. UDP promises nothing, so this is ignored.
                continue
            self._perform(now, decide(now, Address(sender[0], sender[1]), data))
        self._timer.set(self._server.next_deadline())

    def _perform(self, now: float, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, SendToClient):
                self._send(self._socket, command.data, command.client)
            elif isinstance(command, SendToPeer):
                self._send(self._relayed[command.relayed_address], command.data, command.peer)
            elif isinstance(command, OpenRelayed):
                self._open_relayed(now, command.relayed_address)
            elif isinstance(command, CloseRelayed):
                self._close(self._relayed.pop(command.relayed_address))

    def _send(self, source: socket.socket, data: bytes, destination: Address) -> None:
        try:
            source.sendto(data, destination)
        except OSError:
            # The socket is full, or there is no route to this address. A network would also drop it silently.
            self.dropped += 1

    # Relayed sockets and time

    def _open_relayed(self, now: float, relayed_address: Address) -> None:
        try:
            opened = open_udp_socket(relayed_address)
        except OSError as error:
            lacking = _LACKING.get(error.errno or 0, "")
            self._perform(now, self._server.on_relayed_failed(now, relayed_address, lacking))
            return
        self._relayed[relayed_address] = opened

        def decide(now: float, peer: Address, data: bytes) -> list[Command]:
            return self._server.receive_from_peer(now, relayed_address, peer, data)

        self._loop.add_reader(opened.fileno(), self._drain, opened, decide)
        self._perform(now, self._server.on_relayed_opened(now, relayed_address))

    def _close(self, closing: socket.socket) -> None:
        self._loop.remove_reader(closing.fileno())
        closing.close()

    def _on_deadline(self, now: float) -> None:
        self._perform(now, self._server.on_deadline(now))
        self._timer.set(self._server.next_deadline())


class TurnHosts(_Started):
    """A cloud of hosts on loopback: host y of region x is 127.0.x.y, both counted from 1 in the caller's order.

    ``regions`` gives each region the names of its hosts. ``port`` is the port of all hosts; with 0 the kernel chooses
    one for each. They share ``credentials`` and ``settings``, but no state.
    """

    def __init__(
        self,
        regions: Mapping[str, Sequence[str]],
        credentials: CredentialStore,
        *,
        port: int = 0,
        allow_loopback_peers: bool = False,
        settings: ServerSettings | None = None,
    ) -> None:
        self._hosts: dict[str, TurnHost] = {}
        self._running = contextlib.AsyncExitStack()
        for x, (region, names) in enumerate(regions.items(), 1):
            for y, name in enumerate(names, 1):
                if name in self._hosts:
                    raise ValueError(f"{name!r} names two hosts")
                self._hosts[name] = TurnHost(
                    Address(f"127.0.{x}.{y}", port),
                    credentials,
                    name=name,
                    region=region,
                    allow_loopback_peers=allow_loopback_peers,
                    settings=settings,
                )

    def __getitem__(self, name: str) -> TurnHost:
        return self._hosts[name]

    def __iter__(self) -> Iterator[TurnHost]:
        return iter(self._hosts.values())

    def __len__(self) -> int:
        return len(self._hosts)

    async def start(self) -> None:
        """Start all hosts, or none. Raises OperatorError if an address cannot be bound."""
        async with contextlib.AsyncExitStack() as started:
            for host in self:
                await started.enter_async_context(host)
            self._running = started.pop_all()

    async def stop(self) -> None:
        """Stop all hosts. May be repeated."""
        await self._running.aclose()
