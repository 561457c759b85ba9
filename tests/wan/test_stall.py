"""A call over a link that stands still: what the kernel has been given comes late, so it must be given little."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.demo.wan.line import Wan, wan
from relay.demo.wan.link import Link
from relay.demo.wan.netns import refusal
from relay.plane.api import DropReason
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, only_flow, plane_bench
from tests.support.messages import HELLO, number_of, voice
from tests.support.peers.tls_client import TlsClient

pytestmark = [
    pytest.mark.skipif(refusal() is not None, reason=refusal() or ""),
    pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys()),
]

DELAY_S = 0.02
FRAME_BYTES = 186
FRAME_INTERVAL_S = 0.01
# A round trip and 50 ms of it, as long again because machines are slow; 16 KiB of unsent data would be eighty.
MAX_GIVEN = 30


@contextlib.asynccontextmanager
async def call_over(line: Wan, bench: Bench) -> AsyncIterator[tuple[TlsClient, Address]]:
    """A client at the other end of the WAN, and its flow."""
    loop = asyncio.get_running_loop()
    with line.server_ns.socket(kind=socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        listener.bind((line.server_address, 0))
        listener.listen()
        connected = line.client_ns.socket(kind=socket.SOCK_STREAM)
        connected.setblocking(False)
        connecting = asyncio.ensure_future(loop.sock_connect(connected, listener.getsockname()))
        accepted, _ = await loop.sock_accept(listener)
        await connecting
    bench.plane.adopt(accepted.detach())
    client = TlsClient(connected, bench.authority.client_context(), "relay.test")
    try:
        await client.shake_hands()
        await client.send(HELLO)
        yield client, await bench.upstream.expect(HELLO)
    finally:
        client.abort()


async def test_a_stalled_link_is_given_little_and_gets_what_is_new_when_it_works_again(
    make: MakePlane, tmp_path: Path
) -> None:
    async with (
        plane_bench(make, tmp_path, bounds(max_media_age_s=0.2)) as bench,
        wan(Link(delay_s=DELAY_S), Link(delay_s=DELAY_S)) as line,
        call_over(line, bench) as (client, flow),
    ):
        number = 0
        for number in range(20):
            bench.upstream.send(flow, voice(number, FRAME_BYTES))
            assert await client.receive_unit() == voice(number, FRAME_BYTES)
        line.stall()
        before = only_flow(bench).totals.downlink_packets
        while only_flow(bench).totals.drops.get(DropReason.DOWNLINK_OLD, 0) < 20:
            number += 1
            bench.upstream.send(flow, voice(number, FRAME_BYTES))
            await asyncio.sleep(FRAME_INTERVAL_S)
        assert only_flow(bench).totals.downlink_packets - before <= MAX_GIVEN
        line.release()
        came: list[int] = []
        reading = asyncio.ensure_future(read_until_new(client, number + 1, came))
        while not reading.done():
            number += 1
            bench.upstream.send(flow, voice(number, FRAME_BYTES))
            await asyncio.sleep(FRAME_INTERVAL_S)
        await reading
        assert came == sorted(set(came))
        assert set(only_flow(bench).totals.drops) == {DropReason.DOWNLINK_OLD}


async def read_until_new(client: TlsClient, first_new: int, came: list[int]) -> None:
    """Read whole frames until one that was sent after the stall has come."""
    while not came or came[-1] < first_new:
        unit = await client.receive_unit()
        assert unit == voice(number_of(unit), FRAME_BYTES)
        came.append(number_of(unit))
