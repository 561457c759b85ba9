"""What our own kernel does not send says nothing of the upstream; and what is longer than the path goes in fragments.

On every plane, against a real kernel: in a network namespace whose packet filter, routes and loopback are the test's.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from relay.plane.api import (
    Carrier,
    CloseReason,
    DropReason,
    FlowSnapshot,
    StunReceived,
    Traffic,
    Upstream,
    UpstreamLost,
)
from relay.wire.capsule import build_datagram
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import MessageClass, Method, message_type
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.messages import HELLO, VOICE, allocated, answer, stun
from tests.support.network.refusing import WAYS, allow, in_namespace, refuse, run
from tests.support.peers.carriers import binary as frame_of
from tests.support.peers.carriers import carried, move, moved_session
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

VOICE_FRAME = build_channel_data(0x4001, VOICE)
# With 150 peers a CreatePermission has 1,800 bytes of addresses.
LONG = 1900


def long_request(number: int, size: int = LONG) -> bytes:
    """A CreatePermission whose one attribute makes it this long, head and all."""
    head = stun(number, Method.CREATE_PERMISSION)
    value = bytes(size - 24)
    return head[:2] + (size - 20).to_bytes(2) + head[4:] + b"\x80\x22" + len(value).to_bytes(2) + value


def the_flow(bench: Bench) -> FlowSnapshot:
    (flow,) = bench.plane.snapshot().flows
    return flow


async def until_refused(bench: Bench, count: int) -> FlowSnapshot:
    """The flow, once so many datagrams were refused: nothing tells of it but the counter."""
    await eventually(lambda: bench.plane.snapshot().totals.drops.get(DropReason.UPLINK_REFUSED, 0) >= count)
    return the_flow(bench)


@pytest.mark.parametrize("way", WAYS)
async def test_a_running_call_goes_on(make: MakePlane, tmp_path: Path, way: str) -> None:
    """Media is lost while it lasts; a request is sent again until it gets through; nobody is closed."""

    async def main() -> None:
        settings = bounds(initial_rto_s=0.1)
        async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, flow):
            refuse(way, bench.upstream.address.port)
            refresh = stun(1, Method.REFRESH)
            await client.send(VOICE_FRAME, refresh, VOICE_FRAME)
            refused = await until_refused(bench, 4)  # three, and one copy of the request at least
            assert refused.totals.drops_by_traffic[Traffic.MEDIA] == 2
            assert refused.totals.drops_by_traffic[Traffic.CONTROL] >= 2
            assert set(refused.totals.drops) == {DropReason.UPLINK_REFUSED}
            assert refused.totals.uplink_packets == 1
            assert bench.upstream.received.empty()
            allow(way)
            await bench.upstream.expect(refresh)
            bench.upstream.send(flow, answer(refresh))
            assert await client.receive_unit() == answer(refresh)
            await client.send(VOICE_FRAME)
            while (datagram := await bench.upstream.receive())[0] == refresh:
                pass
            assert datagram == (VOICE_FRAME, flow)
            assert not bench.plane.snapshot().closed

    await in_namespace(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_call_that_begins_meanwhile_is_served(make: MakePlane, tmp_path: Path, way: str, host: str) -> None:
    """Without a route the socket cannot be connected: it is as soon as there is one. Until then it hears nobody."""

    async def main() -> None:
        settings = bounds(initial_rto_s=0.1)
        async with plane_bench(make, tmp_path, settings, host=host) as bench, bench.client() as client:
            refuse(way, bench.upstream.address.port)
            request = stun(1, Method.ALLOCATE)
            await client.send(request, VOICE_FRAME)
            await until_refused(bench, 3)
            shout_at_unconnected(bench.upstream.address.port)
            allow(way)
            flow = await bench.upstream.expect(request)
            bench.upstream.send(flow, allocated(request))
            assert await client.receive_unit() == allocated(request)
            bench.upstream.send(flow, VOICE_FRAME)
            assert await client.receive_exactly(len(VOICE_FRAME)) == VOICE_FRAME
            totals = the_flow(bench).totals
            assert set(totals.drops) == {DropReason.UPLINK_REFUSED}
            assert totals.downlink_packets == 2
            assert the_flow(bench).allocated

    await in_namespace(main)


def shout_at_unconnected(apart_from: int) -> None:
    """Send ChannelData to every UDP socket of the namespace that would take it."""
    for family, table in ((socket.AF_INET, "udp"), (socket.AF_INET6, "udp6")):
        lines = Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
        ports = {int(line.split()[1].rpartition(":")[2], 16) for line in lines}
        host = "127.0.0.1" if family is socket.AF_INET else "::1"
        with socket.socket(family, socket.SOCK_DGRAM) as stranger:
            for port in ports - {apart_from}:
                for _ in range(3):
                    stranger.sendto(build_channel_data(0x4001, b"from a stranger"), (host, port))


@pytest.mark.parametrize("way", WAYS)
async def test_a_session_goes_on_and_moves(make: MakePlane, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        settings = bounds(initial_rto_s=0.1)
        async with plane_bench(make, tmp_path, settings) as bench, moved_session(bench) as (client, _):
            refuse(way, bench.upstream.address.port)
            request = stun(1, Method.REFRESH)
            bench.plane.request(client.connection, request)
            await client.send(frame_of(VOICE_FRAME[:2] + VOICE))
            await until_refused(bench, 3)
            bench.plane.move(client.connection, bench.target)
            request = stun(2, Method.ALLOCATE)
            bench.plane.request(client.connection, request)
            await until_refused(bench, 6)
            allow(way)
            flow = await bench.upstream.expect(request)
            bench.upstream.send(flow, allocated(request))
            assert (await bench.event(StunReceived)).message == allocated(request)
            await client.send(frame_of(VOICE_FRAME[:2] + VOICE))
            while (datagram := await bench.upstream.receive())[0] == request:
                pass
            assert datagram == (VOICE_FRAME, flow)
            assert not [event for event in bench.events if isinstance(event, UpstreamLost)]

    await in_namespace(main)


@pytest.mark.parametrize("way", WAYS)
async def test_connect_udp_goes_on(make: MakePlane, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with plane_bench(make, tmp_path) as bench:
            refuse(way, bench.upstream.address.port)
            async with carried(bench, Carrier.CONNECT_UDP) as client:
                await client.send(build_datagram(VOICE), build_datagram(stun(1)))
                await until_refused(bench, 2)
                allow(way)
                await client.send(build_datagram(VOICE))
                flow = await bench.upstream.expect(VOICE)
                refuse(way, bench.upstream.address.port)
                await client.send(build_datagram(VOICE), build_datagram(VOICE))
                await until_refused(bench, 4)
                allow(way)
                bench.upstream.send(flow, VOICE)
                assert await client.payload() == VOICE
                assert not bench.plane.snapshot().closed

    await in_namespace(main)


async def test_what_our_own_filter_rejects_is_not_proof_and_port_unreachable_is(
    make: MakePlane, tmp_path: Path
) -> None:
    """The filter's ICMP message comes from this machine, and looks like one of the upstream."""

    async def main() -> None:
        async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (client, _):
            refuse("reject", bench.upstream.address.port)
            for count in range(1, 9):
                await client.send(VOICE_FRAME)
                await until_refused(bench, count)
            allow("reject")
            await client.send(VOICE_FRAME)
            await bench.upstream.expect(VOICE_FRAME)
            # A second after the filter's last word ICMP is believed again.
            bench.upstream.close()
            while not bench.plane.snapshot().closed:
                await client.send(VOICE_FRAME)
                await asyncio.sleep(0.05)
            assert (await bench.closed()).reason is CloseReason.UPSTREAM_UNREACHABLE

    await in_namespace(main)


