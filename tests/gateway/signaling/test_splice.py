"""Two connections made one: bytes untouched, bounded buffers, ends passed on, and nobody waited for without end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay.gateway.signaling import splice as module
from relay.gateway.signaling.splice import BUFFER_BYTES, Splice


class Owner(asyncio.Protocol):
    """Who had the transport before."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set()


class Joined:
    """A running splice: ``client`` and ``upstream`` are the far ends, plain sockets."""

    def __init__(self, far: list[socket.socket], owners: list[Owner], splice: Splice) -> None:
        self.client, self.upstream = far
        self.owners = owners
        self.splice = splice
        self.loop = asyncio.get_running_loop()

    async def send(self, end: socket.socket, data: bytes) -> None:
        await self.loop.sock_sendall(end, data)

    async def fill(self, end: socket.socket) -> int:
        """Send until nobody has taken anything for a while; how much went."""
        sent = idle = 0
        while idle < 20:
            try:
                sent += end.send(bytes(16 * 1024))
                idle = 0
            except BlockingIOError:
                idle += 1
                await asyncio.sleep(0.02)
        return sent

    async def receive(self, end: socket.socket, size: int = 65536) -> bytes:
        return await self.loop.sock_recv(end, size)


@contextlib.asynccontextmanager
async def joined(*, tails: tuple[bytes, bytes] = (b"", b""), **options: Any) -> AsyncIterator[Joined]:
    loop = asyncio.get_running_loop()
    far, owners, ends = [], [], []
    for _ in range(2):
        one, near = socket.socketpair()
        for each in (one, near):
            each.setblocking(False)
        transport, owner = await loop.create_connection(Owner, sock=near)
        far.append(one)
        owners.append(owner)
        ends.append((transport, owner))
    splice = Splice(ends[0], ends[1], **{"idle_timeout_s": 60.0, **options})
    task = loop.create_task(splice.run(*tails))
    await asyncio.sleep(0)  # it has taken over then
    try:
        yield Joined(far, owners, splice)
    finally:
        for one in far:
            one.close()
        async with asyncio.timeout(20):
            await task
            for owner in owners:
                await owner.lost.wait()


async def test_bytes_pass_both_ways_untouched() -> None:
    data = random.Random(1).randbytes(3_000_000)
    async with joined() as one:

        async def passes(source: socket.socket, target: socket.socket) -> bytes:
            sending = asyncio.ensure_future(one.send(source, data))
            received = hashlib.sha256()
            left = len(data)
            while left:
                chunk = await one.receive(target)
                received.update(chunk)
                left -= len(chunk)
            await sending
            return received.digest()

        digests = await asyncio.gather(passes(one.client, one.upstream), passes(one.upstream, one.client))
        assert set(digests) == {hashlib.sha256(data).digest()}
        assert (one.splice.client_bytes, one.splice.upstream_bytes) == (len(data), len(data))


async def test_tails_go_first() -> None:
    async with joined(tails=(b"from the client ", b"from the upstream ")) as one:
        assert await one.receive(one.upstream) == b"from the client "
        assert await one.receive(one.client) == b"from the upstream "
        await one.send(one.client, b"more")
        assert await one.receive(one.upstream) == b"more"


async def test_who_is_not_read_is_not_read_from() -> None:
    async with joined() as one:
        # Nobody reads at the other end: what goes is what the kernel and our buffer hold.
        sent = await one.fill(one.client)
        ours = one.splice.client_bytes
        assert BUFFER_BYTES <= ours < 16 * BUFFER_BYTES
        received = 0
        while received < sent:
            received += len(await one.receive(one.upstream))
        await one.send(one.upstream, b"still here")
        assert await one.receive(one.client) == b"still here"


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_half_close_lets_the_other_side_finish(side: str) -> None:
    async with joined() as one:
        first, second = (one.client, one.upstream) if side == "client" else (one.upstream, one.client)
        await one.send(first, b"last words")
        first.shutdown(socket.SHUT_WR)
        assert await one.receive(second) == b"last words"
        assert await one.receive(second) == b""
        await one.send(second, b"answer")
        assert await one.receive(first) == b"answer"
        second.shutdown(socket.SHUT_WR)
        assert await one.receive(first) == b""
        for owner in one.owners:
            await owner.lost.wait()


async def test_half_close_does_not_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HALF_CLOSED_S", 0.05)
    async with joined() as one:
        one.client.shutdown(socket.SHUT_WR)
        assert await one.receive(one.upstream) == b""
        assert await one.receive(one.client) == b""


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_loss_of_one_closes_the_other(side: str) -> None:
    async with joined() as one:
        first, second = (one.client, one.upstream) if side == "client" else (one.upstream, one.client)
        await one.send(first, b"last words")
        first.close()
        assert await one.receive(second) == b"last words"
        assert await one.receive(second) == b""


async def test_what_is_not_taken_does_not_hold_the_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.05)
    async with joined() as one:
        await one.fill(one.client)
        one.splice.close()
        for owner in one.owners:
            await owner.lost.wait()


async def test_idle_ends_it() -> None:
    async with joined(idle_timeout_s=0.05) as one:
        assert await one.receive(one.client) == b""
        assert await one.receive(one.upstream) == b""


async def test_cancelled_it_closes_both() -> None:
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(2)]
    ends = []
    for far, near in pairs:
        far.setblocking(False)
        near.setblocking(False)
        ends.append(await loop.create_connection(Owner, sock=near))
    task = loop.create_task(Splice(ends[0], ends[1], idle_timeout_s=60.0).run(b"", b""))
    await asyncio.sleep(0)
    task.cancel()
    for far, _ in pairs:
        assert await loop.sock_recv(far, 1) == b""
        far.close()
    for _, owner in ends:
        await owner.lost.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_observer_sees_the_upstream_until_it_has_enough() -> None:
    seen: list[bytes] = []

    def observe(data: bytes) -> bool:
        seen.append(data)
        return len(seen) == 2

    async with joined(observe=observe) as one:
        await one.send(one.client, b"not this")
        assert await one.receive(one.upstream) == b"not this"
        for data in (b"first", b"second", b"third"):
            await one.send(one.upstream, data)
            assert await one.receive(one.client) == data
    assert seen == [b"first", b"second"]
