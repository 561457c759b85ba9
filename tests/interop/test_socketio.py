"""socket.io through the relay's TLS port: the official clients and servers of versions 2 and 4."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.addresses import Address
from tests.support.bad_proxies import BadProxy, CutsAtIdle, HoldsBack, StripsUpgrade, SwallowsFrames, bad_proxy
from tests.support.gateway import running_relay
from tests.support.socketio import needs_node, socketio_client, socketio_server

pytestmark = needs_node
NO_UPSTREAM = Address("127.0.0.1", 9)
VERSIONS = pytest.mark.parametrize("version", [2, 4])
TRANSPORTS = {
    "polling": ["polling"],
    "websocket": ["websocket"],
    "upgrade": ["polling", "websocket"],
}


@VERSIONS
@pytest.mark.parametrize("way", TRANSPORTS)
async def test_session(tmp_path: Path, version: int, way: str) -> None:
    async with (
        socketio_server(version) as server,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [server.url]}) as relay,
        socketio_client(relay, version, transports=TRANSPORTS[way]) as client,
    ):
        await client.heard("connect")
        await client.heard("hello", port=server.port)
        if way == "upgrade":
            await client.heard("upgrade")
        for value in ("text", {"deep": [1, None, "é"]}, {"hex": bytes(range(256)).hex()}, "x" * 100_000):
            echoed = await client.echo(value)
            assert echoed["transport"] == ("polling" if way == "polling" else "websocket")


# Behind bad proxies


@VERSIONS
@pytest.mark.parametrize("kind", [StripsUpgrade, SwallowsFrames, HoldsBack])
async def test_session_goes_on_with_polling_behind(tmp_path: Path, version: int, kind: type[BadProxy]) -> None:
    async with (
        socketio_server(version, pingInterval=300, pingTimeout=20_000) as server,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [server.url], "upgrade_timeout_s": 0.5}) as relay,
        bad_proxy(kind(relay)) as proxy,
        socketio_client(relay, version, through=proxy.address, transports=["polling", "websocket"]) as client,
    ):
        sid = (await client.heard("connect"))["sid"]
        for value in ("before", {"hex": "00ff80"}):
            assert (await client.echo(value))["transport"] == "polling"
        await client.heard("upgradeError")
        # The same session, without a reconnection.
        for value in ("after", {"hex": bytes(range(256)).hex()}):
            assert (await client.echo(value))["transport"] == "polling"
        swallowed = kind is not StripsUpgrade
        assert relay.gateway.signaling.watchdog_hits == proxy.upgrades == int(swallowed)
        assert client.unheard("disconnect", "connect") == []
        # A second client of the same kind there does not even try.
        if swallowed:
            async with socketio_client(
                relay, version, through=proxy.address, transports=["polling", "websocket"]
            ) as second:
                assert (await second.heard("connect"))["sid"] != sid
                await second.heard("upgradeError")
                assert (await second.echo("second"))["transport"] == "polling"
            assert proxy.upgrades == 1


@VERSIONS
@pytest.mark.parametrize("way", TRANSPORTS)
async def test_session_comes_back_behind_a_proxy_that_cuts_at_idle(tmp_path: Path, version: int, way: str) -> None:
    async with (
        socketio_server(version) as server,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [server.url]}) as relay,
        # Shorter than the 25 s from ping to ping.
        bad_proxy(CutsAtIdle(relay, idle_s=2.0)) as proxy,
        socketio_client(relay, version, through=proxy.address, transports=TRANSPORTS[way]) as client,
    ):
        for _ in range(2):
            await client.heard("connect")
            await client.echo("here")
            await client.heard("disconnect")


async def test_pings_hold_a_session_behind_a_proxy_that_cuts_at_idle(tmp_path: Path) -> None:
    async with (
        socketio_server(4, pingInterval=200, pingTimeout=20_000) as server,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [server.url]}) as relay,
        bad_proxy(CutsAtIdle(relay, idle_s=4.0)) as proxy,
        socketio_client(relay, 4, through=proxy.address, transports=["websocket"]) as client,
    ):
        await client.heard("connect")
        for _ in range(30):  # six seconds
            await client.heard("ping")
        await client.echo("still here")
        assert client.unheard("disconnect") == []
