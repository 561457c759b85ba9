"""A cloud of hosts on loopback."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from relay.addresses import Address
from relay.emulator.handshakes import Handshakes
from relay.emulator.turn import native, slow
from relay.emulator.turn.host import Host, HostOptions, Started, Streams
from relay.turn.credentials import CredentialStore
from relay.turn.server import ServerSettings

Plane = Literal["native", "slow"]
# The lowest port that the vendor asks firms to let out for media.
FIRST_RELAYED_PORT = 16384


class TurnHosts(Started):
    """Host y of region x is 127.0.x.y, both counted from 1 in the caller's order.

    ``regions`` gives each region the names of its hosts. ``port`` is the port of all hosts, for UDP and, with ``tcp``,
    for TCP; with 0 the kernel chooses one for each. With ``tls`` they also serve TLS on ``tls_port``. They share
    ``credentials`` and ``settings``, but no state. A host may be started and stopped alone while the cloud runs.

    ``plane`` says what carries UDP: one native thread for all hosts, or Python.
    """

    def __init__(
        self,
        regions: Mapping[str, Sequence[str]],
        credentials: CredentialStore,
        *,
        port: int = 0,
        tcp: bool = False,
        tls: ssl.SSLContext | None = None,
        tls_port: int = 0,
        handshakes: Handshakes | None = None,
        allow_loopback_peers: bool = False,
        settings: ServerSettings | None = None,
        plane: Plane = "native",
    ) -> None:
        self._hosts: dict[str, Host] = {}
        self._by_address: dict[str, Host] = {}
        self._path = native.NativePath() if plane == "native" else None
        self._credentials = credentials
        self._settings = settings or ServerSettings(first_relayed_port=FIRST_RELAYED_PORT)
        self._allow_loopback_peers = allow_loopback_peers
        self._streams = Streams(tcp, tls, tls_port, handshakes=handshakes or Handshakes())
        for x, (region, names) in enumerate(regions.items(), 1):
            for y, name in enumerate(names, 1):
                if name in self._hosts:
                    raise ValueError(f"{name!r} names two hosts")
                address = Address(f"127.0.{x}.{y}", port)
                self._hosts[name] = self._by_address[address.host] = self._make(address, name, region)

    def _make(self, address: Address, name: str, region: str) -> Host:
        options: HostOptions = {
            "name": name,
            "region": region,
            "allow_loopback_peers": self._allow_loopback_peers,
            "settings": self._settings,
            "streams": self._streams,
        }
        if self._path is None:
            return slow.TurnHost(address, self._credentials, **options)
        return native.TurnHost(address, self._credentials, path=self._path, **options)

    def relays(self, address: Address) -> bool:
        """True for a relayed address that a host has now."""
        host = self._by_address.get(address.host)
        return host is not None and host.relays(address)

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._hosts

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def __len__(self) -> int:
        return len(self._hosts)

    async def start(self, names: Collection[str] | None = None) -> None:
        """Start all hosts, or those of these names; or none. Raises OperatorError if an address cannot be bound."""
        chosen = [host for host in self if names is None or host.name in names]
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self.stop)
            if self._path is not None:
                await self._path.start()
            for host in chosen:
                await host.start()
            undo.pop_all()

    async def stop(self) -> None:
        """Stop all hosts. May be repeated."""
        for host in self:
            await host.stop()
        if self._path is not None:
            await self._path.stop()
