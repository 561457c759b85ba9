"""The emulator's signaling with the official socket.io client, through the relay's TLS port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.emulator.lines import LineKind
from tests.support.benches.emulated_signaling import People, running_signaling
from tests.support.benches.gateway import running_relay
from tests.support.emulated_lines import NUMBERS, line
from tests.support.peers.socketio import SocketIoClient, needs_node, socketio_client

pytestmark = needs_node
NO_UPSTREAM = Address("127.0.0.1", 9)
RINGDOWN = NUMBERS[LineKind.RINGDOWN]
WAYS = pytest.mark.parametrize("way", [["polling"], ["websocket"], ["polling", "websocket"]], ids="-".join)


def people() -> People:
    return People.with_lines(line(LineKind.RINGDOWN, "a1", "b1"))


async def told(client: SocketIoClient, name: str, **fields: Any) -> dict[str, Any]:
    """The first event of this name whose data has these fields."""
    while True:
        data: dict[str, Any] = (await client.heard("told", name=name))["data"]
        if fields.items() <= data.items():
            return data


async def ask(client: SocketIoClient, name: str, **fields: Any) -> dict[str, Any]:
    client.tell(emit=[name, fields])
    return await client.heard("answer", name=name)


@WAYS
async def test_a_call_of_official_clients_through_the_relay(tmp_path: Path, way: list[str]) -> None:
    async with (
        running_signaling(people()) as signaling,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [signaling.url]}) as relay,
        socketio_client(relay, 4, transports=way, auth={"token": "token-a1"}) as a1,
        socketio_client(relay, 4, transports=way, auth={"token": "token-b1"}) as b1,
    ):
        assert (await told(a1, "welcome"))["user_id"] == "a1"
        assert (await told(b1, "welcome"))["user_id"] == "b1"
        if len(way) == 2:
            await b1.heard("upgrade")
        assert (await ask(a1, "line.ring", line=RINGDOWN))["ok"]
        call_id = (await told(b1, "line.state", state="ringing"))["call_id"]
        assert (await ask(b1, "line.answer", line=RINGDOWN))["ok"]
        sdp = "v=0\r\n" + "a=candidate:1 1 udp 1 127.0.0.1 9 typ relay\r\n" * 1000
        assert (await ask(a1, "media.description", call_id=call_id, to="b1", type="offer", sdp=sdp))["ok"]
        assert (await told(b1, "media.description"))["sdp"] == sdp
        refusal = await ask(b1, "line.ring", line=RINGDOWN)
        assert refusal["error"] == {
            "code": "wrong_state",
            "message": "line.ring is not possible on a ringdown line that is connected.",
            "expected": "one of: line.release",
        }
        assert (await ask(b1, "line.release", line=RINGDOWN))["line_state"]["reason"] == "released"
        await told(a1, "line.state", state="idle")


async def test_an_official_client_is_told_why_it_is_refused(tmp_path: Path) -> None:
    async with (
        running_signaling(people()) as signaling,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [signaling.url]}) as relay,
        socketio_client(relay, 4, transports=["websocket"], auth={"token": "token-nobody"}) as client,
    ):
        refusal = await client.heard("connect_error")
        assert refusal["message"] == "The token is unknown, or has ended."
        assert refusal["data"]["expected"] == "a new login"


async def test_an_official_client_that_was_replaced_does_not_come_back(tmp_path: Path) -> None:
    async with (
        running_signaling(people()) as signaling,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [signaling.url]}) as relay,
        socketio_client(relay, 4, transports=["websocket"], auth={"token": "token-a1"}) as first,
    ):
        await told(first, "welcome")
        async with socketio_client(relay, 4, transports=["websocket"], auth={"token": "token-a1"}) as second:
            await told(second, "welcome")
            await first.heard("told", name="session.replaced")
            assert (await first.heard("disconnect"))["reason"] == "io server disconnect"
            assert (await ask(second, "state.get"))["ok"]
            # One connection each.
            assert len(signaling.server.hub.connections) == 1
            assert len(first.unheard("connect")) == 1


@WAYS
async def test_an_official_client_that_is_closed_is_released_at_once(tmp_path: Path, way: list[str]) -> None:
    async with (
        running_signaling(people()) as signaling,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [signaling.url]}) as relay,
        socketio_client(relay, 4, transports=way, auth={"token": "token-b1"}) as b1,
    ):
        await told(b1, "welcome")
        async with socketio_client(relay, 4, transports=way, auth={"token": "token-a1"}) as a1:
            await told(a1, "welcome")
            if len(way) == 2:
                await a1.heard("upgrade")
            assert (await ask(a1, "line.ring", line=RINGDOWN))["ok"]
        assert (await told(b1, "line.state", state="idle"))["reason"] == "gone"
