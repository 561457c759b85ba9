"""What an application may do, or have done to it, without ending its call: on every carrier, against a real relay."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.client import application, upgraded
from relay.client.carriers import open_turn_connect_udp, open_turn_websocket
from relay.client.links import MAX_BACKLOG_BYTES, StreamLink
from relay.client.requests import TurnRequestError
from relay.client.session import Session, SessionError, open_session
from relay.client.turn import TurnConnection, open_turn_tls
from relay.emulator.turn.slow import TurnHost
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, relay_with_hosts, running_relay
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.connect_proxy import connect_proxy
from tests.support.peers.own_clients import opened_session
from tests.support.peers.scripted_relay import OPENED, Line, scripted_relay
from tests.support.waiting import eventually

CARRIERS = ("tls", "websocket", "connect-udp", "session")
USER = ("trader", "secret")
LONGEST = 2000

OnData = Callable[[Address, bytes], Any]


@dataclass
class Call:
    """A line to a peer over some carrier, and how to speak on it."""

    line: TurnConnection | Session
    peer: Address

    def send(self, data: bytes) -> None:
        self.line.send(self.peer, data)

    async def echoes(self, inbox: Inbox, data: bytes) -> None:
        """UDP may lose a packet: say it again until it comes back."""
        while True:
            self.send(data)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    while (await inbox.get()) != (self.peer, data):
                        pass
                    return


async def open_line(
    carrier: str, relay: Relay, upstream: Address, on_data: OnData, **more: Any
) -> TurnConnection | Session:
    trusted: dict[str, Any] = {"ssl_context": relay.trust, "server_hostname": "relay.test", **more}
    if carrier == "session":
        url = f"wss://{relay.tls}/media"
        return await open_session(url, username=USER[0], password=USER[1], on_data=on_data, **trusted)
    if carrier == "tls":
        return await open_turn_tls(relay.tls, *USER, on_data=on_data, **trusted)
    if carrier == "websocket":
        return await open_turn_websocket(f"wss://{relay.tls}/turn", *USER, on_data=on_data, **trusted)
    return await open_turn_connect_udp(f"https://{relay.tls}", upstream, *USER, on_data=on_data, **trusted)


@contextlib.asynccontextmanager
async def relay_and_host(folder: Path) -> AsyncIterator[tuple[Relay, TurnHost]]:
    async with (
        TurnHost(Address("127.0.0.1", 0), StaticCredentials(dict([USER])), allow_loopback_peers=True) as host,
        running_relay(folder, host.address) as relay,
    ):
        yield relay, host


@contextlib.asynccontextmanager
async def call_over(carrier: str, folder: Path, on_data: OnData) -> AsyncIterator[Call]:
    async with relay_and_host(folder) as (relay, host), open_echo() as peer:
        async with await open_line(carrier, relay, host.address, on_data) as line:
            if isinstance(line, TurnConnection):
                await line.allocate()
                await line.bind_channel(peer)
            else:
                await line.bind(peer)
            yield Call(line, peer)
        await eventually(lambda: not relay.connections)


# Sizes


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_what_is_too_long_is_dropped_and_counted(tmp_path: Path, carrier: str) -> None:
    inbox = Inbox()
    async with call_over(carrier, tmp_path, inbox.put) as call:
        for size in (LONGEST + 1, 2047, 3000, 65_536, 100_000):
            call.send(bytes(size))
        assert call.line.dropped == 5
        await call.echoes(inbox, bytes(LONGEST))
        assert not call.line.closed.done()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_longer_datagrams_of_peers_come_as_they_are(tmp_path: Path, carrier: str) -> None:
    """They come from a peer that is asked for them, because the client cannot send any of this length."""
    inbox = Inbox()
    answer = bytes(index & 0xFF for index in range(3000))

    class LongEcho(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, sender: Any) -> None:
            self.transport.sendto(answer, sender)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(LongEcho, ("127.0.0.1", 0))
    peer = Address(*transport.get_extra_info("sockname")[:2])
    try:
        async with call_over(carrier, tmp_path, inbox.put) as call:
            if isinstance(call.line, TurnConnection):
                await call.line.bind_channel(peer)
            else:
                await call.line.bind(peer)
            async with asyncio.timeout(30):
                asking = Call(call.line, peer)
                while inbox.empty:
                    asking.send(b"?")
                    await asyncio.sleep(0.02)
                assert await inbox.get() == (peer, answer)
    finally:
        transport.close()


# Callbacks


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_callback_that_fails(
    tmp_path: Path, carrier: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One line in an hour: on a busy machine the packets come more than a second apart.
    monkeypatch.setattr(application, "FAILURES_LOGGED_PER_S", 1 / 3600)
    inbox = Inbox()

    def on_data(peer: Address, data: bytes) -> None:
        inbox.put(peer, data)
        if data == b"cancelled":
            raise asyncio.CancelledError
        raise RuntimeError("a mistake of the application's")

    async with call_over(carrier, tmp_path, on_data) as call:
        for data in (b"one", b"cancelled", b"three"):
            await call.echoes(inbox, data)
        assert not call.line.closed.done()
        assert getattr(call.line, "resumptions", 0) == 0
    said = "".join(capfd.readouterr())
    assert "callback of the application failed" in said
    assert "a mistake of the application's" in said
    # Not one for each packet.
    assert said.count("callback of the application failed") == 1


async def test_on_moved_that_fails(tmp_path: Path) -> None:
    def on_moved(relayed: Address) -> None:
        raise RuntimeError(f"no signaling for {relayed}")

    inbox = Inbox()
    async with relay_with_hosts(tmp_path) as (relay, hosts), open_echo() as peer:
        async with await opened_session(relay, inbox, on_moved=on_moved) as session:
            await session.bind(peer)
            before = session.upstream
            await hosts[before].stop()
            session.send(peer, b"into the void")
            await eventually(lambda: session.upstream != before)
            await Call(session, peer).echoes(inbox, b"there")
            assert (session.resumptions, session.closed.done()) == (0, False)
        await eventually(lambda: not relay.connections)


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_callback_that_closes(tmp_path: Path, carrier: str) -> None:
    """Nothing is called after it, though more has come in the same segment."""
    heard: list[bytes] = []
    closing: list[asyncio.Task[None]] = []

    def on_data(_: Address, data: bytes) -> None:
        heard.append(data)
        if not closing:
            call.line._end(None)
            closing.append(asyncio.ensure_future(call.line.close()))

    async with call_over(carrier, tmp_path, on_data) as call:
        for _ in range(500):
            call.send(b"x")
        await eventually(lambda: heard)
        assert len(heard) == 1
        await asyncio.gather(*closing)
        assert len(heard) == 1


@pytest.mark.parametrize("carrier", ["websocket", "session"])
async def test_loop_that_is_blocked(tmp_path: Path, carrier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay is another thread, and answers all the while: nothing of it could be read."""
    monkeypatch.setattr(upgraded, "SILENCE_S", 0.4)
    inbox = Inbox()
    async with call_over(carrier, tmp_path, inbox.put) as call:
        await call.echoes(inbox, b"before")
        for _ in range(3):
            time.sleep(0.6)  # noqa: ASYNC251 what is tested is this
            await call.echoes(inbox, b"after")
        assert not call.line.closed.done()
        assert getattr(call.line, "resumptions", 0) == 0


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_wait_for_the_end_that_is_given_up(tmp_path: Path, carrier: str) -> None:
    inbox = Inbox()
    async with call_over(carrier, tmp_path, inbox.put) as call:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call.line.closed, 0.01)
        await call.echoes(inbox, b"still there")
        ended = call.line.closed
    assert ended.result() is None
    assert call.line.closed.result() is None


