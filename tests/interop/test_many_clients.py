"""Many clients at once: no byte of one reaches another, and nothing is left when they have gone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.coturn import open_coturn
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually

pytestmark = pytest.mark.parametrize("plane", ["compiled", "reference"])

CLIENTS = 200
PACKETS = 25
COMING_AND_GOING = 1000
AT_ONCE = 50


async def stamped_client(relay: Relay, username: str, password: str, peer: Address, number: int) -> None:
    """Send packets that say whose they are, and expect back these and no others, in order."""
    inbox = Inbox()
    async with await relay.open_turn(username, password, on_data=inbox.put, timeout_s=30) as turn:
        await turn.allocate()
        await turn.bind_channel(peer)
        for packet in range(PACKETS):
            stamp = f"client {number} packet {packet} ".encode() * 7
            turn.send(peer, stamp)
            assert await inbox.get() == (peer, stamp)
    assert inbox.empty


async def test_200_clients_at_once_each_stamped(tmp_path: Path, plane: str) -> None:
    async with (
        open_coturn() as coturn,
        open_echo() as peer,
        running_relay(tmp_path, coturn.address, listen={"plane": plane}) as relay,
    ):
        user = (coturn.username, coturn.password)
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(stamped_client(relay, *user, peer, number))


async def come_and_go(relay: Relay, number: int) -> None:
    """A visit of one of four kinds: a call that ends in order, one cut off, HTTP, and a handshake alone."""
    kind = number % 4
    if kind == 0:
        async with await relay.open_turn("trader", "secret", timeout_s=30) as turn:
            await turn.allocate()
        return
    client = await TlsClient.open(relay.tls, relay.trust)
    if kind == 1:
        await client.send(bytes.fromhex("000100002112a442") + number.to_bytes(12))
        await client.receive_unit()
        client.reset()
    elif kind == 2:
        await client.send(b"GET /healthz HTTP/1.1\r\nHost: relay.test\r\nConnection: close\r\n\r\n")
        assert await client.closed_by_server()
        client.abort()
    else:
        await client.close()


async def visit(relay: Relay, numbers: range) -> None:
    for first in range(numbers.start, numbers.stop, AT_ONCE):
        async with asyncio.TaskGroup() as visits:
            for number in range(first, first + AT_ONCE):
                visits.create_task(come_and_go(relay, number))


async def test_nothing_is_left_of_1000_connections_that_come_and_go(tmp_path: Path, plane: str) -> None:
    credentials = StaticCredentials({"trader": "secret"})
    async with (
        TurnHost(Address("127.0.1.1", 0), credentials) as host,
        running_relay(tmp_path, host.address, listen={"plane": plane}) as relay,
    ):
        await visit(relay, range(AT_ONCE))  # what is made once is made now
        carrying = relay.gateway.plane
        await eventually(lambda: carrying.snapshot().connections == 0)
        descriptors, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
        await visit(relay, range(COMING_AND_GOING))
        await eventually(lambda: carrying.snapshot().connections == 0, "connections stay open")
        assert not carrying.snapshot().flows
        await becomes(lambda: carrying.snapshot().accepted, AT_ONCE + COMING_AND_GOING)
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks, "tasks are left")
        # A probe under way has a socket of its own. A worker that has accepted as many as it may in a turn, and nobody
        # after them, keeps none for its next newcomer: then there were fewer at first than there are now.
        most = descriptors + 2 * (os.cpu_count() or 1)
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= most, "descriptors are left")
