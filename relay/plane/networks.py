"""Networks that clients come from: which of them are served, and for which the bounds on one source do not count.

The compiled twin is ``networks.pxd``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from enum import IntEnum

from relay.addresses import IpAddress, IpNetwork

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class NetworkKind(IntEnum):
    """What a list of networks is for."""  # listed again as NETWORK_* in compiled/leaves/networks.pxd

    ALLOWED = 0
    DENIED = 1
    EXEMPT = 2


class ClientNetworks:
    """The lists. A client is judged by its address alone, before TLS."""

    def __init__(
        self, allowed: Iterable[IpNetwork] = (), denied: Iterable[IpNetwork] = (), exempt: Iterable[IpNetwork] = ()
    ) -> None:
        self.configure(allowed, denied, exempt)

    def configure(self, allowed: Iterable[IpNetwork], denied: Iterable[IpNetwork], exempt: Iterable[IpNetwork]) -> None:
        """Use these lists from now on. Without any that are allowed, all are."""
        self._allowed = _unmapped(allowed)
        self._denied = _unmapped(denied)
        self._exempt = _unmapped(exempt)

    def refuses(self, host: str) -> bool:
        """True for a client that is not served. ``host`` is a literal address; any other text is refused by a list."""
        if not self._allowed and not self._denied:
            return False
        address = _address_of(host)
        if address is None or _is_in(address, self._denied):
            return True
        return bool(self._allowed) and not _is_in(address, self._allowed)

    def is_exempt(self, host: str) -> bool:
        """True for a client for which the bounds on one source do not count."""
        return bool(self._exempt) and _is_in(_address_of(host), self._exempt)

    def pack(self) -> bytes:
        """The lists as the workers take them: for each network its kind, the bits of its prefix, and its address."""
        lists = {
            NetworkKind.ALLOWED: self._allowed,
            NetworkKind.DENIED: self._denied,
            NetworkKind.EXEMPT: self._exempt,
        }
        return b"".join(_packed(kind, network) for kind, networks in lists.items() for network in networks)


def _unmapped(networks: Iterable[IpNetwork]) -> tuple[IpNetwork, ...]:
    """The same networks, those of IPv4 addresses inside IPv6 as IPv4."""
    return tuple(
        ipaddress.IPv4Network((int(one.network_address) & 0xFFFFFFFF, one.prefixlen - 96))
        if isinstance(one, ipaddress.IPv6Network) and one.subnet_of(_MAPPED)
        else one
        for one in networks
    )


def _address_of(host: str) -> IpAddress | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: IpAddress | None, networks: Sequence[IpNetwork]) -> bool:
    return address is not None and any(address in network for network in networks)


def _packed(kind: NetworkKind, network: IpNetwork) -> bytes:
    if isinstance(network, ipaddress.IPv4Network):
        return bytes([kind, 96 + network.prefixlen]) + bytes(10) + b"\xff\xff" + network.network_address.packed
    return bytes([kind, network.prefixlen]) + network.network_address.packed
