"""Behind a balancer: Debian's haproxy, and headers by hand; who the client is then, and what is no client at all."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from relay.errors import OperatorError
from relay.gateway import balancers
from relay.gateway.balancers import Check, HeaderFault
from relay.gateway.web_proxy.http import ProxyOutcome
from relay.plane.api import CloseReason
from relay.plane.certificates import HandshakeFailure
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay, write_config
from tests.support.peers.connect import ask, connect_request, open_socket, receive_all
from tests.support.peers.raw_http import receive_all as receive_answer
from tests.support.peers.raw_http import recording_upstream
from tests.support.peers.reverse_proxies import needs_reverse_proxies, open_balancer, open_configured
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually

CREDENTIALS = StaticCredentials({"trader": "secret"})
NO_UPSTREAM = Address("127.0.0.1", 9)
LOOPBACK = ["127.0.0.1/32"]
ALICE, BEN = "127.0.0.9", "127.0.0.10"
PLANES = pytest.mark.parametrize("plane", ["compiled", "reference"])
GET = b"GET / HTTP/1.1\r\nHost: relay.test\r\nConnection: close\r\n\r\n"


def line(client: str = "192.0.2.7", port: int = 40_000) -> bytes:
    """A header of version 1."""
    return f"PROXY TCP4 {client} 192.0.2.1 {port} 443\r\n".encode()


@contextlib.asynccontextmanager
async def behind(
    folder: Path, *upstreams: Address, plane: str = "compiled", networks: Any = LOOPBACK, **sections: Any
) -> AsyncIterator[Relay]:
    """A relay whose first address needs a header, and whose second takes none; so for the web proxy."""
    tls, proxies = ["127.0.0.1:0", "127.0.0.2:0"], ["127.0.0.1:0", "127.0.0.2:0"]
    listen = {"tls": tls, "web_proxy": proxies, "proxy_protocol": tls[:1], "plane": plane}
    sections = {"balancers": {"networks": networks}, **sections}
    async with running_relay(folder, *(upstreams or (NO_UPSTREAM,)), listen=listen, **sections) as relay:
        yield relay


def totals(relay: Relay) -> tuple[dict[Check, int], dict[HeaderFault, int]]:
    return dict(relay.gateway.balancers.totals.checks), dict(relay.gateway.balancers.totals.faults)


async def metric(relay: Relay, name: str) -> float:
    async with aiohttp.ClientSession() as http, http.get(f"http://{relay.admin}/metrics") as answer:
        text = await answer.text()
    [value] = [float(found.rpartition(" ")[2]) for found in text.splitlines() if found.startswith(f"{name} ")]
    return value


async def introduced(relay: Relay, header: bytes, *, server: Address | None = None) -> TlsClient:
    """A client whose balancer has said this of it, and who has shaken hands."""
    connected = await open_socket(server or relay.tls)
    await asyncio.get_running_loop().sock_sendall(connected, header)
    client = TlsClient(connected, relay.trust, "relay.test")
    try:
        await client.shake_hands()
    except BaseException:
        client.abort()
        raise
    return client


async def ends_at_once(server: Address, *parts: bytes) -> bytes:
    """What comes until the relay closes; a reset is an end, too."""
    received = b""
    with await open_socket(server) as connected, contextlib.suppress(ConnectionError):
        for part in parts:
            await asyncio.get_running_loop().sock_sendall(connected, part)
        received = await receive_all(connected)
    return received


def reset_at_once(server: Address) -> None:
    """Connect, and reset the connection before the relay can have looked at it: nothing else runs meanwhile."""
    with socket.create_connection(server) as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


def lines_of(logged: list[Any]) -> list[Any]:
    """What an operator reads of connections."""
    events = {"connection closed", "proxy header refused", "web proxy refused"}
    return [entry for entry in logged if entry["log_level"] != "debug" and entry["event"] in events]


# The true client


@needs_reverse_proxies
@PLANES
@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
async def test_the_client_of_haproxy_is_known_everywhere(tmp_path: Path, plane: str, option: str) -> None:
    with capture_logs() as logged:
        async with (
            TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host,
            recording_upstream() as upstream,
            behind(tmp_path, host.address, plane=plane, signaling={"upstreams": [upstream.url]}) as relay,
            open_balancer(relay.tls, option) as balancer,
        ):
            client = await TlsClient.open(balancer, relay.trust, source=ALICE)
            port = client.socket.getsockname()[1]
            await client.send(bytes.fromhex("000300002112a442") + bytes(12))
            await client.receive_unit()
            [flow] = relay.gateway.plane.snapshot().flows
            assert flow.client == Address(ALICE, port)
            await client.send(b"\xff" * 8)
            await client.closed_by_server()
            client.abort()
            web = await TlsClient.open(balancer, relay.trust, source=ALICE)
            await web.send(GET)
            assert (await receive_answer(web)).startswith(b"HTTP/1.1 200 ")
            assert f"X-Forwarded-For: {ALICE}\r\n".encode() in upstream.received
            await eventually(lambda: not relay.connections)
    assert [(entry["reason"], entry["client"]) for entry in lines_of(logged)] == [("broken_frame", f"{ALICE}:{port}")]


@PLANES
async def test_limits_count_the_true_client(tmp_path: Path, plane: str) -> None:
    async with behind(tmp_path, plane=plane, limits={"connections_per_source": 1}) as relay:
        first, other = await introduced(relay, line(ALICE)), await introduced(relay, line(BEN))
        with pytest.raises((ConnectionError, OSError)):
            await introduced(relay, line(ALICE))
        await becomes(lambda: relay.gateway.plane.snapshot().closed.get(CloseReason.TOO_MANY_CONNECTIONS), 1)
        first.abort()
        await eventually(lambda: relay.connections == 1)
        again = await introduced(relay, line(ALICE))
        for client in (other, again):
            client.abort()


@PLANES
async def test_lists_of_networks_are_for_the_true_client(tmp_path: Path, plane: str) -> None:
    async with behind(tmp_path, plane=plane, access={"deny": ["127.0.0.9/32"]}) as relay:
        with pytest.raises((ConnectionError, OSError)):
            await introduced(relay, line(ALICE))
        await becomes(lambda: relay.gateway.plane.snapshot().closed, {CloseReason.NETWORK_REFUSED: 1})
        (await introduced(relay, line(BEN))).abort()
        proxied = relay.gateway.web_proxy.addresses[0]
        with await open_socket(proxied) as refused:
            await asyncio.get_running_loop().sock_sendall(refused, line(ALICE))
            assert await receive_all(refused) == b""
        assert relay.gateway.web_proxy.totals.outcomes == {ProxyOutcome.NETWORK_REFUSED: 1}


@PLANES
@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7", "fe80::7"])
async def test_a_client_of_either_family(tmp_path: Path, plane: str, address: str) -> None:
    family = "TCP6" if ":" in address else "TCP4"
    header = f"PROXY {family} {address} {'::1' if family == 'TCP6' else '192.0.2.1'} 65535 443\r\n".encode()
    with capture_logs() as logged:
        async with behind(tmp_path, plane=plane) as relay:
            client = await introduced(relay, header)
            await client.send(b"\0\0\0\0\0\0\0\0")
            await client.closed_by_server()
            client.abort()
            await eventually(lambda: not relay.connections)
    [closed] = [entry for entry in logged if entry.get("reason") == "first_bytes_unknown"]
    assert closed["client"] == str(Address(address.removeprefix("::ffff:"), 65535))


@PLANES
async def test_header_and_handshake_at_every_split(tmp_path: Path, plane: str) -> None:
    async with behind(tmp_path, plane=plane) as relay:
        loop = asyncio.get_running_loop()
        for size in (1, 2, 5, 7, 48, 10_000):
            connected = await open_socket(relay.tls)
            client = TlsClient(connected, relay.trust, "relay.test")
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.do_handshake()
            begin = line() + client._outgoing.read()
            for at in range(0, len(begin), size):
                await loop.sock_sendall(connected, begin[at : at + size])
            await client.shake_hands()
            client.abort()
        assert totals(relay) == ({}, {})


async def test_the_web_proxy_knows_the_client(tmp_path: Path) -> None:
    with capture_logs() as logged:
        async with behind(tmp_path) as relay:
            write_config(relay.config_file, relay.tree)
            proxied, plain = relay.gateway.web_proxy.addresses
            outcomes = relay.gateway.web_proxy.totals.outcomes
            answer = await ask(proxied, line(ALICE) + connect_request("elsewhere.test:443"))
            assert answer.status == 403
            assert (await ask(proxied, line(), b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
            assert (await ask(plain, b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
            assert (await ask(plain, line(), connect_request("elsewhere.test:443"))).status == 400
            # A call through the proxy goes to the plane as the true client's.
            target = f"relay.test:{relay.tls.port}"
            with await open_socket(proxied) as connected:
                await asyncio.get_running_loop().sock_sendall(connected, line(BEN) + connect_request(target))
                await asyncio.get_running_loop().sock_recv(connected, 1000)
                await asyncio.get_running_loop().sock_sendall(connected, b"SSH-2.0-x\r\n")
                with contextlib.suppress(ConnectionError):
                    await receive_all(connected)
            assert outcomes[ProxyOutcome.HOST_REFUSED] == 1
            await eventually(lambda: not relay.connections)
    [refused] = [
        entry for entry in logged if entry["event"] == "web proxy refused" and entry["reason"] != "bad_request"
    ]
    assert refused["client"] == f"{ALICE}:40000"
    [closed] = [entry for entry in logged if entry.get("cause") == "not_tls"]
    assert closed["client"] == f"{BEN}:40000"


@PLANES
async def test_a_connection_has_one_id_from_its_first_byte_to_its_end(tmp_path: Path, plane: str) -> None:
    loop = asyncio.get_running_loop()
    with capture_logs() as logged:
        async with behind(tmp_path, plane=plane) as relay:
            proxied = relay.gateway.web_proxy.addresses[0]
            with await open_socket(proxied) as connected:
                await loop.sock_sendall(connected, line(BEN) + connect_request(f"relay.test:{relay.tls.port}"))
                granted = await loop.sock_recv(connected, 1000)
                await loop.sock_sendall(connected, b"SSH-2.0-x\r\n")
                with contextlib.suppress(ConnectionError):
                    await receive_all(connected)
            await eventually(lambda: [entry for entry in logged if entry.get("cause") == "not_tls"])
            page = await ask(proxied, line(ALICE) + connect_request("elsewhere.test:443"))
            pac = await ask(proxied, line(ALICE), b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n")
            check = await ends_at_once(relay.tls, b"GET / HTTP/1.0\r\n\r\n")
            await ends_at_once(relay.tls, b"SSH-2.0-x\r\n")
            client = await introduced(relay, line(ALICE))
            await client.send(b"\0\0\0\0\0\0\0\0")
            await client.closed_by_server()
            client.abort()
            await eventually(lambda: not relay.connections)

    def id_of(event: str, **fields: str) -> str:
        [entry] = [entry for entry in logged if entry["event"] == event and fields.items() <= entry.items()]
        return str(entry["connection"])

    closed = id_of("connection closed", cause="not_tls")
    assert f"X-Relay-Id: {closed}\r\n".encode() in granted
    assert page.fields["x-relay-id"] == id_of("web proxy refused")
    assert f"X-Relay-Id: {id_of('health check')}\r\n".encode() in check
    ids = {
        closed,
        id_of("web proxy refused"),
        pac.fields["x-relay-id"],
        id_of("health check"),
        id_of("proxy header refused"),
        id_of("connection closed", reason="first_bytes_unknown"),
    }
    assert len(ids) == 6
    assert all(relay.gateway.ids.connection_of(one) is not None for one in ids)


# Checks


@needs_reverse_proxies
@PLANES
@pytest.mark.parametrize(
    ("server", "check", "kinds"),
    [
        # The reset at the end may overtake the header.
        ("send-proxy-v2 check inter 20ms", "", {Check.LOCAL, Check.CONNECT}),
        ("send-proxy check inter 20ms", "", {Check.LOCAL, Check.CONNECT}),
        ("send-proxy-v2 check inter 20ms", "option httpchk GET /", {Check.HTTP}),
        # Told a port for its checks, haproxy sends no header with them. Without HTTP it then resets the connection
        # before the handshake of TCP is done, so there is nothing to see.
        ("send-proxy-v2 check inter 20ms port {port}", "option httpchk OPTIONS /", {Check.HTTP}),
    ],
)
async def test_checks_of_haproxy_are_silent(
    tmp_path: Path, plane: str, server: str, check: str, kinds: set[Check]
) -> None:
    async with (
        TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host,
        behind(tmp_path, host.address, plane=plane) as relay,
    ):
        await eventually(lambda: relay.gateway.ready)
        with capture_logs() as logged:
            async with open_balancer(relay.tls, server.format(port=relay.tls.port), check) as balancer:
                await eventually(lambda: sum(totals(relay)[0].values()) > 2)
                # It believes that the relay is there.
                client = await TlsClient.open(balancer, relay.trust, source=ALICE)
                client.abort()
                # Taken while haproxy runs: it may be stopped in the middle of a check.
                (checks, faults), told = totals(relay), [entry for entry in lines_of(logged) if ALICE not in str(entry)]
                shown = {kind: await metric(relay, f'relay_health_checks_total{{check="{kind}"}}') for kind in checks}
        assert set(checks) <= kinds
        assert (faults, told) == ({}, [])
        assert all(shown[kind] >= count for kind, count in checks.items())


@needs_reverse_proxies
@PLANES
@pytest.mark.parametrize("check", ["", "option httpchk GET /healthz"])
async def test_checks_of_haproxy_with_tls_are_silent(tmp_path: Path, plane: str, check: str) -> None:
    with capture_logs() as logged:
        async with behind(tmp_path, plane=plane) as relay:
            # haproxy gives up on a handshake that takes longer than the interval.
            options = "send-proxy-v2 check check-ssl verify none inter 60s"
            async with open_balancer(relay.tls, options, check):
                await becomes(lambda: totals(relay), ({Check.TLS: 1}, {}))
                assert relay.gateway.plane.snapshot().handshake_failures == {}
                assert await metric(relay, "relay_connections_accepted_total") == 0
    assert lines_of(logged) == []


@PLANES
async def test_what_asks_for_more_than_a_check_is_a_client(tmp_path: Path, plane: str) -> None:
    async with behind(tmp_path, plane=plane) as relay:
        plain = relay.gateway.tls[1]
        for number, request in enumerate((b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), 1):
            for reset in (False, True):
                client = await TlsClient.open(plain, relay.trust, "relay.test")
                if request:
                    await client.send(request)
                    await client.receive()
                client.reset() if reset else client.abort()
            await becomes(lambda number=number: totals(relay)[0], {Check.TLS: 2 * number})  # type: ignore[misc]
        with capture_logs() as logged:
            for request in (GET, b"GARBAGE\0\r\n\r\n", b"\xff" * 8):
                client = await TlsClient.open(plain, relay.trust, "relay.test")
                await client.send(request)
                with contextlib.suppress(ConnectionError):
                    await client.receive()
                client.reset()
            await eventually(lambda: not relay.connections)
            await eventually(lambda: [one for one in logged if one.get("reason") == "first_bytes_unknown"])
        assert totals(relay)[0] == {Check.TLS: 4}


async def test_checks_at_a_plain_web_proxy_are_counted_as_checks(tmp_path: Path) -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host, behind(tmp_path, host.address) as relay:
        await eventually(lambda: relay.gateway.ready)
        _, plain = relay.gateway.web_proxy.addresses
        outcomes = relay.gateway.web_proxy.totals.outcomes
        with capture_logs() as logged:
            for reset in (False, True):
                with await open_socket(plain) as connected:
                    if reset:
                        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            for method in ("GET", "HEAD", "OPTIONS"):
                assert (await ask(plain, f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())).status == 200
            relay.gateway.flows.draining = True
            assert (await ask(plain, b"GET / HTTP/1.0\r\n\r\n")).status == 503
            await becomes(lambda: totals(relay), ({Check.CONNECT: 2, Check.HTTP: 4}, {}))
        assert (outcomes, lines_of(logged)) == ({}, [])
        # What clients ask for is still answered.
        assert (await ask(plain, b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
        assert (await ask(plain, connect_request("elsewhere.test:443"))).status == 403
        with await open_socket(plain) as connected:
            await asyncio.get_running_loop().sock_sendall(connected, b"CONN")
        await becomes(lambda: outcomes[ProxyOutcome.CLIENT_CLOSED], 1)
        assert sum(totals(relay)[0].values()) == 6


async def test_a_client_of_a_plain_web_proxy_is_no_check(tmp_path: Path) -> None:
    async with behind(tmp_path, networks=["192.0.2.0/24"]) as relay:
        _, plain = relay.gateway.web_proxy.addresses
        with await open_socket(plain):
            pass
        assert (await ask(plain, b"GET / HTTP/1.0\r\n\r\n")).status == 403
        await becomes(
            lambda: relay.gateway.web_proxy.totals.outcomes,
            {ProxyOutcome.CLIENT_CLOSED: 1, ProxyOutcome.PLAIN_HTTP: 1},
        )
        assert totals(relay) == ({}, {})


# The documentation

PAGE = Path(__file__).parents[2] / "docs" / "balancers.md"
DOCUMENTED = re.findall(r"```(?:toml)?\n(.*?)```", PAGE.read_text(), re.DOTALL)
THE_RELAY, THE_BALANCER = "10.20.0.5:443", "10.20.0.1"
TIMEOUTS = "defaults\n    timeout connect 5s\n    timeout client 20s\n    timeout server 20s\n"


@needs_reverse_proxies
@PLANES
async def test_the_documented_example(tmp_path: Path, plane: str) -> None:
    of_relay, of_balancer = DOCUMENTED
    sections = tomllib.loads(of_relay.replace(THE_RELAY, "127.0.0.1:0").replace(THE_BALANCER, "127.0.0.1"))
    sections["listen"]["plane"] = plane
    text = TIMEOUTS + of_balancer.replace(f"{THE_BALANCER}:443", "{listen}").replace(THE_RELAY, "{upstream}")
    async with (
        TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host,
        running_relay(tmp_path, host.address, **sections) as relay,
    ):
        await eventually(lambda: relay.gateway.ready)
        with capture_logs() as logged:
            async with open_configured(relay.tls, text) as balancer:
                await eventually(lambda: totals(relay)[0].get(Check.HTTP))
                client = await TlsClient.open(balancer, relay.trust, source=ALICE)
                port = client.socket.getsockname()[1]
                await client.send(bytes.fromhex("000300002112a442") + bytes(12))
                await client.receive_unit()
                [flow] = relay.gateway.plane.snapshot().flows
                assert flow.client == Address(ALICE, port)
                client.abort()
                await eventually(lambda: not relay.connections)
        assert totals(relay)[1] == {}
        assert [entry for entry in lines_of(logged) if ALICE not in str(entry)] == []


@pytest.mark.parametrize("begin", [b"", b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"])
@pytest.mark.parametrize(
    "request_line", [b"GET / HTTP/1.0\r\n\r\n", b"HEAD / HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.0\r\n\r\n"]
)
async def test_a_check_over_http_is_told_whether_a_call_would_be_taken(
    tmp_path: Path, begin: bytes, request_line: bytes
) -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host, behind(tmp_path, host.address) as relay:
        await eventually(lambda: relay.gateway.ready)
        one_by_one = [bytes([byte]) for byte in begin + request_line]
        for parts in ([begin + request_line], [begin, request_line], one_by_one):
            answer = await ends_at_once(relay.tls, *filter(None, parts))
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\nready\n")
        relay.gateway.flows.draining = True
        assert (await ends_at_once(relay.tls, begin + request_line)).startswith(b"HTTP/1.1 503 ")
        assert totals(relay) == ({Check.HTTP: 4}, {})


async def test_without_an_upstream_a_check_is_told_so(tmp_path: Path) -> None:
    async with behind(tmp_path) as relay:
        await eventually(lambda: not relay.gateway.ready)
        assert (await ends_at_once(relay.tls, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 503 ")


async def test_a_connection_that_ends_without_a_word_is_a_check(tmp_path: Path) -> None:
    async with behind(tmp_path) as relay:
        for reset in (False, True):
            with await open_socket(relay.tls) as connected:
                if reset:
                    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        with await open_socket(relay.gateway.web_proxy.addresses[0]):
            pass
        await becomes(lambda: totals(relay), ({Check.CONNECT: 3}, {}))


@PLANES
async def test_checks_at_a_plain_address_are_silent_too(tmp_path: Path, plane: str) -> None:
    async with behind(tmp_path, plane=plane) as relay:
        plain = relay.gateway.tls[1]
        with capture_logs() as logged:
            assert await ends_at_once(plain, b"GET / HTTP/1.0\r\n\r\n") == b""
            with await open_socket(plain):
                pass
            reset_at_once(plain)
            await becomes(lambda: totals(relay)[0], {Check.HTTP: 1, Check.CONNECT: 2})
        assert lines_of(logged) == []
        assert await metric(relay, "relay_connections_accepted_total") == 0
        assert await metric(relay, 'relay_connections_closed_total{reason="handshake_failed"}') == 0
        for cause in ("plain_http", "client_closed"):
            assert await metric(relay, f'relay_handshake_failures_total{{cause="{cause}"}}') == 0
        assert relay.gateway.plane.snapshot().handshake_failures == {
            HandshakeFailure.PLAIN_HTTP: 1,
            HandshakeFailure.CLIENT_CLOSED: 2,
        }


@PLANES
async def test_a_client_at_a_plain_address_is_no_check(tmp_path: Path, plane: str) -> None:
    async with behind(tmp_path, plane=plane, networks=["192.0.2.0/24"]) as relay:
        with capture_logs() as logged:
            await ends_at_once(relay.gateway.tls[1], b"GET / HTTP/1.0\r\n\r\n")
            await eventually(lambda: not relay.connections)
            reset_at_once(relay.gateway.tls[1])
            await eventually(lambda: len(lines_of(logged)) == 2)
        assert [entry["cause"] for entry in lines_of(logged)] == ["plain_http", "client_closed"]
        assert all(entry["client"].startswith("127.0.0.1:") for entry in lines_of(logged))
        assert totals(relay) == ({}, {})
        assert not [entry for entry in logged if entry["event"] == "event failed"]


# What is refused


@pytest.mark.parametrize(
    ("parts", "detail"),
    [
        ([b"\x16\x03\x01\0\x05"], "expected a PROXY header first"),
        ([b"PRI * HTTP/2.0\r\n"], "expected a PROXY header first"),
        ([b"G", b"ARBAGE"], "expected a PROXY header first"),
        ([b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n"], "version 1: expected an address and a port of TCP4"),
        ([b"PROXY UNKNOWN " + b"a" * 200], "version 1: expected the line to end within 107 bytes"),
        ([b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x02ab"], "version 2: expected room for both addresses"),
    ],
)
@pytest.mark.parametrize("listener", ["tls", "web_proxy"])
async def test_a_connection_without_a_good_header_is_closed(
    tmp_path: Path, parts: list[bytes], detail: str, listener: str
) -> None:
    async with behind(tmp_path) as relay:
        server = relay.tls if listener == "tls" else relay.gateway.web_proxy.addresses[0]
        healthy = await introduced(relay, line())
        with capture_logs() as logged:
            assert await ends_at_once(server, *parts) == b""
            await becomes(lambda: totals(relay), ({}, {HeaderFault.BROKEN: 1}))
        [told] = lines_of(logged)
        assert (told["event"], told["reason"], told["detail"]) == ("proxy header refused", "broken", detail)
        await healthy.send(GET)
        assert (await receive_answer(healthy)).startswith(b"HTTP/1.1 200 ")


async def test_a_header_that_is_cut_off(tmp_path: Path) -> None:
    async with behind(tmp_path) as relay:
        with await open_socket(relay.tls) as connected:
            await asyncio.get_running_loop().sock_sendall(connected, line()[:-1])
        await becomes(lambda: totals(relay), ({}, {HeaderFault.BROKEN: 1}))


async def test_only_balancers_may_say_who_a_client_is(tmp_path: Path) -> None:
    async with behind(tmp_path, networks=["192.0.2.0/24", "::1/128"]) as relay:
        with capture_logs() as logged:
            for server in (relay.tls, relay.gateway.web_proxy.addresses[0]):
                assert await ends_at_once(server, line()) == b""
        assert totals(relay) == ({}, {HeaderFault.UNTRUSTED: 2})
        assert lines_of(logged)[0]["detail"] == "expected a balancer of balancers.networks"
        # From now on they may.
        write_config(relay.config_file, {**relay.tree, "balancers": {"networks": LOOPBACK}})
        relay.gateway.reload(relay.config_file)
        (await introduced(relay, line())).abort()


async def test_a_reload_does_not_shut_all_out(tmp_path: Path) -> None:
    """The listeners need their header until the next start."""
    async with behind(tmp_path) as relay:
        listen = {"tls": ["127.0.0.1:0"], "admin": "127.0.0.1:0"}
        write_config(relay.config_file, {**relay.tree, "listen": listen, "balancers": {}})
        with pytest.raises(
            OperatorError, match=r"relay\.toml: balancers\.networks: expected some until the next start"
        ):
            relay.gateway.reload(relay.config_file)
        (await introduced(relay, line())).abort()


@PLANES
@pytest.mark.parametrize("header", [line(), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"])
async def test_a_header_where_none_is_expected_is_told_apart(tmp_path: Path, plane: str, header: bytes) -> None:
    async with behind(tmp_path, plane=plane) as relay:
        with pytest.raises((ConnectionError, OSError)):
            await introduced(relay, header, server=relay.gateway.tls[1])
        await becomes(lambda: relay.gateway.plane.snapshot().handshake_failures, {HandshakeFailure.PROXY_HEADER: 1})


@pytest.mark.parametrize("begin", [b"", line()[:20], b"PROXY UNKNOWN\r\n", b"GET"])
async def test_one_that_says_no_more_is_closed_in_time(tmp_path: Path, begin: bytes) -> None:
    async with behind(tmp_path, limits={"handshake_timeout_s": 0.05}) as relay:
        assert await ends_at_once(relay.tls, begin) == b""
        assert totals(relay) == ({}, {HeaderFault.TIMEOUT: 1})


async def test_those_that_wait_for_a_header_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancers, "MAX_WAITING", 2)
    monkeypatch.setattr(balancers, "MAX_WAITING_OF_ONE", 2)
    async with behind(tmp_path) as relay:
        with await open_socket(relay.tls) as first, await open_socket(relay.gateway.web_proxy.addresses[0]):
            await eventually(lambda: relay.gateway.balancers._waiting.total() == 2)
            assert await ends_at_once(relay.tls, line()) == b""
            assert totals(relay) == ({}, {HeaderFault.TOO_MANY: 1})
            first.close()
            await becomes(lambda: totals(relay)[0], {Check.CONNECT: 1})
            (await introduced(relay, line())).abort()


async def test_a_balancer_that_has_stopped_shuts_out_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancers, "MAX_WAITING_OF_ONE", 1)
    async with behind(tmp_path, networks=["127.0.0.0/30"]) as relay:
        with await open_socket(relay.tls):
            await eventually(lambda: relay.gateway.balancers._waiting.total() == 1)
            assert await ends_at_once(relay.tls, line()) == b""
            with socket.create_connection(relay.tls, source_address=("127.0.0.2", 0)) as other:
                other.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(other, line(ALICE))
                await eventually(lambda: relay.connections == 1)
            assert totals(relay)[1] == {HeaderFault.TOO_MANY: 1}
        await becomes(lambda: relay.gateway.balancers._waiting, {})


# The end


@PLANES
async def test_a_lame_duck_says_so_and_serves(tmp_path: Path, plane: str) -> None:
    limits = {"lame_duck_s": 3600}
    async with (
        TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host,
        behind(tmp_path, host.address, plane=plane, limits=limits) as relay,
    ):
        await eventually(lambda: relay.gateway.ready)
        lame = asyncio.create_task(relay.gateway.departure.be_lame_duck())
        await eventually(lambda: not relay.gateway.ready)
        check = b"GET / HTTP/1.0\r\n\r\n"
        assert (await ends_at_once(relay.tls, check)).startswith(b"HTTP/1.1 503 ")
        assert await metric(relay, "relay_draining") == 1
        client = await introduced(relay, line())
        await client.send(bytes.fromhex("000300002112a442") + bytes(12))
        await client.receive_unit()
        client.abort()
        # A browser is asked to come back on another connection, which the balancer leads elsewhere.
        web = await introduced(relay, line())
        await web.send(GET.replace(b"Connection: close\r\n", b""))
        assert b"\r\nConnection: close\r\n" in await receive_answer(web)
        lame.cancel()
        await asyncio.wait([lame])


async def test_a_drain_takes_nobody(tmp_path: Path) -> None:
    async with behind(tmp_path, limits={"drain_timeout_s": 1}) as relay:
        healthy = await introduced(relay, line())
        await relay.gateway.drain()
        with pytest.raises(ConnectionRefusedError):
            await open_socket(relay.tls)
        await healthy.send(GET)
        assert (await receive_answer(healthy)).startswith(b"HTTP/1.1 200 ")


async def test_a_stop_ends_those_that_wait(tmp_path: Path) -> None:
    async with behind(tmp_path) as relay:
        connected = await open_socket(relay.tls)
        await eventually(lambda: relay.gateway.balancers._waiting.total() == 1)
    with connected:
        assert await asyncio.get_running_loop().sock_recv(connected, 1) == b""
