"""A relay that starts anew has forgotten its allocations, and the upstream still holds those of most ports."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.client.session import Session, open_session
from relay.client.turn import TurnConnection, open_turn_udp
from relay.emulator.turn.slow import TurnHost
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay
from tests.support.network.refusing import in_namespace, run

CREDENTIALS = StaticCredentials({"trader": "secret"})
# The ports from which Linux picks, and how many are free of another client's allocation.
PORTS = range(40_000, 40_128)
FREE = 16
CALLS = SESSIONS = 6


async def leave_allocations(server: Address, ports: range) -> None:
    """Allocations of clients that have vanished, one on each port."""
    for port in ports:
        turn = await open_turn_udp(server, "trader", "secret", local_address=Address("127.0.0.1", port))
        await turn.allocate()
        await turn.close(release=False)


async def call(relay: Relay) -> TurnConnection:
    """A call that has its allocation."""
    turn = await relay.open_turn("trader", "secret")
    await turn.allocate()
    return turn


async def session(relay: Relay) -> Session:
    """The same for a session."""
    url = f"wss://{relay.tls}/media"
    return await open_session(
        url, username="trader", password="secret", ssl_context=relay.trust, server_hostname="relay.test", timeout_s=60
    )


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_everybody_who_comes_back_finds_a_fresh_port(tmp_path: Path, plane: str) -> None:
    async def main() -> None:
        run("sysctl", "-q", "-w", f"net.ipv4.ip_local_port_range={PORTS[0]} {PORTS[-1]}")
        async with TurnHost(Address("127.0.0.1", 3478), CREDENTIALS, allow_loopback_peers=True) as host:
            await leave_allocations(host.address, PORTS[FREE:])
            async with running_relay(tmp_path, host.address, listen={"plane": plane}) as relay:
                calls = await asyncio.gather(*(call(relay) for _ in range(CALLS)))
                sessions = await asyncio.gather(*(session(relay) for _ in range(SESSIONS)))
                assert host.allocations == len(PORTS) - FREE + CALLS + SESSIONS
                assert not relay.gateway.plane.snapshot().closed
                for one in calls:
                    await one.close()
                for other in sessions:
                    await other.close()

    await in_namespace(main)
