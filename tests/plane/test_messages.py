"""What the compiled plane reports with its bytes: bounded while control does not take it, never of another upstream."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from pathlib import Path

from relay.addresses import Address
from relay.plane.api import (
    AllocationOrphaned,
    Carrier,
    CloseReason,
    DropReason,
    StunReceived,
    TextReceived,
    Traffic,
    Upstream,
    UpstreamLost,
)
from relay.plane.compiled.plane import CompiledPlane
from relay.wire.stun import MessageClass, Method
from relay.wire.websocket import MAX_TEXT_BYTES, Opcode
from tests.support.benches.plane import Bench, plane_bench
from tests.support.messages import answer, stun
from tests.support.peers.carriers import Carried, carried, masked, move, moved_session, text
from tests.support.peers.scripted_upstream import scripted_upstream

# So that all connections share one queue.
ONE_WORKER = functools.partial(CompiledPlane, workers=1)
TEXTS_A_PING = 128
UNASKED_A_PING = 256
LONGEST = "x" * MAX_TEXT_BYTES
# Texts may fill half of what may wait: what one client may say between two pings.
TALKERS = 1


async def say(client: Carried, texts: int) -> None:
    """Send so many of the longest texts, and wait until all have been read."""
    for _ in range(texts):
        await client.send(text(LONGEST))
    await client.send(masked(Opcode.PING, b"read?"))
    await client.expect(Opcode.PONG, b"read?")


def workers(bench: Bench) -> tuple[CompiledPlane, int]:
    plane = bench.plane
    assert isinstance(plane, CompiledPlane)
    return plane, plane._workers[0].event_fd


def stop_listening(bench: Bench) -> None:
    plane, event_fd = workers(bench)
    plane.loop.remove_reader(event_fd)


def listen_again(bench: Bench) -> None:
    plane, event_fd = workers(bench)
    plane.loop.add_reader(event_fd, plane._notices.read, plane._workers[0])


async def test_who_speaks_while_control_hangs_is_let_go_at_8_mib(tmp_path: Path) -> None:
    async with plane_bench(ONE_WORKER, tmp_path) as bench, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(carried(bench, Carrier.SESSION)) for _ in range(TALKERS + 1)]
        stop_listening(bench)
        for client in clients[:TALKERS]:
            await say(client, TEXTS_A_PING)
        await clients[TALKERS].send(text("one too many"))
        await clients[TALKERS].expect_close(1011, "control_timeout")
        listen_again(bench)
        for client in clients[:TALKERS]:
            for _ in range(TEXTS_A_PING):
                assert await bench.event(TextReceived) == TextReceived(client.connection, LONGEST)
        closed = await bench.closed()
        assert (closed.connection, closed.reason) == (clients[TALKERS].connection, CloseReason.CONTROL_TIMEOUT)
        async with carried(bench, Carrier.SESSION) as another:
            await another.send(text("heard again"))
            assert await bench.event(TextReceived) == TextReceived(another.connection, "heard again")


async def test_what_nobody_took_is_told_at_the_end(tmp_path: Path) -> None:
    async with plane_bench(ONE_WORKER, tmp_path) as bench, carried(bench, Carrier.SESSION) as client:
        stop_listening(bench)
        await say(client, 2)
        await bench.plane.stop()
        for _ in range(2):
            assert await bench.event(TextReceived) == TextReceived(client.connection, LONGEST)
        assert (await bench.closed()).reason is CloseReason.STOPPED


async def test_stun_that_nobody_asked_for_does_not_flood_control(tmp_path: Path) -> None:
    """Data of peers without a channel comes packet by packet; answers are heard all the same."""
    async with plane_bench(ONE_WORKER, tmp_path) as bench, moved_session(bench) as (client, flow):
        for number in range(UNASKED_A_PING + 3):
            bench.upstream.send(flow, stun(number, Method.DATA, MessageClass.INDICATION))
            if number % 32 == 0:
                await asyncio.sleep(0)
        request = stun(1)
        bench.plane.request(client.connection, request)
        bench.upstream.send(await bench.upstream.expect(request), answer(request))
        await bench.event(StunReceived, lambda received: received.message == answer(request))
        assert len([event for event in bench.events if isinstance(event, StunReceived)]) == UNASKED_A_PING
        totals = bench.plane.snapshot().totals
        assert (totals.drops, totals.drops_by_traffic) == ({DropReason.DOWNLINK_FULL: 3}, {Traffic.MEDIA: 3})


# ---- Moves that the worker has not heard of yet


async def test_an_end_before_a_move_leaves_the_socket_of_the_upstream_before(tmp_path: Path) -> None:
    async with (
        plane_bench(ONE_WORKER, tmp_path) as bench,
        scripted_upstream() as second,
        scripted_upstream() as third,
        moved_session(bench) as (client, _),
    ):
        # The end is on its way when control moves the session.
        bench.plane.close(client.connection, CloseReason.RESUMED)
        bench.plane.move(client.connection, Upstream("second", second.address))
        bench.plane.move(client.connection, Upstream("third", third.address))
        orphan = await bench.event(AllocationOrphaned)
        with socket.socket(fileno=orphan.fd) as left:
            assert Address(*left.getpeername()) == orphan.upstream.address == bench.upstream.address
        closed = await bench.closed()
        assert (closed.reason, closed.flow and closed.flow.upstream.name) == (CloseReason.RESUMED, "third")


async def test_an_end_between_two_moves(tmp_path: Path) -> None:
    async with (
        plane_bench(ONE_WORKER, tmp_path) as bench,
        scripted_upstream() as second,
        moved_session(bench) as (client, _),
    ):
        bench.plane.move(client.connection, Upstream("second", second.address))
        bench.plane.close(client.connection, CloseReason.RESUMED)
        bench.plane.move(client.connection, bench.target)
        orphan = await bench.event(AllocationOrphaned)
        with socket.socket(fileno=orphan.fd) as left:
            assert Address(*left.getpeername()) == orphan.upstream.address == second.address
        await bench.closed()


async def test_the_loss_of_an_upstream_that_was_left_already_is_not_told(tmp_path: Path) -> None:
    async with (
        plane_bench(ONE_WORKER, tmp_path) as bench,
        scripted_upstream() as second,
        moved_session(bench) as (client, _),
    ):
        bench.upstream.close()
        stop_listening(bench)
        # The second datagram meets the ICMP answer to the first.
        for _ in range(2):
            await client.send(masked(Opcode.BINARY, b"\x40\x01voice"), masked(Opcode.PING))
            await client.expect(Opcode.PONG, b"")
        await move(bench, client, Upstream("second", second.address), second)
        listen_again(bench)
        await client.send(text("still here"))
        await bench.event(TextReceived)
        assert not [event for event in bench.events if isinstance(event, UpstreamLost)]