@pytest.mark.parametrize("alive", [True, False])
async def test_other_icmp_makes_the_flow_ask(make: MakePlane, tmp_path: Path, alive: bool) -> None:
    """A firewall on the way says "prohibited" of voice: an upstream that answers stays, a silent one is left."""

    async def main() -> None:
        settings = bounds(upstream_silence_s=0.6, initial_rto_s=0.1)
        async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, flow):
            refuse_in_the_input(bench)
            await client.send(VOICE_FRAME)
            question, _ = await bench.upstream.receive()
            assert (len(question), question[:2]) == (20, message_type(Method.BINDING, MessageClass.REQUEST).to_bytes(2))
            if not alive:
                closed = await bench.closed()
                assert (closed.reason, closed.detail) == (CloseReason.UPSTREAM_SILENT, "no answer for 0.6 s")
                return
            bench.upstream.send(flow, answer(question, error=400))
            bench.upstream.send(flow, VOICE_FRAME)
            assert await client.receive_exactly(len(VOICE_FRAME)) == VOICE_FRAME
            assert not bench.plane.snapshot().closed

    await in_namespace(main)


def refuse_in_the_input(bench: Bench) -> None:
    """As a router would: voice to the upstream is answered with ICMP, and our own kernel sends it."""
    port = bench.upstream.address.port
    run("nft", "add table inet refusing")
    run("nft", "add chain inet refusing in { type filter hook input priority 0; }")
    rule = f"udp dport {port} udp length > 100 reject with icmpx type admin-prohibited"
    run("nft", f"add rule inet refusing in {rule}")


