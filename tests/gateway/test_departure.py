"""What is left at the end is closed one by one: flows, HTTP connections and tunnels, on both planes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.gateway import departure
from relay.gateway.departure import close_spread
from relay.plane.api import CloseReason
from tests.support.benches.gateway import relay_with_hosts
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually


async def test_each_has_its_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many take the whole time, at equal distances; a few take no longer than they need."""
    monkeypatch.setattr(departure, "SPREAD_S", 0.2)
    loop, moments = asyncio.get_running_loop(), list[float]()
    begin = loop.time()
    await close_spread([lambda: moments.append(loop.time() - begin)] * 40)
    assert len(moments) == 40
    # The last of forty is due at 195 ms. A slow machine may be late, but never early by more than a tick of its timers.
    assert moments[-1] > 0.19
    moments.clear()
    await close_spread([])
    await close_spread([lambda: moments.append(1)])
    assert moments == [1]


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_flows_and_http_connections_are_closed(tmp_path: Path, plane: str) -> None:
    async with relay_with_hosts(tmp_path, plane, 1) as (relay, _):
        turn = await relay.open_turn("trader", "secret")
        await turn.allocate()
        web = await TlsClient.open(relay.tls, relay.trust)
        await web.send(b"GET /healthz HTTP/1.1\r\nHost: relay.test\r\n\r\n")
        await eventually(lambda: len(relay.gateway._site.connections()) == 1)
        await relay.gateway.departure.close_rest()
        await eventually(lambda: relay.connections == 0)
        await becomes(lambda: relay.gateway.plane.snapshot().closed.get(CloseReason.DRAINING), 2)
        web.abort()
        await turn.close()
