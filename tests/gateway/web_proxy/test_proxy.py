"""The web-proxy face with real clients: calls that end in the plane, tunnels, refusals, and nothing smuggled."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
import shutil
import socket
import unicodedata
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from aioice import turn
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from relay import deadlines
from relay.addresses import Address, source_of
from relay.client.turn import open_turn_tls
from relay.emulator.turn.slow import TurnHost
from relay.gateway.web_proxy import guesses, tunnel
from relay.gateway.web_proxy import http as proxy_http
from relay.gateway.web_proxy import web_proxy as webproxy
from relay.gateway.web_proxy.destinations import parse_authority
from relay.gateway.web_proxy.http import ProxyOutcome
from relay.gateway.web_proxy.tunnel import TunnelEnd
from relay.gateway.web_proxy.web_proxy import PAC_TYPE
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay, write_config
from tests.support.descriptors import no_descriptors
from tests.support.peers.aioice_client import Received, closed
from tests.support.peers.behind_turn import Inbox, echo_all_sizes, open_echo
from tests.support.peers.browser import CHROMIUM, browser
from tests.support.peers.connect import (
    Listener,
    ask,
    behind_proxy,
    connect_request,
    open_connect,
    open_socket,
    parse,
    receive_all,
    refused,
    same_port,
)
from tests.support.ssrf_table import PROHIBITED, PROHIBITED_LITERALS, FakeDns
from tests.support.waiting import becomes, eventually

CREDENTIALS = StaticCredentials({"trader": "secret"})
NO_UPSTREAM = Address("127.0.0.1", 9)
MEDIA_HOST = "use1-stun1.xhoot.com"
PLANES = pytest.mark.parametrize("plane", ["compiled", "reference"])
# Loopback alone: everything else of the classifier stays refused.
LOOPBACK = ["127.0.0.1/32"]


@contextlib.asynccontextmanager
async def proxying(
    folder: Path, *upstreams: Address, names: tuple[str, ...] = (), plane: str = "compiled", **sections: Any
) -> AsyncIterator[Relay]:
    """A relay with a web proxy, and a certificate of the firm's own CA for ``names`` in addition to its own."""
    listening = {"web_proxy": ["127.0.0.1:0"], "plane": plane}
    async with running_relay(folder, *(upstreams or (NO_UPSTREAM,)), listen=listening, **sections) as relay:
        if names:
            issued = relay.authority.issue(*names)
            added = {"certificate": str(issued.chain), "private_key": str(issued.private_key)}
            write_config(relay.config_file, {**relay.tree, "certificates": [*relay.tree["certificates"], added]})
            relay.gateway.reload(relay.config_file)
        yield relay


def proxy_of(relay: Relay) -> Address:
    return relay.gateway.web_proxy.addresses[0]


def outcomes(relay: Relay) -> dict[ProxyOutcome, int]:
    return dict(relay.gateway.web_proxy.totals.outcomes)


def ends(relay: Relay) -> dict[TunnelEnd, int]:
    return dict(relay.gateway.web_proxy.totals.ends)


def open_host() -> TurnHost:
    return TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True)


@contextlib.asynccontextmanager
async def tunnelling(
    folder: Path, *, behind: bytes = b"", **web_proxy: Any
) -> AsyncIterator[tuple[Relay, socket.socket, socket.socket]]:
    """A relay, and the two ends of a tunnel through it: the client's, and that of the server it asked for."""
    dns = FakeDns({"server.test": [["127.0.0.1"]]})
    with Listener() as server:
        target = f"server.test:{server.address.port}"
        rules = {"allow": [target], "allowed_networks": LOOPBACK, **web_proxy}
        async with proxying(folder, web_proxy=rules, lookup=dns) as relay:
            client = await open_connect(proxy_of(relay), target, behind=behind)
            with client, await server.accept() as served:
                yield relay, client, served


# Adopted


@PLANES
@pytest.mark.parametrize("together", [0, 1, 5, 100, 65536], ids="hello+{}".format)
async def test_call_of_a_client_that_believes_it_talks_to_the_vendor(tmp_path: Path, plane: str, together: int) -> None:
    inbox = Inbox()
    async with (
        open_host() as host,
        open_echo() as peer,
        proxying(tmp_path, host.address, names=(MEDIA_HOST,), plane=plane) as relay,
        behind_proxy(proxy_of(relay), f"{MEDIA_HOST}:443", together=together) as entrance,
    ):
        client = await open_turn_tls(
            entrance, "trader", "secret", ssl_context=relay.trust, server_hostname=MEDIA_HOST, on_data=inbox.put
        )
        async with client:
            await client.allocate()
            await client.bind_channel(peer)
            await echo_all_sizes(client, inbox, peer)
            [flow] = relay.gateway.plane.snapshot().flows
            assert flow.server_name == MEDIA_HOST
            assert flow.username == "trader"
            # The plane has it: it no longer counts as the web proxy's.
            await eventually(lambda: not relay.gateway.web_proxy.totals.connections)
        assert outcomes(relay) == {ProxyOutcome.ADOPTED: 1}


