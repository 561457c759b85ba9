"""socket.io through the relay's TLS port: the official clients and servers of versions 2 and 4."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from relay import config
from relay.addresses import Address
from relay.gateway.http import site
from relay.gateway.signaling.polling_only import SEVERAL_SESSIONS
from tests.support.benches.gateway import running_relay
from tests.support.network.ports import reserved_address
from tests.support.peers.bad_proxies import BadProxy, CutsAtIdle, HoldsBack, StripsUpgrade, SwallowsFrames, bad_proxy
from tests.support.peers.socketio import (
    needs_node,
    python_socketio_server,
    socketio_client,
    socketio_server,
    start_socketio_server,
)

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


@pytest.mark.parametrize("way", TRANSPORTS)
async def test_session_on_the_reference_plane(tmp_path: Path, way: str) -> None:
    async with (
        socketio_server(4) as server,
        running_relay(
            tmp_path, NO_UPSTREAM, signaling={"upstreams": [server.url]}, listen={"plane": "reference"}
        ) as relay,
        socketio_client(relay, 4, transports=TRANSPORTS[way]) as client,
    ):
        await client.heard("connect")
        for value in ("text", {"hex": bytes(range(256)).hex()}, "x" * 300_000):
            await client.echo(value)


@pytest.mark.parametrize("way", TRANSPORTS)
async def test_session_with_python_socketio(tmp_path: Path, way: str) -> None:
    async with (
        python_socketio_server() as server,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [server.url]}) as relay,
        socketio_client(relay, 4, transports=TRANSPORTS[way]) as client,
    ):
        await client.heard("connect")
        if way == "upgrade":
            await client.heard("upgrade")
        for value in ("text", {"hex": bytes(range(256)).hex()}, "x" * 5_000):
            await client.echo(value)


@VERSIONS
async def test_polls_that_say_nothing_until_the_servers_ping(tmp_path: Path, version: int) -> None:
    # The servers' intervals in a tenth: polls are held for 2.5 s and the session lives.
    async with (
        socketio_server(version, pingInterval=2_500, pingTimeout=2_000) as server,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [server.url]}) as relay,
        socketio_client(relay, version, transports=["polling"]) as client,
    ):
        await client.heard("connect")
        for _ in range(2):
            await client.heard("ping")
        await client.echo("still here")
        assert client.unheard("disconnect") == []


def test_polls_are_held_longer_than_any_server_holds_them() -> None:
    # pingInterval 25 s and pingTimeout 20 s are the defaults of Engine.IO 4, and 45 s together those of 3 at most.
    signaling = config.SignalingSettings()
    for patience_s in (signaling.response_timeout_s, signaling.session_idle_s, signaling.websocket_idle_timeout_s):
        assert patience_s >= 45 + 15
    # The relay's own end of the connection does not end a request either.
    assert site.KEEPALIVE_TIMEOUT_S >= 45 + 15


@VERSIONS
@pytest.mark.parametrize("way", TRANSPORTS)
async def test_reconnects_after_the_upstream_was_restarted(tmp_path: Path, version: int, way: str) -> None:
    with reserved_address() as address:
        server = await start_socketio_server(version, address.port)
        try:
            async with (
                running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [server.url]}) as relay,
                socketio_client(relay, version, transports=TRANSPORTS[way]) as client,
            ):
                sid = (await client.heard("connect"))["sid"]
                await client.echo("before")
                await server.kill()
                await client.heard("disconnect")
                server = await start_socketio_server(version, address.port)
                assert (await client.heard("connect"))["sid"] != sid
                await client.echo("after")
        finally:
            await server.stop()


# Several upstreams


@VERSIONS
@pytest.mark.parametrize("way", TRANSPORTS)
async def test_sessions_stick_to_the_upstream_that_opened_them(tmp_path: Path, version: int, way: str) -> None:
    # A server answers a request of a session that it does not know with 400: one stray poll ends the session.
    async with (
        socketio_server(version, pingInterval=300) as one,
        socketio_server(version, pingInterval=300) as two,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [one.url, two.url]}) as relay,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [
            await stack.enter_async_context(socketio_client(relay, version, transports=TRANSPORTS[way]))
            for _ in range(4)
        ]
        ports = set()
        for client in clients:
            await client.heard("connect")
            ports.add((await client.heard("hello"))["port"])
        assert ports == {one.port, two.port}
        for number in range(5):
            await asyncio.gather(*(client.echo(f"{number} {index}") for index, client in enumerate(clients)))
        assert [client.unheard("disconnect", "connect_error") for client in clients] == [[]] * 4
        assert len(relay.gateway.signaling.affinity) == 4


@pytest.mark.parametrize("way", TRANSPORTS)
async def test_clients_of_an_upstream_that_died_go_on_with_the_other(tmp_path: Path, way: str) -> None:
    servers = {}
    for _ in range(2):
        server = await start_socketio_server(4)
        servers[server.port] = server
    try:
        async with (
            running_relay(
                tmp_path, NO_UPSTREAM, signaling={"upstreams": [server.url for server in servers.values()]}
            ) as relay,
            socketio_client(relay, 4, transports=TRANSPORTS[way]) as client,
        ):
            port = (await client.heard("hello"))["port"]
            await servers.pop(port).kill()
            await client.heard("disconnect")
            [left] = servers
            await client.heard("hello", port=left)
            await client.echo("here")
    finally:
        for server in servers.values():
            await server.stop()


async def test_new_session_skips_an_upstream_that_is_not_there(tmp_path: Path) -> None:
    async with (
        socketio_server(4) as server,
        running_relay(
            tmp_path, NO_UPSTREAM, signaling={"upstreams": ["http://127.0.0.1:1", server.url, "http://127.0.0.1:2"]}
        ) as relay,
    ):
        for _ in range(3):
            async with socketio_client(relay, 4) as client:
                await client.heard("connect")


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
        # When several of its kind there have failed, the next one does not even try.
        for number in range(2, SEVERAL_SESSIONS + 2 if swallowed else 2):
            async with socketio_client(
                relay, version, through=proxy.address, transports=["polling", "websocket"]
            ) as another:
                assert (await another.heard("connect"))["sid"] != sid
                await another.heard("upgradeError")
                assert (await another.echo("another"))["transport"] == "polling"
            assert proxy.upgrades == min(number, SEVERAL_SESSIONS)


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
        bad_proxy(CutsAtIdle(relay, idle_s=2.0)) as proxy,
        socketio_client(relay, 4, through=proxy.address, transports=["websocket"]) as client,
    ):
        await client.heard("connect")
        for _ in range(15):  # three seconds
            await client.heard("ping")
        await client.echo("still here")
        assert client.unheard("disconnect") == []
