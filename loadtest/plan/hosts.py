"""Hosts as people write them, in the one form in which they are judged and used: whose they are, and where they lead.

A host can be spelled in many ways. Only its canonical form is judged, and only that form is used, so no spelling gets
past a rule.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
from urllib.parse import urlsplit

from relay import catalog
from relay.addresses import Address, canonical_host, unmap

# RFC 1035 section 2.3.4, as people write a name. Longer texts are not worth normalising.
MAX_HOST_CHARACTERS = 253
# RFC 1123 section 2.1; names inside a firm also have underscores.
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# The last label of an IPv4 address in any of the forms that inet_aton takes. No name ends so.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Without a user, and with a path of printable ASCII.
_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[^\[\]/:@?#\\]+)(?::([0-9]{1,5}))?(/[!-~]*)?")
_LOCALHOST = "localhost"
_MAX_PORT = 65535


class TargetError(ValueError):
    """A target that load must not go to, or that is not whole: what, and what was expected."""


def canonical(text: str) -> str:
    """A host in its one form: an address as sockets report it, or a name in lower case and ASCII without a last dot.

    Addresses inside IPv6 (``::ffff:192.0.2.7``) become those of IPv4. IPv4 in other forms than four decimal numbers is
    refused: what ``0x7f.1`` or ``2130706433`` lead to depends on who reads them. Raises TargetError.
    """
    plain = _ascii(text)
    if ":" in plain or _NUMBER.fullmatch(plain.rpartition(".")[2]):
        return _canonical_address(text, plain)
    if not all(_LABEL.fullmatch(label) for label in plain.split(".")):
        raise TargetError(f"{text!r}: expected a host's name or address, such as relay.example or 192.0.2.7")
    return plain


def _ascii(text: str) -> str:
    """As Python's resolver has it: compatible letters and dots, such as those of full width, are plain ones."""
    if len(text) > MAX_HOST_CHARACTERS:
        raise TargetError(f"{text[:64]!r}...: expected a host of at most {MAX_HOST_CHARACTERS} characters")
    try:
        plain = text if text.isascii() else text.encode("idna").decode("ascii")
    except UnicodeError:
        raise TargetError(f"{text!r}: expected a host's name that DNS can have") from None
    return plain.lower().removesuffix(".")


def _canonical_address(text: str, plain: str) -> str:
    try:
        address = ipaddress.ip_address(plain)
    except ValueError:
        raise TargetError(f"{text!r}: expected an address such as 192.0.2.7 or 2001:db8::7") from None
    if getattr(address, "scope_id", None) is not None:
        raise TargetError(f"{text!r}: expected an address without a zone")
    return canonical_host(address)


def canonical_url(text: str) -> str:
    """A URL of HTTP whose host is in its one form. Raises TargetError."""
    found = _URL.fullmatch(text)
    port = found[3] if found is not None else None
    if found is None or (port is not None and not 0 < int(port) <= _MAX_PORT):
        raise TargetError(f"{text!r}: expected a URL such as http://127.0.0.1:9443")
    host = canonical(found[2].strip("[]"))
    written = f"[{host}]" if ":" in host else host
    return f"{found[1]}://{written}{f':{int(port)}' if port else ''}{found[4] or ''}"


def host_of(url: str) -> str:
    """The host of a canonical URL."""
    return urlsplit(url).hostname or ""


def refuse_vendor(what: str, host: str) -> None:
    """Raises TargetError for a canonical host or address of the vendor's: load never goes there."""
    known = catalog.load()
    named = any(host == apex or host.endswith(f".{apex}") for apex in known.apexes) or known.covers(host)
    if named or any(view in network.network for view in _views(host) for network in known.networks):
        raise TargetError(f"{what} {host}: belongs to the vendor; expected a host of your own")


def _views(host: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """Every address that a packet to this one may end at; nothing for a name."""
    try:
        return unmap(ipaddress.ip_address(host))
    except ValueError:
        return ()


def is_loopback(host: str) -> bool:
    """Whether a canonical host is this machine by definition."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == _LOCALHOST


def resolve(what: str, address: Address) -> Address:
    """An address of IPv4 in place of a name, for the packet engine. Raises TargetError as ``addresses_of`` does."""
    if address.is_literal:
        return address
    return Address(addresses_of(what, address.host, address.port, socket.AF_INET)[0], address.port)


def addresses_of(what: str, host: str, port: int, family: int = socket.AF_UNSPEC) -> list[str]:
    """Where a name leads to. Raises TargetError if it leads nowhere, or if anything there is the vendor's."""
    try:
        return _addresses(what, host, port, family)
    except OSError as error:
        raise TargetError(f"{what} {host}: {error.strerror}; expected a name that can be resolved") from None


def refuse_if_it_leads_to_vendor(what: str, host: str, port: int) -> None:
    """Raises TargetError if a name leads to the vendor. It need not lead anywhere here: another machine looks it up."""
    with contextlib.suppress(OSError):
        _addresses(what, host, port, socket.AF_UNSPEC)


def _addresses(what: str, host: str, port: int, family: int) -> list[str]:
    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    # An address of one link has a zone, which does not tell whose it is.
    addresses = [canonical_host(ipaddress.ip_address(str(one[4][0]).partition("%")[0])) for one in found]
    for address in addresses:
        refuse_vendor(what, address)
        if host == _LOCALHOST and not is_loopback(address):
            raise TargetError(f"{what} {host}: leads to {address} here; expected a loopback address")
    return addresses


def require_here(what: str, address: Address) -> None:
    """Raises TargetError if a socket cannot have this address, because it is not one of this machine's."""
    host = ipaddress.ip_address(address.host)
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    try:
        if host.is_unspecified or host.is_multicast:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address.host, 0))
    except OSError as error:
        raise TargetError(
            f"{what} {address.host}: {error.strerror}; expected an address of this machine, such as 127.0.0.1:0"
        ) from None
