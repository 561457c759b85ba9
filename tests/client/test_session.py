"""The client of sessions: calls, returns by itself, moves, and what its caller is told when that does not work."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.client import session as session_module
from relay.client import upgraded
from relay.client.session import Session, SessionError, open_session
from relay.client.upgraded import WebSocketClosed
from relay.demo.authority import Authority
from relay.errors import UpstreamError
from relay.gateway.sessions import sessions as relay_sessions
from relay.wire.upgrade import build_websocket_response
from relay.wire.websocket import CloseCode, Opcode, build_close, build_frame
from tests.support.benches.gateway import Relay, relay_with_hosts, running_relay
from tests.support.peers.behind_turn import SIZES, Inbox, open_echo
from tests.support.peers.connect_proxy import ConnectProxy, connect_proxy
from tests.support.peers.coturn import open_coturn
from tests.support.peers.own_clients import opened_session
from tests.support.peers.scripted_relay import OPENED, Line, scripted_relay
from tests.support.waiting import EVENTUALLY_S, eventually

PLANES = ("compiled", "reference")


async def echo(session: Session, inbox: Inbox, peer: Address, data: bytes = b"voice") -> None:
    session.send(peer, data)
    assert await inbox.get() == (peer, data)


async def talk_until(session: Session, inbox: Inbox, peer: Address, data: bytes = b"again") -> None:
    """Speak until the echo is there: packets of a cut are lost, as in a network."""
    heard = asyncio.ensure_future(inbox.get())
    while not heard.done():
        session.send(peer, data)
        await asyncio.wait([heard], timeout=0.02)
    assert (await heard)[0] == peer


@pytest.mark.parametrize("plane", PLANES)
async def test_call_through_coturn_and_a_web_proxy(tmp_path: Path, plane: str) -> None:
    inbox = Inbox()
    async with (
        open_coturn() as coturn,
        open_echo() as peer,
        open_echo() as other,
        connect_proxy() as proxy,
        running_relay(tmp_path, coturn.address, listen={"plane": plane}) as relay,
    ):
        given = {"username": coturn.username, "password": coturn.password, "proxy": proxy.url}
        async with await opened_session(relay, inbox, **given) as session:
            assert session.upstream == "stun1"
            assert session.mapped_address is not None
            assert await session.bind(peer) == 0x4000
            assert await session.bind(other, 0x4777) == 0x4777
            assert await session.bind(peer) == 0x4000
            for size in SIZES:
                data = bytes(index & 0xFF for index in range(size))
                await echo(session, inbox, peer, data)
                session.send(0x4777, data)
                assert await inbox.get() == (other, data)
            with pytest.raises(SessionError, match="409 bind: channel 0x4777 belongs to another peer"):
                await session.bind(Address("127.0.0.1", 9), 0x4777)
            with pytest.raises(KeyError):
                session.send(Address("127.0.0.1", 9), b"nobody")
            assert proxy.asked == [str(relay.tls)]
            assert session.dropped == 0
        assert session.closed.result() is None
        await session.close()
        with pytest.raises(SessionError, match="the session is closed"):
            await session.bind(peer)
        session.send(peer, b"late")
        assert session.dropped == 1
        await eventually(lambda: not relay.connections and not relay.gateway.flows.tally.parked)


@pytest.mark.parametrize("plane", PLANES)
async def test_cuts_are_survived_by_themselves(tmp_path: Path, plane: str) -> None:
    inbox = Inbox()
    async with relay_with_hosts(tmp_path, plane) as (relay, hosts), open_echo() as peer, connect_proxy() as proxy:
        async with await opened_session(relay, inbox, proxy=proxy.url) as session:
            await session.bind(peer)
            await echo(session, inbox, peer)
            relayed = session.relayed_address
            for count in (1, 2, 3):
                proxy.cut()
                await eventually(lambda count=count: session.resumptions == count)  # type: ignore[misc]
                assert session.relayed_address == relayed
                await talk_until(session, inbox, peer)
                assert await session.bind(peer) == 0x4000
        await eventually(lambda: not relay.connections)
        await eventually(lambda: not sum(host.allocations for host in hosts))


@pytest.mark.parametrize("plane", PLANES)
async def test_upstream_dies(tmp_path: Path, plane: str) -> None:
    inbox, moved = Inbox(), list[Address]()
    async with relay_with_hosts(tmp_path, plane) as (relay, hosts), open_echo() as peer:
        async with await opened_session(relay, inbox, on_moved=moved.append) as session:
            await session.bind(peer)
            await echo(session, inbox, peer)
            before = session.upstream
            await hosts[before].stop()
            await talk_until(session, inbox, peer)
            assert moved == [session.relayed_address]
            assert session.upstream != before
            await hosts[session.upstream].stop()
            session.send(peer, b"into the void")
            with pytest.raises(WebSocketClosed, match="1013 no_upstream"):
                await session.closed
        await eventually(lambda: not relay.connections)


async def test_bind_waits_for_the_return(tmp_path: Path) -> None:
    inbox = Inbox()
    async with relay_with_hosts(tmp_path) as (relay, _), open_echo() as peer:
        async with await opened_session(relay, inbox) as session:
            assert session._link is not None
            session._link._transport.abort()
            await eventually(lambda: not session._connected.is_set())
            assert await session.bind(peer) == 0x4000
            assert session.resumptions == 1
            await echo(session, inbox, peer)
        await eventually(lambda: not relay.connections)


@contextlib.asynccontextmanager
async def given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inbox: Inbox, **more: Any
) -> AsyncIterator[tuple[Relay, Session, ConnectProxy]]:
    """A session that comes back after its relay has given it up. The proxy lets it through when ``refuses`` is None."""
    monkeypatch.setattr(relay_sessions, "RESUME_WITHIN_S", 0.0)
    monkeypatch.setattr(session_module, "RETRY_S", 0.05)
    async with (
        relay_with_hosts(tmp_path) as (relay, _),
        connect_proxy() as proxy,
        await opened_session(relay, inbox, proxy=proxy.url, **more) as session,
    ):
        # With 0 s it would not even try.
        session._resume_within_s = EVENTUALLY_S
        yield relay, session, proxy


async def cut_until_given_up(relay: Relay, proxy: ConnectProxy) -> None:
    proxy.refuses = b"HTTP/1.1 503 Restarting\r\n\r\n"
    proxy.cut()
    await eventually(lambda: not relay.connections and not relay.gateway.flows.tally.parked)
    proxy.refuses = None


async def test_relay_that_has_given_the_session_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens anew there, as at another relay."""
    inbox, moved = Inbox(), list[Address]()
    async with (
        given_up(tmp_path, monkeypatch, inbox, on_moved=moved.append) as (relay, session, proxy),
        open_echo() as peer,
        open_echo() as other,
    ):
        assert (await session.bind(peer), await session.bind(other, 0x4777)) == (0x4000, 0x4777)
        # Twice: what it has then is as good as what it had before.
        for count in (1, 2):
            session._resume_within_s, before = EVENTUALLY_S, session.relayed_address
            await cut_until_given_up(relay, proxy)
            await eventually(lambda count=count: session.reopenings == count)  # type: ignore[misc]
            await echo(session, inbox, peer)
            session.send(0x4777, b"voice")
            assert await inbox.get() == (other, b"voice")
            assert session.relayed_address != before
            assert (len(moved), moved[-1]) == (count, session.relayed_address)
        assert session.resumptions == 0