@PLANES
async def test_a_call_of_aioice(tmp_path: Path, plane: str) -> None:
    async with (
        open_host() as host,
        open_echo() as peer,
        proxying(tmp_path, host.address, names=(MEDIA_HOST,), plane=plane) as relay,
        behind_proxy(proxy_of(relay), f"{MEDIA_HOST}:443", together=65536) as entrance,
    ):
        transport, received = await turn.create_turn_endpoint(
            Received, server_addr=entrance, username="trader", password="secret", ssl=relay.trust, transport="tcp"
        )
        try:
            for size in range(0, 1400, 7):
                data = secrets.token_bytes(size)
                transport.sendto(data, peer)
                assert await received.data.get() == data
        finally:
            transport.close()
            await closed(transport)


@PLANES
async def test_the_relays_own_page(tmp_path: Path, plane: str) -> None:
    async with proxying(tmp_path, plane=plane) as relay:
        async with aiohttp.ClientSession() as session:
            for url in ("https://relay.test/", "https://ny.relay.test/", f"https://{relay.tls}/"):
                async with session.get(url, proxy=f"http://{proxy_of(relay)}", ssl=relay.trust) as response:
                    assert response.status == 200
                    assert "voice relay" in await response.text()
        assert outcomes(relay) == {ProxyOutcome.ADOPTED: 3}


