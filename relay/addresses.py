"""Transport addresses, and the one rule of which addresses are never relayed to.

The rule is the same for CreatePermission, ChannelBind, CONNECT and the names of upstreams. It unmaps an address first
and then judges it: an IPv4 address inside an IPv6 address must not get past a rule that was written for IPv4.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Address(NamedTuple):
    """A host (a literal address or a name) and a port. It is a tuple, so sockets accept it unchanged."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_literal(self) -> bool:
        """True for an IP address, false for a name."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def is_ipv6(self) -> bool:
        """True for a literal IPv6 address."""
        return ":" in self.host


# All addresses of a family. A listener at ``::`` takes IPv6 only.
WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104


def collide(one: Address, other: Address) -> bool:
    """True if two listeners, at literal addresses, cannot both be there: the kernel refuses the second one."""
    if not one.port or one.port != other.port or one.is_ipv6 != other.is_ipv6:
        return False
    return one.host == other.host or not WILDCARDS.isdisjoint({one.host, other.host})


class UnixSocket(NamedTuple):
    """A listener of this machine only: a file, whose mode says who may connect."""

    path: str

    def __str__(self) -> str:
        return f"{UNIX}{self.path}"


# How the text of one begins.
UNIX = "unix:"


class AddressFamily(StrEnum):
    """Which families an allocation is to have: RFC 8656 calls the second address of BOTH the additional one."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    BOTH = "both"


def parse_address(text: str) -> Address:
    """Read ``host:port`` or ``[v6]:port``. Raises ValueError with what was expected."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        try:
            host = str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"{text!r}: expected an IPv6 address in the brackets, for example [::1]:443") from None
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address needs brackets, for example [::1]:443")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r}: expected host:port, for example 192.0.2.7:3478 or [2001:db8::7]:3478")
    if any(character.isspace() or not character.isprintable() for character in host):
        raise ValueError(f"{text!r}: a host has no spaces and no control characters")
    return Address(host, int(port))


# A client can use any number of IPv6 addresses within its network (RFC 4291 section 2.5.4).
IPV6_SOURCE_BITS = 64


def source_of(host: str) -> str:
    """The source that a client counts as: its IPv4 address, or the network of its IPv6 address."""
    bare = host.partition("%")[0]
    if ":" not in bare:
        return host
    address = ipaddress.IPv6Address(bare)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_SOURCE_BITS), strict=False))


def _networks(*texts: str) -> tuple[IpNetwork, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# Special-purpose addresses (IANA registries of RFC 6890; RFC 9637 and RFC 9602 added to them) and multicast. No TURN
# peer should be there.
NEVER_RELAYED = _networks(
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    *("::/128", "::1/128", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32"),
    *("2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
)
LOOPBACK = _networks("127.0.0.0/8", "::1/128")

_V4_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def unmap(address: IpAddress) -> tuple[IpAddress, ...]:
    """Every address that a packet to ``address`` may end at: itself, and the IPv4 address it embeds.

    A v4-mapped or v4-compatible address is only its IPv4 address. 6to4, NAT64 and Teredo addresses are judged twice: as
    they are, and as the address that they embed.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    low32 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _V4_COMPATIBLE and int(address) > 1:
        return (low32,)
    if address.sixtofour is not None:
        return (address, address.sixtofour)
    if address.teredo is not None:
        return (address, *address.teredo)
    if address in _NAT64:
        return (address, low32)
    return (address,)


class RelayPolicy:
    """Which addresses may be relayed to: all that are not special, and those that the operator lists."""

    def __init__(self, allowed: Iterable[IpNetwork] = ()) -> None:
        self._allowed = tuple(allowed)

    def permits(self, host: str) -> bool:
        """True if ``host``, a literal address, may be relayed to. Any other text is refused."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
            return False
        return all(self._permits_one(view) for view in unmap(address))

    def _permits_one(self, address: IpAddress) -> bool:
        if any(address in network for network in self._allowed):
            return True
        return not any(address in network for network in NEVER_RELAYED)


def canonical_host(address: IpAddress) -> str:
    """The text of an address as sockets report it, with v4-mapped addresses unmapped. The key of every peer table."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def canonical(address: Address) -> Address:
    """The one form in which literal addresses are compared. Raises ValueError for a name, a scope, or a bad port."""
    host = ipaddress.ip_address(address.host)
    if getattr(host, "scope_id", None) is not None or not 0 <= address.port <= 65535:
        raise ValueError(f"{address}: expected a port from 0 to 65535, and no scope")
    return Address(canonical_host(host), address.port)