# Channels


async def test_all_the_channels_at_once(tmp_path: Path) -> None:
    inbox = Inbox()
    async with relay_with_hosts(tmp_path) as (relay, _), open_echo() as peer:
        async with await opened_session(relay, inbox) as session:
            peers = [peer, *(Address("127.0.1.1", 20_000 + number) for number in range(63))]
            numbers = await asyncio.gather(*map(session.bind, peers))
            assert len(set(numbers)) == 64
            with pytest.raises(SessionError, match="429 bind: expected at most 64 channels"):
                await session.bind(Address("127.0.1.1", 9))
            await Call(session, peer).echoes(inbox, b"voice")
            assert session.resumptions == 0
        await eventually(lambda: not relay.connections)


async def test_sending_over_a_channel_that_is_not_bound(tmp_path: Path) -> None:
    async with relay_with_hosts(tmp_path) as (relay, _), open_echo() as peer:
        async with await opened_session(relay, Inbox()) as session:
            await session.bind(Address(f"::ffff:{peer.host}", peer.port))
            session.send(Address(f"::ffff:{peer.host}", peer.port), b"voice")
            session.send(peer, b"voice")
            for nobody in (0x4001, 0, 70_000, -1, Address("name.test", 1), Address("::1", 1)):
                with pytest.raises(KeyError):
                    session.send(nobody, b"voice")
            with pytest.raises(SessionError, match="bind: "):
                await session.bind(Address("name.test", 1))
            with pytest.raises(SessionError, match="bind: "):
                await session.bind(Address("::1", 70_000))
            assert session.dropped == 0
        await eventually(lambda: not relay.connections)


