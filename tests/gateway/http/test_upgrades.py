"""Requests that leave HTTP: which are taken, what the others are told, and that nothing after them is ever read."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from relay.gateway.routing.flows import UpgradeOutcome
from relay.plane.api import Carrier, CloseReason
from relay.turn.credentials import StaticCredentials
from relay.wire.upgrade import Response, build_websocket_request, check_websocket, parse_response
from relay.wire.websocket import Opcode, build_frame
from tests.support.benches.gateway import Relay, running_relay, write_config
from tests.support.messages import HELLO
from tests.support.peers.scripted_upstream import scripted_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HOST = "Host: relay.test"
WEBSOCKET = (
    HOST,
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Protocol: chat, turn",
)
CONNECT_UDP = (HOST, "Connection: Upgrade", "Upgrade: connect-udp", "Capsule-Protocol: ?1")
NOBODY = Address("127.0.0.1", 9)
# Pipelined after a refused upgrade, this must not be answered.
SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: relay.test\r\n\r\n"


def without(fields: Sequence[str], name: str) -> tuple[str, ...]:
    return tuple(field for field in fields if not field.startswith(f"{name}:"))


def changed(fields: Sequence[str], *new: str) -> tuple[str, ...]:
    """With these fields instead of those of their names."""
    kept = fields
    for field in new:
        kept = without(kept, field.partition(":")[0])
    return (*kept, *new)


def request(path: str, fields: Sequence[str], version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", *fields, "", ""]).encode()


async def answer(client: TlsClient) -> tuple[Response, bytes]:
    """The response, and what follows its head until the relay ends the connection."""
    data = b""
    while (head := parse_response(data)) is None:
        received = await client.receive()
        assert received, data
        data += received
    while head.status != 101 and (received := await client.receive()):
        data += received
    return head, data[head.size :]


async def ask(relay: Relay, *sent: bytes, server_name: str = "relay.test") -> tuple[Response, bytes]:
    client = await TlsClient.open(relay.tls, relay.trust, server_name)
    try:
        await client.send(*sent)
        return await answer(client)
    finally:
        client.abort()


def udp_path(target: Address | str, port: int | str = 0) -> str:
    host = target.host if isinstance(target, Address) else target
    return f"/.well-known/masque/udp/{host}/{port or (target.port if isinstance(target, Address) else 3478)}/"


def refused(relay: Relay, carrier: Carrier, outcome: UpgradeOutcome) -> int:
    return relay.gateway.flows.tally.upgrades[carrier, outcome]


BAD_WEBSOCKETS: list[tuple[Sequence[str], int, str]] = [
    (without(without(WEBSOCKET, "Upgrade"), "Connection"), 426, "no Upgrade: expected Upgrade: websocket"),
    (changed(WEBSOCKET, "Upgrade: h2c"), 426, "Upgrade: h2c: expected websocket"),
    (changed(WEBSOCKET, "Connection: keep-alive"), 400, "Connection: expected Upgrade among its values"),
    (without(WEBSOCKET, "Connection"), 400, "Connection: expected Upgrade among its values"),
    (without(WEBSOCKET, "Sec-WebSocket-Version"), 426, "Sec-WebSocket-Version: none: expected 13"),
    (changed(WEBSOCKET, "Sec-WebSocket-Version: 8"), 426, "Sec-WebSocket-Version: 8: expected 13"),
    ((*WEBSOCKET, "Sec-WebSocket-Version: 8"), 426, "Sec-WebSocket-Version: 13, 8: expected 13"),
    (without(WEBSOCKET, "Sec-WebSocket-Key"), 400, "Sec-WebSocket-Key: expected the Base64 of 16 bytes, once"),
    (changed(WEBSOCKET, "Sec-WebSocket-Key: c2hvcnQ="), 400, "Sec-WebSocket-Key: expected the Base64 of 16"),
    (changed(WEBSOCKET, "Sec-WebSocket-Key: not base64!"), 400, "Sec-WebSocket-Key: expected the Base64 of 16"),
    ((*WEBSOCKET, f"Sec-WebSocket-Key: {KEY}"), 400, "Sec-WebSocket-Key: expected the Base64 of 16 bytes, once"),
    (without(WEBSOCKET, "Sec-WebSocket-Protocol"), 400, "Sec-WebSocket-Protocol: none: expected turn among them"),
    (changed(WEBSOCKET, "Sec-WebSocket-Protocol: media.v1"), 400, "Sec-WebSocket-Protocol: media.v1: expected turn"),
    ((*WEBSOCKET, "Content-Length: 3"), 400, "a body: expected none before the 101"),
    # What follows is not a chunk.
    ((*WEBSOCKET, "Transfer-Encoding: chunked"), 400, "400: bad request"),
    ((*WEBSOCKET, "Origin: https://evil.example"), 403, "the page https://evil.example may not connect here"),
    ((*WEBSOCKET, "Origin: null"), 403, "the page null may not connect here (media.origins)"),
]


async def test_websockets_that_are_refused(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NOBODY, media={"origins": ["https://desk.example"]}) as relay:
        for fields, status, text in BAD_WEBSOCKETS:
            head, body = await ask(relay, request("/turn", fields), SMUGGLED)
            assert (head.status, body.decode()[: len(text)]) == (status, text), fields
            assert head.headers["content-type"].startswith("text/plain")
            assert "close" in head.headers.get("connection", "close")
            assert b"HTTP/1.1" not in body, fields
        assert refused(relay, Carrier.WEBSOCKET, UpgradeOutcome.BAD_REQUEST) == len(BAD_WEBSOCKETS) - 3
        assert refused(relay, Carrier.WEBSOCKET, UpgradeOutcome.FORBIDDEN) == 2
        await eventually(lambda: not relay.connections)
        await becomes(lambda: relay.gateway.plane.snapshot().closed, {CloseReason.HTTP_CLOSED: len(BAD_WEBSOCKETS)})


async def test_what_a_refusal_tells_beside_its_text(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NOBODY) as relay:
        head, _ = await ask(relay, request("/turn", (HOST,)))
        assert (head.status, head.headers["upgrade"]) == (426, "websocket")
        head, _ = await ask(relay, request("/turn", changed(WEBSOCKET, "Sec-WebSocket-Version: 8")))
        assert (head.status, head.headers["sec-websocket-version"]) == (426, "13")
        head, _ = await ask(relay, request("/turn", WEBSOCKET, "1.0"))
        assert head.status == 426
        for method in ("POST", "HEAD", "PUT", "OPTIONS"):
            head, body = await ask(relay, request("/media", WEBSOCKET, method=method), SMUGGLED)
            # To aiohttp, a HEAD with bytes after it is not a request at all.
            assert head.status in {405, 400}, method
            assert b"HTTP/1.1" not in body
            head, _ = await ask(relay, request("/media", WEBSOCKET, method=method))
            assert (head.status, head.headers["allow"]) == (405, "GET"), method
        for path in ("/turn", "/.well-known/masque/udp/127.0.0.1/3478/"):
            head, _ = await ask(relay, request(path, WEBSOCKET, method="HEAD"))
            assert head.status == 405
        # Any other page: bytes after an Upgrade that nobody takes are not read either.
        head, body = await ask(relay, request("/", WEBSOCKET), SMUGGLED)
        assert (head.status, head.headers["connection"]) == (200, "close")
        assert b"HTTP/1.1" not in body


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_websocket_that_is_taken(tmp_path: Path, plane: str) -> None:
    async with (
        scripted_upstream() as upstream,
        running_relay(tmp_path, upstream.address, listen={"plane": plane}) as relay,
    ):
        client = await TlsClient.open(relay.tls, relay.trust)
        # A page of any origin, and no extension is agreed to.
        extras = ("Origin: https://desk.example", "Sec-WebSocket-Extensions: permessage-deflate")
        await client.send(request("/turn", (*WEBSOCKET, *extras)))
        head, rest = await answer(client)
        check_websocket(head, KEY, "turn")
        assert "sec-websocket-extensions" not in head.headers
        assert (head.headers["server"], rest) == ("cloud9-relay", b"")
        await eventually(lambda: not relay.gateway._site._handlers)
        media = b"\x40\x00\x00\x04abcd"
        await client.send(build_frame(Opcode.BINARY, media, mask=b"mask"))
        while (received := await upstream.receive())[0] != media:
            pass  # probes
        flow = received[1]
        upstream.send(flow, b"\x40\x00\x00\x02hi")
        assert await client.receive() == build_frame(Opcode.BINARY, b"\x40\x00\x00\x02hi")
        (flow_seen,) = relay.gateway.plane.snapshot().flows
        assert flow_seen.carrier is Carrier.WEBSOCKET
        assert len(relay.gateway.flows) == 1
        client.abort()
        await eventually(lambda: not relay.connections and not len(relay.gateway.flows))
        assert refused(relay, Carrier.WEBSOCKET, UpgradeOutcome.ACCEPTED) == 1


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_bytes_before_the_101_are_never_read(tmp_path: Path, plane: str) -> None:
    early = build_frame(Opcode.BINARY, b"\x40\x00\x00\x00", mask=b"mask")
    async with (
        TurnHost(Address("127.0.0.1", 0), StaticCredentials({})) as host,
        running_relay(tmp_path, host.address, listen={"plane": plane}) as relay,
    ):
        udp = request(udp_path(host.address), CONNECT_UDP)
        websocket = request("/turn", WEBSOCKET)
        for whole in (websocket + early, websocket + SMUGGLED, udp + SMUGGLED, websocket * 2, udp * 2):
            head, body = await ask(relay, whole)
            assert head.status == 400
            assert b"HTTP/1.1" not in body
        # Split in the middle of the end of the head, and each byte by itself.
        head, _ = await ask(relay, websocket[:-1], websocket[-1:] + early)
        assert head.status == 400
        head, _ = await ask(relay, *(bytes([byte]) for byte in websocket))
        assert head.status == 101
        await eventually(lambda: not relay.connections)


async def test_no_upgrade_while_draining_or_without_an_upstream(tmp_path: Path) -> None:
    async with running_relay(
        tmp_path, {"address": NOBODY, "region": "use1"}, routes=[{"server_name": "relay.test", "region": "use1"}]
    ) as relay:
        await eventually(lambda: [one.health for one in relay.gateway.upstreams] == ["down"])
        head, body = await ask(relay, request("/turn", WEBSOCKET))
        assert (head.status, head.headers["retry-after"]) == (503, "5")
        assert body == b"no upstream of the region use1 is up\n"
        head, body = await ask(relay, request(udp_path("stun1", NOBODY.port), CONNECT_UDP))
        assert (head.status, head.headers["proxy-status"]) == (503, "relay; error=destination_unavailable")
        relay.gateway.flows.draining = True
        for path, fields in (
            ("/turn", WEBSOCKET),
            ("/media", changed(WEBSOCKET, "Sec-WebSocket-Protocol: media.v1")),
            (udp_path(NOBODY), CONNECT_UDP),
        ):
            head, body = await ask(relay, request(path, fields))
            assert (head.status, head.headers["retry-after"]) == (503, "5")
            assert body.startswith(b"the relay is about to stop")
        assert not relay.gateway.flows.tally.upgrades[Carrier.SESSION, UpgradeOutcome.ACCEPTED]


# Too many of one source


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_flows_of_one_source_without_an_allocation(tmp_path: Path, plane: str) -> None:
    limits = {"unallocated_flows_per_source": 1}
    async with (
        TurnHost(Address("127.0.0.1", 0), StaticCredentials({"trader": "secret"})) as host,
        running_relay(tmp_path, host.address, listen={"plane": plane}, limits=limits) as relay,
    ):
        first, second = await TlsClient.open(relay.tls, relay.trust), await TlsClient.open(relay.tls, relay.trust)
        await first.send(HELLO)
        await eventually(lambda: len(relay.gateway.flows) == 1)
        await second.send(HELLO)
        assert await second.closed_by_server()
        await becomes(lambda: relay.gateway.plane.snapshot().closed, {CloseReason.TOO_MANY_FLOWS: 1})
        head, body = await ask(relay, request("/turn", WEBSOCKET))
        assert (head.status, head.headers["retry-after"]) == (429, "5")
        assert body.decode() == (
            "too many flows of one source without an allocation: "
            "expected at most 1 (limits.unallocated_flows_per_source)\n"
        )
        assert refused(relay, Carrier.WEBSOCKET, UpgradeOutcome.TOO_MANY) == 1
        for client in (first, second):
            client.abort()
        await eventually(lambda: not len(relay.gateway.flows))
        async with await relay.open_turn("trader", "secret") as turn:
            await turn.allocate()
            # That one carries something now.
            head, _ = await ask(relay, request("/turn", WEBSOCKET))
            assert head.status == 101


async def test_sessions_that_one_source_opens_in_a_second(tmp_path: Path) -> None:
    """One may, so of ten at once some may not, even on a slow machine."""
    limits = {"session_opens_per_second_per_source": 1}
    opening = request("/media", changed(WEBSOCKET, "Sec-WebSocket-Protocol: media.v1"))

    async def open_ten(relay: Relay) -> list[tuple[Response, bytes]]:
        return await asyncio.gather(*(ask(relay, opening) for _ in range(10)))

    async with running_relay(tmp_path, NOBODY, limits=limits) as relay:
        answers = await open_ten(relay)
        assert {head.status for head, _ in answers} == {101, 429}
        told = {body.decode() for head, body in answers if head.status == 429}
        bound = "expected at most 1 (limits.session_opens_per_second_per_source)"
        assert told == {f"too many sessions of one source in a second: {bound}\n"}
        counted = len([head for head, _ in answers if head.status == 429])
        assert refused(relay, Carrier.SESSION, UpgradeOutcome.TOO_MANY) == counted
        write_config(relay.config_file, {**relay.tree, "limits": {**limits, "exempt_networks": ["127.0.0.0/8"]}})
        relay.gateway.reload(relay.config_file)
        assert {head.status for head, _ in await open_ten(relay)} == {101}


# CONNECT-UDP


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_connect_udp_to_an_upstream(tmp_path: Path, plane: str) -> None:
    async with (
        scripted_upstream() as upstream,
        scripted_upstream("::1") as other,
        running_relay(
            tmp_path,
            {"address": upstream.address, "name": "Use1-stun1"},
            {"address": other.address},
            listen={"plane": plane},
        ) as relay,
    ):
        for host, where in (
            (upstream.address.host, upstream),
            ("use1-STUN1", upstream),
            ("use1-stun1.", upstream),
            (f"%3A%3Affff%3A{upstream.address.host}", upstream),
            ("%3A%3A1", other),
            ("::1", other),
            ("0%3A0%3A0%3A0%3A0%3A0%3A0%3A1", other),
        ):
            client = await TlsClient.open(relay.tls, relay.trust)
            await client.send(request(udp_path(host, where.address.port), CONNECT_UDP))
            head, rest = await answer(client)
            assert (head.status, head.headers["upgrade"], rest) == (101, "connect-udp", b""), host
            assert head.headers["capsule-protocol"] == "?1"
            # Bare RTP; 62 bytes are the example of RFC 9298's framing.
            packet = b"\x80\x00" + bytes(60)
            await client.send(b"\x00\x3f\x00" + packet)
            while (received := await where.receive())[0] != packet:
                pass  # probes
            where.send(received[1], packet)
            assert await client.receive_exactly(65) == b"\x00\x3f\x00" + packet
            client.abort()
        await eventually(lambda: not relay.connections)


BAD_TARGETS: list[tuple[str, int, str | None, str]] = [
    # Neither the literal, nor in any other way to write it, nor by a name.
    (udp_path("127.0.0.1", 3478), 403, "destination_ip_prohibited", "127.0.0.1 may not be relayed to"),
    (udp_path("10.1.2.3", 3478), 403, "destination_ip_prohibited", "10.1.2.3 may not"),
    (udp_path("2130706433", 3478), 403, "destination_ip_prohibited", "2130706433: "),
    (udp_path("%3A%3Affff%3A127.0.0.1", 3478), 403, "destination_ip_prohibited", "::ffff:127.0.0.1 may not"),
    (udp_path("fe80%3A%3A1%25lo", 3478), 403, "destination_ip_prohibited", ""),
    (udp_path("inside.xhoot.com", 3478), 403, "destination_ip_prohibited", "inside.xhoot.com: 10.0.0.1 may not"),
    # Relayable, but none of the vendor's.
    (udp_path("8.8.8.8", 3478), 403, "destination_ip_prohibited", "8.8.8.8: neither an upstream nor in the vendor's"),
    (udp_path("dns.xhoot.com", 3478), 403, "destination_ip_prohibited", "dns.xhoot.com: neither an upstream nor"),
    # The vendor's, but no port of media.
    (udp_path("54.174.51.241", 53), 403, "destination_ip_prohibited", "port 53: expected 3478, or 16384 to 65535"),
    (udp_path("54.174.51.241", 443), 403, "destination_ip_prohibited", "port 443: "),
    (udp_path("54.174.51.241", 16383), 403, "destination_ip_prohibited", "port 16383: "),
    # An upstream's, but not its port; a port that is none.
    (udp_path("stun1", 53), 403, "destination_ip_prohibited", "port 53: "),
    (udp_path("stun1", 0x10000), 400, None, "port 65536: expected 1 to 65535"),
    (udp_path("stun1", "x"), 400, None, "port x: expected 1 to 65535"),
    (udp_path("stun1", "-1"), 400, None, "port -1: expected 1 to 65535"),
    (udp_path("stun1", "%D9%A3"), 400, None, "port "),
    (udp_path("[::1]", 3478), 400, None, "expected an IPv6 address without brackets"),
    (udp_path("nowhere.xhoot.com", 3478), 502, "dns_error", "nowhere.xhoot.com: "),
    (udp_path("nowhere.example", 3478), 403, "destination_ip_prohibited", "nowhere.example: neither an upstream nor "),
    (udp_path("stun.xhoot.com.example", 3478), 403, "destination_ip_prohibited", "stun.xhoot.com.example: neither "),
    (
        udp_path("secret.of.the.firm.xhoot.com", 3478),
        403,
        "destination_ip_prohibited",
        "secret.of.the.firm.xhoot.com: ",
    ),
    (udp_path("a%20b", 3478), 403, "destination_ip_prohibited", "a b: neither an upstream nor "),
    (udp_path("a%00b", 3478), 403, "destination_ip_prohibited", ""),
]
NAMES = {"inside.xhoot.com": ["10.0.0.1"], "dns.xhoot.com": ["8.8.8.8"]}


async def lookup(host: str) -> list[str]:
    # Names other than the vendor's hosts are never looked up.
    assert host.endswith(".xhoot.com"), host
    assert host.count(".") == 2, host
    if host not in NAMES:
        raise OSError("no such name")
    return NAMES[host]


async def test_targets_that_are_refused(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NOBODY, lookup=lookup) as relay:
        for path, status, error, text in BAD_TARGETS:
            head, body = await ask(relay, request(path, CONNECT_UDP), SMUGGLED)
            assert (head.status, body.decode()[: len(text)]) == (status, text), path
            assert head.headers.get("proxy-status") == (error and f"relay; error={error}"), path
            assert head.headers["connection"] == "close"
            assert b"HTTP/1.1" not in body
        for fields, status in (
            (without(CONNECT_UDP, "Upgrade"), 426),
            (changed(CONNECT_UDP, "Upgrade: websocket"), 426),
            (without(CONNECT_UDP, "Connection"), 400),
            (changed(CONNECT_UDP, "Capsule-Protocol: ?0"), 400),
            ((*CONNECT_UDP, "Content-Length: 1"), 400),
        ):
            head, body = await ask(relay, request(udp_path(NOBODY), fields), SMUGGLED)
            assert head.status == status, fields
            assert b"HTTP/1.1" not in body
        assert not relay.gateway.flows.tally.upgrades[Carrier.CONNECT_UDP, UpgradeOutcome.ACCEPTED]
        assert refused(relay, Carrier.CONNECT_UDP, UpgradeOutcome.UNRESOLVED) == 1


async def test_region_of_a_route_holds_for_connect_udp_too(tmp_path: Path) -> None:
    routes = [{"server_name": f"{region}.relay.test", "region": region} for region in ("use1", "euc1")]
    async with (
        scripted_upstream() as upstream,
        running_relay(
            tmp_path,
            {"address": upstream.address, "region": "use1"},
            {"address": NOBODY, "region": "euc1"},
            routes=routes,
        ) as relay,
    ):
        asked = request(udp_path(upstream.address), CONNECT_UDP)
        head, body = await ask(relay, asked, server_name="euc1.relay.test")
        assert (head.status, body) == (403, b"127.0.0.1: this name serves another region\n")
        head, _ = await ask(relay, asked, server_name="use1.relay.test")
        assert head.status == 101
        head, _ = await ask(relay, asked)
        assert head.status == 101
        await eventually(lambda: not relay.connections)


def write_catalog(folder: Path, network: str) -> dict[str, Any]:
    """A catalog whose media networks are these, and the section of the configuration that names it."""
    host = {"name": "a.x.example", "service": "media", "region": "use1", "status": "active"}
    tree = {
        "as_of": "2026-12",
        "domains": ["*.x.example"],
        "hosts": [host],
        "networks": [{"network": network, "place": "here"}],
        "ports": [{"protocol": "udp", "first": 3478, "last": 3478, "use": "STUN"}],
    }
    (folder / "catalog.json").write_text(json.dumps(tree))
    return {"path": "catalog.json"}


async def test_connect_udp_into_the_vendors_networks(tmp_path: Path) -> None:
    async def media_lookup(host: str) -> list[str]:
        # What a name answers first is not the vendor's: what is checked is what is connected to.
        return ["127.0.0.9", "127.0.7.1"] if host == "media.x.example" else []

    credentials = StaticCredentials({"trader": "secret"})
    async with (
        TurnHost(Address("127.0.7.1", 0), credentials) as host,
        running_relay(
            tmp_path,
            NOBODY,
            lookup=media_lookup,
            catalog=write_catalog(tmp_path, "127.0.7.0/24"),
            media={"allowed_networks": ["127.0.0.0/8"]},
        ) as relay,
    ):
        for name in ("127.0.7.1", "media.x.example"):
            client = await TlsClient.open(relay.tls, relay.trust)
            await client.send(request(udp_path(name, host.address.port), CONNECT_UDP))
            head, _ = await answer(client)
            assert head.status == 101
            await becomes(
                lambda: [(flow.upstream.address, flow.upstream.name) for flow in relay.gateway.plane.snapshot().flows],
                [(host.address, str(host.address))],
            )
            assert len(relay.gateway.flows) == 1
            client.abort()
            await eventually(lambda: not relay.connections and not len(relay.gateway.flows))
        head, _ = await ask(relay, request(udp_path("127.0.8.1", host.address.port), CONNECT_UDP))
        assert head.status == 403


async def test_drain_waits_for_flows_of_all_carriers(tmp_path: Path) -> None:
    async with scripted_upstream() as upstream, running_relay(tmp_path, upstream.address) as relay:
        clients = []
        for path, fields in (("/turn", WEBSOCKET), (udp_path(upstream.address), CONNECT_UDP)):
            client = await TlsClient.open(relay.tls, relay.trust)
            await client.send(request(path, fields))
            assert (await answer(client))[0].status == 101
            clients.append(client)
        assert len(relay.gateway.flows) == 2
        ended = [False]

        async def close() -> None:
            for client in clients:
                assert not ended[0]
                client.abort()
                await eventually(lambda: len(relay.gateway.flows) < len(clients))

        relay.gateway._tasks.start(close(), "close")
        await relay.gateway.drain()
        ended[0] = True
        assert len(relay.gateway.flows) == 0


async def test_client_that_leaves_while_its_target_is_looked_up(tmp_path: Path) -> None:

    asked = asyncio.Event()

    async def slow(_: str) -> list[str]:
        asked.set()
        await asyncio.get_running_loop().create_future()
        return []

    async with running_relay(tmp_path, NOBODY, lookup=slow) as relay:
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(request(udp_path("slow.xhoot.com"), CONNECT_UDP))
        await asked.wait()
        client.reset()
        await eventually(lambda: not relay.connections and not relay.gateway._site._handlers)


class HeldLookup:
    """A resolver that answers when it is told to."""

    def __init__(self, answer: str) -> None:
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self._answer = answer

    async def __call__(self, _: str) -> list[str]:
        self.asked.set()
        await self.go_on.wait()
        return [self._answer]


@contextlib.asynccontextmanager
async def target_looked_up(folder: Path) -> AsyncIterator[tuple[Relay, TlsClient, HeldLookup]]:
    """A CONNECT-UDP whose target is being looked up."""
    lookup = HeldLookup("127.0.7.1")
    networks = {"allowed_networks": ["127.0.0.0/8"]}
    vendor = write_catalog(folder, "127.0.7.0/24")
    async with running_relay(folder, NOBODY, lookup=lookup, catalog=vendor, media=networks) as relay:
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(request(udp_path("media.x.example"), CONNECT_UDP))
        await lookup.asked.wait()
        yield relay, client, lookup


async def test_bytes_before_the_101_while_the_target_is_looked_up(tmp_path: Path) -> None:
    """They would be missing in the stream of capsules."""
    async with target_looked_up(tmp_path) as (relay, client, lookup):
        (handler,) = relay.gateway._site._handlers.values()
        await client.send(b"\x00\x03\x00\x80\x00")
        await eventually(lambda: handler.has_more)  # type: ignore[attr-defined]
        # And read by aiohttp, so that the socket no longer shows it.
        await eventually(lambda: handler._past_head)  # type: ignore[attr-defined]
        lookup.go_on.set()
        head, body = await answer(client)
        assert (head.status, body) == (400, b"bytes after the request: expected none before the 101\n")
        client.abort()


async def test_connection_that_has_ended_while_its_target_is_looked_up(tmp_path: Path) -> None:
    """The plane says so before the socket to aiohttp does: a flow that began then would never end."""
    async with target_looked_up(tmp_path) as (relay, client, lookup):
        site = relay.gateway._site
        site.on_closed(next(iter(site._handlers)))
        lookup.go_on.set()
        head, _ = await answer(client)
        assert head.status == 503
        assert len(relay.gateway.flows) == 0
        client.abort()


def test_the_requests_here_are_those_of_clients() -> None:
    """What is changed above is what clients send."""
    built = build_websocket_request("/turn", "relay.test", KEY, "turn").decode()
    assert {line.partition(":")[0] for line in built.split("\r\n")[1:-2]} == {
        field.partition(":")[0] for field in WEBSOCKET
    }
