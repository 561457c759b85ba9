"""Everything that a client sends, through a real squid that wants a name and a password: each carrier a whole call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import pytest
import socketio
from aiohttp.connector import Connection

from relay.addresses import Address
from relay.client.connect import Proxy
from relay.client.session import open_session
from relay.client.turn import TurnConnection, open_turn_tls
from relay.errors import UpstreamError
from tests.support.benches.gateway import SERVER_NAME, Relay, running_relay
from tests.support.peers.behind_turn import SIZES, Inbox, echo_all_sizes, open_echo
from tests.support.peers.coturn import Coturn, open_coturn
from tests.support.peers.own_clients import open_turn
from tests.support.peers.socketio import needs_node, socketio_server
from tests.support.peers.squid import Squid, needs_squid, open_squid, shared_memory
from tests.support.waiting import eventually

pytestmark = needs_squid
PLANES = pytest.mark.parametrize("plane", ["compiled", "reference"])
NO_UPSTREAM = Address("127.0.0.1", 9)


@dataclass(frozen=True)
class Firm:
    """A firm's network: the relay behind squid, coturn behind the relay, and somebody to talk to."""

    squid: Squid
    relay: Relay
    coturn: Coturn
    peer: Address

    @property
    def proxy(self) -> Proxy:
        return Proxy(self.squid.address, self.squid.username, self.squid.password)

    @property
    def options(self) -> dict[str, Any]:
        """What each client of the relay is told."""
        return {"ssl_context": self.relay.trust, "server_hostname": SERVER_NAME, "proxy": self.proxy}

    def url(self, scheme: str, path: str = "") -> str:
        return f"{scheme}://{self.relay.tls}{path}"

    def tunnels(self) -> list[list[str]]:
        """The users and outcomes of what went through squid to the relay."""
        target = str(self.relay.tls)
        return [
            [outcome, user]
            for _, outcome, method, url, user in self.squid.requests()
            if (method, url) == ("CONNECT", target)
        ]


@contextlib.asynccontextmanager
async def open_firm(folder: Path, plane: str) -> AsyncIterator[Firm]:
    async with (
        open_squid() as squid,
        open_coturn() as coturn,
        open_echo() as peer,
        running_relay(folder, coturn.address, listen={"plane": plane}) as relay,
    ):
        yield Firm(squid, relay, coturn, peer)


async def carry_a_call(turn: TurnConnection, inbox: Inbox, peer: Address) -> None:
    async with turn:
        await turn.allocate()
        await turn.bind_channel(peer)
        await echo_all_sizes(turn, inbox, peer)


@PLANES
@pytest.mark.parametrize("carrier", ["tls", "websocket", "connect-udp"])
async def test_turn(tmp_path: Path, plane: str, carrier: str) -> None:
    async with open_firm(tmp_path, plane) as firm:
        inbox = Inbox()
        turn = await open_turn(carrier, firm.relay, firm.coturn.address, on_data=inbox.put, proxy=firm.proxy)
        await carry_a_call(turn, inbox, firm.peer)
        await eventually(firm.tunnels)
        assert firm.tunnels() == [["TCP_TUNNEL/200", firm.squid.username]]


@PLANES
async def test_session(tmp_path: Path, plane: str) -> None:
    async with open_firm(tmp_path, plane) as firm:
        inbox, coturn = Inbox(), firm.coturn
        session = await open_session(
            firm.url("wss", "/media"),
            username=coturn.username,
            password=coturn.password,
            on_data=inbox.put,
            **firm.options,
        )
        async with session:
            await session.bind(firm.peer)
            for size in SIZES:
                data = bytes([size % 256]) * size
                session.send(firm.peer, data)
                assert await inbox.get() == (firm.peer, data)


class WholeResponse(aiohttp.ClientResponse):
    """A response that is read as soon as it is there.

    python-engineio reads nothing of the answer to its POST. One that comes in two pieces would stay open until the
    collector finds it, and aiohttp tells the loop of that as an error.
    """

    async def start(self, connection: Connection) -> Self:
        await super().start(connection)
        if self.status != HTTPStatus.SWITCHING_PROTOCOLS:
            await self.read()
        return self


@needs_node
@PLANES
@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_socketio(tmp_path: Path, plane: str, transport: str) -> None:
    async with (
        open_squid() as squid,
        socketio_server(4) as server,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [server.url]}, listen={"plane": plane}) as relay,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=relay.trust),
            proxy=f"http://{squid.username}:{quote(squid.password)}@{squid.address}",
            response_class=WholeResponse,
        ) as http,
    ):
        client = socketio.AsyncClient(http_session=http, reconnection=False)
        greeted = asyncio.Event()
        client.on("hello", lambda _: greeted.set())
        await client.connect(f"https://{relay.tls}", transports=[transport])
        await greeted.wait()
        for value in ("text", {"deep": [1, None]}, bytes(range(256)), "x" * 100_000):
            assert await client.call("echo", value) == value
        assert client.transport() == transport
        await client.disconnect()
        await http.close()
        await eventually(squid.requests)
        assert {request[4] for request in squid.requests()} == {squid.username}


async def test_a_wrong_password_is_told_apart(tmp_path: Path) -> None:
    async with open_firm(tmp_path, "compiled") as firm:
        stranger = firm.options | {"proxy": Proxy(firm.squid.address, firm.squid.username, "wrong")}
        with pytest.raises(UpstreamError, match="407"):
            await open_turn_tls(firm.relay.tls, **stranger)
        await eventually(firm.tunnels)
        assert firm.tunnels() == [["TCP_DENIED/407", firm.squid.username]]


async def test_two_at_once_share_nothing_and_leave_nothing() -> None:
    async with open_squid() as one, open_squid() as other:
        found = shared_memory(one.service), shared_memory(other.service)
        assert all(found)
        assert not set(found[0]) & set(found[1])
        assert one.log.parent != other.log.parent
    assert not shared_memory(one.service)
    assert not shared_memory(other.service)
    assert not one.log.parent.exists()
