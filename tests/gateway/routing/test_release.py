"""Allocations of clients that vanished are released, where the upstream's shared secret is known."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.client.links import TlsLink
from relay.client.turn import TurnConnection
from relay.config import HealthSettings, UpstreamServer
from relay.emulator.turn.slow import TurnHost
from relay.gateway.routing import release
from relay.gateway.routing.release import AllocationReleaser
from relay.gateway.routing.upstreams import Health, UpstreamState
from relay.plane.api import AllocationOrphaned, CloseReason, ConnectionId, Upstream
from relay.turn.credentials import RestCredentials, rest_password, rest_username
from tests.support.benches.gateway import Relay, running_relay
from tests.support.waiting import becomes, eventually

SECRET = "shared"
ALICE = rest_username("alice", int(time.time()) + 3600)
CREDENTIALS = RestCredentials(SECRET)


@contextlib.asynccontextmanager
async def relay_to(host: TurnHost, folder: Path, **keys: str) -> AsyncIterator[Relay]:
    async with running_relay(folder, {"address": host.address, **keys}) as relay:
        (upstream,) = relay.gateway.upstreams
        if "secret" in keys and keys["secret"] == SECRET:
            # The probe allocates too; its own allocation is gone when it is done.
            await eventually(lambda: upstream.allocate is not None and upstream.allocate.health is Health.UP)
        yield relay


async def allocated(relay: Relay) -> TurnConnection:
    """A client with an allocation, and nothing under way."""
    turn = await relay.open_turn(ALICE, rest_password(SECRET, ALICE))
    await turn.allocate()
    return turn


def cut(turn: TurnConnection) -> None:
    """End the client's TCP connection with RST, past its TLS."""
    transport = cast("TlsLink", turn._link)._transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    transport.abort()


def closed(relay: Relay, reason: CloseReason) -> int:
    return relay.gateway.plane.snapshot().closed.get(reason, 0)


async def test_allocation_of_a_client_that_left_without_a_word(tmp_path: Path) -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host, relay_to(host, tmp_path, secret=SECRET) as relay:
        staying = await allocated(relay)
        leaving = await allocated(relay)
        await becomes(lambda: host.allocations, 2)
        await leaving.close(release=False)
        await eventually(lambda: host.allocations == 1)
        # Its own, and nobody else's.
        assert await staying.refresh(900) == 900
        await staying.close()
        await becomes(lambda: host.allocations, 0)


async def test_allocation_of_a_client_whose_connection_is_cut(tmp_path: Path) -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host, relay_to(host, tmp_path, secret=SECRET) as relay:
        turn = await allocated(relay)
        await becomes(lambda: host.allocations, 1)
        cut(turn)
        await eventually(lambda: host.allocations == 0)
        await becomes(lambda: closed(relay, CloseReason.CLIENT_LOST), 1)
        await turn.close()


async def test_allocations_of_clients_that_are_there_when_the_relay_stops(tmp_path: Path) -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host:
        async with relay_to(host, tmp_path, secret=SECRET) as relay:
            clients = [await allocated(relay) for _ in range(5)]
            await becomes(lambda: host.allocations, 5)
        await becomes(lambda: host.allocations, 0)
        for client in clients:
            await client.close()


async def test_nothing_to_release_after_the_client_has_done_so(tmp_path: Path) -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host, relay_to(host, tmp_path, secret=SECRET) as relay:
        turn = await allocated(relay)
        await turn.close()
        # Once the gateway has heard of the end, it has released what there is to release.
        await eventually(lambda: not relay.connections and not len(relay.gateway.flows))
        await becomes(lambda: host.allocations, 0)
        assert not relay.gateway._releaser._tasks


async def test_without_the_secret_it_stays(tmp_path: Path) -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host:
        async with relay_to(host, tmp_path) as relay:
            turn = await allocated(relay)
            await turn.close(release=False)
            await eventually(lambda: not relay.connections)
        await becomes(lambda: host.allocations, 1)


async def test_wrong_secret_is_logged_and_leaves_no_socket(tmp_path: Path) -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host:
        with capture_logs() as lines:
            async with relay_to(host, tmp_path, secret="wrong") as relay:
                turn = await allocated(relay)
                await turn.close(release=False)
                await eventually(lambda: not relay.connections)
        await becomes(lambda: host.allocations, 1)
    [line] = [line for line in lines if line["event"] == "allocation not released"]
    assert "401" in line["cause"]


async def test_upstream_that_is_gone_does_not_hold_up_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "RELEASE_TIMEOUT_S", 0.05)
    host = TurnHost(Address("127.0.0.1", 0), CREDENTIALS)
    await host.start()
    with capture_logs() as lines:
        async with relay_to(host, tmp_path, secret=SECRET) as relay:
            turn = await allocated(relay)
            await host.stop()
        await turn.close(release=False)
    assert "allocation not released" in [line["event"] for line in lines]


# The releaser itself: whatever it does not release, it closes


def orphan(request: bytes) -> tuple[AllocationOrphaned, socket.socket]:
    """An orphan and another descriptor of its socket's far end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    upstream = Upstream("stun1", Address("192.0.2.7", 3478), releases_allocations=True)
    return AllocationOrphaned(ConnectionId(1), ours.detach(), upstream, request), theirs


@pytest.mark.parametrize("request_bytes", [b"", b"no STUN", bytes.fromhex("000300002112a442") + bytes(12)])
async def test_request_that_names_nobody(request_bytes: bytes) -> None:
    releaser = AllocationReleaser()
    left_behind, theirs = orphan(request_bytes)
    settings = UpstreamServer.model_validate({"name": "stun1", "address": "192.0.2.7:3478", "secret": SECRET})
    releaser.release(left_behind, UpstreamState(settings, HealthSettings()))
    await releaser.stop()
    with theirs, pytest.raises(ConnectionError):
        theirs.send(b"anybody there?")


async def test_upstream_that_is_configured_no_more() -> None:
    releaser = AllocationReleaser()
    left_behind, theirs = orphan(b"")
    releaser.release(left_behind, None)
    await releaser.stop()
    with theirs, pytest.raises(ConnectionError):
        theirs.send(b"anybody there?")
