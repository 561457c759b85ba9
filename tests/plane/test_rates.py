"""How much a flow may carry in a second, on every plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay.plane.api import Carrier, DropReason
from relay.plane.reference.allowance import Allowance, is_of_peer
from relay.wire.capsule import build_datagram
from relay.wire.stun import Method
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.messages import HELLO, answer, stun, voice
from tests.support.peers.carriers import carried
from tests.support.waiting import becomes, eventually

every_plane = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())
# A tenth of what is sent passes in a second, so some is dropped even on a slow machine.
COUNT = 200
SIZE = 200
RATES: list[dict[str, Any]] = [{"packets_per_second_per_flow": 20}, {"bytes_per_second_per_flow": 20 * SIZE}]


def counted(bench: Bench, reason: DropReason) -> tuple[int, int]:
    """How many packets passed this way, and how many were dropped for this reason."""
    totals = bench.plane.snapshot().totals
    passed = totals.uplink_packets if reason is DropReason.UPLINK_RATE else totals.downlink_packets
    return passed, totals.drops.get(reason, 0)


@every_plane
@pytest.mark.parametrize("rate", RATES)
async def test_uplink(make: MakePlane, tmp_path: Path, rate: dict[str, int]) -> None:
    async with plane_bench(make, tmp_path, bounds(**rate)) as bench, bench.flow(HELLO) as (client, _):
        await client.send(*(voice(number, SIZE) for number in range(COUNT)))
        await becomes(lambda: sum(counted(bench, DropReason.UPLINK_RATE)), COUNT + 1)
        passed, dropped = counted(bench, DropReason.UPLINK_RATE)
        assert passed > 10
        assert dropped > 10
        # The client would not send this again.
        request = stun(1, Method.REFRESH)
        await client.send(request)
        while (await bench.upstream.receive())[0] != request:
            pass


@every_plane
@pytest.mark.parametrize("rate", RATES)
async def test_downlink(make: MakePlane, tmp_path: Path, rate: dict[str, int]) -> None:
    async with plane_bench(make, tmp_path, bounds(**rate)) as bench, bench.flow(HELLO) as (client, flow):
        request = stun(1)
        await client.send(request)
        await bench.upstream.expect(request)
        for number in range(COUNT):
            bench.upstream.send(flow, voice(number, SIZE))
        await eventually(lambda: counted(bench, DropReason.DOWNLINK_RATE)[1] > 10)
        assert await client.receive_unit() == voice(0, SIZE)
        # What the upstream itself says is not of a peer.
        bench.upstream.send(flow, answer(request))
        while await client.receive_unit() != answer(request):
            pass


@every_plane
async def test_connect_udp(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(packets_per_second_per_flow=20)
    async with plane_bench(make, tmp_path, settings) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
        await client.send(*(build_datagram(voice(number, SIZE)) for number in range(COUNT)))
        await becomes(lambda: sum(counted(bench, DropReason.UPLINK_RATE)), COUNT)
        assert counted(bench, DropReason.UPLINK_RATE)[1] > 10
        flow = await bench.upstream.expect(voice(0, SIZE))
        for number in range(COUNT):
            bench.upstream.send(flow, voice(number, SIZE))
        await eventually(lambda: counted(bench, DropReason.DOWNLINK_RATE)[1] > 10)


def test_each_second_begins_anew() -> None:
    allowance = Allowance(max_packets=2, max_bytes=1000)
    assert [allowance.takes(0.1 * step, b"\x80") for step in range(12)] == [True] * 2 + [False] * 8 + [True] * 2
    assert not allowance.takes(5, b"\x80" + bytes(1000))
    assert allowance.takes(5, b"\x80" + bytes(999))
    # STUN has the same room once more.
    assert allowance.takes(5, bytes(1000))
    assert not allowance.takes(5, b"\x00")
    assert all(Allowance().takes(0, bytes(10**6)) for _ in range(100))


def test_what_is_of_a_peer() -> None:
    assert all(is_of_peer(unit) for unit in (b"", b"\x00", b"\x40\x01\x00\x00", b"\x00\x17", b"\x16\xfe"))
    assert not any(is_of_peer(unit) for unit in (HELLO, answer(stun(1))))
