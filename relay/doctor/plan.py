"""What is to be tested: which hosts, where they are, whom to trust, by which proxy, and within which limits."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from relay.addresses import Address
from relay.catalog import Catalog, Service, Status


class Kind(StrEnum):
    """What stands at the other end."""

    EMULATOR = "emulator"
    RELAY = "relay"
    LIVE = "live"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the parts may take, in seconds.

    ``probe_s``   one question: STUN asks at 0, 0.5, 1.5 and 3.5 s, and a lost SYN is sent again after 1 and 3 s
    ``answer_s``  a small answer over a connection that is open: three round trips around the world
    ``voice_s``   the voice probe: 500 packets show 0.2 % of loss
    ``total_s``   all of it; what has not ended by then was not tested
    """

    probe_s: float = 6.0
    answer_s: float = 2.0
    voice_s: float = 10.0
    total_s: float = 55.0


QUICK = Limits(probe_s=3.0, answer_s=1.0, voice_s=3.0, total_s=14.0)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of TURN, as the vendor's signaling gives them to a client."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Site:
    """A host to reach by TCP. ``address`` is where it is, ``tunnel`` what a web proxy is asked for."""

    name: str
    service: Service
    region: str | None
    status: Status
    address: Address
    tunnel: Address


@dataclass(frozen=True, slots=True)
class TurnSite:
    """A TURN host over UDP."""

    name: str
    region: str
    address: Address


@dataclass(frozen=True, slots=True)
class RelaySite:
    """A relay. ``name`` is the server name of TLS, ``upstream`` whom to ask for over CONNECT-UDP, if it is known."""

    address: Address
    name: str
    upstream: Address | None = None

    @property
    def label(self) -> str:
        """As it is called in a report."""
        port = "" if self.address.port == 443 else f":{self.address.port}"
        return f"{self.name}{port}"


@dataclass(frozen=True, slots=True)
class ProxyPlan:
    """Where to look for the proxy. The first that is given counts: ``url``, ``pac``, the environment, WPAD.

    ``login`` is the user and the password for proxies that are given without. ``search`` are the domains in which WPAD
    looks.
    """

    url: str | None = None
    pac: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    wpad: bool = False
    search: tuple[str, ...] = ()
    login: tuple[str, str] | None = field(default=None, repr=False)
    # Proxies that know the sites by their names; all others are asked for addresses that can be reached.
    knows_names: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is not tested, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Plan:
    """All of it. ``trust`` is what this machine trusts, ``expected`` who alone may have signed, if that is known."""

    kind: Kind
    target: str
    catalog: Catalog
    trust: ssl.SSLContext
    sites: tuple[Site, ...] = ()
    turn: tuple[TurnSite, ...] = ()
    relay: RelaySite | None = None
    expected: Path | None = None
    credentials: Credentials | None = None
    proxy: ProxyPlan = ProxyPlan()
    # Names are looked up, at these servers or else the system's. Off if the plan has the addresses already.
    looks_up: bool = False
    nameservers: tuple[str, ...] = ()
    limits: Limits = Limits()
    skipped: tuple[Skipped, ...] = ()

    def sites_of(self, *services: Service) -> list[Site]:
        """The sites of these services, in the catalog's order."""
        return [site for site in self.sites if site.service in services]
