"""Runs the demo: emulated TURN hosts, a relay with a temporary CA, and calls over each path at the same time."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from relay import config
from relay.config import Config
from relay.demo import calls
from relay.demo.authority import Authority
from relay.demo.report import Row, rows_of
from relay.emulator.turn.hosts import TurnHosts
from relay.floor.relays import running_gateway
from relay.turn.credentials import StaticCredentials

# Two regions with two hosts each, on 127.0.1.1 to 127.0.2.2.
REGIONS = {"use1": ("use1-stun1", "use1-stun2"), "euc1": ("euc1-stun1", "euc1-stun2")}
SERVER_NAME = "use1.relay.test"
USERNAME = "trader"
# Direct, and through the relay over TURN/TLS, WebSocket, sessions and CONNECT-UDP.
PATHS = 5


def _settings(hosts: TurnHosts, authority: Authority, folder: Path) -> Config:
    certificate = authority.issue("*.relay.test", "127.0.0.1")
    tree = {
        "listen": {"tls": ["127.0.0.1:0"], "admin": "127.0.0.1:0"},
        "certificates": [{"certificate": str(certificate.chain), "private_key": str(certificate.private_key)}],
        "upstreams": [{"name": host.name, "region": host.region, "address": str(host.address)} for host in hosts],
        "routes": [{"server_name": f"{region}.relay.test", "region": region} for region in REGIONS],
    }
    return config.parse(tree, folder=folder, source="demo")


async def run_demo(seconds: float, on_tick: Callable[[], None]) -> list[Row]:
    """Place the calls; ``on_tick`` is called for each 20 ms of each call. Raises RelayError."""
    password = secrets.token_urlsafe(16)
    credentials = StaticCredentials({USERNAME: password})
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as name:
        folder = Path(name)
        authority = Authority(folder)
        async with (
            TurnHosts(REGIONS, credentials, allow_loopback_peers=True) as hosts,
            running_gateway(_settings(hosts, authority, folder)) as gateway,
        ):
            upstream, account = hosts["use1-stun1"].address, calls.Account(USERNAME, password)
            relay = calls.RelayAccess(gateway.tls[0], SERVER_NAME, authority.client_context())
            paths = [calls.udp_path(upstream, account), *calls.relay_paths(relay, upstream, account)]
            heard = await _place_calls(paths, seconds, on_tick)
    return rows_of(heard)


async def _place_calls(paths: list[calls.Path], seconds: float, on_tick: Callable[[], None]) -> list[calls.Heard]:
    """Place all calls at the same time. If one cannot be set up, the others end, too."""
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(calls.place_call(path, seconds, on_tick)) for path in paths]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [one for call in running for one in call.result()]
