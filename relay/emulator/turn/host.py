"""What a host is, whatever carries its packets: addresses, lifetime, the switch, counters, and its stream listeners."""

from __future__ import annotations

import ipaddress
import ssl
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self, TypedDict

from relay.addresses import LOOPBACK, Address, RelayPolicy
from relay.emulator.handshakes import Handshakes
from relay.emulator.turn.counters import Counters
from relay.emulator.turn.rounds import Rounds
from relay.emulator.turn.streams import StreamListener
from relay.errors import OperatorError
from relay.turn.credentials import CredentialStore, NonceMint
from relay.turn.drops import Drop
from relay.turn.server import ServerSettings

# TCP and UDP have one port. The kernel chooses a free one for UDP, which another program may hold for TCP.
MAX_PORT_TRIES = 16


class Started(ABC):
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


@dataclass(frozen=True)
class Streams:
    """Where a host serves TURN over TCP and TLS, besides UDP.

    ``tcp`` is on the port of UDP. With ``tls`` there is TLS on ``tls_port``, for which the kernel chooses if it is 0.
    Hosts with the same ``rounds`` share one bound of work in each turn of the loop, and those with the same
    ``handshakes`` begin one handshake in each.
    """

    tcp: bool = False
    tls: ssl.SSLContext | None = None
    tls_port: int = 0
    rounds: Rounds = field(default_factory=Rounds)
    handshakes: Handshakes = field(default_factory=Handshakes)


class HostOptions(TypedDict, total=False):
    """What ``Host`` takes besides its address and credentials, for hosts of other kinds to pass on."""

    name: str
    region: str
    allow_loopback_peers: bool
    exposed: bool
    relayed_hosts: tuple[str, ...]
    settings: ServerSettings | None
    nonces: NonceMint | None
    streams: Streams | None


class Host(Started):
    """One TURN server on one address. It may be started and stopped again and again; no client's state survives that.

    ``settings`` are the server's, except for the policy, which ``allow_loopback_peers`` makes, and the relayed hosts,
    which by default are the host's own address. UDP, TCP and TLS have allocations of their own, and each has the whole
    quota. Raises OperatorError for an address that is not loopback, unless ``exposed``: an emulator is not meant to
    serve others.
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
        streams: Streams | None = None,
    ) -> None:
        if not exposed and not ipaddress.ip_address(address.host).is_loopback:
            raise OperatorError(f"TURN host on {address}: not a loopback address; it would be open to others")
        self.name = name
        self.region = region
        self._wanted = self._address = address
        self._credentials = credentials
        self._nonces = nonces
        self._settings = replace(
            settings or ServerSettings(),
            policy=RelayPolicy(LOOPBACK if allow_loopback_peers else ()),
            relayed_hosts=relayed_hosts or (address.host,),
        )
        self._streams = streams or Streams()
        self._listeners: list[StreamListener] = []
        # What listeners of earlier starts have counted.
        self._earlier = Counters()
        self._tls_address: Address | None = None
        self._paused = False
        self.running = False

    # What it is, and what it does now

    @property
    def address(self) -> Address:
        """The bound address of UDP and TCP, once started; before that the one that was asked for."""
        return self._address

    @property
    def tls_address(self) -> Address | None:
        """The bound address of TLS, or None while there is none."""
        return self._tls_address

    @property
    def allocations(self) -> int:
        """How many allocations there are now."""
        return self._udp_allocations() + sum(listener.allocations for listener in self._listeners)

    def relays(self, address: Address) -> bool:
        """True for a relayed address that there is now."""
        return self._udp_relays(address) or any(each.relaying.relays(address) for each in self._listeners)

    @property
    def connections(self) -> int:
        """How many clients are connected over TCP and TLS."""
        return sum(listener.connections for listener in self._listeners)

    @property
    def counters(self) -> Counters:
        """A copy of what it has counted."""
        total = self._udp_counters() + self._earlier
        for listener in self._listeners:
            total += listener.counters
        return total

    @property
    def dropped(self) -> int:
        """How many datagrams a socket refused."""
        return self.counters.drops[Drop.REFUSED]

    @property
    def paused(self) -> bool:
        """True while the host drops whatever comes to it and to its relayed addresses. Lifetimes go on."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self._pause_udp(paused)
        for listener in self._listeners:
            listener.paused = paused

    # Lifetime

    async def start(self) -> None:
        """Bind and serve. Does nothing if it runs already. Raises OperatorError if an address cannot be bound."""
        if self.running:
            return
        for tries_left in reversed(range(MAX_PORT_TRIES)):
            self._address = await self._start_udp(self._wanted)
            try:
                self._start_streams()
            except OperatorError:
                await self._stop_all()
                if self._wanted.port or not tries_left:
                    raise
            else:
                break
        self.running = True
        self.paused = self._paused

    async def stop(self) -> None:
        """Close all sockets, without a word to the clients. May be repeated."""
        if self.running:
            self.running = False
            await self._stop_all()

    def _start_streams(self) -> None:
        if self._streams.tcp:
            self._listen(self._address, None)
        if self._streams.tls is not None:
            listener = self._listen(Address(self._address.host, self._streams.tls_port), self._streams.tls)
            self._tls_address = listener.address

    def _listen(self, address: Address, tls: ssl.SSLContext | None) -> StreamListener:
        listener = StreamListener(
            address,
            self._settings,
            self._credentials,
            self._nonces,
            tls,
            rounds=self._streams.rounds,
            handshakes=self._streams.handshakes,
        )
        self._listeners.append(listener)
        return listener

    async def _stop_all(self) -> None:
        self._tls_address = None
        while self._listeners:
            listener = self._listeners.pop()
            await listener.close()
            self._earlier += listener.counters
        await self._stop_udp()

    # What a packet path does

    @abstractmethod
    async def _start_udp(self, address: Address) -> Address:
        """Serve UDP. Returns the bound address. Raises OperatorError."""

    @abstractmethod
    async def _stop_udp(self) -> None: ...

    @abstractmethod
    def _udp_allocations(self) -> int: ...

    @abstractmethod
    def _udp_relays(self, address: Address) -> bool: ...

    @abstractmethod
    def _udp_counters(self) -> Counters: ...

    @abstractmethod
    def _pause_udp(self, paused: bool) -> None: ...