@PLANES
async def test_a_client_that_goes_behind_its_connect(tmp_path: Path, plane: str) -> None:
    async with proxying(tmp_path, names=(MEDIA_HOST,), plane=plane) as relay:
        for behind in (b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n"):
            (await open_connect(proxy_of(relay), f"{MEDIA_HOST}:443", behind=behind)).close()
        await eventually(lambda: sum(relay.gateway.plane.snapshot().closed.values()) == 3)
        await becomes(lambda: relay.connections, 0)


async def test_a_wildcard_certificate_does_not_end_the_vendors_other_services(tmp_path: Path) -> None:
    dns = FakeDns({"c9rest.xhoot.com": [["10.0.0.1"]]})
    async with proxying(tmp_path, names=("*.xhoot.com",), lookup=dns) as relay:
        (await open_connect(proxy_of(relay), f"{MEDIA_HOST}:443")).close()
        # It would have been passed on, had its name another address.
        assert (await refused(proxy_of(relay), "c9rest.xhoot.com:443")).status == 403
        assert outcomes(relay) == {ProxyOutcome.ADOPTED: 1, ProxyOutcome.DESTINATION_IP_PROHIBITED: 1}


async def test_without_a_certificate_a_media_host_is_passed_on(tmp_path: Path) -> None:
    dns = FakeDns({MEDIA_HOST: [["10.0.0.1"]]})
    async with proxying(tmp_path, lookup=dns) as relay:
        assert (await refused(proxy_of(relay), f"{MEDIA_HOST}:443")).status == 403
        assert dns.asked == [MEDIA_HOST]


# Tunnels


async def test_tunnel_is_byte_exact_both_ways_at_once(tmp_path: Path) -> None:
    loop, data = asyncio.get_running_loop(), secrets.token_bytes(8 * 1024 * 1024)
    digest = hashlib.sha256(data).digest()

    async def send(end: socket.socket) -> None:
        await loop.sock_sendall(end, data)
        end.shutdown(socket.SHUT_WR)

    async with tunnelling(tmp_path) as (relay, client, server):
        _, _, up, down = await asyncio.gather(send(client), send(server), receive_all(server), receive_all(client))
        assert hashlib.sha256(up).digest() == digest
        assert hashlib.sha256(down).digest() == digest
        await eventually(lambda: ends(relay) == {TunnelEnd.CLOSED: 1})
        carried = relay.gateway.web_proxy.totals.bytes
        assert (carried.up, carried.down) == (len(data), len(data))
        assert relay.gateway.web_proxy.totals.tunnels == 0


async def test_whoever_does_not_read_slows_down_whoever_writes(tmp_path: Path) -> None:
    # More than all kernels between hold: without backpressure it would be in the relay's memory.
    loop, data = asyncio.get_running_loop(), bytes(64 * 1024 * 1024)
    async with tunnelling(tmp_path) as (relay, client, server):
        carried = relay.gateway.web_proxy.totals.bytes
        sending = asyncio.ensure_future(loop.sock_sendall(client, data))
        before = -1
        while carried.up != before:  # until nothing moves
            before = carried.up
            await asyncio.sleep(0.2)
        assert not sending.done()
        assert carried.up < len(data)
        # The other direction does not wait for this one.
        await loop.sock_sendall(server, b"still here")
        assert await loop.sock_recv(client, 100) == b"still here"
        received = 0
        while received < len(data):
            received += len(await loop.sock_recv(server, 1 << 20))
        await sending
        assert received == len(data)


async def test_half_close(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with tunnelling(tmp_path) as (relay, client, server):
        await loop.sock_sendall(client, b"all I say")
        client.shutdown(socket.SHUT_WR)
        assert await receive_all(server) == b"all I say"
        for number in range(10):
            await loop.sock_sendall(server, b"%d" % number)
        assert relay.gateway.web_proxy.totals.tunnels == 1
        server.shutdown(socket.SHUT_WR)
        assert await receive_all(client) == b"0123456789"
        await eventually(lambda: ends(relay) == {TunnelEnd.CLOSED: 1})


async def test_what_comes_with_the_connect_is_not_lost(tmp_path: Path) -> None:
    behind = secrets.token_bytes(3000)
    async with tunnelling(tmp_path, behind=behind) as (_, client, server):
        await asyncio.get_running_loop().sock_sendall(client, b"and more")
        client.shutdown(socket.SHUT_WR)
        assert await receive_all(server) == behind + b"and more"


@pytest.mark.parametrize("breaks", ["client", "server"])
async def test_a_reset_is_passed_on(tmp_path: Path, breaks: str) -> None:
    async with tunnelling(tmp_path) as (relay, client, server):
        broken, other = (client, server) if breaks == "client" else (server, client)
        broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        broken.close()
        with pytest.raises(ConnectionResetError):
            await receive_all(other)
        await eventually(lambda: ends(relay) == {TunnelEnd.RESET: 1})


async def test_a_tunnel_that_carries_nothing_ends(tmp_path: Path) -> None:
    async with tunnelling(tmp_path, idle_timeout_s=0.1) as (relay, client, server):
        assert await receive_all(client) == b""
        assert await receive_all(server) == b""
        await becomes(lambda: ends(relay), {TunnelEnd.IDLE: 1})


async def test_what_a_tunnel_carries_moves_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "IDLE_STEPS", 1e9)
    async with deadlines.timeout(1000) as deadline:
        patience = tunnel._Patience(deadline, 1000)
        await asyncio.sleep(0.01)
        before = deadline.when() or 0.0
        patience.renew()
        assert (deadline.when() or 0.0) > before


async def test_of_several_addresses_the_first_that_answers() -> None:
    with same_port(listens=False) as (first, second):
        both = [first.address, second.address]
        with await tunnel.connect_any(both, 10) as connected:
            assert connected.getpeername() == second.address
        with pytest.raises(ConnectionRefusedError):
            await tunnel.connect_any(both[:1], 10)


# What is never connected to


async def test_ssrf_table_of_literals(tmp_path: Path) -> None:
    with Listener() as server:
        port = server.address.port
        async with proxying(tmp_path) as relay:
            for row, host in PROHIBITED.items():
                written = f"[{host}]" if ":" in host else host
                answer = await refused(proxy_of(relay), f"{written}:{port}")
                # A zone is nothing that a CONNECT may have.
                assert answer.status == (400 if "%" in host else 403), row
        assert server.untouched


async def test_ssrf_table_behind_names(tmp_path: Path) -> None:
    # The name is allowed, so only the judgement of its addresses is between the client and them.
    dns = FakeDns()
    with Listener() as server:
        port = server.address.port
        async with proxying(tmp_path, web_proxy={"allow": [f"*.ssrf.test:{port}"]}, lookup=dns) as relay:
            for number, (row, literal) in enumerate(PROHIBITED_LITERALS.items()):
                dns.answer(f"n{number}.ssrf.test", literal)
                answer = await refused(proxy_of(relay), f"n{number}.ssrf.test:{port}")
                assert answer.status == 403, row
                assert answer.fields["proxy-status"] == "relay; error=destination_ip_prohibited"
            assert outcomes(relay) == {ProxyOutcome.DESTINATION_IP_PROHIBITED: len(PROHIBITED_LITERALS)}
        assert len(dns.asked) == len(PROHIBITED_LITERALS)
        assert server.untouched


async def test_an_allow_list_does_not_make_an_address_permitted(tmp_path: Path) -> None:
    # The spelling fits no literal of the classifier, and the system's resolver would take it for 127.0.0.1.
    with Listener() as server:
        target = f"2130706433:{server.address.port}"
        async with proxying(tmp_path, web_proxy={"allow": [target]}) as relay:
            answer = await refused(proxy_of(relay), target)
            assert answer.fields["proxy-status"] == "relay; error=destination_ip_prohibited"
        assert server.untouched


async def test_an_answer_that_changes_between_check_and_connect(tmp_path: Path) -> None:
    dns = FakeDns({"moving.test": [["127.0.0.1"], ["127.0.0.2"]]})
    with same_port() as (wanted, attacked):
        target = f"moving.test:{wanted.address.port}"
        rules = {"allow": [target], "allowed_networks": LOOPBACK}
        async with proxying(tmp_path, web_proxy=rules, lookup=dns) as relay:
            with await open_connect(proxy_of(relay), target), await wanted.accept():
                # A second look-up would have given the other address.
                assert dns.asked == ["moving.test"]
            assert (await refused(proxy_of(relay), target)).status == 403
        assert attacked.untouched


@pytest.mark.parametrize("answers", [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]], ids=["first", "last"])
async def test_of_mixed_answers_only_the_permitted_are_tried(tmp_path: Path, answers: list[str]) -> None:
    # The permitted one refuses: the other must not be the way out.
    with same_port(listens=False) as (_, attacked):
        target = f"mixed.test:{attacked.address.port}"
        rules = {"allow": [target], "allowed_networks": LOOPBACK}
        async with proxying(tmp_path, web_proxy=rules, lookup=FakeDns({"mixed.test": [answers]})) as relay:
            answer = await refused(proxy_of(relay), target)
            assert answer.status == 502
            assert answer.fields["proxy-status"] == "relay; error=connection_refused"
        assert attacked.untouched


# Refusals


