"""The client against relays and proxies that are slow, hostile, or say little: what its caller is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.client.carriers import Endpoint, open_turn_websocket
from relay.client.connect import Proxy
from relay.client.links import StreamLink
from relay.client.session import Session, SessionError, SessionRefused
from relay.client.turn import TurnConnection, open_turn_tls
from relay.errors import UpstreamError
from relay.tasks import Tasks
from relay.wire.websocket import Opcode
from tests.support.peers.connect_proxy import connect_proxy
from tests.support.peers.scripted_relay import OPENED, Line, Script, scripted_relay
from tests.support.waiting import eventually

USER: dict[str, Any] = {"username": "trader", "password": "secret"}
PEER = Address("192.0.2.7", 16384)


async def hold(line: Line) -> None:
    """Read on until the client leaves."""
    while await line.reader.read(65536):
        pass


async def take_open(line: Line) -> None:
    line.say(**OPENED, id=(await line.hear())["id"])


@contextlib.asynccontextmanager
async def session_with(folder: Path, script: Script) -> AsyncIterator[Session]:
    """A session that has been opened, and goes on as the script says."""

    async def whole(line: Line) -> None:
        await take_open(line)
        await script(line)

    async with scripted_relay(folder, whole) as relay, await relay.open_session(**USER) as session:
        yield session


# Errors that answer nothing by their id


@pytest.mark.parametrize("identity", [{}, {"id": None}, {"id": "another"}])
@pytest.mark.parametrize(
    ("code", "reason"), [(400, "a message of 9000 characters"), (408, "expected open or resume within 10 s")]
)
async def test_error_without_an_id_answers_open(tmp_path: Path, identity: Any, code: int, reason: str) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        line.say(type="error", code=code, reason=reason, **identity)
        await hold(line)

    async with scripted_relay(tmp_path, script) as relay:
        with pytest.raises(SessionError, match=reason) as caught:
            await relay.open_session(**USER, timeout_s=20.0)
        assert caught.value.code == code


async def test_408_and_the_end_right_after_it(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        line.say(type="error", code=408, reason="expected open or resume within 10 s")

    async with scripted_relay(tmp_path, script) as relay:
        with pytest.raises(SessionError, match="408 expected open"):
            await relay.open_session(**USER)


async def test_error_without_an_id_answers_the_only_bind(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await line.hear()
        line.say(type="error", code=400, reason="no JSON")
        await hold(line)

    async with session_with(tmp_path, script) as session:
        with pytest.raises(SessionError, match="400 no JSON"):
            await session.bind(PEER)
        assert not session.closed.done()


async def test_why_the_relay_ends_a_session(tmp_path: Path) -> None:
    """A move that is refused answers no message; then the WebSocket is closed."""

    async def script(line: Line) -> None:
        line.say(type="error", code=486, reason="too many calls at once")
        line.say_close(1008, "not_entitled")
        await hold(line)

    async with session_with(tmp_path, script) as session:
        with pytest.raises(SessionRefused, match="1008 not_entitled: 486 too many calls at once") as caught:
            await session.closed
        assert (caught.value.code, caught.value.reason) == (486, "too many calls at once")


async def test_old_error_does_not_explain_a_later_end(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        line.say(type="error", code=400, reason="some time ago")
        line.say(type="moved", relayed="192.0.2.9:50000", upstream="other")
        line.say_close(1001, "draining")
        await hold(line)

    async with session_with(tmp_path, script) as session:
        with pytest.raises(UpstreamError, match=r"1001 draining$"):
            await session.closed
        assert session.upstream == "other"


# Relays that say what nobody asked for


async def test_channels_that_nobody_asked_for(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def script(line: Line) -> None:
        for number in range(3000):
            line.say(type="bound", peer=f"192.0.2.9:{number + 1}", channel=0x4000 + number % 16)
            line.frame(Opcode.BINARY, b"\x40\x00nobody's")
        asked = await line.hear()
        line.say(type="bound", peer=asked["peer"], channel=0x4000, id=asked["id"])
        line.frame(Opcode.BINARY, b"\x40\x00ours")
        await hold(line)

    async def whole(line: Line) -> None:
        await take_open(line)
        await script(line)

    async with (
        scripted_relay(tmp_path, whole) as relay,
        await relay.open_session(**USER, on_data=lambda _, data: heard.append(data)) as session,
    ):
        assert await session.bind(PEER) == 0x4000
        await eventually(lambda: heard)
        assert heard == [b"ours"]
        assert (session._channels, session._peers) == ({PEER: 0x4000}, {0x4000: PEER})


async def test_pings_without_end_do_not_fill_the_memory(tmp_path: Path) -> None:
    flooded = asyncio.Event()

    async def script(line: Line) -> None:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(20_000):
            line.frame(Opcode.PING, bytes(120))
            await line.writer.drain()
        flooded.set()
        await asyncio.get_running_loop().create_future()

    async with session_with(tmp_path, script) as session:
        link = session._link
        assert isinstance(link, StreamLink)
        await flooded.wait()
        assert link.backlog_bytes <= 64 * 1024
        link.abort()
        session._end(None)


NOT_OURS = [
    (Opcode.TEXT, b"[]", "broke the protocol: expected a JSON object"),
    (Opcode.TEXT, b"9" * 8000, "broke the protocol: no JSON"),
    (Opcode.TEXT, b'{"type":"bound","peer":"x","channel":16384}', "broke the protocol: peer: expected an address"),
    (Opcode.TEXT, b'{"type":"error","code":1e400,"reason":"x"}', "broke the protocol: code: expected a number"),
    (Opcode.BINARY, b"\x00", "broke the protocol: no media in 1 bytes"),
    (Opcode.CONTINUATION, b"", "broke the framing"),
]


@pytest.mark.parametrize(("opcode", "payload", "text"), NOT_OURS)
async def test_messages_that_are_none(tmp_path: Path, opcode: Opcode, payload: bytes, text: str) -> None:
    async def script(line: Line) -> None:
        line.frame(opcode, payload)
        await hold(line)

    async with session_with(tmp_path, script) as session:
        session._resume_within_s = 0.0  # what breaks the framing is a cut
        with pytest.raises(UpstreamError, match=text):
            await session.closed


# What stands in the way


@contextlib.asynccontextmanager
async def speaker(said: bytes, *, stays: bool = True) -> AsyncIterator[Address]:
    """A TCP server that reads, says this, and stays until the client leaves."""
    tasks = Tasks()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                await reader.read(1)
                writer.write(said)
                await writer.drain()
                while stays and await reader.read(65536):
                    pass
        finally:
            writer.close()

    server = await asyncio.start_server(lambda r, w: tasks.start(serve(r, w), "speaker") and None, "127.0.0.1", 0)
    try:
        yield Address(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        await tasks.cancel()
        await server.wait_closed()


async def open_through(proxy: Address, timeout_s: float = 10.0) -> TurnConnection:
    return await open_turn_websocket("wss://relay.test/turn", proxy=Proxy(proxy), timeout_s=timeout_s)


async def test_errors_name_the_proxy_where_it_is_the_proxy(tmp_path: Path) -> None:
    del tmp_path
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        nobody = Address(*gone.getsockname())
        with pytest.raises(UpstreamError, match=f"the proxy {nobody}: .*(refused|Connect call failed)"):
            await open_through(nobody)
    with pytest.raises(UpstreamError, match=r"the proxy no\.\.where:3128: "):
        await open_through(Address("no..where", 3128))
    async with speaker(b"") as silent:
        with pytest.raises(UpstreamError, match=f"the proxy {silent}: no tunnel within 0.1 s"):
            await open_turn_tls(
                Address("relay.test", 443),
                ssl_context=Endpoint.parse(
                    "wss://x", ssl_context=None, server_hostname=None, proxy=None, timeout_s=1
                ).ssl_context,
                proxy=Proxy(silent),
                timeout_s=0.1,
            )
    for said, text in (
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "refuses the tunnel: 502 Bad Gateway"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nx", "speaks before TLS has begun"),
        (b"\x16\x03\x01", "did not answer in HTTP"),
    ):
        async with speaker(said) as proxy:
            with pytest.raises(UpstreamError, match=f"the proxy {proxy} {text}"):
                await open_through(proxy)
    async with speaker(b"HTTP/1.1 200 OK\r\n\r\n") as proxy:  # and then nothing of TLS
        with pytest.raises(UpstreamError, match=f"relay.test:443 through the proxy {proxy}: no TLS connection within"):
            await open_through(proxy, 0.2)


async def test_cut_on_the_way_through_a_proxy_names_both(tmp_path: Path) -> None:
    async with scripted_relay(tmp_path, hold) as relay, connect_proxy() as proxy:
        turn = await open_turn_websocket(
            f"wss://{relay.address}/turn", ssl_context=relay.trust, server_hostname="relay.test", proxy=proxy.url
        )
        proxy.cut()
        with pytest.raises(UpstreamError, match=f"the server or the proxy {proxy.address} closed the connection"):
            await turn.closed
        await turn.close()


async def test_servers_that_do_not_speak_tls() -> None:
    for said in (b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""):
        async with speaker(said, stays=False) as server:
            with pytest.raises(UpstreamError, match=str(server)):
                await open_turn_websocket(f"wss://{server}/turn", timeout_s=5.0)


async def test_refusal_with_a_length_of_5000_digits(tmp_path: Path) -> None:
    """ValueError of int(), once."""

    async def script(line: Line) -> None:
        await line.reader.readuntil(b"\r\n\r\n")
        line.writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nno\n")

    async with scripted_relay(tmp_path, script, upgrades=False) as relay:
        with pytest.raises(UpstreamError, match="answered 403 Forbidden, expected 101: no"):
            await relay.open_session(**USER)


BAD_ARGUMENTS = [
    ("wss://relay.test:99999/turn", {}),
    ("wss://relay.test/turn", {"server_hostname": "a\r\nb"}),
    ("wss://" + "a" * 64 + "\u00e9.test/turn", {}),
    ("https://me:secret@relay.test/", {}),
]


@pytest.mark.parametrize(("url", "more"), BAD_ARGUMENTS)
async def test_arguments_that_no_connection_can_have(url: str, more: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|Port|port"):
        await open_turn_websocket(url, **more)


@pytest.mark.parametrize(
    "server", [Address("127.0.0.1", 0), Address("127.0.0.1", 70_000), Address("a\udc80", 443), Address("..", 443)]
)
async def test_servers_that_cannot_be(tmp_path: Path, server: Address) -> None:
    context = Endpoint.parse("wss://x", ssl_context=None, server_hostname=None, proxy=None, timeout_s=1).ssl_context
    with pytest.raises(UpstreamError):
        await open_turn_tls(server, ssl_context=context)
    async with connect_proxy() as proxy:
        with pytest.raises(UpstreamError):
            await open_turn_tls(server, ssl_context=context, proxy=proxy.url)


def test_endpoints_are_ascii() -> None:
    url = "wss://b\u00fccher.test/t\u00fcr ?q=%20\u00fc"
    one = Endpoint.parse(url, ssl_context=None, server_hostname=None, proxy=None, timeout_s=1)
    assert (one.host, one.target) == ("xn--bcher-kva.test", "/t%C3%BCr%20?q=%20%C3%BC")
