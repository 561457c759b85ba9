"""Where a client of the web proxy may go: ended here, passed on as a byte tunnel, or refused. No I/O.

A host is judged by its name first; what the name resolves to is judged after that (``resolve``).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from relay.addresses import Address
from relay.catalog import Catalog, Service
from relay.name_patterns import matches, one_label_wildcard

HTTPS_PORT = 443
# RFC 9112 section 3.2.3: the authority form, host and port and nothing else.
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,254}):([0-9]{1,5})")


class Way(StrEnum):
    """What is done with a CONNECT."""

    ADOPT = "adopt"  # the relay is the destination: it answers and ends TLS itself
    TUNNEL = "tunnel"
    REFUSE_HOST = "refuse_host"
    REFUSE_PORT = "refuse_port"  # the host is allowed, its port is not


def parse_authority(text: str) -> Address:
    """The target of a CONNECT, in lower case and without a final dot. Raises ValueError."""
    found = _AUTHORITY.fullmatch(text)
    if found is None or not 0 < int(found[2]) <= 65535:
        raise ValueError("expected CONNECT host:port, for example CONNECT www.example.com:443")
    host = found[1].lower().removesuffix(".")
    # One spelling for each address, as in the allow-list.
    return Address(str(ipaddress.IPv6Address(host[1:-1])) if host.startswith("[") else host, int(found[2]))


@dataclass(frozen=True, slots=True)
class Destinations:
    """The rules: names of our certificates are ended here, hosts of the catalog and the allow-list are passed on."""

    catalog: Catalog
    allowed: Collection[Address] = ()
    # DNS names of our certificates, in lower case, wildcards among them.
    certified: Collection[str] = ()
    # Where the plane listens.
    tls: Collection[Address] = ()

    def way(self, wanted: Address, reached: str) -> Way:
        """What to do with a CONNECT to ``wanted``, of a client that reached us at the address ``reached``."""
        ports = {HTTPS_PORT, *(address.port for address in self.tls)}
        if wanted.port in ports and self._is_certified(wanted.host):
            return Way.ADOPT
        # A TURN URL may have an address in place of a name, and Firefox asks for that.
        if wanted in {*self.tls, *(Address(reached, address.port) for address in self.tls)}:
            return Way.ADOPT
        listed = {port for host, port in self.allowed if matches(wanted.host, host)}
        if self.catalog.covers(wanted.host):
            listed.add(HTTPS_PORT)
        if wanted.port in listed:
            return Way.TUNNEL
        return Way.REFUSE_PORT if listed else Way.REFUSE_HOST

    def _is_certified(self, name: str) -> bool:
        """True if we have a certificate for the name, and the name is ours to serve.

        A wildcard does not cover hosts of the vendor's other services, which are in the catalog. To end those here, a
        certificate must have their own names.
        """
        if name in self.certified:
            return True
        listed = self.catalog.find(name)
        if listed is not None and listed.service is not Service.MEDIA:
            return False
        return one_label_wildcard(name) in self.certified
