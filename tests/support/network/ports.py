"""Free addresses: for servers that cannot choose a port and say which, and for tests that need nobody to listen."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

from relay.addresses import Address

# These are below net.ipv4.ip_local_port_range (32768 by default), from which the kernel takes ports for connections and
# for port 0, and below the ports of the benchmark, which starts servers of its own.
PORTS = range(10_000, 20_000)


@contextlib.contextmanager
def reserved_address(host: str = "127.0.0.1") -> Iterator[Address]:
    """An address whose port is free for TCP and UDP, and which no other test takes while the block runs.

    Nothing is bound to it. Test runs beside this one keep off it, in the same network namespace: a name on an abstract
    Unix socket says that it is taken, and goes with this process at the latest.
    """
    while True:
        port = random.choice(PORTS)
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                claim.bind(f"\0cloud9-relay-tests/port/{port}")
                _check_free(host, port)
            except OSError:
                continue
            yield Address(host, port)
            return


def _check_free(host: str, port: int) -> None:
    """Raises OSError if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as probe:
            probe.bind((host, port))
