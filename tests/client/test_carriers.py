"""TURN over WebSocket, CONNECT-UDP and TLS, directly and through a web proxy, and what is said where it fails."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.client.carriers import Endpoint, open_turn_websocket
from relay.client.connect import Proxy, ProxyError
from relay.client.turn import TurnConnection
from relay.client.upgraded import WebSocketClosed
from relay.emulator.turn.slow import TurnHost
from relay.errors import UpstreamError
from relay.plane.api import CloseReason
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.behind_turn import Inbox, echo_all_sizes, open_echo
from tests.support.peers.connect_proxy import connect_proxy
from tests.support.peers.coturn import PASSWORD, USERNAME, open_coturn
from tests.support.peers.own_clients import open_turn
from tests.support.waiting import becomes, eventually

CARRIERS = ("tls", "websocket", "connect-udp")
PLANES = ("compiled", "reference")
NOBODY = Address("127.0.0.1", 9)


@asynccontextmanager
async def relay_and_host(folder: Path, plane: str = "compiled") -> AsyncIterator[tuple[Relay, TurnHost]]:
    credentials = StaticCredentials({USERNAME: PASSWORD})
    async with (
        TurnHost(Address("127.0.0.1", 0), credentials, allow_loopback_peers=True) as host,
        running_relay(folder, host.address, listen={"plane": plane}) as relay,
    ):
        yield relay, host


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("carrier", CARRIERS)
async def test_echo_through_coturn(tmp_path: Path, carrier: str, plane: str) -> None:
    inbox = Inbox()
    async with (
        open_coturn() as coturn,
        open_echo() as peer,
        running_relay(tmp_path, coturn.address, listen={"plane": plane}) as relay,
    ):
        async with await open_turn(carrier, relay, coturn.address, on_data=inbox.put) as turn:
            assert await turn.binding() is not None
            await turn.allocate()
            await turn.create_permission(peer)
            await echo_all_sizes(turn, inbox, peer)
            assert await turn.bind_channel(peer) == 0x4000
            await echo_all_sizes(turn, inbox, peer)
            assert await turn.refresh(1200) == 1200
        await eventually(lambda: not relay.connections)
        # The Close frame came, or the end of TLS, and neither is a fault.
        await becomes(lambda: relay.gateway.plane.snapshot().closed, {CloseReason.CLIENT_CLOSED: 1})


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_through_a_web_proxy_with_a_password(tmp_path: Path, carrier: str) -> None:
    inbox = Inbox()
    async with relay_and_host(tmp_path) as (relay, host), open_echo() as peer, connect_proxy() as proxy:
        async with await open_turn(carrier, relay, host.address, on_data=inbox.put, proxy=proxy.url) as turn:
            await turn.allocate()
            await turn.bind_channel(peer)
            await echo_all_sizes(turn, inbox, peer)
            assert proxy.asked == [str(relay.tls)]
            proxy.cut()
            with pytest.raises(UpstreamError, match="closed the connection"):
                await turn.closed
        await eventually(lambda: not relay.connections)


PROXY_REFUSALS = [
    (None, "the proxy {proxy} refuses the tunnel: 407 Proxy Authentication Required"),
    (b"HTTP/1.1 403 Forbidden\r\n\r\n", "the proxy {proxy} refuses the tunnel: 403 Forbidden"),
    (b"SSH-2.0-OpenSSH\r\n\r\n", "the proxy {proxy} did not answer in HTTP"),
    (b"", "the proxy {proxy} closed the connection: end of stream"),
    (b"HTTP/1.1 200 OK\r\n\r\nhello", "the proxy {proxy} speaks before TLS has begun"),
    (b"HTTP/1.1 200 OK\r\n\r\n", "closed in the TLS handshake"),
]


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_proxies_that_refuse(tmp_path: Path, carrier: str) -> None:
    async with relay_and_host(tmp_path) as (relay, host), connect_proxy() as proxy:
        for refusal, text in PROXY_REFUSALS:
            proxy.refuses = refusal
            url = f"http://nobody:wrong@{proxy.address}"
            with pytest.raises(UpstreamError) as caught:
                await open_turn(carrier, relay, host.address, proxy=url)
            told = text.format(proxy=proxy.address)
            # How a TLS handshake ends that has no other side depends on who is first.
            assert told in str(caught.value) or refusal == PROXY_REFUSALS[-1][0], refusal
        with pytest.raises(UpstreamError):
            await open_turn(carrier, relay, host.address, proxy=f"http://{NOBODY}")


@pytest.mark.parametrize(
    ("offered", "logins"),
    [
        ((), ()),
        (("Negotiate", "NTLM", 'Basic realm="a, b=c"'), ("negotiate", "ntlm", "basic")),
        (('Digest realm="x", nonce="y", qop="auth", Basic realm="z"', "BASIC"), ("digest", "basic")),
    ],
)
async def test_a_proxy_that_wants_a_login_says_which(
    tmp_path: Path, offered: tuple[str, ...], logins: tuple[str, ...]
) -> None:
    async with relay_and_host(tmp_path) as (relay, host), connect_proxy() as proxy:
        fields = "".join(f"Proxy-Authenticate: {one}\r\n" for one in offered)
        proxy.refuses = f"HTTP/1.1 407 Login\r\n{fields}Content-Length: 0\r\n\r\n".encode()
        with pytest.raises(ProxyError) as caught:
            await open_turn("tls", relay, host.address, proxy=Proxy(proxy.address))
    assert (caught.value.status, caught.value.logins) == (407, logins)
    with pytest.raises(ProxyError) as caught:
        await open_turn("tls", relay, host.address, proxy=Proxy(NOBODY))
    assert (caught.value.status, caught.value.logins) == (0, ())


async def test_what_the_relay_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    async with relay_and_host(tmp_path) as (relay, _):
        cases: list[tuple[Callable[[], Awaitable[TurnConnection]], str]] = [
            (
                lambda: open_turn("connect-udp", relay, Address("8.8.8.8", 3478)),
                "answered 403 Forbidden, expected 101: 8.8.8.8: neither an upstream nor in the vendor's media networks",
            ),
            (
                lambda: open_turn_websocket(
                    f"wss://{relay.tls}/nothing", ssl_context=relay.trust, server_hostname="relay.test"
                ),
                "answered 404 Not Found, expected 101: 404: Not Found",
            ),
            (
                lambda: open_turn_websocket(
                    f"wss://{relay.tls}/media", ssl_context=relay.trust, server_hostname="relay.test"
                ),
                "expected media.v1 among them",
            ),
            (
                lambda: open_turn_websocket(f"wss://{relay.tls}/turn", ssl_context=ssl.create_default_context()),
                "CERTIFICATE_VERIFY_FAILED",
            ),
        ]
        for attempt, text in cases:
            with pytest.raises(UpstreamError) as caught:
                await attempt()
            assert text in str(caught.value)
        await eventually(lambda: not relay.connections)


async def test_stop_of_the_relay_is_told_by_its_close_frame(tmp_path: Path) -> None:
    async with relay_and_host(tmp_path) as (relay, host):
        turn = await open_turn("websocket", relay, host.address)
        await turn.allocate()
        await relay.gateway.stop()
        with pytest.raises(WebSocketClosed) as caught:
            await turn.closed
        assert (caught.value.code, caught.value.reason) == (1001, "stopped")
        await turn.close()


async def test_relay_that_never_answers() -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)
        connections.append(writer)

    connections: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/turn"
    with pytest.raises(UpstreamError, match=r"no (TLS connection|answer to the upgrade) within 0.1 s"):
        await open_turn_websocket(url, timeout_s=0.1)
    for writer in connections:
        writer.transport.abort()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("url", ["ws://relay.test/turn", "wss:///turn", "wss://a:hunter2@relay.test/", "relay.test"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="expected an address such as wss://") as caught:
        Endpoint.parse(url, ssl_context=None, server_hostname=None, proxy=None, timeout_s=1)
    assert "hunter2" not in str(caught.value)


def test_endpoints() -> None:
    def host(url: str, name: str | None = None) -> tuple[str, str]:
        one = Endpoint.parse(url, ssl_context=None, server_hostname=name, proxy=None, timeout_s=1)
        return one.host, one.target

    assert host("wss://relay.test/turn?a=1") == ("relay.test", "/turn?a=1")
    assert host("wss://relay.test:443") == ("relay.test", "/")
    assert host("https://relay.test:8443/x") == ("relay.test:8443", "/x")
    assert host("wss://[2001:db8::7]/turn") == ("[2001:db8::7]", "/turn")
    assert host("wss://127.0.0.1:99/turn", "relay.test") == ("relay.test:99", "/turn")


def test_proxies() -> None:
    assert Proxy.parse("http://proxy.test:3128") == Proxy(Address("proxy.test", 3128))
    assert Proxy.parse("http://a%40b:c%3Ad@[::1]:8080/") == Proxy(Address("::1", 8080), "a@b", "c:d")
    assert "secret" not in repr(Proxy.parse("http://me:secret@proxy.test"))
    for wrong in ("proxy.test:3128", "https://proxy.test", "http://", "http://proxy.test/path", "socks5://proxy.test"):
        with pytest.raises(ValueError, match=r"expected a proxy such as|Port"):
            Proxy.parse(wrong)
