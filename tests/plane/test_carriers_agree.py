"""The planes agree on the carriers behind HTTP: one random script gives the same bytes, end and counters on each.

What a TURN client says is in ``test_planes_agree``; requests that are sent again are chance here, and left to it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.addresses import Address
from relay.plane.api import Carrier, CloseReason, StunReceived, TextReceived, Totals
from relay.plane.reference.carriers import new_framing
from relay.plane.reference.traffic import traffic_of
from relay.wire.capsule import CapsuleCutter, build_capsule, build_datagram, build_varint
from relay.wire.channeldata import build_channel_data, pad
from relay.wire.stun import MessageClass, Method
from relay.wire.websocket import MessageCutter, Opcode, build_close, build_frame
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.messages import HELLO, answer, stun
from tests.support.peers.carriers import Carried, carried, masked, move
from tests.support.properties import examples, pieces, repeatable

# What the upstream sends last, and nobody else ever: all before it has been delivered or dropped.
MARKER = build_channel_data(0x4FFF, b"that is all")
SETTINGS = bounds(max_media_age_s=3600, websocket_ping_s=3600)
DEADLINE_S = 120


@dataclass(frozen=True)
class Script:
    """What is said. The upstream speaks when it has heard what the client says first; the client ends with ``last``."""

    carrier: Carrier
    plain: bytes
    record_sizes: list[int]
    datagrams: list[bytes]
    last: bytes


@dataclass(frozen=True)
class Outcome:
    """What could be seen of it."""

    at_upstream: list[bytes]
    # Whether anything had to wait, and so was overtaken, is chance.
    at_client: dict[str, list[bytes]]
    at_client_bytes: int
    at_control: list[str | bytes]
    reason: CloseReason
    detail: str
    totals: Totals


channels = st.integers(0x4000, 0x7FFF)
data = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda size, fill: bytes([fill]) * size, st.integers(0, 2040), st.integers(0, 255)),
)
media = st.builds(build_channel_data, channels, data)
numbers = st.integers(1, 9)
indications = st.builds(stun, numbers, st.just(Method.SEND), st.just(MessageClass.INDICATION))
answers = st.builds(lambda number, error: answer(stun(number), error=error), numbers, st.sampled_from([0, 400, 438]))
datagrams = st.one_of(
    media, media.map(pad), answers, indications, st.binary(max_size=40), media.map(lambda unit: unit[:-1])
)


def in_fragments(opcode: Opcode, payload: bytes, cuts: list[int], between: list[bytes]) -> bytes:
    """A message in fragments, with other frames between them."""
    at = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    parts = [payload[start:end] for start, end in pairwise(at)]
    frames = [
        masked(Opcode.CONTINUATION if index else opcode, part, final=index == len(parts) - 1)
        for index, part in enumerate(parts)
    ]
    return b"".join(frame + other for frame, other in zip(frames, [*between, *[b""] * len(frames)], strict=False))


cuts = st.lists(st.integers(0, 3000), max_size=4)
control = st.builds(masked, st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))
between = st.lists(st.one_of(st.just(b""), control), max_size=4)


def messages_of(payloads: st.SearchStrategy[bytes], opcode: Opcode = Opcode.BINARY) -> st.SearchStrategy[bytes]:
    return st.builds(in_fragments, st.just(opcode), payloads, cuts, between)


turn_messages = messages_of(st.one_of(media, media.map(pad).filter(lambda unit: len(unit) <= 2048), indications))
session_media = st.builds(lambda channel, content: channel.to_bytes(2) + content, channels, data)
texts = st.text(max_size=60).map(str.encode)


def is_good_capsule(capsule: bytes) -> bool:
    cutter = CapsuleCutter()
    cutter.feed(capsule)
    return cutter.fault is None and not cutter.within


capsules = st.one_of(
    st.one_of(media, indications, data).map(build_datagram),
    st.builds(build_capsule, st.integers(0, 70), data).filter(lambda capsule: capsule[:2] != b"\0\0"),
    st.integers(2040, 2060).map(lambda size: build_datagram(bytes(size))),
).filter(is_good_capsule)


FIRST: dict[Carrier, st.SearchStrategy[bytes]] = {
    Carrier.WEBSOCKET: st.one_of(turn_messages, control),
    Carrier.SESSION: st.one_of(messages_of(session_media), messages_of(texts, Opcode.TEXT), control),
    Carrier.CONNECT_UDP: capsules,
}
lengths = st.one_of(
    st.integers(0, 127).map(lambda length: bytes([0x80 | length])),
    st.integers(0, 0xFFFF).map(lambda length: b"\xfe" + length.to_bytes(2)),
    st.integers(0, (1 << 64) - 1).map(lambda length: b"\xff" + length.to_bytes(8)),
)
websocket_ends = st.one_of(
    st.just(b""),
    st.builds(
        lambda first, length, rest: bytes([first]) + length + rest, st.integers(0, 255), lengths, st.binary(max_size=9)
    ),
    st.builds(
        lambda code, reason: masked(Opcode.CLOSE, code.to_bytes(2) + reason),
        st.integers(990, 1020),
        st.binary(max_size=3),
    ),
    st.builds(masked, st.sampled_from(list(Opcode)), st.binary(max_size=8), final=st.booleans()),
    st.just(masked(Opcode.CLOSE, build_close(1000)) + masked(Opcode.PING, b"too late")),
)
capsule_ends = st.one_of(
    st.just(b""),
    st.binary(max_size=12),
    st.integers(65_000, 66_000).map(lambda length: build_varint(0) + build_varint(length) + b"\0"),
    data.map(build_datagram).map(lambda capsule: capsule[: len(capsule) // 2]),
)
ENDS = {
    Carrier.WEBSOCKET: websocket_ends,
    Carrier.SESSION: websocket_ends,
    Carrier.CONNECT_UDP: capsule_ends,
}


def scripts(carrier: Carrier) -> st.SearchStrategy[Script]:
    return st.builds(
        Script,
        carrier=st.just(carrier),
        plain=st.lists(FIRST[carrier], max_size=12).map(b"".join),
        record_sizes=st.lists(st.one_of(st.integers(1, 16), st.integers(1, 16_384)), min_size=1, max_size=6),
        datagrams=st.lists(datagrams, max_size=12),
        last=st.builds(lambda first, last: b"".join(first) + last, st.lists(FIRST[carrier], max_size=2), ENDS[carrier]),
    )


async def play(make: MakePlane, folder: Path, script: Script) -> Outcome:
    async with (
        asyncio.timeout(DEADLINE_S),
        plane_bench(make, folder, SETTINGS) as bench,
        carried(bench, script.carrier) as client,
    ):
        flow = await begin(bench, client, script.carrier)
        at_upstream = await speak(bench, client, script)
        for datagram in [*script.datagrams, MARKER]:
            bench.upstream.send(flow, datagram)
        at_client = await hear(client, script.carrier)
        if script.last:
            await client.send(script.last)
        await client.tls.end()
        while more := await client.tls.receive():
            at_client += more
        closed = await bench.closed()
        counted_before = 0 if script.carrier is Carrier.SESSION else 1  # HELLO, which control asks for a session
        while len(at_upstream) < closed.totals.uplink_packets - counted_before:
            at_upstream.append((await bench.upstream.receive())[0])
        heard = [event for event in bench.events if isinstance(event, TextReceived | StunReceived)]
        at_control = [event.text if isinstance(event, TextReceived) else event.message for event in heard]
        by_kind = sort(script.carrier, at_client)
        return Outcome(at_upstream, by_kind, len(at_client), at_control, closed.reason, closed.detail, closed.totals)


async def begin(bench: Bench, client: Carried, carrier: Carrier) -> Address:
    """The flow's address."""
    if carrier is Carrier.SESSION:
        return await move(bench, client, bench.target, bench.upstream)
    await client.send(build_datagram(HELLO) if carrier is Carrier.CONNECT_UDP else masked(Opcode.BINARY, HELLO))
    return await bench.upstream.expect(HELLO)


