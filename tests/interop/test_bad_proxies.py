"""Media behind web proxies that spoil things: it works, or fails within seconds with a reason to act on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.client import upgraded
from relay.client.session import Session, open_session
from relay.client.turn import TurnConnection
from relay.emulator.turn.slow import TurnHost
from relay.errors import UpstreamError
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.bad_proxies import BadProxy, CutsAtIdle, HoldsBack, StripsUpgrade, SwallowsFrames, bad_proxy
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.coturn import PASSWORD, USERNAME
from tests.support.peers.own_clients import open_turn
from tests.support.waiting import eventually

CARRIERS = ("websocket", "connect-udp", "session")


@asynccontextmanager
async def behind(folder: Path, proxy: Callable[[Relay], BadProxy]) -> AsyncIterator[tuple[Relay, TurnHost, BadProxy]]:
    credentials = StaticCredentials({USERNAME: PASSWORD})
    async with (
        TurnHost(Address("127.0.0.1", 0), credentials, allow_loopback_peers=True) as host,
        running_relay(folder, host.address) as relay,
        bad_proxy(proxy(relay)) as spoils,
    ):
        yield relay, host, spoils


async def call(
    carrier: str, relay: Relay, host: TurnHost, proxy: BadProxy, inbox: Inbox, *, timeout_s: float = 60.0
) -> Session | TurnConnection:
    """A session, or a TURN connection that has allocated; all that may go wrong is in here."""
    if carrier == "session":
        trusted: dict[str, Any] = {"ssl_context": relay.trust, "server_hostname": "relay.test"}
        given: dict[str, Any] = {"username": USERNAME, "password": PASSWORD, "on_data": inbox.put, **trusted}
        return await open_session(f"wss://{proxy.address}/media", **given)
    turn = await open_turn(carrier, relay, host.address, server=proxy.address, on_data=inbox.put, timeout_s=timeout_s)
    try:
        await turn.allocate()
    except BaseException:
        await turn.close()
        raise
    return turn


async def bind(line: Session | TurnConnection, peer: Address) -> None:
    await (line.bind(peer) if isinstance(line, Session) else line.bind_channel(peer))


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_upgrade_is_stripped(tmp_path: Path, carrier: str) -> None:
    async with behind(tmp_path, StripsUpgrade) as (relay, host, proxy):
        with pytest.raises(UpstreamError, match="a proxy on the way may have removed it"):
            await call(carrier, relay, host, proxy, Inbox())


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("kind", [SwallowsFrames, HoldsBack])
async def test_the_first_answer_never_comes(
    tmp_path: Path, carrier: str, kind: type[BadProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a proxy that passes no frames, and behind one that passes nothing before it has 4 KiB."""
    monkeypatch.setattr(upgraded, "SILENCE_S", 1.0)
    async with behind(tmp_path, kind) as (relay, host, proxy):
        # Of CONNECT-UDP nothing is known but that nobody answers, as of UDP.
        text = "no answer within 2 s" if carrier == "connect-udp" else "a proxy on the way may swallow frames"
        with pytest.raises(UpstreamError, match=text):
            await call(carrier, relay, host, proxy, Inbox(), timeout_s=2.0)
        assert proxy.upgrades == 1


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_idle_connections_are_cut(tmp_path: Path, carrier: str) -> None:
    inbox = Inbox()
    async with behind(tmp_path, lambda relay: CutsAtIdle(relay, 3.0)) as (relay, host, proxy), open_echo() as peer:
        line = await call(carrier, relay, host, proxy, inbox)
        try:
            await bind(line, peer)
            assert isinstance(proxy, CutsAtIdle)
            if carrier == "connect-udp":
                await eventually(lambda: proxy.cuts)
                with pytest.raises(UpstreamError, match="closed the connection"):
                    await line.closed
            else:
                # Its pings keep it.
                await asyncio.sleep(4.0)
                assert not proxy.cuts
                line.send(peer, b"voice")
                assert await inbox.get() == (peer, b"voice")
        finally:
            await line.close()
        await eventually(lambda: not relay.connections)
