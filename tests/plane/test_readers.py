"""Control reads the compiled plane's flows while its workers go on, without a lock, and nothing that has been freed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

from relay.plane.api import FlowSnapshot
from relay.plane.compiled.plane import CompiledPlane
from relay.wire.channeldata import build_channel_data
from relay.wire.rtp import RtpHeader, build_packet
from tests.support.benches.plane import plane_bench
from tests.support.messages import HELLO
from tests.support.waiting import becomes


def rtp(number: int, ssrc: int) -> bytes:
    """A packet of G.711 in ChannelData, whose length needs no padding."""
    return build_channel_data(0x4001, build_packet(RtpHeader(0, number & 0xFFFF, 160 * number, ssrc), b"1234"))


class WatchedWorker:
    """A worker whose released connections must not be described: it may have freed what they point to."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self.released: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def release(self, identity: int) -> None:
        self.released.add(identity)
        self._worker.release(identity)

    def flow(self, identity: int) -> Any:
        assert identity not in self.released
        return self._worker.flow(identity)


async def test_a_flow_of_an_old_snapshot_is_not_read_once_its_end_has_been(tmp_path: Path) -> None:
    """A look at the calls takes seconds, and some of them end meanwhile."""
    async with plane_bench(CompiledPlane, tmp_path) as bench:
        plane = bench.plane
        assert isinstance(plane, CompiledPlane)
        async with bench.flow(HELLO) as (client, _), bench.flow(HELLO) as (other, _):
            watched = [WatchedWorker(worker) for worker in plane._workers]
            plane._workers[:] = watched  # type: ignore[assignment]
            for worker in watched:
                plane.loop.add_reader(worker.event_fd, plane._notices.read, worker)  # type: ignore[arg-type]
            for sender in (client, other):
                await sender.send(rtp(1, 7))
                await bench.upstream.expect(rtp(1, 7))
            # A packet is counted when it has been sent.
            await becomes(lambda: [flow.totals.uplink_packets for flow in bench.plane.snapshot().flows], [2, 2])
            before = bench.plane.snapshot()
            assert [len(flow.streams) for flow in before.flows] == [1, 1]
            await client.close()
            closed = await bench.closed()
            assert closed.flow is not None
            assert len(closed.flow.streams) == 1
            assert len(set().union(*(worker.released for worker in watched))) == 1
            flows = {flow.connection: flow for flow in before.flows}
            assert len(flows[closed.connection].streams) == 0
            assert flows[closed.connection].totals == closed.totals
            assert [len(flow.streams) for flow in flows.values() if flow.connection != closed.connection] == [1]
            # The plane's, and nobody else's: what a worker holds is freed with it.
            plane._workers[:] = [worker._worker for worker in watched]
            for worker in watched:
                plane.loop.add_reader(worker.event_fd, plane._notices.read, worker._worker)
            watched.clear()
            del worker, plane


async def test_a_snapshot_does_not_keep_its_plane(tmp_path: Path) -> None:
    async with plane_bench(CompiledPlane, tmp_path) as bench, bench.flow(HELLO) as (client, _):
        await client.send(rtp(1, 7))
        await bench.upstream.expect(rtp(1, 7))
        await becomes(lambda: bench.plane.snapshot().totals.uplink_packets, 2)
        snapshot = bench.plane.snapshot()
        assert len(snapshot.flows[0].streams) == 1
        plane = weakref.ref(bench.plane)
    gc.collect()
    assert plane() is None
    (flow,) = snapshot.flows
    assert (flow.totals.uplink_packets, flow.streams) == (2, ())


def ages(flow: FlowSnapshot) -> list[float]:
    return [flow.age_s, flow.heard_s, flow.queue_age_s, *(stream.idle_us for stream in flow.streams)]


async def test_streams_are_read_while_others_take_their_places(tmp_path: Path) -> None:
    """4,000 SSRCs for 16 places: every reading is one that could have been."""
    async with plane_bench(CompiledPlane, tmp_path) as bench, bench.flow(HELLO) as (client, flow):
        sending = asyncio.ensure_future(
            client.send(*[b"".join(rtp(number, ssrc) for number in range(3)) for ssrc in range(4000)])
        )
        received = 0
        while received < 12_000:
            # Some of them are lost where the kernel has no room.
            if sending.done() and bench.upstream.received.empty():
                break
            received += bench.upstream.received.qsize()
            while not bench.upstream.received.empty():
                bench.upstream.received.get_nowait()
            bench.upstream.send(flow, rtp(received, 1))
            for _ in range(20):
                (seen,) = bench.plane.snapshot().flows
                assert len(seen.streams) <= 16 + 1
                assert min(ages(seen)) >= 0
                for stream in seen.streams:
                    assert stream.clock_hz in {0, 8000}
                    assert 0 <= stream.packets <= 12_000
            await asyncio.sleep(0)
        await sending
        assert not bench.plane.snapshot().closed