async def test_session_that_is_refused_when_it_opens_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with given_up(tmp_path, monkeypatch, Inbox()) as (relay, session, proxy):
        session._asked = replace(session._asked, password="expired")
        await cut_until_given_up(relay, proxy)
        with pytest.raises(SessionError, match="not resumed: 401 the upstream refuses") as refused:
            await session.closed
        assert refused.value.code == 401


async def test_a_channel_that_the_next_relay_refuses_is_given_up(tmp_path: Path) -> None:
    """And the others go on: as after a move to another upstream."""
    connections, cut = list[Line](), asyncio.Event()

    async def script(line: Line) -> None:
        connections.append(line)
        first = len(connections) == 1
        if not first:
            line.say(type="error", code=404, reason="no such token", id=(await line.hear())["id"])
        address = "192.0.2.1:50000" if first else "192.0.2.2:50000"
        line.say(**{**OPENED, "relayed": address}, id=(await line.hear())["id"])
        for _ in range(2):
            asked = await line.hear()
            if asked["peer"] == "192.0.2.8:9" and not first:
                line.say(type="error", code=443, reason="not this family", peer=asked["peer"], id=asked["id"])
            else:
                line.say(type="bound", peer=asked["peer"], channel=asked["channel"], id=asked["id"])
        await (cut.wait() if first else line.hear())

    moved = asyncio.get_running_loop().create_future()
    one, other = Address("192.0.2.7", 9), Address("192.0.2.8", 9)
    async with scripted_relay(tmp_path, script) as relay:
        async with await relay.open_session(on_moved=moved.set_result) as session:
            await asyncio.gather(session.bind(one, 0x4001), session.bind(other, 0x4002))
            cut.set()
            assert await moved == Address("192.0.2.2", 50000)
            session.send(one, b"voice")
            with pytest.raises(KeyError):
                session.send(other, b"voice")
        assert len(connections) == 2


