"""A plane under test, with a policy that the test chooses and events that it can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from relay._fastpath import live_objects
from relay.addresses import Address
from relay.demo.authority import Authority
from relay.plane.api import (
    AllocationOrphaned,
    Closed,
    DropReason,
    Event,
    EventSink,
    FlowSnapshot,
    HttpOpened,
    Plane,
    TurnOpened,
    Upstream,
)
from relay.plane.certificates import Certificate, ServerCertificate, read_certificate
from relay.plane.compiled.plane import CompiledPlane
from relay.plane.reference.plane import ReferencePlane
from relay.plane.settings import PlaneSettings
from relay.wire.channeldata import build_channel_data
from tests.support.messages import HELLO
from tests.support.peers.forging_client import ForgingClient
from tests.support.peers.scripted_upstream import ScriptedUpstream, scripted_upstream
from tests.support.peers.tls_client import TlsClient

_Kind = TypeVar("_Kind", bound=Event)
MakePlane = Callable[[PlaneSettings, Sequence[ServerCertificate], EventSink], Plane]

# Every plane passes the same contract.
PLANES: dict[str, MakePlane] = {"reference": ReferencePlane, "compiled": CompiledPlane}


# As good as never.
FAR_OFF_S = 3600.0
_FAR_OFF = PlaneSettings(
    handshake_timeout_s=FAR_OFF_S,
    first_bytes_timeout_s=FAR_OFF_S,
    allocation_timeout_s=FAR_OFF_S,
    control_timeout_s=FAR_OFF_S,
    upstream_silence_s=FAR_OFF_S,
    initial_rto_s=FAR_OFF_S,
    max_media_age_s=FAR_OFF_S,
)


def bounds(**those: Any) -> PlaneSettings:
    """These settings, with every other deadline far off.

    On a machine that stands still for a second, no request is sent again then, and no media is dropped for its age.
    """
    return replace(_FAR_OFF, **those)


# Media is dropped because there is too much of it, not because the test took long.
PATIENT = bounds(max_media_age_s=3600)


@dataclass
class Bench:
    """The plane, an upstream that does what the test says, and what is needed to connect."""

    plane: Plane
    server: Address
    authority: Authority
    certificate: Certificate
    upstream: ScriptedUpstream
    target: Upstream
    # Attach every TURN connection to ``target`` as soon as it opens.
    attaches: bool = True
    events: list[Event] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, TurnOpened) and self.attaches:
                self.plane.attach(event.connection, self.target)
        self._arrived.set()

    async def event(self, kind: type[_Kind], where: Callable[[_Kind], bool] = lambda _: True) -> _Kind:
        """Wait for the next event of this kind for which ``where`` is true, and take it out."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and where(event):
                    self.events.remove(event)
                    return event
            self._arrived.clear()
            await self._arrived.wait()

    async def closed(self) -> Closed:
        """The next end of a connection."""
        return await self.event(Closed)

    async def connect(self, server_name: str | None = "relay.test", **options: object) -> TlsClient:
        """A client whose handshake is done."""
        context = self.authority.client_context()
        return await TlsClient.open(self.server, context, server_name, **options)  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def client(self, **options: object) -> AsyncIterator[TlsClient]:
        """A client that is closed with the block."""
        client = await self.connect(**options)  # type: ignore[arg-type]
        try:
            yield client
        finally:
            client.abort()

    @contextlib.asynccontextmanager
    async def flow(self, hello: bytes) -> AsyncIterator[tuple[TlsClient, Address]]:
        """A client that has sent ``hello``, and the address of its flow as the upstream sees it."""
        async with self.client() as client:
            await client.send(hello)
            yield client, await self.upstream.expect(hello)