# ---- Longer than the path


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("size", [LONG, 60_000])
async def test_a_long_request_arrives_and_is_sent_again(make: MakePlane, tmp_path: Path, host: str, size: int) -> None:
    """In fragments; media that is as long is dropped as before, also right behind it."""
    request = long_request(1, size)
    long_media = build_channel_data(0x4001, VOICE + bytes(LONG))

    async def main() -> None:
        settings = bounds(initial_rto_s=0.1)
        async with plane_bench(make, tmp_path, settings, host=host) as bench, bench.flow(HELLO) as (client, flow):
            await client.send(request, long_media, VOICE_FRAME)
            await bench.upstream.expect(request)
            await bench.upstream.expect(VOICE_FRAME)
            await bench.upstream.expect(request)
            bench.upstream.send(flow, answer(request))
            assert await client.receive_unit() == answer(request)
            totals = the_flow(bench).totals
            assert (totals.drops, totals.drops_by_traffic) == ({DropReason.UPLINK_OVERSIZE: 1}, {Traffic.MEDIA: 1})

    await in_namespace(main)


async def test_a_long_request_of_a_session_arrives(make: MakePlane, tmp_path: Path) -> None:
    request = long_request(1)

    async def main() -> None:
        settings = bounds(initial_rto_s=0.1)
        async with plane_bench(make, tmp_path, settings) as bench, moved_session(bench) as (client, flow):
            bench.plane.request(client.connection, request)
            for _ in range(2):
                await bench.upstream.expect(request)
            bench.upstream.send(flow, answer(request))
            assert (await bench.event(StunReceived)).message == answer(request)
            # Its copies go in fragments, and are in no count either.
            assert (the_flow(bench).totals.uplink_packets, the_flow(bench).totals.uplink_bytes) == (0, 0)

    await in_namespace(main)


async def test_a_long_request_over_connect_udp_arrives(make: MakePlane, tmp_path: Path) -> None:
    """An indication of that length does not: what it carries is media."""
    request = long_request(1, 1496)
    indication = bytes([0, 0x16]) + long_request(2, 1496)[2:]

    async def main() -> None:
        async with plane_bench(make, tmp_path) as bench, carried(bench, Carrier.CONNECT_UDP) as client:
            await client.send(build_datagram(indication), build_datagram(request))
            await bench.upstream.expect(request)
            assert the_flow(bench).totals.drops == {DropReason.UPLINK_OVERSIZE: 1}

    await in_namespace(main)


async def test_a_long_request_that_vanishes_on_the_way_is_sent_again_in_fragments(
    make: MakePlane, tmp_path: Path
) -> None:
    """A router further on drops what is longer and may not be cut, and its ICMP message does not come through."""
    request = long_request(1, 1400)

    async def main() -> None:
        run("nft", "add table inet refusing")
        # Before fragments are put together again.
        run("nft", "add chain inet refusing in { type filter hook prerouting priority -450; }")
        run("nft", "add rule inet refusing in ip protocol udp ip length > 1300 ip frag-off & 0x4000 != 0 drop")
        settings = bounds(initial_rto_s=0.1)
        async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, _):
            await client.send(request)
            await bench.upstream.expect(request)
            assert the_flow(bench).totals.retransmissions == 1

    await in_namespace(main)


async def test_a_flow_whose_upstream_moves_is_asked_for_by_its_own_address(make: MakePlane, tmp_path: Path) -> None:
    """A socket that was opened without a route is connected to the upstream of its own move, and to no other."""

    async def main() -> None:
        async with plane_bench(make, tmp_path, bounds(initial_rto_s=0.1)) as bench:
            elsewhere = Upstream("elsewhere", bench.upstream.address._replace(port=9))
            async with carried(bench, Carrier.SESSION) as client:
                refuse("no route", 9)
                bench.plane.move(client.connection, elsewhere)
                bench.plane.request(client.connection, stun(1, Method.ALLOCATE))
                await until_refused(bench, 2)
                await move(bench, client, bench.target, bench.upstream)

    await in_namespace(main)
