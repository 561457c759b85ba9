"""Whether this machine has the addresses of a configuration. Sockets are bound to them for a moment, on free ports."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from relay.addresses import WILDCARDS, Address
from relay.config import Config
from relay.errors import OperatorError
from relay.sockaddr import from_sockaddr, to_sockaddr

# With 1 here a socket may be bound to an address that another machine has now. Machines that take over an address from
# each other (VRRP, keepalived) are set up like that.
NONLOCAL_BIND = {4: Path("/proc/sys/net/ipv4/ip_nonlocal_bind"), 6: Path("/proc/sys/net/ipv6/ip_nonlocal_bind")}
# Nothing is sent to it: UDP sockets are connected to learn which way a packet would take.
_DISCARD_PORT = 9


def check_addresses(settings: Config) -> list[str]:
    """Raises OperatorError, with a line for each address that a socket cannot be bound to.

    Returns warnings: addresses that can be bound, but that this machine does not have now.
    """
    faults: list[str] = []
    warnings: list[str] = []
    for key, host in _hosts_of(settings):
        if host in WILDCARDS:
            continue
        if (cause := _try_to_bind(host)) is not None:
            faults.append(f"{key}: {host}: {cause}")
        elif _may_be_elsewhere(host):
            warnings.append(f"{key}: {host}: this machine does not have this address now")
    if faults:
        raise OperatorError("\n".join(faults))
    return warnings


def _hosts_of(settings: Config) -> Iterator[tuple[str, str]]:
    for key, address in settings.listen.listeners():
        yield f"listen.{key}", address.host
    for number, host in enumerate(settings.media.source_addresses):
        yield f"media.source_addresses.{number}", host


def _open(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)


def _try_to_bind(host: str) -> str | None:
    """Why a socket cannot be bound to this address; None if it can."""
    try:
        with _open(host) as trying:
            trying.bind(to_sockaddr(Address(host, 0)))
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return "this machine does not have this address"
        return (error.strerror or os.strerror(error.errno or 0)).lower()
    return None


def _may_be_elsewhere(host: str) -> bool:
    """True if binding to the address proves nothing, and packets to it would leave this machine."""
    ip = ipaddress.ip_address(host)
    if ip.is_loopback or not _binds_anything(ip.version):
        return False
    with _open(host) as asking:
        try:
            asking.connect(to_sockaddr(Address(host, _DISCARD_PORT)))
        except OSError:  # no way leads there
            return True
        # A packet to an address of this machine has this address as its source, too.
        return from_sockaddr(asking.getsockname()).host != host


def _binds_anything(version: int) -> bool:
    with contextlib.suppress(OSError):
        return NONLOCAL_BIND[version].read_text(encoding="ascii").strip() == "1"
    return False
