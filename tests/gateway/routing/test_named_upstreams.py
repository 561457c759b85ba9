"""Upstreams given by name, under running calls: names with two addresses, and names that move."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from relay.errors import UpstreamError
from relay.gateway.routing import health
from relay.gateway.routing.upstreams import Health, UpstreamState
from relay.plane.api import CloseReason
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, fall_silent, running_relay
from tests.support.peers.behind_turn import open_echo
from tests.support.peers.raw_session import OPEN, Json, RawSession, echoes, raw_session
from tests.support.ssrf_table import FakeDns
from tests.support.waiting import becomes, eventually

CREDENTIALS = StaticCredentials({"trader": "secret"})
NAME = "stun.test"
# So far apart that no probe but the first is seen.
PATIENT = {"interval_s": 3600.0, "resolve_interval_s": 3600.0}
EAGER = {"interval_s": 0.05, "timeout_s": 0.2, "fall": 2}
pytestmark = pytest.mark.parametrize("plane", ["compiled", "reference"])


@contextlib.asynccontextmanager
async def two_hosts() -> AsyncIterator[tuple[TurnHost, TurnHost]]:
    """On one port, as the addresses of one name are."""
    async with (
        TurnHost(Address("127.0.1.1", 0), CREDENTIALS, allow_loopback_peers=True) as first,
        TurnHost(Address("127.0.1.2", first.address.port), CREDENTIALS, allow_loopback_peers=True) as second,
    ):
        yield first, second


@contextlib.asynccontextmanager
async def named_relay(
    folder: Path, plane: str, dns: FakeDns, port: int, **keys: Any
) -> AsyncIterator[tuple[Relay, UpstreamState]]:
    upstream = {"name": "stun1", "address": f"{NAME}:{port}"}
    sections = {"listen": {"plane": plane}, "media": {"allowed_networks": ["127.0.0.0/8"]}, "health": keys}
    async with running_relay(folder, upstream, lookup=dns, **sections) as relay:
        (state,) = relay.gateway.upstreams
        await eventually(lambda: state.health is Health.UP)
        yield relay, state


@dataclass
class Call:
    """A session whose upstream has a name, and what a test changes of that."""

    relay: Relay
    state: UpstreamState
    dns: FakeDns
    first: TurnHost
    second: TurnHost
    session: RawSession

    async def lose_first(self) -> Json:
        """Ask something of the first host, which has just ended; what the session hears when it has moved."""
        await self.first.stop()
        await self.session.say(type="bind", peer="127.0.0.1:9")
        while (moved := await self.session.hear())["type"] != "moved":
            pass
        return moved


@contextlib.asynccontextmanager
async def call_by_name(folder: Path, plane: str, addresses: list[str], **keys: Any) -> AsyncIterator[Call]:
    """A session at the first of the name's addresses, with a channel to an echo; that one is heard at the end, too."""
    async with open_echo() as peer, two_hosts() as (first, second):
        dns = FakeDns({NAME: [addresses]})
        async with (
            named_relay(folder, plane, dns, first.address.port, **keys) as (relay, state),
            raw_session(relay) as session,
        ):
            assert (await session.ask(**OPEN))["relayed"].startswith("127.0.1.1:")
            await session.ask(type="bind", peer=str(peer))
            yield Call(relay, state, dns, first, second, session)
            await echoes(session, 0x4000)
            await session.say_goodbye()
            await eventually(lambda: not relay.connections)


async def test_a_session_goes_on_at_the_other_address(tmp_path: Path, plane: str) -> None:
    """Probes do not know yet that the first one is dead."""
    async with call_by_name(tmp_path, plane, ["127.0.1.1", "127.0.1.2"], **PATIENT) as call:
        moved = await call.lose_first()
        assert (moved["upstream"], moved["relayed"].partition(":")[0]) == ("stun1", "127.0.1.2")
        await echoes(call.session, 0x4000)
        (flow,) = call.relay.gateway.plane.snapshot().flows
        assert flow.upstream.address == call.second.address
        assert call.relay.gateway.flows.state_of(flow.connection) is call.state


async def test_a_session_follows_a_name_that_has_moved(tmp_path: Path, plane: str) -> None:
    keys = {"interval_s": 3600.0, "resolve_interval_s": 0.01}
    async with call_by_name(tmp_path, plane, ["127.0.1.1"], **keys) as call:
        call.dns.answer(NAME, "127.0.1.2")
        await eventually(lambda: call.state.address == call.second.address)
        # It runs on where it is, until that ends.
        await echoes(call.session, 0x4000)
        assert (await call.lose_first())["relayed"].startswith("127.0.1.2:")


async def test_probes_take_sessions_and_newcomers_to_the_other_address(tmp_path: Path, plane: str) -> None:
    """Nothing is asked of the silent one, and nothing comes: only the probes know."""
    async with call_by_name(tmp_path, plane, ["127.0.1.1", "127.0.1.2"], **EAGER) as call:
        fall_silent(call.first)
        moved = await call.session.hear()
        assert (moved["type"], moved["relayed"].partition(":")[0]) == ("moved", "127.0.1.2")
        await echoes(call.session, 0x4000)
        assert (call.state.address, call.state.health) == (call.second.address, Health.UP)
        async with await call.relay.open_turn("trader", "secret") as turn:
            assert (await turn.allocate()).host == "127.0.1.2"


async def test_calls_at_a_dead_address_are_closed(tmp_path: Path, plane: str) -> None:
    """So that their clients come back to the one that lives; although the name is up, and was never down."""
    async with two_hosts() as (first, second):
        dns = FakeDns({NAME: [["127.0.1.1", "127.0.1.2"]]})
        async with (
            named_relay(tmp_path, plane, dns, first.address.port, **EAGER) as (relay, state),
            await relay.open_turn("trader", "secret") as turn,
        ):
            assert (await turn.allocate()).host == "127.0.1.1"
            fall_silent(first)
            with pytest.raises(UpstreamError):
                await turn.closed
            await becomes(lambda: relay.gateway.plane.snapshot().closed.get(CloseReason.UPSTREAM_SILENT), 1)
            assert (state.address, state.health) == (second.address, Health.UP)


async def test_a_session_waits_for_a_name_that_is_about_to_move(
    tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has moved, and nobody knows yet: that its call is lost makes the relay look."""
    monkeypatch.setattr(health, "RESOLVE_AGAIN_S", 0.0)
    async with call_by_name(tmp_path, plane, ["127.0.1.1"], **PATIENT) as call:
        call.dns.answer(NAME, "127.0.1.2")
        assert (await call.lose_first())["relayed"].startswith("127.0.1.2:")
