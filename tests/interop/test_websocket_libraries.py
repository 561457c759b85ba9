"""WebSocket clients that others have written, on every plane: the Python library ``websockets``, and npm's ``ws``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Event

from relay.plane.api import Carrier, CloseReason
from relay.wire.channeldata import build_channel_data
from tests.support.benches.echoing import echoing_bench
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds
from tests.support.peers.socketio import Peer, needs_node
from tests.support.peers.upgrades import READY, SUBPROTOCOLS, answered_upgrades

pytestmark = [
    pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys()),
    pytest.mark.parametrize("subprotocol", SUBPROTOCOLS),
]


class PingCounter(ClientConnection):
    """Says when it has been asked four times whether it is still there."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pings = 0
        self.many = asyncio.Event()

    def process_event(self, event: Event) -> None:
        super().process_event(event)
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.pings += 1
            if self.pings == 4:
                self.many.set()


@contextlib.asynccontextmanager
async def connected(bench: Bench, subprotocol: str) -> AsyncIterator[PingCounter]:
    """The library as it comes, compression offered and all."""
    host, port = bench.server
    async with (
        answered_upgrades(bench),
        connect(
            f"wss://{host}:{port}/media",
            ssl=bench.authority.client_context(),
            server_hostname="relay.test",
            subprotocols=[subprotocol],  # type: ignore[list-item]
            proxy=None,
            create_connection=PingCounter,
        ) as client,
    ):
        assert isinstance(client, PingCounter)
        assert client.subprotocol == subprotocol
        if SUBPROTOCOLS[subprotocol] is Carrier.SESSION:
            assert await client.recv() == READY
        yield client


def media(subprotocol: str, size: int) -> bytes:
    """A message that comes back."""
    data = bytes(index & 255 for index in range(size))
    return build_channel_data(0x4001, data) if subprotocol == "turn" else b"\x40\x01" + data


async def test_messages_pings_and_the_end(make: MakePlane, tmp_path: Path, subprotocol: str) -> None:
    async with echoing_bench(make, tmp_path) as bench, connected(bench, subprotocol) as client:
        for size in (0, 1, 119, 125, 126, 172, 1200, 2044):
            await client.send(media(subprotocol, size))
            assert await client.recv() == media(subprotocol, size)
        await client.send(split(media(subprotocol, 500)))
        assert await client.recv() == media(subprotocol, 500)
        await (await client.ping(b"are you there?"))
        await client.close(4000, "good bye")
        assert client.close_code == 4000
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.CLIENT_CLOSED, "websocket close 4000")


def split(message: bytes) -> Iterator[bytes]:
    """What the library sends as fragments."""
    for start in range(0, len(message), 100):
        yield message[start : start + 100]


async def test_texts(make: MakePlane, tmp_path: Path, subprotocol: str) -> None:
    async with echoing_bench(make, tmp_path) as bench, connected(bench, subprotocol) as client:
        if SUBPROTOCOLS[subprotocol] is Carrier.SESSION:
            for text in ("", "κόσμε", "x" * 65_536):
                await client.send(text)
                assert await client.recv() == text
            return
        await client.send("text")
        with pytest.raises(ConnectionClosedError) as raised:
            await client.recv()
        assert raised.value.rcvd == Close(1003, "text message")


async def test_the_library_answers_our_pings(make: MakePlane, tmp_path: Path, subprotocol: str) -> None:
    """It says nothing else, and would be gone after two without an answer."""
    async with echoing_bench(make, tmp_path) as bench:
        bench.plane.configure(bounds(websocket_ping_s=0.5))
        async with connected(bench, subprotocol) as client:
            await client.many.wait()
            await client.send(media(subprotocol, 10))
            assert await client.recv() == media(subprotocol, 10)


async def test_control_ends_it(make: MakePlane, tmp_path: Path, subprotocol: str) -> None:
    async with echoing_bench(make, tmp_path) as bench, connected(bench, subprotocol) as client:
        await client.send(media(subprotocol, 10))
        await client.recv()
        (flow,) = bench.plane.snapshot().flows
        bench.plane.close(flow.connection, CloseReason.DRAINING)
        with pytest.raises(ConnectionClosedOK) as raised:
            await client.recv()
        assert raised.value.rcvd == Close(1001, "draining")


# ---- npm's ws


@contextlib.asynccontextmanager
async def ws_client(bench: Bench, subprotocol: str) -> AsyncIterator[Peer]:
    """A node that has connected with it, compression offered and all."""
    host, port = bench.server
    async with answered_upgrades(bench):
        client = await Peer.start(
            "websocket.js",
            8,
            f"wss://{host}:{port}/media",
            {"subprotocol": subprotocol, "servername": "relay.test"},
            NODE_EXTRA_CA_CERTS=str(bench.authority.ca_certificate),
        )
        try:
            await client.heard("open", subprotocol=subprotocol, extensions="")
            if SUBPROTOCOLS[subprotocol] is Carrier.SESSION:
                await client.heard("text", text=READY)
            yield client
        finally:
            await client.stop()


@needs_node
async def test_ws(make: MakePlane, tmp_path: Path, subprotocol: str) -> None:
    async with echoing_bench(make, tmp_path) as bench, ws_client(bench, subprotocol) as client:
        for size in (0, 1, 119, 125, 126, 172, 1200, 2044):
            client.tell(hex=media(subprotocol, size).hex())
            await client.heard("binary", hex=media(subprotocol, size).hex())
        client.tell(fragments=[part.hex() for part in split(media(subprotocol, 500))])
        await client.heard("binary", hex=media(subprotocol, 500).hex())
        client.tell(ping=b"are you there?".hex())
        await client.heard("pong", hex=b"are you there?".hex())
        if SUBPROTOCOLS[subprotocol] is Carrier.SESSION:
            for text in ("", "κόσμε", "x" * 65_536):
                client.tell(text=text)
                await client.heard("text", text=text)
        client.tell(close=[4000, "good bye"])
        await client.heard("close", code=4000)
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.CLIENT_CLOSED, "websocket close 4000")


@needs_node
async def test_ws_is_told_why_it_ends(make: MakePlane, tmp_path: Path, subprotocol: str) -> None:
    async with echoing_bench(make, tmp_path) as bench:
        async with ws_client(bench, subprotocol) as client:
            client.tell(hex="ff")
            reason = "no TURN message" if subprotocol == "turn" else "no channel number"
            await client.heard("close", code=1007, reason=reason)
        async with ws_client(bench, subprotocol) as client:
            client.tell(hex=media(subprotocol, 10).hex())
            await client.heard("binary")
            (flow,) = bench.plane.snapshot().flows
            bench.plane.close(flow.connection, CloseReason.NOT_ENTITLED)
            await client.heard("close", code=1008, reason="not_entitled")


@needs_node
async def test_ws_answers_our_pings(make: MakePlane, tmp_path: Path, subprotocol: str) -> None:
    async with echoing_bench(make, tmp_path) as bench:
        bench.plane.configure(bounds(websocket_ping_s=0.5))
        async with ws_client(bench, subprotocol) as client:
            for _ in range(4):
                await client.heard("ping")
            client.tell(hex=media(subprotocol, 10).hex())
            await client.heard("binary", hex=media(subprotocol, 10).hex())