@contextlib.asynccontextmanager
async def plane_bench(
    make: MakePlane,
    folder: Path,
    settings: PlaneSettings | None = None,
    *,
    host: str = "127.0.0.1",
    releases_allocations: bool = False,
) -> AsyncIterator[Bench]:
    """A listening plane with one certificate for relay.test. Descriptors in unread events are closed at the end.

    Without ``settings`` it has no deadline that comes: see ``bounds``.

    A debug build counts what is alive: nothing is, once the plane has gone.
    """
    authority = Authority(folder)
    certificate = authority.issue("relay.test", host)
    benches: list[Bench] = []

    def on_events(events: Sequence[Event]) -> None:
        benches[0].on_events(events)

    others = _alive()
    plane = make(settings or bounds(), [read_certificate(certificate)], on_events)
    async with scripted_upstream(host) as upstream:
        target = Upstream("scripted", upstream.address, releases_allocations=releases_allocations)
        bench = Bench(plane, await plane.listen(Address(host, 0)), authority, certificate, upstream, target)
        benches.append(bench)
        try:
            yield bench
        finally:
            await plane.stop()
            for event in bench.events:
                if isinstance(event, HttpOpened | AllocationOrphaned):
                    os.close(event.fd)
    _assert_nothing_is_left(others, apart_from={"buffers", "contexts"})
    del plane, bench.plane
    _assert_nothing_is_left(others)


def _alive() -> Counter[str]:
    """What is alive once nobody's garbage is: a gateway of an earlier test may still have its plane."""
    if any(live_objects().values()):
        gc.collect()
    return Counter(live_objects())


def _assert_nothing_is_left(others: Counter[str], apart_from: Set[str] = frozenset()) -> None:
    """``apart_from`` names what the workers keep until they are collected themselves."""
    left = {kind: count for kind, count in (_alive() - others).items() if kind not in apart_from}
    assert not left


async def commands_are_taken(bench: Bench) -> None:
    """Wait until each worker has taken all that it has been told: since then it has taken a flow to somewhere else.

    For what must not come of a command. The bench's own upstream hears nothing of this.
    """
    workers = set(range(len(getattr(bench.plane, "_workers", "1"))))
    attaches, bench.attaches = bench.attaches, False
    async with scripted_upstream(bench.server.host) as aside:
        while workers:
            async with bench.client() as client:
                ours = Address(*client.socket.getsockname()[:2])
                await client.send(HELLO)
                opened = await bench.event(TurnOpened, lambda one, ours=ours: one.client == ours)  # type: ignore[misc]
                bench.plane.attach(opened.connection, Upstream("aside", aside.address))
                await aside.expect(HELLO)
            await bench.event(Closed, lambda one, opened=opened: one.connection == opened.connection)  # type: ignore[misc]
            workers.discard(opened.connection >> 56)
    bench.attaches = attaches


def only_flow(bench: Bench) -> FlowSnapshot:
    """The one flow that the plane has."""
    (flow,) = bench.plane.snapshot().flows
    return flow


async def http_stream(bench: Bench, client: TlsClient, request: bytes) -> tuple[HttpOpened, socket.socket]:
    """Send a request; returns what control is told, and control's end of the stream."""
    await client.send(request)
    opened = await bench.event(HttpOpened)
    stream = socket.socket(fileno=opened.fd)
    stream.setblocking(False)
    return opened, stream


async def raw_client(bench: Bench, data: bytes) -> socket.socket:
    """A TCP connection that has sent these bytes."""
    connected = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connected, bench.server)
    if data:
        await loop.sock_sendall(connected, data)
    return connected


async def exchange(bench: Bench, client: TlsClient, flow: Address, text: bytes = b"ping") -> None:
    """Send one packet up and one down: the call lives, and the plane has seen all that was sent before."""
    frame = build_channel_data(0x4001, text, padded=True)
    await client.send(frame)
    await bench.upstream.expect(frame[: 4 + len(text)])
    bench.upstream.send(flow, frame)
    assert await client.receive_exactly(len(frame)) == frame


async def flood(bench: Bench, flow: Address, datagram: bytes, drop: DropReason, count: int) -> None:
    """Send to a flow until this many were dropped."""
    sent = 0
    while bench.plane.snapshot().totals.drops.get(drop, 0) < count:
        bench.upstream.send(flow, datagram)
        sent += 1
        await asyncio.sleep(0)
        assert sent < 100_000, "the kernel's buffers are larger than this"


async def forging_client(bench: Bench, version: ssl.TLSVersion, folder: Path) -> ForgingClient:
    """A client of the bench that writes its own records; its keys are written to ``folder``."""
    return await ForgingClient.open_forging(bench.server, bench.authority.client_context(), version, folder)