# Openings that are given up


@pytest.mark.parametrize("through_a_proxy", [False, True])
@pytest.mark.parametrize("carrier", CARRIERS)
async def test_opening_that_is_given_up(tmp_path: Path, carrier: str, through_a_proxy: bool) -> None:
    """Runs after each turn of the loop. What was left behind, or reported to the loop, fails the test at its end."""
    async with relay_and_host(tmp_path) as (relay, host), connect_proxy() as proxy:
        more = {"proxy": proxy.url if through_a_proxy else None}
        for turns in range(0, 60, 2):
            opening = asyncio.ensure_future(open_line(carrier, relay, host.address, lambda *_: None, **more))
            for _ in range(turns):
                await asyncio.sleep(0.0005 if turns % 4 else 0)
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await opening).close()
        for timeout_s in (0.0, 0.001, 0.002, 0.005, 0.01):
            with contextlib.suppress(Exception):
                line = await open_line(carrier, relay, host.address, lambda *_: None, timeout_s=timeout_s, **more)
                await line.close()
        await eventually(lambda: not relay.connections)


# The way to the relay


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_backlog_is_bounded_with_the_kernels(tmp_path: Path, carrier: str) -> None:
    """A relay that reads no more."""

    async def stall(line: Line) -> None:
        if carrier == "session":
            line.say(**OPENED, id=(await line.hear())["id"])
            asked = await line.hear()
            line.say(type="bound", peer=asked["peer"], channel=0x4000, id=asked["id"])
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on

    go_on = asyncio.get_running_loop().create_future()
    peer = Address("192.0.2.7", 16384)
    async with scripted_relay(tmp_path, stall, upgrades=carrier != "tls") as relay:
        trusted: dict[str, Any] = {"ssl_context": relay.trust, "server_hostname": "relay.test"}
        call: TurnConnection | Session
        if carrier == "session":
            call = await relay.open_session(**USERNAME)
            await call.bind(peer)
        elif carrier == "websocket":
            call = await open_turn_websocket(f"wss://{relay.address}/turn", **trusted)
        elif carrier == "connect-udp":
            call = await open_turn_connect_udp(f"https://{relay.address}", peer, **trusted)
        else:
            call = await open_turn_tls(relay.address, **trusted)
        link = call._link
        assert isinstance(link, StreamLink)
        most = 0
        for number in range(4000):
            call.send(peer, bytes(1200))
            most = max(most, link.backlog_bytes)
            if number % 20 == 0:
                await asyncio.sleep(0)
        assert call.dropped > 0
        assert MAX_BACKLOG_BYTES - 2048 < most <= MAX_BACKLOG_BYTES
        go_on.set_result(None)
        if isinstance(call, Session):
            call._end(None)
            await link.wait_closed()
        else:
            await call.close()


USERNAME = {"username": USER[0], "password": USER[1]}


# The relay's own word


@pytest.mark.parametrize("carrier", ["tls", "websocket", "session"])
async def test_refusal_that_the_relay_cannot_sign(tmp_path: Path, carrier: str) -> None:
    entitlement = {"policy": "static", "users": [{"user": "trader", "calls": 1}]}
    async with (
        TurnHost(Address("127.0.0.1", 0), StaticCredentials(dict([USER]))) as host,
        running_relay(tmp_path, host.address, entitlement=entitlement) as relay,
        await open_line(carrier, relay, host.address, lambda *_: None) as first,
    ):
        if isinstance(first, TurnConnection):
            await first.allocate()
            async with await open_line(carrier, relay, host.address, lambda *_: None, timeout_s=3.0) as second:
                assert isinstance(second, TurnConnection)
                with pytest.raises(TurnRequestError, match="486 Allocation Quota Reached: too many calls") as caught:
                    await second.allocate()
                assert caught.value.code == 486
        else:
            with pytest.raises(SessionError, match="486 Allocation Quota Reached: too many calls at once") as refused:
                await open_line(carrier, relay, host.address, lambda *_: None)
            assert refused.value.code == 486
