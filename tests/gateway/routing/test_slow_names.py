"""One client asks for names that never answer; others must not notice. The names are looked up by a real DNS server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.gateway.routing import lookups, resolve
from relay.gateway.routing.lookups import SystemLookup
from relay.gateway.routing.resolve import MAX_OF_SOURCE
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.connect import Listener, connect_request
from tests.support.peers.dns import DnsServer, dns_server
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import eventually

CONNECT_UDP = "Host: relay.test\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\n"
NO_UPSTREAM = Address("127.0.0.1", 9)
ATTACKERS = 60


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look-up ends by itself: on a slow machine those of the first attackers would, before the last have come."""
    for module in (lookups, resolve):
        monkeypatch.setattr(module, "RESOLVE_TIMEOUT_S", 600.0)
    monkeypatch.setattr(lookups, "TRY_S", 600.0)


@contextlib.asynccontextmanager
async def relay_with_dns(folder: Path, target: Address) -> AsyncIterator[tuple[Relay, DnsServer]]:
    rules = {"allow": [f"server.test:{target.port}", "*.allowed.test"], "allowed_networks": ["127.0.0.1/32"]}
    listening = {"web_proxy": ["127.0.0.1:0"]}
    async with dns_server({"server.test": ["127.0.0.1"]}, silent=("allowed.test", "xhoot.com")) as server:
        lookup = SystemLookup([server.address])
        try:
            async with running_relay(folder, NO_UPSTREAM, lookup=lookup, listen=listening, web_proxy=rules) as relay:
                yield relay, server
        finally:
            await lookup.close()


async def connect(relay: Relay, source: str, target: str) -> socket.socket:
    """A CONNECT of a client at this address, asked and not answered yet."""
    loop = asyncio.get_running_loop()
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    client.bind((source, 0))
    await loop.sock_connect(client, relay.gateway.web_proxy.addresses[0])
    await loop.sock_sendall(client, connect_request(target))
    return client


async def connects_at_once(relay: Relay, server: Listener) -> None:
    loop = asyncio.get_running_loop()
    with await connect(relay, "127.0.0.9", f"server.test:{server.address.port}") as victim:
        assert (await loop.sock_recv(victim, 4096)).startswith(b"HTTP/1.1 200 ")


async def test_slow_names_of_connect_udp(tmp_path: Path) -> None:
    with Listener() as server:
        async with relay_with_dns(tmp_path, server.address) as (relay, dns):
            attackers = []
            for number in range(ATTACKERS):
                client = await TlsClient.open(relay.tls, relay.trust)
                path = f"/.well-known/masque/udp/n{number}.xhoot.com/3478/"
                await client.send(f"GET {path} HTTP/1.1\r\n{CONNECT_UDP}".encode())
                attackers.append(client)
            await eventually(lambda: len(set(dns.asked)) == MAX_OF_SOURCE)
            await connects_at_once(relay, server)
            assert len(set(dns.asked)) == MAX_OF_SOURCE + 1
            for client in attackers:
                client.abort()
            await connects_at_once(relay, server)


async def test_slow_names_of_connect(tmp_path: Path) -> None:
    with Listener() as server:
        async with relay_with_dns(tmp_path, server.address) as (relay, dns):
            attackers = [
                await connect(relay, "127.0.0.1", f"n{number}.allowed.test:443") for number in range(ATTACKERS)
            ]
            await eventually(lambda: len(set(dns.asked)) == MAX_OF_SOURCE)
            await connects_at_once(relay, server)
            for one in attackers:
                one.close()
            await connects_at_once(relay, server)


async def test_names_that_nobody_may_go_to_are_not_looked_up(tmp_path: Path) -> None:
    """Each would leave the firm as a question to the world's DNS."""
    with Listener() as server:
        async with relay_with_dns(tmp_path, server.address) as (relay, dns):
            for name in ("secret.attacker.test", "secret.of.the.firm.xhoot.com", "xhoot.com.attacker.test"):
                client = await TlsClient.open(relay.tls, relay.trust)
                path = f"/.well-known/masque/udp/{name}/3478/"
                await client.send(f"GET {path} HTTP/1.1\r\n{CONNECT_UDP}".encode())
                assert (await client.receive()).startswith(b"HTTP/1.1 403 ")
                client.abort()
                loop = asyncio.get_running_loop()
                with await connect(relay, "127.0.0.1", f"{name}:443") as asked:
                    assert (await loop.sock_recv(asked, 4096)).startswith(b"HTTP/1.1 403 ")
            await connects_at_once(relay, server)
            assert set(dns.asked) == {"server.test"}