async def speak(bench: Bench, client: Carried, script: Script) -> list[bytes]:
    """The client's part; what the upstream hears of it."""
    for record in pieces(script.plain, script.record_sizes, 16_384):
        await client.send(record)
    framing = new_framing(script.carrier)
    units = [said for said in framing.feed(script.plain) if isinstance(said, bytes)]
    assert framing.fault is None
    return [(await bench.upstream.receive())[0] for _ in units]


async def hear(client: Carried, carrier: Carrier) -> bytes:
    """The client's stream, as far as the upstream has spoken; nothing is left unread, which would upset TLS."""
    endings = {new_framing(carrier).frame(MARKER)}
    if carrier is not Carrier.CONNECT_UDP:  # pongs have an order of their own
        await client.send(masked(Opcode.PING, MARKER))
        endings.add(build_frame(Opcode.PONG, MARKER))
    stream = b""
    while not all(ending in stream for ending in endings):
        stream += await client.tls.receive()
    return stream


def sort(carrier: Carrier, stream: bytes) -> dict[str, list[bytes]]:
    """What the client has got, by what it is."""
    sorted_by: dict[str, list[bytes]] = defaultdict(list)
    if carrier is Carrier.CONNECT_UDP:
        for payload in CapsuleCutter(max_payload_bytes=1 << 16).feed(stream):
            sorted_by[traffic_of(payload)].append(payload)
        return sorted_by
    for message in MessageCutter(from_client=False, max_binary_bytes=1 << 16).feed(stream):
        kind = message.opcode.name
        if message.opcode is Opcode.BINARY:
            inside = message.payload
            kind = traffic_of(inside if carrier is Carrier.WEBSOCKET else build_channel_data(0x4000, inside[2:]))
        sorted_by[kind].append(message.payload)
    return sorted_by


@settings(repeatable, max_examples=examples(60))
@given(st.sampled_from(list(FIRST)).flatmap(scripts))
def test_the_planes_agree(script: Script) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        outcomes = [runner.run(play(make, Path(folder), script)) for make in PLANES.values()]
    assert outcomes[0] == outcomes[1]
