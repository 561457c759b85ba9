"""A real Prometheus reads a relay that carries a call, and each query of the dashboard has an answer."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay
from tests.support.grafana import queries
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.prometheus import Prometheus, needs_prometheus, prometheus

# Grafana fills these in.
VARIABLES = {"$job": "cloud9-relay", "$instance": ".*", "$__rate_interval": "10s"}
# Enough for a window to be judged.
PACKETS = 50


def filled_in(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def voice(count: int) -> Iterator[bytes]:
    """RTP packets of G.711, 20 ms each."""
    for number in range(count):
        yield struct.pack("!BBHII", 0x80, 0, number, number * 160, 7) + bytes(160)


async def call(relay: Relay) -> None:
    """A call that is judged."""
    inbox = Inbox()
    async with open_echo() as peer, await relay.open_turn("trader", "secret", on_data=inbox.put) as turn:
        await turn.allocate()
        await turn.bind_channel(peer)
        for packet in voice(PACKETS):
            turn.send(peer, packet)
            await inbox.get()
        await relay.gateway.calls.look()


async def value_of(server: Prometheus, query: str) -> float:
    [found] = await server.eventually(query)
    return float(found["value"][1])


@needs_prometheus
async def test_each_query_of_the_dashboard_has_an_answer(tmp_path: Path) -> None:
    credentials = StaticCredentials({"trader": "secret"})
    async with (
        TurnHost(Address("127.0.0.1", 0), credentials, allow_loopback_peers=True) as host,
        running_relay(
            tmp_path,
            {"name": "use1-stun1", "region": "use1", "address": host.address},
            signaling={"upstreams": ["http://127.0.0.1:9"]},
        ) as relay,
        prometheus(tmp_path / "prometheus", relay.admin) as server,
    ):
        # A rate needs a reading from before the call.
        await server.eventually("relay_call_mos_count")
        await call(relay)
        for query in map(filled_in, queries()):
            await server.eventually(query)
        assert await value_of(server, 'sum(relay_packets_total{direction="uplink"})') >= PACKETS
        assert not math.isnan(await value_of(server, "max(instance_direction:relay_call_missing:ratio5m)"))
        assert await value_of(server, 'up{job="cloud9-relay"}') == 1
