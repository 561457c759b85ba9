"""Which clients stay with polling, because something on their way swallows what they say through WebSockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.gateway.signaling.polling_only import SEVERAL_SESSIONS, PollingOnly
from relay.gateway.signaling.refusals import RefusalReason
from tests.support.benches.gateway import Relay
from tests.support.benches.signaling import GET, SWITCH, UPGRADE, open_websocket, proxying
from tests.support.peers.raw_http import ask, receive_all, receive_head
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import eventually


def test_tables_are_bounded() -> None:
    held = PollingOnly(max_entries=3)
    for number in range(100):
        assert not held.on_swallowed(0.0, 600.0, ("session", number), "sid", ("client", number))
    assert len(held) == 3
    assert len(held._failed) == 3
    assert held.holds(0.0, ("session", 99))
    assert not held.holds(0.0, ("session", 0))
    assert not held.holds(601.0, ("session", 99))


def test_a_client_is_held_after_several_sessions_that_failed_in_a_row() -> None:
    held = PollingOnly(max_entries=100)

    def fail(sid: str) -> bool:
        return held.on_swallowed(0.0, 600.0, ("session", sid), sid, "client")

    # One session that fails again and again says no more than once.
    assert not any(fail("a") for _ in range(10))
    for number in range(SEVERAL_SESSIONS - 2):
        assert not fail(f"b{number}")
    held.on_working("client")
    # While one works, the others' failures are their own.
    assert not any(fail(f"c{number}") for number in range(10))
    held.on_ended("client")
    assert [fail(f"d{number}") for number in range(SEVERAL_SESSIONS)] == [False] * (SEVERAL_SESSIONS - 1) + [True]
    assert held.holds(599.0, "client")
    assert not held.holds(601.0, "client")
    held.on_working("client")
    assert not held.holds(0.0, "client")
    held.on_ended("client")
    assert not held._working


async def swallowed(relay: Relay, sid: bytes) -> bytes:
    """All that comes to a client which says nothing after its upgrade."""
    return await receive_all(await open_websocket(relay, b"&sid=" + sid))


async def test_a_session_whose_frames_were_swallowed_stays_with_polling(tmp_path: Path) -> None:
    async with proxying(tmp_path, SWITCH, upgrade_timeout_s=0.1) as (relay, upstream):
        signaling = relay.gateway.signaling
        assert (await swallowed(relay, b"abc")).startswith(b"HTTP/1.1 101 ")
        assert signaling.watchdog_hits == 1
        await eventually(lambda: not upstream._writers)
        seen = len(upstream.received)
        said = await swallowed(relay, b"abc")
        assert said.startswith(b"HTTP/1.1 400 ")
        assert said.endswith(b'{"code":3,"message":"Bad request"}')
        assert len(upstream.received) == seen
        assert signaling.refusals[RefusalReason.POLLING_ONLY] == 1
        # Its neighbours behind the same proxy are left alone.
        client = await open_websocket(relay, b"&sid=other")
        assert (await receive_head(client)).startswith(b"HTTP/1.1 101 ")
        client.abort()


async def test_several_sessions_that_failed_pin_their_client(tmp_path: Path) -> None:
    async with proxying(tmp_path, SWITCH, upgrade_timeout_s=0.1) as (relay, _):
        for sid in (b"one", b"two", b"three"):
            assert (await swallowed(relay, sid)).startswith(b"HTTP/1.1 101 ")
        assert (await swallowed(relay, b"four")).startswith(b"HTTP/1.1 400 ")
        # What has no session has no polling to stay with; and when it speaks, WebSocket works again.
        client = await open_websocket(relay)
        assert (await receive_head(client)).startswith(b"HTTP/1.1 101 ")
        await client.send(b"frame")
        await eventually(lambda: not relay.gateway.signaling.polling_only.holds(0.0, ("127.0.0.1", "")))
        assert (await swallowed(relay, b"five")).startswith(b"HTTP/1.1 101 ")
        client.abort()


async def test_one_websocket_that_works_keeps_its_neighbours_from_polling(tmp_path: Path) -> None:
    async with proxying(tmp_path, SWITCH, upgrade_timeout_s=0.1) as (relay, upstream):
        client = await open_websocket(relay, b"&sid=good")
        await receive_head(client)
        await client.send(b"frame")
        await eventually(lambda: upstream.received.endswith(b"frame"))
        for number in range(5):
            assert (await swallowed(relay, b"bad%d" % number)).startswith(b"HTTP/1.1 101 ")
        client.abort()


@pytest.mark.parametrize(
    "query", [b"?sid=abc", b"?EIO=4&sid=abc", b"?transport=websocket&sid=abc", b"?EIO=4&sid=a&t=1"]
)
async def test_websockets_of_others_are_not_watched(tmp_path: Path, query: bytes) -> None:
    async with proxying(tmp_path, SWITCH, upgrade_timeout_s=0.05) as (relay, upstream):
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send((UPGRADE % b"").replace(b"/socket.io/?EIO=4&transport=websocket", b"/feed" + query))
        await receive_head(client)
        await asyncio.sleep(0.3)  # six times the watchdog's
        upstream.send(b"still here")
        assert await client.receive() == b"still here"
        assert relay.gateway.signaling.watchdog_hits == 0
        assert len(relay.gateway.signaling.affinity) == 0
        client.abort()


async def test_rest_may_have_a_transport(tmp_path: Path) -> None:
    async with proxying(tmp_path) as (relay, upstream):
        assert (await ask(relay, GET.replace(b"/a", b"/api?transport=websocket") + b"\r\n")).endswith(b"ok")
        assert upstream.received.startswith(b"GET /api?transport=websocket HTTP/1.1\r\n")


async def test_client_that_speaks_in_time_is_left_alone(tmp_path: Path) -> None:
    async with proxying(tmp_path, SWITCH, upgrade_timeout_s=1.0) as (relay, upstream):
        client = await open_websocket(relay, b"&sid=abc")
        await receive_head(client)
        await client.send(b"probe")
        await eventually(lambda: upstream.received.endswith(b"probe"))
        await asyncio.sleep(1.5)
        upstream.send(b"answer")
        assert await client.receive() == b"answer"
        assert relay.gateway.signaling.watchdog_hits == 0
        client.abort()
