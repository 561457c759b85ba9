"""Certificates of clients in a whole relay: their names in what is told of a call, reloads, and no way around them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.ca.certificates import Issuer
from relay.client.turn import open_turn_tls
from relay.emulator.turn.slow import TurnHost
from relay.errors import OperatorError
from relay.gateway.certificates import client_ca
from relay.plane.api import CloseReason
from relay.plane.certificates import HandshakeFailure
from tests.support.benches.gateway import CREDENTIALS, Relay, running_relay
from tests.support.certificates_made import authority, write_whole
from tests.support.client_certificates import for_client, showing, write_authorities
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.connect import open_connect, open_socket
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually

PLANES = pytest.mark.parametrize("plane", ["compiled", "reference"])
NO_UPSTREAM = Address("127.0.0.1", 9)
NAME = "desk-17.firm.example"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: relay.test\r\n\r\n"


@contextlib.asynccontextmanager
async def asking(
    folder: Path, issuer: Issuer, plane: str, *upstreams: Address, listen: dict[str, Any] | None = None, **sections: Any
) -> AsyncIterator[Relay]:
    """A relay that requires certificates at its first address."""
    path = write_authorities(folder / "client-ca.pem", issuer)
    asks = {"client_certificates": {"127.0.0.1:0": "required"}, "client_ca": str(path), "plane": plane}
    async with running_relay(folder, *(upstreams or (NO_UPSTREAM,)), listen=asks | (listen or {}), **sections) as relay:
        yield relay


def context(relay: Relay, issuer: Issuer | None, name: str = NAME) -> ssl.SSLContext:
    made = None if issuer is None else for_client(issuer, name)
    return showing(relay.authority, relay.config_file.parent, made)


async def serves(connected: TlsClient) -> bool:
    """Whether the relay answers a request."""
    try:
        await connected.send(HEALTHZ)
        return (await connected.receive()).startswith(b"HTTP/1.1 200 ")
    finally:
        connected.abort()


async def gets_in(relay: Relay, shows: ssl.SSLContext, server: Address | None = None) -> bool:
    try:
        return await serves(await TlsClient.open(server or relay.tls, shows))
    except (ssl.SSLError, ConnectionError):
        return False


async def ask(relay: Relay, path: str) -> Any:
    async with aiohttp.ClientSession() as http, http.get(f"http://{relay.admin}{path}") as answer:
        return await answer.text() if path == "/metrics" else await answer.json()


@PLANES
async def test_the_name_is_in_all_that_is_told_of_a_call(tmp_path: Path, plane: str) -> None:
    issuer, inbox, records = authority(), Inbox(), tmp_path / "calls.jsonl"
    quality = {"records": str(records), "calls": str(tmp_path / "calls.sqlite3")}
    with capture_logs() as lines:
        async with (
            TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host,
            asking(tmp_path, issuer, plane, host.address, quality=quality) as relay,
            open_echo() as peer,
        ):
            turn = await open_turn_tls(
                relay.tls,
                "trader",
                "secret",
                ssl_context=context(relay, issuer),
                server_hostname="relay.test",
                on_data=inbox.put,
                timeout_s=60,
            )
            async with turn:
                await turn.allocate()
                await turn.bind_channel(peer)
                # A header of RTP is what makes it a call.
                for number in range(5):
                    turn.send(peer, b"\x80\x00" + number.to_bytes(2) + bytes(178))
                    await inbox.get()
                [flow] = (await ask(relay, "/api/flows?match=desk-17"))["flows"]
                assert (flow["client_certificate"], flow["username"]) == (NAME, "trader")
                await relay.gateway.calls.look()
            await eventually(lambda: relay.gateway.store.written == 1)
            await eventually(lambda: relay.gateway.records.written == 1)
            assert json.loads(records.read_text())["client_certificate"] == NAME
            [found] = (await ask(relay, "/api/calls"))["calls"]
            assert found["client_certificate"] == NAME
            explained = (await ask(relay, f"/api/calls/{found['id']}/explanation"))["sentences"]
            assert f", with the certificate of {NAME}, asking for relay.test." in explained[0]["text"]
            # A connection that is no call has it in its line, too.
            client = await TlsClient.open(relay.tls, context(relay, issuer, "other.test"))
            await client.send(b"neither TURN nor HTTP")
            await client.closed_by_server()
            client.abort()
            await becomes(lambda: relay.gateway.plane.snapshot().closed.get(CloseReason.FIRST_BYTES_UNKNOWN), 1)
            await eventually(lambda: any(line["event"] == "connection closed" for line in lines))
    told = {line["event"]: line.get("client_certificate") for line in lines}
    assert (told["call_started"], told["call_ended"]) == (NAME, NAME)
    assert told["connection closed"] == "other.test"


@PLANES
async def test_who_is_refused_is_counted_and_logged(tmp_path: Path, plane: str) -> None:
    issuer = authority()
    with capture_logs() as lines:
        async with asking(tmp_path, issuer, plane) as relay:
            assert await gets_in(relay, context(relay, issuer))
            assert not await gets_in(relay, context(relay, None))
            assert not await gets_in(relay, context(relay, authority()))
            failures = relay.gateway.plane.snapshot
            expected = {
                HandshakeFailure.CLIENT_CERTIFICATE_MISSING: 1,
                HandshakeFailure.CLIENT_CERTIFICATE_UNTRUSTED: 1,
            }
            await becomes(lambda: failures().handshake_failures, expected)
            metrics = await ask(relay, "/metrics")
            assert 'relay_handshake_failures_total{cause="client_certificate_missing"} 1.0' in metrics
            seconds = float(metrics.partition("\nrelay_client_ca_expiry_seconds ")[2].partition("\n")[0])
            assert seconds > 3600
    closed = [line for line in lines if line["event"] == "connection closed" and line["log_level"] == "info"]
    assert {line["cause"] for line in closed} == {"client_certificate_missing", "client_certificate_untrusted"}


@PLANES
async def test_a_reload_and_a_new_file_change_the_authorities(
    tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_ca, "WATCH_INTERVAL_S", 0.01)
    old, new, newest = (authority(name=name) for name in ("old", "new", "newest"))
    async with asking(tmp_path, old, plane) as relay:
        path = tmp_path / "client-ca.pem"
        shown = [context(relay, issuer) for issuer in (old, new, newest)]

        async def good() -> list[bool]:
            return [await gets_in(relay, shows) for shows in shown]

        def serving() -> int:
            authorities = relay.gateway.client_ca.authorities
            return 0 if authorities is None else len(authorities.certificates)

        assert await good() == [True, False, False]
        write_authorities(path, old, new)
        await becomes(serving, 2)
        assert await good() == [True, True, False]
        # What cannot be used keeps the old ones, and a reload is refused as a whole.
        write_whole(path, b"this is no PEM\n")
        await eventually(lambda: relay.gateway.client_ca.trouble)
        assert "\nrelay_certificate_troubles 1.0\n" in await ask(relay, "/metrics")
        with pytest.raises(OperatorError, match=r"listen\.client_ca: .*client-ca\.pem: no PEM certificate in it"):
            relay.gateway.reload(relay.config_file)
        assert await good() == [True, True, False]
        # With a reload, it counts at once.
        write_authorities(path, newest)
        relay.gateway.reload(relay.config_file)
        assert await good() == [False, False, True]
        assert relay.gateway.client_ca.trouble == ""


@PLANES
async def test_whoever_comes_through_the_web_proxy_or_a_balancer(tmp_path: Path, plane: str) -> None:
    """They are asked like all others."""
    issuer = authority()
    listen = {
        "tls": ["127.0.0.1:0", "127.0.0.2:0"],
        "web_proxy": ["127.0.0.1:0"],
        "proxy_protocol": ["127.0.0.2:0"],
        "client_certificates": {"127.0.0.1:0": "required", "127.0.0.2:0": "required"},
    }
    balancers = {"networks": ["127.0.0.1/32"]}
    async with asking(tmp_path, issuer, plane, listen=listen, balancers=balancers) as relay:

        async def comes(shows: ssl.SSLContext, behind: str) -> bool:
            if behind == "web proxy":
                connected = await open_connect(relay.gateway.web_proxy.addresses[0], f"relay.test:{relay.tls.port}")
            else:
                connected = await open_socket(relay.gateway.tls[1])
                header = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\r\n"
                await asyncio.get_running_loop().sock_sendall(connected, header)
            client = TlsClient(connected, shows, "relay.test")
            try:
                await client.shake_hands()
                return await serves(client)
            except (ssl.SSLError, ConnectionError):
                return False
            finally:
                client.abort()

        for behind in ("web proxy", "balancer"):
            assert await comes(context(relay, issuer), behind)
            assert not await comes(context(relay, None), behind)


@PLANES
async def test_the_port_that_a_client_of_the_web_proxy_asks_for(tmp_path: Path, plane: str) -> None:
    """It is asked as at that port; where the plane has no such port, as at the strictest."""
    issuer = authority()
    listen = {"tls": ["127.0.0.1:0", "127.0.0.2:0"], "web_proxy": ["127.0.0.1:0"]}
    async with asking(tmp_path, issuer, plane, listen=listen) as relay:
        strict, easy = relay.gateway.tls

        async def comes(port: int) -> bool:
            connected = await open_connect(relay.gateway.web_proxy.addresses[0], f"relay.test:{port}")
            client = TlsClient(connected, context(relay, None), "relay.test")
            try:
                await client.shake_hands()
                return await serves(client)
            except (ssl.SSLError, ConnectionError):
                return False
            finally:
                client.abort()

        assert await gets_in(relay, context(relay, None), easy)
        assert [await comes(port) for port in (easy.port, strict.port, 443)] == [True, False, False]
