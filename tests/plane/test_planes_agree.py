"""The planes agree: one random script of a client and an upstream gives the same bytes, end and counters on each."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import uvloop
from hypothesis import Phase, Verbosity, given, settings
from hypothesis import strategies as st

from relay.plane.api import CloseReason, Totals, Traffic
from relay.plane.reference.traffic import traffic_of
from relay.wire.channeldata import build_channel_data
from relay.wire.stream import StreamCutter
from relay.wire.stun import MAGIC_COOKIE_BYTES, MessageClass, Method
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.messages import HELLO, answer, stun
from tests.support.peers.tls_client import TlsClient
from tests.support.properties import examples, pieces, repeatable

# Media that is never sent by the upstream otherwise: what came before it has been delivered or dropped.
MARKER = build_channel_data(0x7FFF, b"that is all")
# Nothing happens by chance: no deadline comes, and the client reads only when the upstream has sent all.
SETTINGS = bounds(downlink_media_bytes=256 * 1024)
DEADLINE_S = 120
MAX_RECORD_BYTES, MAX_SEGMENT_BYTES = 16_384, 3000


@dataclass(frozen=True)
class Script:
    """What is said. The upstream speaks when it has heard the client's units, the client ends with ``last``."""

    plain: bytes
    record_sizes: list[int]
    segment_sizes: list[int]
    datagrams: list[bytes]
    last: bytes


@dataclass(frozen=True)
class Outcome:
    """What could be seen of it."""

    at_upstream: list[bytes]
    # Whether anything had to wait, and so was overtaken, is chance.
    at_client: dict[Traffic, list[bytes]]
    at_client_bytes: int
    reason: CloseReason
    detail: str
    totals: Totals
    plane_totals: Totals


media = st.builds(
    lambda channel, size, fill: build_channel_data(0x4000 + channel, bytes([fill]) * size, padded=True),
    st.integers(0, 0x3FFE),
    st.one_of(st.integers(0, 300), st.integers(0, 1500), st.just(5000)),
    st.integers(0, 255),
)
numbers = st.integers(1, 9)
methods = st.sampled_from([Method.BINDING, Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION])
requests = st.builds(stun, numbers, methods)
indications = st.builds(stun, numbers, st.just(Method.SEND), st.just(MessageClass.INDICATION))
answers = st.builds(
    lambda number, method, error: answer(stun(number, method), error=error),
    numbers,
    methods,
    st.sampled_from([0, 400, 401, 438, 486]),
)
broken_datagrams = st.one_of(
    st.binary(max_size=40),
    media.map(lambda unit: unit[:-5]),
    st.builds(lambda message, cut: message[:cut], answers, st.integers(0, 27)),
)
garbage = st.one_of(
    st.just(b""),
    st.binary(max_size=10),
    st.builds(lambda head, tail: bytes([head]) + tail, st.integers(0x80, 0xFF), st.binary(max_size=8)),
    st.binary(min_size=4, max_size=4).map(lambda cookie: b"\0\1\0\0" + cookie),
    st.just(b"\0\1\0\2" + MAGIC_COOKIE_BYTES),
    media.map(lambda unit: unit[: len(unit) // 2]),
)
scripts = st.builds(
    Script,
    plain=st.lists(st.one_of(media, requests, indications), max_size=20).map(b"".join),
    record_sizes=st.lists(st.integers(1, MAX_RECORD_BYTES), min_size=1, max_size=6),
    segment_sizes=st.lists(st.integers(1, MAX_SEGMENT_BYTES), min_size=1, max_size=6),
    datagrams=st.lists(st.one_of(media, answers, indications, broken_datagrams), max_size=20),
    last=garbage,
)


async def play(make: MakePlane, folder: Path, script: Script) -> Outcome:
    async with (
        asyncio.timeout(DEADLINE_S),
        plane_bench(make, folder, SETTINGS) as bench,
        bench.flow(HELLO) as (client, flow),
    ):
        at_upstream = await speak(bench, client, script)
        for datagram in [*script.datagrams, MARKER]:
            bench.upstream.send(flow, datagram)
        at_client = b""
        while not at_client.endswith(MARKER + b"\0"):
            at_client += await client.receive()
        if script.last:
            await client.send(script.last)
        await client.end()
        await client.closed_by_server()
        closed = await bench.closed()
        totals = bench.plane.snapshot().totals
        # What the client's last bytes had for the upstream may be on its way still.
        whole = len(StreamCutter().feed(script.plain + script.last))
        while len(at_upstream) < whole or not bench.upstream.received.empty():
            at_upstream.append((await bench.upstream.receive())[0])
        units = StreamCutter().feed(at_client)
        by_traffic = {traffic: [unit for unit in units if traffic_of(unit) is traffic] for traffic in Traffic}
        return Outcome(at_upstream, by_traffic, len(at_client), closed.reason, closed.detail, closed.totals, totals)


async def speak(bench: Bench, client: TlsClient, script: Script) -> list[bytes]:
    """The client's part; what the upstream hears of it."""
    wire = b"".join(client.record(record) for record in pieces(script.plain, script.record_sizes, MAX_RECORD_BYTES))
    for segment in pieces(wire, script.segment_sizes, MAX_SEGMENT_BYTES):
        await client.send_wire(segment)
        await asyncio.sleep(0)
    return [(await bench.upstream.receive())[0] for _ in StreamCutter().feed(script.plain)]


# A script is pages of bytes, and to find a shorter one takes minutes: the run is the same each time anyway.
@settings(repeatable, max_examples=examples(40), phases=[Phase.explicit, Phase.generate], verbosity=Verbosity.quiet)
@given(scripts)
def test_the_planes_agree(script: Script) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.get_loop().slow_callback_duration = float("inf")
        reference, compiled = [runner.run(play(make, Path(folder), script)) for make in PLANES.values()]
    for field in fields(Outcome):
        assert getattr(reference, field.name) == getattr(compiled, field.name), field.name
