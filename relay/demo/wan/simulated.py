"""The ways over a simulated path, in this process: for where there are no network namespaces, or there is no coturn.

Clients, SRTP, TLS and the relay are the real ones. The TURN server is the emulator's, and the path is ``paths``.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import socket
import ssl
import tempfile
import tomllib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from relay import config
from relay.addresses import Address
from relay.client.turn import open_turn_tls, open_turn_udp
from relay.demo.authority import Authority
from relay.demo.wan.paths import LOOPBACK, TcpPath, UdpPath
from relay.demo.wan.servers import relay_toml
from relay.demo.wan.way import PATH, RELAY, SEED, TLS, UDP, Way, here
from relay.emulator.turn.hosts import TurnHosts
from relay.floor.relays import running_gateway
from relay.plane.certificates import Certificate
from relay.turn.credentials import StaticCredentials

TURN_NAME, RELAY_NAME = "turn.wan.test", "relay.wan.test"
USERNAME = "trader"


@contextlib.asynccontextmanager
async def simulated_ways() -> AsyncIterator[list[Way]]:
    """The three ways to one TURN server. Raises OperatorError."""
    with tempfile.TemporaryDirectory(prefix="relay-wan-") as name:
        folder, stack = Path(name), contextlib.AsyncExitStack()
        authority, password = Authority(folder), secrets.token_urlsafe(16)
        trust = authority.client_context()
        async with stack:
            server = await stack.enter_async_context(_turn_server(authority.issue(TURN_NAME), password))
            host = server["far"]
            assert host.tls_address is not None
            across = stack.enter_context(contextlib.closing(UdpPath(host.address, PATH, SEED)))
            stream = await stack.enter_async_context(TcpPath(host.tls_address, PATH, SEED))
            beyond = stack.enter_context(contextlib.closing(UdpPath(host.address, PATH, SEED)))
            premises = await stack.enter_async_context(_relay(folder, beyond.address, authority.issue(RELAY_NAME)))
            far = [stack.enter_context(_far_socket()) for _ in range(3)]
            over_tls = functools.partial(open_turn_tls, username=USERNAME, password=password, ssl_context=trust)
            yield [
                _way(UDP, across, far[0], functools.partial(open_turn_udp, across.address, USERNAME, password)),
                _way(TLS, stream, far[1], functools.partial(over_tls, stream.address, server_hostname=TURN_NAME)),
                _way(RELAY, beyond, far[2], functools.partial(over_tls, premises, server_hostname=RELAY_NAME)),
            ]


def _turn_server(certificate: Certificate, password: str) -> TurnHosts:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.private_key)
    credentials = StaticCredentials({USERNAME: password})
    return TurnHosts({"far": ["far"]}, credentials, tls=context, allow_loopback_peers=True)


@contextlib.asynccontextmanager
async def _relay(folder: Path, upstream: Address, certificate: Certificate) -> AsyncIterator[Address]:
    tree = tomllib.loads(relay_toml(LOOPBACK, upstream, certificate))
    async with running_gateway(config.parse(tree, folder=folder, source="the demo's relay")) as gateway:
        yield gateway.tls[0]


def _far_socket() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    opened.bind(tuple(LOOPBACK))
    return opened


def _way(name: str, path: UdpPath | TcpPath, far: socket.socket, connect: Callable[..., Any]) -> Way:
    return Way(
        name=name,
        connect=lambda on_data: connect(on_data=on_data),
        far=far,
        run=here,
        set_loss=path.set_loss,
        lost_packets=lambda: path.lost_packets,
    )