@pytest.mark.parametrize(
    ("request_bytes", "status", "says"),
    [
        (connect_request("www.example.com:443"), 403, "www.example.com"),
        (connect_request("xhoot.com:443"), 403, "web_proxy.allow"),
        (connect_request("a.b.c.xhoot.com:443"), 403, "/proxy.pac"),
        (connect_request("c9rest.xhoot.com:80"), 403, "port 80"),
        (connect_request(f"{MEDIA_HOST}:22"), 403, "port 22"),
        (connect_request("relay.test:22"), 403, "relay.test"),
        (connect_request("www.example.com"), 400, "host:port"),
        (connect_request("www.example.com:0"), 400, "host:port"),
        (connect_request("www.example.com:99999"), 400, "cannot|can read"),
        (connect_request("user@www.example.com:443"), 400, "host:port"),
        (connect_request("https://www.example.com/"), 400, ""),
        (connect_request("/"), 400, "host:port"),
        (connect_request("[::1%25lo]:443"), 400, ""),
        (b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n", 403, "only CONNECT"),
        (b"POST http://c9rest.xhoot.com/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 403, "only CONNECT"),
        (b"GET ftp://www.example.com/ HTTP/1.1\r\nHost: a\r\n\r\n", 403, "only CONNECT"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 403, "/proxy.pac"),
        (b"GET /proxy.pac/../ HTTP/1.1\r\nHost: a\r\n\r\n", 403, "/proxy.pac"),
        (b"POST /proxy.pac HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 405, "CONNECT"),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 405, "CONNECT"),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "CONNECT"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "cannot read this as an HTTP request"),
        (bytes.fromhex("16030100050100000100"), 400, "cannot read this as an HTTP request"),
        (b"\x05\x01\x00" + bytes(20), 400, "cannot read this as an HTTP request"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "cannot read this as an HTTP request"),
        (b"CONNECT relay.test:443 HTTP/1.1\nHost: a\n\n", 400, "cannot read this as an HTTP request"),
        (b"CONNECT \n\r\n", 400, "cannot read this as an HTTP request"),
        (b"GET /proxy.pac\r\n\r\n", 400, "cannot read this as an HTTP request"),
    ],
)
async def test_pages(tmp_path: Path, request_bytes: bytes, status: int, says: str) -> None:
    async with proxying(tmp_path) as relay:
        answer = await ask(proxy_of(relay), request_bytes)
        assert answer.status == status
        assert answer.body.startswith(f"{status} ")
        assert any(word in answer.body for word in says.split("|"))
        assert answer.fields["content-type"] == "text/plain; charset=utf-8"
        assert answer.fields["connection"] == "close"
        assert ("allow" in answer.fields) == (status == 405)
        assert sum(outcomes(relay).values()) == 1


GRANTED = "relay.test:443"


@pytest.mark.parametrize(
    "head",
    [
        connect_request("www.example.com:443"),
        connect_request("relay.test:22"),
        connect_request(GRANTED, "Content-Length: 40"),
        connect_request(GRANTED, "Content-Length: 00"),
        connect_request(GRANTED, "Content-Length: 0", "Content-Length: 0"),
        connect_request(GRANTED, "Content-Length: 0", "Transfer-Encoding: chunked"),
        connect_request(GRANTED, "Transfer-Encoding: chunked"),
        connect_request(GRANTED, "Content-Length: 5", "Content-Length: 6"),
        connect_request(GRANTED, "Content-Length: 5", "Transfer-Encoding: chunked"),
        connect_request(GRANTED, "Transfer-Encoding: chunked, identity"),
        connect_request(GRANTED, " folded: yes"),
        connect_request(GRANTED, "Bad\x00Name: a"),
        connect_request(GRANTED, "Value: a\x00b"),
        connect_request(GRANTED, "Value: a\rHost: b"),
        connect_request("relay.test:443\tHTTP/1.1"),
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
        b"POST http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
@pytest.mark.parametrize("at_once", [True, False], ids=["one segment", "two segments"])
async def test_nothing_behind_a_refusal_is_parsed(tmp_path: Path, head: bytes, *, at_once: bool) -> None:
    second = b"GET /proxy.pac HTTP/1.1\r\nHost: b\r\n\r\n" + connect_request(GRANTED)
    async with proxying(tmp_path) as relay:
        received = await ask(proxy_of(relay), *([head + second] if at_once else [head, second]))
        # One answer: parse() checks that nothing follows it.
        assert received.status in {200, 400, 403, 405}
        assert (received.status == 200) == head.startswith(b"GET /proxy.pac")
        assert ProxyOutcome.ADOPTED not in outcomes(relay)
        assert sum(outcomes(relay).values()) == 1


@pytest.mark.parametrize(
    ("answers", "status", "error"),
    [
        ([], 502, "dns_error"),
        (["127.0.0.1"], 502, "connection_refused"),
        (["255.255.255.255"], 502, "destination_unavailable"),
    ],
)
async def test_a_server_that_cannot_be_reached(tmp_path: Path, answers: list[str], status: int, error: str) -> None:
    rules = {"allow": ["server.test:9"], "allowed_networks": [*LOOPBACK, "255.255.255.255/32"]}
    async with proxying(tmp_path, web_proxy=rules, lookup=FakeDns({"server.test": [answers]})) as relay:
        answer = await refused(proxy_of(relay), "server.test:9")
        assert answer.status == status
        assert answer.fields["proxy-status"] == f"relay; error={error}"
        assert "server.test" in answer.body


async def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webproxy, "CONNECT_TIMEOUT_S", 0.2)
    with contextlib.ExitStack() as filling, socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        for _ in range(3):  # beyond its backlog the kernel drops every SYN
            waiting = filling.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        rules = {"allow": [f"server.test:{port}"], "allowed_networks": LOOPBACK}
        async with proxying(tmp_path, web_proxy=rules, lookup=FakeDns({"server.test": [["127.0.0.1"]]})) as relay:
            answer = await refused(proxy_of(relay), f"server.test:{port}")
            assert answer.status == 504
            assert answer.fields["proxy-status"] == "relay; error=connection_timeout"


# Users


def basic(credentials: str) -> str:
    return "Proxy-Authorization: Basic " + base64.b64encode(credentials.encode()).decode()


async def test_users(tmp_path: Path) -> None:
    users = {"alice": "open: sesame", "bob": "geheim ß"}
    with capture_logs() as lines:
        async with proxying(tmp_path, web_proxy={"users": users}) as relay:
            proxy = proxy_of(relay)
            for credentials in ("alice:open: sesame", "bob:geheim ß"):
                (await open_connect(proxy, GRANTED, basic(credentials))).close()
            wrong = [
                "alice:geheim ß",
                "alice:",
                "alice",
                "carol:open: sesame",
                ":",
                "alice:open: sesame\n",
                "ALICE:open: sesame",
            ]
            fields = [*map(basic, wrong), "Proxy-Authorization: Basic", "Proxy-Authorization: Basic !!!"]
            fields += ["Proxy-Authorization: Basic ß", basic("alice:").replace("Basic", "Basic\N{NO-BREAK SPACE}")]
            fields += ["Proxy-Authorization: Bearer x", "Proxy-Authorization: Basic " + "A" * 4000]
            fields += [basic("alice:open: sesame") + "\r\n" + basic("alice:wrong"), "Authorization: Basic x", "X: y"]
            for field in fields:
                answer = await refused(proxy, GRANTED, field)
                assert answer.status == 407, field
                assert answer.fields["proxy-authenticate"].startswith('Basic realm="')
            # Who may not ask does not hear what may be asked for.
            assert (await refused(proxy, "www.example.com:443")).status == 407
            # A browser has no name yet when it fetches this.
            assert (await ask(proxy, b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
            found = outcomes(relay)
            assert found[ProxyOutcome.ADOPTED] == 2
            assert (found[ProxyOutcome.CREDENTIALS_MISSING], found[ProxyOutcome.CREDENTIALS_WRONG]) == (
                3,
                len(fields) - 2,
            )
    told = repr(lines)
    assert [line["reason"] for line in lines if line["event"] == "web proxy refused"] == ["credentials_wrong"]
    assert "sesame" not in told
    assert base64.b64encode(b"alice:").decode()[:6] not in told


async def test_who_guesses_passwords_waits_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "FIRST_WAIT_S", 600.0)  # until the end of the test
    monkeypatch.setattr(guesses, "MAX_WAIT_S", 600.0)
    loop = asyncio.get_running_loop()
    async with proxying(tmp_path, web_proxy={"users": {"alice": "sesame", "bob": "sesame"}}) as relay:
        proxy = proxy_of(relay)
        for number in range(guesses.FREE_OF_NAME):
            assert (await refused(proxy, GRANTED, basic(f"alice:{number}"))).status == 407
        waiting = [await open_socket(proxy) for _ in range(guesses.MAX_WAITING)]
        try:
            for one in waiting:
                # The right one among them: it is not even looked at.
                await loop.sock_sendall(one, connect_request(GRANTED, basic("alice:sesame")))
            source = relay.gateway.web_proxy._guesses._sources["127.0.0.1"]
            await becomes(lambda: source.names[guesses._key("alice")].waiting, guesses.MAX_WAITING)
            for guess in ("wrong", "sesame"):
                answer = await refused(proxy, GRANTED, basic(f"alice:{guess}"))
                assert (answer.status, answer.fields["retry-after"]) == (429, "4")
            # Another user here, and the same one elsewhere.
            (await open_connect(proxy, GRANTED, basic("bob:sesame"))).close()
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as elsewhere:
                elsewhere.bind(("127.0.0.9", 0))
                await loop.sock_connect(elsewhere, proxy)
                await loop.sock_sendall(elsewhere, connect_request(GRANTED, basic("alice:sesame")))
                assert (await loop.sock_recv(elsewhere, 4096)).startswith(b"HTTP/1.1 200 ")
        finally:
            for one in waiting:
                one.close()
        assert outcomes(relay) == {
            ProxyOutcome.CREDENTIALS_WRONG: guesses.FREE_OF_NAME,
            ProxyOutcome.TOO_MANY_GUESSES: 2,
            ProxyOutcome.ADOPTED: 2,
        }


async def test_a_wrong_password_is_told_for_each_client(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with capture_logs() as lines:
        async with proxying(tmp_path, web_proxy={"users": {"alice": "sesame"}}) as relay:
            for source in ("127.0.0.1", "127.0.0.8", "127.0.0.1"):
                with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
                    client.bind((source, 0))
                    await loop.sock_connect(client, proxy_of(relay))
                    await loop.sock_sendall(client, connect_request(GRANTED, basic("alice:wrong")))
                    assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 407 ")
    told = [line for line in lines if line["event"] == "web proxy refused"]
    assert [line["client"].partition(":")[0] for line in told] == ["127.0.0.1", "127.0.0.8"]
    assert told[0]["cause"].startswith("Name or password is wrong")


@pytest.mark.parametrize("name", ["user@firm.example", "FIRM\\user", "FIRM\\Jörg Müller", "O'Neill, Ann"])
async def test_names_of_a_directory_and_passwords_as_clients_encode_them(tmp_path: Path, name: str) -> None:
    async with proxying(tmp_path, web_proxy={"users": {name: "geheim ß é"}}) as relay:
        composed = f"{name}:geheim ß é"
        good = [composed.encode(), composed.encode("latin-1"), unicodedata.normalize("NFD", composed).encode()]
        for credentials in good:
            field = "Proxy-Authorization: Basic " + base64.b64encode(credentials).decode()
            (await open_connect(proxy_of(relay), GRANTED, field)).close()
        # Neither the Latin-1 reading of UTF-8 bytes, nor what is left without bytes that are not UTF-8.
        for credentials in (composed.encode().decode("latin-1").encode(), composed.encode() + b"\xff"):
            field = "Proxy-Authorization: Basic " + base64.b64encode(credentials).decode()
            assert (await refused(proxy_of(relay), GRANTED, field)).status == 407


async def test_a_password_whose_latin_1_bytes_are_utf_8_of_another(tmp_path: Path) -> None:
    async with proxying(tmp_path, web_proxy={"users": {"alice": "Ã©"}}) as relay:
        field = "Proxy-Authorization: Basic " + base64.b64encode("alice:Ã©".encode("latin-1")).decode()
        (await open_connect(proxy_of(relay), GRANTED, field)).close()


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
async def test_connect_of_windows(tmp_path: Path, version: str) -> None:
    """Its own client says that there is no content; and a ticket of Kerberos fills 12 KB."""
    async with proxying(tmp_path, web_proxy={"users": {"alice": "secret"}}) as relay:
        for field, status in (
            (basic("alice:secret"), b"200 "),
            ("Proxy-Authorization: Negotiate " + "A" * 12_288, b"407 "),
        ):
            head = f"CONNECT {GRANTED} {version}\r\nUser-Agent: Mozilla/4.0 (compatible; MSIE 8.0; Win32)\r\n"
            head += (
                f"Host: {GRANTED}\r\nContent-Length: 0\r\nProxy-Connection: Keep-Alive\r\nPragma: no-cache\r\n{field}"
            )
            with await open_socket(proxy_of(relay)) as connected:
                await asyncio.get_running_loop().sock_sendall(connected, head.encode() + b"\r\n\r\n")
                answer = await asyncio.get_running_loop().sock_recv(connected, 65536)
            assert answer.startswith(b"HTTP/1.1 " + status)


# proxy.pac


async def test_pac(tmp_path: Path) -> None:
    async with proxying(tmp_path) as relay, aiohttp.ClientSession() as session:
        proxy = proxy_of(relay)
        for path in ("/proxy.pac", "/wpad.dat", "/proxy.pac?v=2", "/wpad.da", "/WPAD.DAT", "/Proxy.Pac?", "/wpad.DA"):
            answer = await ask(proxy, f"GET {path} HTTP/1.1\r\nHost: wpad.firm.example\r\n\r\n".encode())
            assert answer.status == 200
            assert answer.fields["content-type"] == PAC_TYPE
            assert f"PROXY wpad.firm.example:{proxy.port}" in answer.body
            assert "FindProxyForURL" in answer.body
            assert '"xhoot.com"' in answer.body
        head = await ask(proxy, b"HEAD /wpad.dat HTTP/1.0\r\n\r\n")
        assert (head.status, head.body) == (200, "")
        assert int(head.fields["content-length"]) > 500
        # On the TLS port, with the port of the web proxy in it.
        for path in ("/proxy.pac", "/wpad.dat", "/wpad.da", "/WPAD.DAT", "/Proxy.PAC"):
            async with session.get(
                f"https://{relay.tls}{path}", ssl=relay.trust, headers={"Host": "voice.firm.example:8443"}
            ) as response:
                assert response.headers["Content-Type"].startswith(PAC_TYPE)
                assert f"PROXY voice.firm.example:{proxy.port}" in await response.text()


@pytest.mark.parametrize(
    "host", ['a";alert(1)//', "a b", "", "a;DIRECT", "[::1", "a\\u0022", "a/b", "-a", "a,b", "[::::]", "[1.2.3.4]:5"]
)
async def test_pac_takes_no_host_that_is_none(tmp_path: Path, host: str) -> None:
    async with proxying(tmp_path) as relay:
        answer = await ask(proxy_of(relay), f"GET /proxy.pac HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert answer.status == 400 or f'"PROXY {proxy_of(relay)}"' in answer.body


async def test_pac_with_a_name_of_its_own(tmp_path: Path) -> None:
    async with proxying(tmp_path, web_proxy={"advertise": "proxy.firm.example:8080"}) as relay:
        answer = await ask(proxy_of(relay), b"GET /proxy.pac HTTP/1.1\r\nHost: other\r\n\r\n")
        assert "PROXY proxy.firm.example:8080" in answer.body


async def test_no_pac_without_a_web_proxy(tmp_path: Path) -> None:
    async with (
        running_relay(tmp_path, NO_UPSTREAM) as relay,
        aiohttp.ClientSession() as session,
        session.get(f"https://{relay.tls}/proxy.pac", ssl=relay.trust) as response,
    ):
        assert response.status == 404
        assert "listen.web_proxy" in await response.text()


# Bounds


HEAD_PARTS = [
    *(
        b"CONNECT ",
        b"GET ",
        b"relay.test:443",
        b"[::1]:443",
        b"/proxy.pac",
        b"http://a/",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0",
    ),
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\x00",
        b"\xff",
        b"Host: a\r\n",
        b"Content-Length: 1\r\n",
        b"Content-Length: -1\r\n",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\n", b"\r\n\r\n", b":", b"%"),
    *(b"Sec-WebSocket-Key1: a\r\n", b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n"),
]


@pytest.mark.parametrize("bound", ["connections", "connections_per_source"])
async def test_connections_of_all_and_of_a_source(tmp_path: Path, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxying(tmp_path, web_proxy={bound: 2}) as relay:
        proxy, totals = proxy_of(relay), relay.gateway.web_proxy.totals
        with await open_socket(proxy), await open_socket(proxy):
            await eventually(lambda: totals.connections == 2)
            # It is told at once, without a request.
            answer = await ask(proxy)
            assert answer.status == 503
            assert answer.fields["proxy-status"] == "relay; error=connection_limit_reached"
            # One that is told why has its descriptor meanwhile: of these there is a bound, too.
            monkeypatch.setattr(webproxy, "TOLD_WHY", 0)
            with await open_socket(proxy) as told_nothing:
                assert await receive_all(told_nothing) == b""
        await eventually(lambda: totals.connections == 0)
        assert (await ask(proxy, b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200


async def test_networks_of_clients(tmp_path: Path) -> None:
    request = b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n"
    limits = {"exempt_networks": LOOPBACK}
    with capture_logs() as logged:
        async with proxying(tmp_path, web_proxy={"connections_per_source": 1}, limits=limits) as relay:
            proxy, totals = proxy_of(relay), relay.gateway.web_proxy.totals
            with await open_socket(proxy), await open_socket(proxy):
                await eventually(lambda: totals.connections == 2)
                assert (await ask(proxy, request)).status == 200
            write_config(relay.config_file, {**relay.tree, "access": {"deny": LOOPBACK}})
            relay.gateway.reload(relay.config_file)
            for _ in range(2):
                with await open_socket(proxy) as refused_one:
                    assert await receive_all(refused_one) == b""
            assert totals.outcomes[ProxyOutcome.NETWORK_REFUSED] == 2
    told = [one for one in logged if one.get("reason") == "network_refused"]
    assert {one["event"] for one in told} == {"web proxy refused"}


async def test_a_network_of_ipv6_is_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    # This machine has one IPv6 address of its own: two of IPv4 stand for a network.
    monkeypatch.setattr(webproxy, "source_of", lambda host: source_of(host.replace("127.0.0.", "2001:db8::")))
    async with proxying(tmp_path, web_proxy={"connections_per_source": 1}) as relay:
        proxy, totals = proxy_of(relay), relay.gateway.web_proxy.totals
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as neighbour:
            neighbour.bind(("127.0.0.9", 0))
            await loop.sock_connect(neighbour, proxy)
            await eventually(lambda: totals.connections == 1)
            answer = await ask(proxy)
        assert answer.status == 503
        assert "2001:db8::/" in answer.body


async def test_without_a_descriptor_left_newcomers_wait(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with proxying(tmp_path) as relay:
        with socket.socket() as client:
            client.setblocking(False)
            with no_descriptors():
                await loop.sock_connect(client, proxy_of(relay))
                await eventually(lambda: relay.gateway.web_proxy._acceptor._paused)
            await loop.sock_sendall(client, b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n")
            assert parse(await receive_all(client)).status == 200


async def test_slow_and_long_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxying(tmp_path) as relay:
        proxy = proxy_of(relay)
        one_by_one = [bytes([byte]) for byte in b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n"]
        assert (await ask(proxy, *one_by_one)).status == 200
        field = "X: " + "a" * 1000
        assert (await refused(proxy, GRANTED, *[field] * 40)).status == 431
        assert (await refused(proxy, GRANTED, "X: " + "a" * 40_000)).status == 431
        assert (await refused(proxy, "a" * 40_000)).status == 431
        assert (await ask(proxy, b"\r\n" * 20_000)).status == 431
        (await open_connect(proxy, GRANTED, "X: " + "a" * 20_000, *["A: b"] * 1000)).close()
        monkeypatch.setattr(proxy_http, "HEAD_TIMEOUT_S", 0.1)
        for first in (b"", b"CONN", connect_request(GRANTED)[:-2]):
            with await open_socket(proxy) as slow:
                await asyncio.get_running_loop().sock_sendall(slow, first)
                assert await receive_all(slow) == b""
        assert outcomes(relay)[ProxyOutcome.HEAD_TIMEOUT] == 3


@given(
    st.one_of(
        st.binary(max_size=300),
        st.lists(st.sampled_from(HEAD_PARTS), max_size=12).map(b"".join),
        st.tuples(st.just(connect_request("relay.test:443", "A: b")), st.integers(0, 60), st.binary(max_size=4)).map(
            lambda made: made[0][: made[1]] + made[2] + made[0][made[1] + 1 :]
        ),
    )
)
def test_whatever_comes_is_a_request_or_refused(data: bytes) -> None:
    async def read() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            with contextlib.suppress(proxy_http.ProxyRefusal, proxy_http.ClientGone):
                request, _ = await proxy_http.read_head(ours)
                if request.method == "CONNECT":
                    with contextlib.suppress(ValueError):
                        assert parse_authority(request.path).port

    uvloop.run(read())


async def test_a_page_is_read_by_a_client_that_still_sends(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with proxying(tmp_path) as relay:
        with await open_socket(proxy_of(relay)) as client:
            await loop.sock_sendall(client, b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
            await loop.sock_sendall(client, bytes(100_000))
            client.shutdown(socket.SHUT_WR)
            assert parse(await receive_all(client)).status == 403


async def test_log_of_refusals(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with proxying(tmp_path) as relay:
            for _ in range(5):
                await refused(proxy_of(relay), "www.example.com:443")
            for number in range(50):
                await refused(proxy_of(relay), f"h{number}.example.com:443")
            await ask(proxy_of(relay), b"GET http://a/\xff\x80" + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            assert outcomes(relay)[ProxyOutcome.HOST_REFUSED] == 55
    told = [line for line in lines if line["event"] == "web proxy refused"]
    [first] = [line for line in told if line["target"] == "www.example.com:443"]
    assert first["reason"] == "host_refused"
    assert first["client"].startswith("127.0.0.1:")
    assert len(told) < 40
    assert all(line["target"].isascii() and line["target"].isprintable() and len(line["target"]) < 100 for line in told)


# Life


async def test_reload_takes_rules_and_users(tmp_path: Path) -> None:
    async with proxying(tmp_path, lookup=FakeDns()) as relay:
        proxy = proxy_of(relay)
        assert (await refused(proxy, "new.test:443")).status == 403
        rules = {"allow": ["new.test"], "users": {"alice": "secret"}}
        write_config(relay.config_file, {**relay.tree, "web_proxy": rules})
        relay.gateway.reload(relay.config_file)
        assert (await refused(proxy, "new.test:443")).status == 407
        assert (await refused(proxy, "new.test:443", basic("alice:secret"))).status == 502


async def test_drain_lets_tunnels_run_and_stop_ends_them(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with tunnelling(tmp_path) as (relay, client, server):
        proxy = proxy_of(relay)
        late = await open_socket(proxy)
        await eventually(lambda: relay.gateway.web_proxy.totals.connections == 2)
        await relay.gateway.drain()
        with pytest.raises(ConnectionRefusedError):
            await open_socket(proxy)
        with late:
            await loop.sock_sendall(late, connect_request(GRANTED))
            assert parse(await receive_all(late)).status == 503
        await loop.sock_sendall(client, b"still")
        assert await loop.sock_recv(server, 10) == b"still"
        await relay.gateway.stop()
        assert await receive_all(client) == b""
        assert await receive_all(server) == b""
        await becomes(lambda: ends(relay), {TunnelEnd.STOPPED: 1})
        assert relay.gateway.web_proxy.totals.tunnels == 0


async def test_metrics(tmp_path: Path) -> None:
    async with tunnelling(tmp_path) as (relay, client, server), aiohttp.ClientSession() as session:
        await asyncio.get_running_loop().sock_sendall(client, b"12345")
        await asyncio.get_running_loop().sock_recv(server, 5)
        await refused(proxy_of(relay), "www.example.com:443")
        async with session.get(f"http://{relay.admin}/metrics") as response:
            text = await response.text()
    for line in (
        "relay_web_proxy_tunnels 1.0",
        'relay_web_proxy_requests_total{outcome="tunnel"} 1.0',
        'relay_web_proxy_requests_total{outcome="host_refused"} 1.0',
        'relay_web_proxy_requests_total{outcome="dns_timeout"} 0.0',
        'relay_web_proxy_tunnels_closed_total{reason="idle"} 0.0',
        'relay_web_proxy_bytes_total{direction="uplink"} 5.0',
    ):
        assert line in text.splitlines()


# Other people's clients


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl(tmp_path: Path) -> None:
    async with proxying(tmp_path, names=(MEDIA_HOST,), web_proxy={"users": {"alice": "secret"}}) as relay:

        async def curl(url: str, *options: str) -> tuple[int, str]:
            process = await asyncio.create_subprocess_exec(
                *("curl", "-sS", "--noproxy", "", "--max-time", "30", "-x", f"http://{proxy_of(relay)}"),
                *("--cacert", str(relay.authority.ca_certificate), *options, url),
                stdout=PIPE,
                stderr=PIPE,
            )
            out, err = await process.communicate()
            return process.returncode or 0, (out + err).decode()

        user = ("--proxy-user", "alice:secret")
        assert await curl(f"https://{MEDIA_HOST}/healthz", *user) == (0, "ok\n")
        # It asks first without a name, is told 407, and comes again.
        assert await curl(f"https://{MEDIA_HOST}/healthz", "--proxy-anyauth", *user) == (0, "ok\n")
        assert outcomes(relay) == {ProxyOutcome.ADOPTED: 2, ProxyOutcome.CREDENTIALS_MISSING: 1}
        code, said = await curl("https://www.example.com/", *user)
        assert (code, "403" in said) == (56, True)
        code, said = await curl("http://www.example.com/", *user)
        assert (code, "only CONNECT" in said) == (0, True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("by_pac", [True, False], ids=["proxy.pac", "proxy-server"])
async def test_chromium(tmp_path: Path, *, by_pac: bool) -> None:
    async with proxying(tmp_path, names=(MEDIA_HOST,)) as relay:
        proxy = proxy_of(relay)
        option = f"--proxy-pac-url=http://{proxy}/proxy.pac" if by_pac else f"--proxy-server=http://{proxy}"
        # Our CA is nobody's here; that the certificate is the right one is shown with curl.
        async with browser(option, "--ignore-certificate-errors") as page:
            await page.open(f"https://{MEDIA_HOST}/")
            await page.until("document.querySelector('h1').textContent === 'cloud9-relay'")
        found = outcomes(relay)
        assert found[ProxyOutcome.ADOPTED] >= 1
        assert (ProxyOutcome.PAC in found) == by_pac