@pytest.mark.parametrize("code", [486, 503])
async def test_refusal_that_may_be_over_in_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """It has no upstream yet, or drains, or a dead relay's call still counts: the next attempt may succeed."""
    monkeypatch.setattr(session_module, "RETRY_S", 0.01)
    connections, cut = list[Line](), asyncio.Event()

    async def script(line: Line) -> None:
        connections.append(line)
        if len(connections) > 1:
            line.say(type="error", code=404, reason="no such token", id=(await line.hear())["id"])
        asked = await line.hear()
        if len(connections) == 2:
            line.say(type="error", code=code, reason="not now", id=asked["id"])
            line.say_close(1013, "not now")
            return
        line.say(**OPENED, id=asked["id"])
        await (cut.wait() if len(connections) == 1 else line.hear())

    async with scripted_relay(tmp_path, script) as relay:
        async with await relay.open_session() as session:
            cut.set()
            await eventually(lambda: session.reopenings)
        assert len(connections) == 3


async def test_proxy_that_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "RETRY_S", 0.02)
    async with (
        relay_with_hosts(tmp_path) as (relay, _),
        connect_proxy() as proxy,
        await opened_session(relay, Inbox(), proxy=proxy.url) as session,
    ):
        session._resume_within_s = 0.2
        proxy.refuses = b"HTTP/1.1 503 Restarting\r\n\r\n"
        proxy.cut()
        with pytest.raises(UpstreamError, match=r"not resumed within 0.2 s: .*refuses the tunnel: 503 Restarting"):
            await session.closed


async def test_close_while_coming_back(tmp_path: Path) -> None:
    async with relay_with_hosts(tmp_path) as (relay, _), connect_proxy() as proxy:
        session = await opened_session(relay, Inbox(), proxy=proxy.url)
        proxy.refuses = b"HTTP/1.1 503 Restarting\r\n\r\n"
        proxy.cut()
        await eventually(lambda: not session._connected.is_set())
        await session.close()
        assert session.closed.result() is None


async def test_connection_that_carries_nothing_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No end of TCP says so: the pings do; and the relay, which still believes in the old one, lets the new one in."""
    monkeypatch.setattr(upgraded, "SILENCE_S", 1.0)
    inbox = Inbox()
    async with relay_with_hosts(tmp_path) as (relay, _), open_echo() as peer:
        async with await opened_session(relay, inbox) as session:
            await session.bind(peer)
            link = session._link
            assert link is not None
            link._on_bytes = lambda data: None  # type: ignore[method-assign]
            await eventually(lambda: session.resumptions)
            await talk_until(session, inbox, peer)
        await eventually(lambda: not relay.connections)


async def test_relay_that_closes_with_its_101(tmp_path: Path) -> None:
    """All in one segment: nobody waits for an answer that cannot come."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = head.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
        writer.write(
            build_websocket_response(key, "media.v1")
            + build_frame(Opcode.CLOSE, build_close(CloseCode.GOING_AWAY, "draining"))
        )
        writer.close()

    authority = Authority(tmp_path)
    issued = authority.issue("relay.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.chain, issued.private_key)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/media"
        with pytest.raises(WebSocketClosed, match="1001 draining"):
            await open_session(url, ssl_context=authority.client_context(), server_hostname="relay.test")


async def test_relay_that_refuses(tmp_path: Path) -> None:
    async with relay_with_hosts(tmp_path) as (relay, _):
        with pytest.raises(SessionError, match="401 the upstream refuses: wrong username or password"):
            await opened_session(relay, Inbox(), password="wrong")
        with pytest.raises(SessionError, match="401 open: expected username and password"):
            await opened_session(relay, Inbox(), username="", password="")
        with pytest.raises(SessionError, match="503 no upstream of the region mars is up"):
            await opened_session(relay, Inbox(), region="mars")
        await eventually(lambda: not relay.connections)
