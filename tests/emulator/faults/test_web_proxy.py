"""The bad web proxy between our clients and a relay: what each fault does, and what the user is told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay import catalog
from relay.addresses import Address
from relay.client.carriers import open_turn_websocket
from relay.client.turn import TurnConnection
from relay.emulator.faults import pumps, web_proxy
from relay.emulator.faults.board import FaultBoard
from relay.emulator.faults.kinds import FaultSetting, Hop, Kind
from relay.emulator.faults.web_proxy import Forbidden, NameNotFound, WebProxy
from relay.emulator.turn.slow import TurnHost
from relay.errors import OperatorError, UpstreamError
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.coturn import PASSWORD, USERNAME
from tests.support.peers.own_clients import open_turn
from tests.support.waiting import becomes, eventually

CREDENTIALS = StaticCredentials({USERNAME: PASSWORD})
CARRIERS = ("tls", "websocket", "connect-udp")


def resolve(host: str, port: int) -> Address:
    if host == "gone.xhoot.com":
        raise NameNotFound
    if host != "127.0.0.1":
        raise Forbidden
    return Address(host, port)


@dataclass
class Bench:
    board: FaultBoard
    proxy: WebProxy
    relay: Relay
    host: TurnHost

    def put(self, kind: Kind, **setting: object) -> None:
        self.board.put(Hop.WEB_PROXY, kind, FaultSetting.model_validate(setting))

    async def call(self, carrier: str, inbox: Inbox | None = None, *, user: str = "") -> TurnConnection:
        """A TURN connection through the proxy and the relay, with an allocation."""
        on_data = (inbox or Inbox()).put
        proxy = f"http://{user}{self.proxy.address}"
        turn = await open_turn(carrier, self.relay, self.host.address, on_data=on_data, proxy=proxy, timeout_s=60.0)
        try:
            await turn.allocate()
        except BaseException:
            await turn.close()
            raise
        return turn


@contextlib.asynccontextmanager
async def bad_web_proxy(folder: Path) -> AsyncIterator[Bench]:
    board = FaultBoard(catalog.load())
    async with (
        TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host,
        running_relay(folder, host.address) as relay,
    ):
        proxy = WebProxy(board, resolve, relay.authority._issuer, relay.trust)
        await proxy.start(Address("127.0.0.1", 0))
        try:
            yield Bench(board, proxy, relay, host)
        finally:
            await proxy.close()
            await proxy.close()
            board.close()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_without_faults_every_carrier_passes(tmp_path: Path, carrier: str) -> None:
    async with bad_web_proxy(tmp_path) as bench, open_echo() as peer:
        inbox = Inbox()
        turn = await bench.call(carrier, inbox)
        await turn.bind_channel(peer)
        turn.send(peer, b"voice")
        assert await inbox.get() == (peer, b"voice")
        await turn.close()
        assert bench.proxy.counts["tunnels"] == 1
        await becomes(lambda: len(bench.proxy._tasks), 0)


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_407_is_told_to_the_user_and_a_password_helps(tmp_path: Path, carrier: str) -> None:
    async with bad_web_proxy(tmp_path) as bench:
        bench.put(Kind.PROXY_AUTHENTICATION, username="desk", password="right")
        for user in ("", "desk:wrong@"):
            with pytest.raises(UpstreamError, match="refuses the tunnel: 407 Proxy Authentication Required"):
                await bench.call(carrier, user=user)
        assert bench.proxy.counts["407"] == 2
        await (await bench.call(carrier, user="desk:right@")).close()


@pytest.mark.parametrize("carrier", ["websocket", "connect-udp"])
async def test_a_stripped_upgrade_names_the_proxy(tmp_path: Path, carrier: str) -> None:
    async with bad_web_proxy(tmp_path) as bench:
        bench.put(Kind.UPGRADE_STRIPPED)
        with pytest.raises(UpstreamError, match="a proxy on the way may have removed it"):
            await bench.call(carrier)
        assert bench.proxy.counts["inspected"] == 1
        bench.board.clear()
        await (await bench.call(carrier)).close()


async def test_turn_is_not_http_to_a_proxy_that_inspects(tmp_path: Path) -> None:
    async with bad_web_proxy(tmp_path) as bench:
        bench.put(Kind.UPGRADE_STRIPPED)
        with pytest.raises(UpstreamError, match="closed the connection"):
            await bench.call("tls")
        await becomes(lambda: bench.proxy.counts["not_http"], 1)


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_foreign_certificate_is_refused_by_the_client(tmp_path: Path, carrier: str) -> None:
    async with bad_web_proxy(tmp_path) as bench:
        bench.put(Kind.FOREIGN_CERTIFICATE)
        with pytest.raises(UpstreamError, match="certificate verify failed"):
            await bench.call(carrier)
        await becomes(lambda: bench.proxy.counts["broken"], 1)


async def test_a_user_who_trusts_anyone_gets_through_and_is_listened_to(tmp_path: Path) -> None:
    """A proxy that only ends TLS passes upgrades."""
    async with bad_web_proxy(tmp_path) as bench, open_echo() as peer:
        bench.put(Kind.FOREIGN_CERTIFICATE)
        careless = ssl.create_default_context()
        careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
        inbox = Inbox()
        turn = await open_turn_websocket(
            f"wss://{bench.relay.tls}/turn",
            USERNAME,
            PASSWORD,
            ssl_context=careless,
            server_hostname="relay.test",
            proxy=f"http://{bench.proxy.address}",
            on_data=inbox.put,
        )
        await turn.allocate()
        await turn.bind_channel(peer)
        turn.send(peer, b"voice")
        assert await inbox.get() == (peer, b"voice")
        assert bench.proxy.counts["inspected"] == 1
        await turn.close()


async def test_an_idle_connection_is_cut(tmp_path: Path) -> None:
    async with bad_web_proxy(tmp_path) as bench:
        # CONNECT-UDP sends no pings: nobody would answer them.
        turn = await bench.call("connect-udp")
        bench.put(Kind.IDLE_CUT, idle_s=0.2)
        with pytest.raises(UpstreamError, match="closed the connection"):
            await turn.closed
        await becomes(lambda: bench.proxy.counts["cut"], 1)
        await turn.close()


async def test_a_busy_connection_is_not_cut(tmp_path: Path) -> None:
    async with bad_web_proxy(tmp_path) as bench, open_echo() as peer:
        bench.put(Kind.IDLE_CUT, idle_s=5.0)
        inbox = Inbox()
        turn = await bench.call("websocket", inbox)
        await turn.bind_channel(peer)
        bench.board.clear()
        bench.put(Kind.IDLE_CUT, idle_s=5.0)
        for _ in range(5):
            turn.send(peer, b"voice")
            assert await inbox.get() == (peer, b"voice")
        assert bench.proxy.counts["cut"] == 0
        await turn.close()


async def test_a_stall_holds_voice_and_then_lets_go(tmp_path: Path) -> None:
    async with bad_web_proxy(tmp_path) as bench, open_echo() as peer:
        inbox = Inbox()
        turn = await bench.call("websocket", inbox)
        await turn.bind_channel(peer)
        bench.put(Kind.STALL, seconds=0.3)
        fault = bench.board.find(Hop.WEB_PROXY, Kind.STALL)
        assert fault is not None
        turn.send(peer, b"late")
        assert await inbox.get() == (peer, b"late")
        assert asyncio.get_running_loop().time() >= (fault.until or 0)
        await turn.close()


async def test_delay_is_in_both_directions(tmp_path: Path) -> None:
    async with bad_web_proxy(tmp_path) as bench, open_echo() as peer:
        inbox = Inbox()
        turn = await bench.call("tls", inbox)
        await turn.bind_channel(peer)
        bench.put(Kind.DELAY, delay_ms=100)
        loop = asyncio.get_running_loop()
        before = loop.time()
        for number in range(5):
            turn.send(peer, bytes([number]))
        assert [(await inbox.get())[1] for _ in range(5)] == [bytes([number]) for number in range(5)]
        assert loop.time() - before >= 0.2
        await turn.close()


# Requests that are refused


async def ask(bench: Bench, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*bench.proxy.address)
    writer.write(request)
    answer = await reader.read(200)
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("CONNECT gone.xhoot.com:443 HTTP/1.1", b"503 Service Unavailable"),
        ("CONNECT www.example.com:443 HTTP/1.1", b"403 Forbidden"),
        ("GET http://127.0.0.1/ HTTP/1.1", b"405 Method Not Allowed"),
        ("CONNECT nonsense HTTP/1.1", b"400 Bad Request"),
        ("CONNECT 127.0.0.1:99999 HTTP/1.1", b"400 Bad Request"),
        ("CONNECT \xe9:443 HTTP/1.1", b"403 Forbidden"),
    ],
)
async def test_what_the_proxy_refuses(tmp_path: Path, request_line: str, status: bytes) -> None:
    async with bad_web_proxy(tmp_path) as bench:
        answer = await ask(bench, request_line.encode("latin-1") + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
        assert bench.proxy.counts[status[:3].decode()] == 1


async def test_a_target_that_refuses(tmp_path: Path) -> None:
    async with bad_web_proxy(tmp_path) as bench:
        with contextlib.closing(await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)) as server:
            port = server.sockets[0].getsockname()[1]
        await server.wait_closed()
        answer = await ask(bench, f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


async def test_hostile_requests_end_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_proxy, "HEAD_TIMEOUT_S", 0.2)
    async with bad_web_proxy(tmp_path) as bench:
        for request in (
            b"",
            b"CONNECT",
            b"\x16\x03\x01" + bytes(40),
            b"C" * 40_000,
            b"CONNECT a:1 HTTP/1.1\r\nX: " * 900,
        ):
            # The end may be a reset.
            with contextlib.suppress(ConnectionError):
                assert await ask(bench, request) == b""
        await becomes(lambda: bench.proxy.counts["broken"], 5)


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_proxy, "MAX_CONNECTIONS", 1)
    async with bad_web_proxy(tmp_path) as bench:
        _, held = await asyncio.open_connection(*bench.proxy.address)
        await eventually(lambda: len(bench.proxy._tasks) == 1)
        with contextlib.suppress(ConnectionError):
            assert await ask(bench, b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n") == b""
        assert bench.proxy.counts["too_many"] == 1
        held.close()


async def test_one_direction_that_ends_lets_the_other_finish() -> None:
    board = FaultBoard(catalog.load())
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.put_nowait(await reader.read())
        writer.write(b"answer")
        writer.close()
        await writer.wait_closed()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beyond = await asyncio.open_connection(*origin.sockets[0].getsockname())
        assert not await pumps.carry((reader, writer), beyond, board)
        for one in (writer, beyond[1]):
            one.transport.abort()
        done.set()

    done = asyncio.Event()
    origin = await asyncio.start_server(server, "127.0.0.1", 0)
    front = await asyncio.start_server(proxy, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*front.sockets[0].getsockname())
    writer.write(b"question")
    writer.write_eof()
    assert await reader.read() == b"answer"
    assert await got.get() == b"question"
    await done.wait()
    writer.close()
    for listening in (origin, front):
        listening.close()
        await listening.wait_closed()
    board.close()


async def test_a_taken_port_is_an_operator_error(tmp_path: Path) -> None:
    async with bad_web_proxy(tmp_path) as bench:
        other = WebProxy(bench.board, resolve, bench.relay.authority._issuer, bench.relay.trust)
        with pytest.raises(OperatorError, match="web proxy on"):
            await other.start(bench.proxy.address)
        await other.close()
