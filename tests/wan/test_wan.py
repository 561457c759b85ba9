"""The WAN with real packets: what comes through, in what order, not before when, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.demo.wan.line import Wan, wan
from relay.demo.wan.link import Link, LinkCounters, LinkModel
from relay.demo.wan.netns import refusal
from tests.support.network.netns import devices, identity, inhabitants
from tests.support.network.wan import parse_link
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(refusal() is not None, reason=refusal() or "")
ROOT = Path(__file__).resolve().parent.parent.parent
# IPv4 and UDP headers.
HEADERS_BYTES = 28


class Pair:
    """A UDP socket at each end, connected to each other."""

    def __init__(self, line: Wan) -> None:
        self.client, self.server = (ns.socket(kind=socket.SOCK_DGRAM) for ns in (line.client_ns, line.server_ns))
        for one in (self.client, self.server):
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.client.bind((line.client_address, 0))
        self.server.bind((line.server_address, 0))
        self.client.connect(self.server.getsockname())
        self.server.connect(self.client.getsockname())

    async def receive(self, at: socket.socket) -> bytes:
        return await asyncio.get_running_loop().sock_recv(at, 65536)

    async def receive_until(self, last: bytes) -> list[bytes]:
        """What comes to the server before ``last``."""
        came = []
        while (data := await self.receive(self.server)) != last:
            came.append(data)
        return came

    def close(self) -> None:
        self.client.close()
        self.server.close()


@contextlib.asynccontextmanager
async def pair(
    uplink: Link | None = None, downlink: Link | None = None, *, seed: int = 1
) -> AsyncIterator[tuple[Wan, Pair]]:
    async with wan(uplink, downlink, seed=seed) as line:
        with contextlib.closing(Pair(line)) as ends:
            yield line, ends


def datagrams(count: int, size: int = 100) -> list[bytes]:
    return [number.to_bytes(4) + os.urandom(size - 4) for number in range(count)]


async def test_the_way_there_and_back_takes_twice_the_delay() -> None:
    async with pair(Link(delay_s=0.02), Link(delay_s=0.03)) as (_, ends):
        began = time.monotonic()
        ends.client.send(b"there")
        assert await ends.receive(ends.server) == b"there"
        assert time.monotonic() - began >= 0.02
        ends.server.send(b"back")
        assert await ends.receive(ends.client) == b"back"
        assert time.monotonic() - began >= 0.05


async def test_everything_comes_whole_and_in_order_despite_jitter() -> None:
    async with pair(Link(delay_s=0.001, jitter_s=0.02)) as (line, ends):
        sent = datagrams(300, size=1472)
        for data in sent:
            ends.client.send(data)
        ends.client.send(b"last")
        assert await ends.receive_until(b"last") == sent
        assert line.uplink.counters.delivered_packets == 301
        assert line.downlink.counters == LinkCounters()


async def test_loss_is_what_the_seed_says() -> None:
    link = Link(loss=0.2)
    async with pair(link, seed=5) as (line, ends):
        sent = datagrams(300)
        for data in sent:
            ends.client.send(data)
        await eventually(lambda: line.uplink.counters.packets_in == 300)
        line.uplink.change(loss=0)
        ends.client.send(b"last")
        came = await ends.receive_until(b"last")
        lost = line.uplink.counters.lost_packets
    model = LinkModel(link, seed=10)
    for data in sent:
        model.offer(data, 0)
    assert came == model.take(0)
    assert lost == 300 - len(came) > 0


async def test_both_directions_lose_different_packets() -> None:
    async with pair(Link(loss=0.5)) as (line, ends):
        for data in datagrams(100):
            ends.client.send(data)
            ends.server.send(data)
        await eventually(lambda: line.uplink.counters.packets_in == line.downlink.counters.packets_in == 100)
        line.uplink.change(loss=0)
        line.downlink.change(loss=0)
        ends.client.send(b"last")
        up = [data[:4] for data in await ends.receive_until(b"last")]
        ends.server.send(b"last")
        down = []
        while (data := await ends.receive(ends.client)) != b"last":
            down.append(data[:4])
    assert up != down


async def test_a_rate_is_not_exceeded() -> None:
    """20 datagrams of 1000 bytes at 800 kbit/s take a fifth of a second."""
    async with pair(Link(rate_bps=800_000)) as (line, ends):
        began = time.monotonic()
        for data in datagrams(20, size=1000 - HEADERS_BYTES):
            ends.client.send(data)
        for _ in range(20):
            await ends.receive(ends.server)
        assert time.monotonic() - began >= 0.2
        assert line.uplink.counters.delivered_bytes == 20_000


async def test_the_queue_drops_what_is_too_much() -> None:
    async with pair(Link(queue_bytes=10_000)) as (line, ends):
        line.uplink.stall()
        sent = datagrams(15, size=1000 - HEADERS_BYTES)
        for data in sent:
            ends.client.send(data)
        await eventually(lambda: line.uplink.counters.packets_in == 15)
        assert line.uplink.counters.dropped_packets == 5
        line.uplink.release()
        ends.client.send(b"last")
        assert await ends.receive_until(b"last") == sent[:10]


async def test_nothing_passes_a_stall_until_it_is_released() -> None:
    async with pair() as (line, ends):
        line.stall()
        sent = datagrams(50)
        for data in sent:
            ends.client.send(data)
            ends.server.send(data)
        await eventually(lambda: line.uplink.counters.packets_in == line.downlink.counters.packets_in == 50)
        for counters in (line.uplink.counters, line.downlink.counters):
            assert counters.delivered_packets == 0
            assert counters.queued_bytes == 50 * (100 + HEADERS_BYTES)
        for end in (ends.client, ends.server):
            with pytest.raises(BlockingIOError):
                end.recv(1)
        line.release()
        assert [await ends.receive(ends.server) for _ in sent] == sent
        assert [await ends.receive(ends.client) for _ in sent] == sent


async def test_a_stall_ends_by_itself_and_concerns_one_direction() -> None:
    async with pair() as (line, ends):
        began = time.monotonic()
        line.downlink.stall(0.3)
        ends.server.send(b"held")
        ends.client.send(b"passes")
        assert await ends.receive(ends.server) == b"passes"
        assert await ends.receive(ends.client) == b"held"
        assert time.monotonic() - began >= 0.3


async def test_a_link_can_be_changed_while_it_runs() -> None:
    async with pair() as (line, ends):
        line.uplink.change(loss=1)
        ends.client.send(b"lost")
        await eventually(lambda: line.uplink.counters.lost_packets == 1)
        line.uplink.change(loss=0, delay_s=0.05)
        assert line.uplink.link == Link(delay_s=0.05)
        began = time.monotonic()
        ends.client.send(b"late")
        assert await ends.receive(ends.server) == b"late"
        assert time.monotonic() - began >= 0.05
        with pytest.raises(TypeError):
            line.uplink.change(colour="red")
        with pytest.raises(ValueError, match="loss"):
            line.uplink.change(loss=2)


async def test_tcp_brings_everything_over_a_lossy_link() -> None:
    data = os.urandom(300_000)
    async with wan(Link(delay_s=0.002, loss=0.03), seed=2) as line:

        async def serve() -> bytes:
            received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

            async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                received.set_result(await reader.read(-1))
                writer.close()

            async with await asyncio.start_server(on_client, line.server_address, 4000):
                loop.call_soon_threadsafe(listening.set)
                return await received

        async def send() -> None:
            _, writer = await asyncio.open_connection(line.server_address, 4000)
            writer.write(data)
            writer.close()
            await writer.wait_closed()

        loop, listening = asyncio.get_running_loop(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(line.server_ns.run(serve))
            await listening.wait()
            await line.client_ns.run(send)
        assert serving.result() == data
        assert line.uplink.counters.lost_packets > 0


async def test_nothing_is_left_of_it() -> None:
    outside, threads = devices(), threading.active_count()
    inside = list[int]()
    with contextlib.suppress(ZeroDivisionError):
        async with wan(Link(delay_s=0.01)) as line:
            assert threading.active_count() == threads + 1
            namespaces = line.client_ns, line.server_ns
            # Held on to, so that one can look what is in there afterwards.
            inside = [os.open(ns.path, os.O_RDONLY) for ns in namespaces]
            numbers = [identity(ns) for ns in namespaces]
            async with line.server_ns.process(sys.executable, "-c", "import signal; signal.pause()"):
                raise ZeroDivisionError
    assert threading.active_count() == threads
    assert [inhabitants(number) for number in numbers] == [[], []]
    for fd in inside:
        command = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "cat", "/proc/thread-self/net/dev"]
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
        output, _ = await process.communicate()
        assert b"lo:" in output
        assert b"wan0" not in output
        os.close(fd)
    assert devices() == outside


async def test_counters_can_be_read_when_it_has_ended() -> None:
    async with pair() as (line, ends):
        ends.client.send(b"x")
        await ends.receive(ends.server)
    assert line.uplink.counters.delivered_packets == 1
    line.uplink.change(loss=1)


async def test_many_at_once_do_not_see_each_other() -> None:
    async with contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(pair()) for _ in range(5)]
        for number, (_, ends) in enumerate(lines):
            ends.client.send(bytes([number]))
        for number, (line, ends) in enumerate(lines):
            assert await ends.receive(ends.server) == bytes([number])
            assert line.uplink.counters.packets_in == 1


# Alone


async def test_it_serves_programs_until_its_input_ends() -> None:
    command = [sys.executable, "-m", "tests.support.network.wan", "--uplink", "delay_s=0.001", "--downlink", "loss=1"]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    entrance = json.loads(await process.stdout.readline())
    program = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('{}', 9))"
    for end, other in (("client", "server"), ("server", "client")):
        source = program.format(entrance[f"{other}_address"])
        sender = await asyncio.create_subprocess_exec(
            "nsenter", f"--net={entrance[end]}", "--", sys.executable, "-c", source
        )
        assert await sender.wait() == 0

    async def obeyed(order: str) -> dict[str, dict[str, int]]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(order.encode() + b"\n")
        answer: dict[str, dict[str, int]] = json.loads(await process.stdout.readline())
        return answer

    assert "colour" in str(await obeyed('{"change": {"colour": 1}}'))
    assert "error" in await obeyed("no JSON")
    counters = await obeyed('{"direction": "downlink", "stall": 1, "change": {"loss": 0}}')
    while counters["uplink"]["delivered_packets"] < 1 or counters["downlink"]["lost_packets"] < 1:
        counters = await obeyed("{}")
    process.stdin.close()
    assert await process.wait() == 0


def test_a_link_of_the_command_line() -> None:
    assert parse_link("delay_s=0.02,queue_bytes=4096") == Link(delay_s=0.02, queue_bytes=4096)
    assert parse_link("") == Link()
    for wrong in ("colour=1", "loss=2", "loss=x"):
        with pytest.raises(Exception, match=r"colour|no link|could not convert"):
            parse_link(wrong)
