"""socket.io through the relay's TLS port: the official clients and servers of versions 2 and 4."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.addresses import Address
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
