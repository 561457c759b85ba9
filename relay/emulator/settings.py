"""What one emulator was told on its command line: where it listens, what it remembers, and which hosts are on."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from relay.addresses import Address
from relay.catalog import Catalog, Service
from relay.emulator.fixtures import Fixtures
from relay.errors import OperatorError

# Unprivileged, and not the ports of the relay's own examples.
DEFAULT_TLS = Address("127.0.0.1", 8443)
DEFAULT_HTTP = Address("127.0.0.1", 8080)
RELAY_TLS = Address("127.0.0.1", 4443)
RELAY_WEB_PROXY = Address("127.0.0.1", 3129)
RELAY_ADMIN = Address("127.0.0.1", 9443)
TURN_PORT = 3478
# Desks reach the TURN hosts at this port over a line that can be made bad. It is one above the hosts' own port.
UDP_HOP_PORT = TURN_PORT + 1
# Not squid's own port, nor that of the relay's web proxy.
DEFAULT_BAD_WEB_PROXY = Address("127.0.0.1", 3130)
# Long enough for a call that begins at the last moment to be set up; short enough to be seen to end.
CREDENTIALS_LIFETIME_S = 3600.0
# At one TURN host over one transport: a call takes one, or two of which one is about to go, and the busiest desk has 32
# lines. Each takes a descriptor, of which all users share what the process may have.
ALLOCATIONS_PER_USER = 64


@dataclass(frozen=True)
class RelayPlan:
    """Where the relay of the written ``relay.toml`` will be."""

    tls: Address = RELAY_TLS
    web_proxy: Address = RELAY_WEB_PROXY
    admin: Address = RELAY_ADMIN


@dataclass(frozen=True)
class EmulatorSettings:
    """All of it. Port 0 lets the kernel choose, for tests. ``database`` is what ``Store.open`` takes."""

    folder: Path
    fixtures: Fixtures
    catalog: Catalog
    database: str
    tls: Address = DEFAULT_TLS
    http: Address = DEFAULT_HTTP
    turn_port: int = TURN_PORT
    # Off if another process of the same cloud runs the TURN hosts.
    runs_turn: bool = True
    # Where faults on demand are: None for desks that reach the TURN hosts directly, or for no web proxy.
    udp_hop_port: int | None = UDP_HOP_PORT
    bad_web_proxy: Address | None = DEFAULT_BAD_WEB_PROXY
    redis_url: str | None = field(default=None, repr=False)
    # Where signaling notes each transition of each line, as JSON lines.
    event_log: Path | None = None
    hosts_on: tuple[str, ...] = ()
    # Listening on other than loopback addresses was asked for by name.
    exposed: bool = False
    relay: RelayPlan = RelayPlan()
    credentials_lifetime_s: float = CREDENTIALS_LIFETIME_S
    allocations_per_user: int = ALLOCATIONS_PER_USER

    def check(self) -> None:
        """Raises OperatorError for addresses that are not loopback, unless exposed, and for unknown hosts."""
        proxies = [("--bad-web-proxy", self.bad_web_proxy)] if self.bad_web_proxy is not None else []
        for option, address in (("--tls", self.tls), ("--http", self.http), *proxies):
            if not self.exposed and not ipaddress.ip_address(address.host).is_loopback:
                raise OperatorError(
                    f"{option} {address}: not a loopback address; the emulator has known passwords. "
                    "If others are meant to reach it, say --expose"
                )
        for name in self.hosts_on:
            if self.catalog.find(name) is None:
                raise OperatorError(f"--host-on {name}: not a host of the catalog; `relay catalog show` lists them")


@dataclass(frozen=True)
class MediaHost:
    """A TURN host of the cloud: its name, and the loopback address that stands in for the vendor's."""

    name: str
    region: str
    host: str


def media_hosts(catalog: Catalog) -> list[MediaHost]:
    """All media hosts, also those that do not exist yet, so that each keeps its address when it is switched on.

    Host y of region x is 127.0.x.y, both counted from 1 in the catalog's order.
    """
    found: list[MediaHost] = []
    counts: dict[str, int] = {}
    for host in catalog.hosts:
        if host.service is Service.MEDIA and host.region is not None:
            counts[host.region] = counts.get(host.region, 0) + 1
            x, y = list(counts).index(host.region) + 1, counts[host.region]
            found.append(MediaHost(host.name, host.region, f"127.0.{x}.{y}"))
    return found
