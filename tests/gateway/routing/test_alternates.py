"""300 Try Alternate through a whole relay: real coturns for calls, sessions and the probe, and who is not followed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.config import MediaSettings
from relay.emulator.turn.slow import TurnHost
from relay.gateway.routing.upstreams import Health
from relay.turn.credentials import StaticCredentials
from relay.wire.stun import (
    AttributeType,
    MessageClass,
    Method,
    build_error_code,
    build_message,
    build_plain_address,
    parse_message,
)
from tests.support.benches.gateway import Relay, running_relay
from tests.support.benches.health import server, watching
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.coturn import Coturn, open_coturn
from tests.support.peers.raw_session import echoes, raw_session
from tests.support.peers.responder import open_responder, success
from tests.support.waiting import eventually

LOOPBACK = ["127.0.0.0/8"]
CREDENTIALS = StaticCredentials({"trader": "secret"})
PLANES = pytest.mark.parametrize("plane", ["compiled", "reference"])


class Front:
    """Answers a Binding, and sends each Allocate on, with whatever credentials it comes."""

    def __init__(self, *alternates: Address) -> None:
        self.asked = 0
        self._alternates = alternates

    def __call__(self, request: bytes) -> bytes | None:
        message = parse_message(request)
        if message.method != Method.ALLOCATE:
            return success(request) if message.method == Method.BINDING else None
        alternate = self._alternates[min(self.asked, len(self._alternates) - 1)]
        self.asked += 1
        attributes = [
            (AttributeType.ERROR_CODE, build_error_code(300, "Try Alternate")),
            (AttributeType.ALTERNATE_SERVER, build_plain_address(alternate)),
        ]
        return build_message(Method.ALLOCATE, MessageClass.ERROR, message.transaction_id, attributes)


@contextlib.asynccontextmanager
async def coturn_relay(folder: Path, plane: str, **keys: Any) -> AsyncIterator[tuple[Relay, Coturn]]:
    """A relay whose one upstream is a coturn that sends everybody on to another one, of another realm's nonces."""
    async with open_coturn() as behind, open_coturn(options=(f"alternate-server={behind.address}",)) as front:
        upstream = {"name": "stun1", "address": front.address, **keys}
        sections = {"listen": {"plane": plane}, "media": {"allowed_networks": LOOPBACK}}
        async with running_relay(folder, upstream, **sections) as relay:
            (state,) = relay.gateway.upstreams
            await eventually(lambda: state.health is not Health.UNKNOWN)
            assert state.health is Health.UP
            yield relay, behind


@PLANES
async def test_a_call_with_coturn(tmp_path: Path, plane: str) -> None:
    inbox = Inbox()
    async with open_echo() as peer, coturn_relay(tmp_path, plane) as (relay, behind):
        async with await relay.open_turn(behind.username, behind.password, on_data=inbox.put) as turn:
            await turn.allocate()
            await turn.bind_channel(peer)
            turn.send(peer, b"voice")
            assert await inbox.get() == (peer, b"voice")
            (flow,) = relay.gateway.plane.snapshot().flows
            assert (flow.upstream.name, flow.upstream.address) == ("stun1", behind.address)
            state = relay.gateway.flows.state_of(flow.connection)
            assert state is not None
            assert (state.name, state.flows) == ("stun1", 1)
        await eventually(lambda: not relay.connections)


@PLANES
async def test_a_session_with_coturn(tmp_path: Path, plane: str) -> None:
    async with open_echo() as peer, coturn_relay(tmp_path, plane) as (relay, behind), raw_session(relay) as session:
        opened = await session.ask(type="open", username=behind.username, password=behind.password)
        assert (opened["type"], opened["upstream"]) == ("opened", "stun1")
        await session.ask(type="bind", peer=str(peer))
        await echoes(session, 0x4000)
        (flow,) = relay.gateway.plane.snapshot().flows
        assert flow.upstream.address == behind.address
        await session.say_goodbye()
        await eventually(lambda: not relay.connections)


async def test_the_probe_with_coturn(tmp_path: Path) -> None:
    keys = {"username": "trader", "password": "secret"}
    async with coturn_relay(tmp_path, "reference", **keys) as (relay, _):
        (state,) = relay.gateway.upstreams
        assert state.allocate is not None
        await eventually(lambda: state.allocate.health is Health.UP)  # type: ignore[union-attr]


@PLANES
async def test_a_session_is_not_sent_where_nobody_may_be(tmp_path: Path, plane: str) -> None:
    """To a private address: the next upstream serves it."""
    async with (
        open_responder(Front(Address("10.0.0.1", 3478))) as front,
        TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host,
    ):
        upstreams = [{"name": "front", "address": front}, {"name": "other", "address": host.address}]
        async with running_relay(tmp_path, *upstreams, listen={"plane": plane}) as relay:
            await eventually(lambda: all(one.health == "up" for one in relay.gateway.upstreams))
            other = relay.gateway.upstreams.get("other")
            assert other is not None
            other.flows += 7
            with capture_logs() as lines:
                async with raw_session(relay) as session:
                    opened = await session.ask(type="open", username="trader", password="secret")
                    assert opened["upstream"] == "other"
                    await session.say_goodbye()
            await eventually(lambda: not relay.connections)
            other.flows -= 7
    (line,) = [line for line in lines if line["event"] == "session not sent on"]
    assert "10.0.0.1:3478, which may not be relayed to" in line["cause"]


@PLANES
async def test_a_session_that_is_sent_in_circles(tmp_path: Path, plane: str) -> None:
    front = Front()
    async with open_responder(front) as address:
        front._alternates = (address,)
        sections = {"listen": {"plane": plane}, "media": {"allowed_networks": LOOPBACK}}
        async with running_relay(tmp_path, address, **sections) as relay, raw_session(relay) as session:
            await eventually(lambda: all(one.health == "up" for one in relay.gateway.upstreams))
            heard = await session.ask(type="open", username="trader", password="secret")
            assert (heard["type"], heard["code"]) == ("error", 503)
            assert (await session.hear_close())[0] == 1013
        assert front.asked <= 4 * (1 + 3)


KEYS = {"username": "trader", "password": "secret"}


async def test_the_probe_follows_as_far_as_it_may() -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host:
        front = Front(host.address)
        async with open_responder(front) as first:
            async with open_responder(Front(first)) as second:
                media = MediaSettings.model_validate({"allowed_networks": LOOPBACK})
                async with watching(server(second, **KEYS), media=media, fall=1) as watched:
                    assert await watched.probes(1) == [Health.UP]
                assert front.asked == 1
            # A private address that nobody has allowed.
            with capture_logs() as lines:
                async with watching(server(first, **KEYS), fall=1) as watched:
                    assert await watched.probes(1) == [Health.DOWN]
                    assert watched.only.life.health is Health.UP
        assert host.allocations == 0
    assert "may not be relayed to (media.allowed_networks)" in lines[-1]["cause"]


async def test_the_probe_is_sent_in_circles() -> None:
    front = Front()
    async with open_responder(front) as address:
        front._alternates = (address,)
        media = MediaSettings.model_validate({"allowed_networks": LOOPBACK})
        async with watching(server(address, **KEYS), media=media, fall=1, allocate_interval_s=3600) as watched:
            assert await watched.probes(1) == [Health.DOWN]
    assert front.asked >= 4
