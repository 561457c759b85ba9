"""A relay with one flow and a scripted upstream, and captures of that flow while a test runs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from relay.addresses import Address
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import is_stun
from tests.support.benches.gateway import Relay, running_relay
from tests.support.messages import HELLO
from tests.support.pcapng import CaptureFile, read_capture
from tests.support.peers.scripted_upstream import ScriptedUpstream, scripted_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import eventually

# Longer than any test: another end comes first.
LONG_S = 60
NO_PROBES = {"interval_s": 3600.0}


@dataclass
class Bench:
    """A relay with one flow, whose upstream does what the test says."""

    relay: Relay
    upstream: ScriptedUpstream
    client: TlsClient
    flow: Address

    @property
    def id(self) -> str:
        """The flow's id."""
        [flow] = self.relay.gateway.plane.snapshot().flows
        return self.relay.gateway.ids.id_of(flow.connection)

    @property
    def url(self) -> str:
        return f"http://{self.relay.admin}"

    async def hears(self, data: bytes) -> None:
        """The upstream hears this next, apart from copies of the health probe."""
        while (came := (await self.upstream.receive())[0]) != data:
            assert is_stun(came), came.hex()

    async def up(self, frame: bytes) -> None:
        """One frame from client to upstream."""
        await self.client.send(frame + bytes(-len(frame) & 3))
        while (came := await self.upstream.receive())[1] != self.flow:
            pass  # the health probe, again
        assert came[0] == frame

    async def down(self, frame: bytes) -> None:
        """And one back."""
        self.upstream.send(self.flow, frame)
        assert await self.client.receive_unit() == frame


@contextlib.asynccontextmanager
async def relay_with_a_flow(folder: Path, plane: str = "compiled", **capture: Any) -> AsyncIterator[Bench]:
    async with (
        scripted_upstream() as upstream,
        running_relay(
            folder, upstream.address, listen={"plane": plane, "workers": 1}, health=NO_PROBES, capture=capture
        ) as relay,
    ):
        client = await TlsClient.open(relay.tls, relay.trust)
        try:
            await client.send(HELLO)
            while (came := await upstream.receive())[0] != HELLO:
                pass  # the health probe
            yield Bench(relay, upstream, client, came[1])
        finally:
            client.abort()


class Running:
    """A capture whose answer has begun."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def file(self) -> CaptureFile:
        """All of it, once it has ended."""
        return read_capture(await self.answer.read())


@contextlib.asynccontextmanager
async def capturing(bench: Bench, seconds: float = LONG_S) -> AsyncIterator[Running]:
    """Captures while the block runs; the plane copies already."""
    url = f"{bench.url}/api/flows/{bench.id}/capture"
    async with aiohttp.ClientSession() as session, session.post(url, params={"seconds": str(seconds)}) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["Content-Type"] == "application/vnd.tcpdump.pcap"
        await copies(bench)
        yield Running(answer)


async def copies(bench: Bench) -> None:
    """Wait until the plane's turn in which it begins to copy: it takes commands in order."""
    [running] = bench.relay.gateway.captures._running.values()
    probe = build_channel_data(0x4002, b"probe")

    def is_seen() -> bool:
        bench.upstream.send(bench.flow, probe)
        return running.packets > 0

    await eventually(is_seen)
