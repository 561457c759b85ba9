"""The values of a catalog, all immutable, and the rule of which names are the vendor's."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from functools import cached_property

from relay.addresses import IpNetwork
from relay.name_patterns import WILDCARD, one_label_wildcard

# RFC 1123 section 2.1: letters, digits and hyphens; RFC 1035 section 2.3.4: 63 octets a label, 255 a name on the wire.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_NAME = 253


class Service(enum.StrEnum):
    """What a host is for, in the vendor's order."""

    API = "api"
    LOGIN = "login"
    PORTAL = "portal"
    RECORDING = "recording"
    SIGNALING = "signaling"
    MEDIA = "media"


class Status(enum.StrEnum):
    """Whether a host is in use. All hosts belong on an allow-list: the vendor starts to use them unannounced."""

    ACTIVE = "active"
    NOT_YET = "not_yet"
    FUTURE = "future"


class Protocol(enum.StrEnum):
    """The transport protocol of ports."""

    UDP = "udp"
    TCP = "tcp"


@dataclass(frozen=True)
class Host:
    """A host. Its name is in lower case, without a trailing dot. Hosts that serve every region have no ``region``."""

    name: str
    service: Service
    region: str | None
    status: Status


@dataclass(frozen=True)
class Network:
    """A network in which media relays have their addresses."""

    network: IpNetwork
    place: str
    region: str | None


@dataclass(frozen=True)
class Ports:
    """Destination ports from ``first`` to ``last``, both included."""

    protocol: Protocol
    first: int
    last: int
    use: str

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Catalog:
    """The requirements as of one month, or day. ``domains`` are wildcards such as ``*.xhoot.com``."""

    as_of: str
    domains: tuple[str, ...]
    hosts: tuple[Host, ...]
    networks: tuple[Network, ...]
    ports: tuple[Ports, ...]

    @cached_property
    def _by_name(self) -> dict[str, Host]:
        return {host.name: host for host in self.hosts}

    @cached_property
    def _parents(self) -> frozenset[str]:
        return frozenset(domain.removeprefix(WILDCARD) for domain in self.domains)

    def find(self, name: str) -> Host | None:
        """The listed host of this name, in upper or lower case, with or without a trailing dot."""
        return self._by_name.get(canonical_name(name) or "")

    def covers(self, name: str) -> bool:
        """True for a listed host, and for any host within the vendor's domains.

        A ``*`` is exactly one label: ``a.xhoot.com`` is within ``*.xhoot.com``; ``xhoot.com``, ``a.b.xhoot.com`` and
        ``axhoot.com`` are not. Texts that are not host names (addresses, wildcards, names with spaces) are not covered.
        """
        canonical = canonical_name(name)
        if canonical is None:
            return False
        return canonical in self._by_name or self.within_domains(canonical)

    def within_domains(self, canonical: str) -> bool:
        """True for a name, in its canonical form, with exactly one label before one of the domains."""
        return one_label_wildcard(canonical) in self.domains

    @cached_property
    def media_hosts(self) -> tuple[Host, ...]:
        """The TURN servers, including those that are not in use yet."""
        return tuple(host for host in self.hosts if host.service is Service.MEDIA)

    @cached_property
    def apexes(self) -> tuple[str, ...]:
        """The smallest set of domains that covers all, without ``*.``, for rules that cover any depth."""
        return tuple(
            sorted(
                name
                for name in self._parents
                if not any(name.endswith(f".{other}") for other in self._parents - {name})
            )
        )


def canonical_name(name: str) -> str | None:
    """A host name in lower case without a trailing dot. Returns None for a text that is not a host name."""
    # Checked before lower(), which turns some letters outside ASCII into ASCII.
    if not name.isascii():
        return None
    canonical = name.lower().removesuffix(".")
    labels = canonical.split(".")
    if len(canonical) > _MAX_NAME or labels[-1].isdigit() or not all(_LABEL.fullmatch(label) for label in labels):
        return None
    return canonical
