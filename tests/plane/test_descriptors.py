"""A plane whose process has no descriptor left, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.demo.authority import Authority
from relay.plane.api import AcceptPaused, PauseCause
from relay.plane.endings import CANNOT_ACCEPT, pause_of
from relay.plane.reference.reserve import RESERVED_DESCRIPTORS
from relay.wire.channeldata import build_channel_data
from tests.support.benches.plane import PLANES, MakePlane, bounds, exchange, plane_bench
from tests.support.messages import HELLO
from tests.support.peers.scripted_upstream import ScriptedUpstream, scripted_upstream
from tests.support.peers.tls_client import TlsClient

SPARE_DESCRIPTORS = 12
NEWCOMERS = 40
REQUEST = b"GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n"


@dataclass
class Far:
    """The plane of another process."""

    server: Address
    authority: Authority
    upstream: ScriptedUpstream
    process: asyncio.subprocess.Process

    async def connect(self) -> TlsClient:
        return await TlsClient.open(self.server, self.authority.client_context())

    async def call(self) -> tuple[TlsClient, Address]:
        client = await self.connect()
        await client.send(HELLO)
        return client, await self.upstream.expect(HELLO)

    async def exchange(self, client: TlsClient, flow: Address) -> None:
        frame = build_channel_data(0x4001, b"ping")
        await client.send(frame)
        await self.upstream.expect(frame)
        self.upstream.send(flow, frame)
        assert await client.receive_unit() == frame

    async def end(self) -> dict[str, Any]:
        """What it has counted; it has said nothing else."""
        said, complaints = await self.process.communicate(b"")
        assert (self.process.returncode, complaints.decode()) == (0, "")
        counted: dict[str, Any] = json.loads(said)
        return counted


@contextlib.asynccontextmanager
async def far_plane(name: str, folder: Path) -> AsyncIterator[Far]:
    authority = Authority(folder)
    certificate = authority.issue("relay.test", "127.0.0.1")
    async with scripted_upstream() as upstream:
        arguments = [str(certificate.chain), str(certificate.private_key), str(upstream.address.port)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-W", "error", "-m", "tests.support.benches.plane_process"),
            *(name, str(SPARE_DESCRIPTORS), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            port = int(await process.stdout.readline())
            yield Far(Address("127.0.0.1", port), authority, upstream, process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


every_plane = pytest.mark.parametrize("name", PLANES)


@every_plane
async def test_newcomers_wait_for_a_descriptor(tmp_path: Path, name: str) -> None:
    """A plane takes nobody while it has none: nobody is turned away, and running calls go on."""
    async with far_plane(name, tmp_path) as far:
        caller, flow = await far.call()
        connecting = [asyncio.ensure_future(far.connect()) for _ in range(NEWCOMERS)]
        inside: list[TlsClient] = []
        # More are inside than fit at once in the end, one leaves for one that comes. Each holds what it will need.
        for next_one in asyncio.as_completed(connecting):
            inside.append(await next_one)
            await far.exchange(caller, flow)
            if len(inside) > (SPARE_DESCRIPTORS - 2) // (1 + RESERVED_DESCRIPTORS) - 1:
                inside.pop(0).abort()
        for client in inside:
            client.abort()
        await far.exchange(caller, flow)
        again, flow = await far.call()
        await far.exchange(again, flow)
        again.abort()
        caller.abort()
        counted = await far.end()
        assert counted["accepted"] == NEWCOMERS + 2
        assert counted["pauses"] == ["descriptors"]
        assert set(counted["closed"]) <= {"client_closed", "client_lost"}


@every_plane
@pytest.mark.parametrize("first", [HELLO, REQUEST], ids=["turn", "http"])
async def test_nobody_shakes_hands_in_vain(tmp_path: Path, name: str, first: bytes) -> None:
    """More clients than there are descriptors come at once: whoever is let in gets what it came for, in the end all."""
    served = 0

    async def come(far: Far) -> None:
        nonlocal served
        client = await far.connect()
        await client.send(first)
        assert await client.receive()
        served += 1
        client.abort()

    async with far_plane(name, tmp_path) as far:
        caller, flow = await far.call()
        answering = asyncio.ensure_future(answer_all(far.upstream))
        await asyncio.gather(*(come(far) for _ in range(NEWCOMERS)))
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        assert served == NEWCOMERS
        await far.exchange(caller, flow)
        caller.abort()
        counted = await far.end()
        assert set(counted["closed"]) <= {"client_closed", "client_lost", "http_closed"}


@pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())
async def test_newcomers_leave_some_for_control(make: MakePlane, tmp_path: Path) -> None:
    """With as many in use as the bound says they wait, although there are more; calls go on."""
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (caller, flow):
        # Not the next free number: what is kept for the next newcomer may have a lower one.
        bench.plane.configure(bounds(max_descriptors=1))
        connecting = asyncio.ensure_future(bench.connect())
        paused = await bench.event(AcceptPaused)
        assert paused == AcceptPaused(PauseCause.DESCRIPTORS, "too many open files")
        await exchange(bench, caller, flow)
        assert bench.plane.snapshot().accepted == 1
        bench.plane.configure(bounds())
        (await connecting).abort()


def test_pauses_have_causes() -> None:
    causes = {code: pause_of(code).cause for code in (0, *sorted(CANNOT_ACCEPT))}
    assert causes == {
        0: PauseCause.HANDSHAKES,
        errno.EMFILE: PauseCause.DESCRIPTORS,
        errno.ENFILE: PauseCause.DESCRIPTORS,
        errno.ENOMEM: PauseCause.MEMORY,
        errno.ENOBUFS: PauseCause.MEMORY,
    }


async def answer_all(upstream: ScriptedUpstream) -> None:
    """Send every HELLO back."""
    while True:
        upstream.send(await upstream.expect(HELLO), HELLO)
