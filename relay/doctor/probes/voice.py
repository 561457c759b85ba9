"""Voice over a path: 50 packets a second from one allocation to another, and how they came.

Both allocations are of this machine, so each packet goes up the path and down again: it is a call between two desks of
this network. One clock stamps and reads, so the delay of each packet is known. The payload is not sound.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence

from relay.addresses import Address
from relay.client.turn import TurnConnection
from relay.doctor.plan import Credentials
from relay.doctor.probes.carriers import Carrier, Line
from relay.doctor.seen import VoiceSeen
from relay.errors import UpstreamError
from relay.logs import printable
from relay.wire.rtp import HEADER_BYTES, RtpError, RtpHeader, build_packet, parse_header

INTERVAL_S = 0.02
SAMPLES_PER_PACKET = 160
PCMU = 0
# 20 ms of G.711, and 10 bytes for the tag of SRTP.
PAYLOAD_BYTES = 170
_STAMP_BYTES = 8
# After the last packet: later ones are of no use to a listener, and are lost for this purpose.
STRAGGLERS_S = 1.0


class _Ear:
    """Notes the delay of each packet of one stream."""

    def __init__(self, packets: int) -> None:
        self.ssrc = secrets.randbits(32)
        self.delays_ms: list[float | None] = [None] * packets

    def on_data(self, _: Address, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        try:
            header = parse_header(data)
        except RtpError:
            return
        if header.ssrc != self.ssrc or header.sequence_number >= len(self.delays_ms):
            return
        sent_at_ns = int.from_bytes(data[HEADER_BYTES : HEADER_BYTES + _STAMP_BYTES])
        if self.delays_ms[header.sequence_number] is None:
            self.delays_ms[header.sequence_number] = max(0.0, (now_ns - sent_at_ns) / 1e6)

    @property
    def heard_all(self) -> bool:
        return None not in self.delays_ms


async def listen(carrier: Carrier, path: str, who: Credentials, voice_s: float, *, over_udp: bool) -> VoiceSeen:
    """Talk over a path, and listen. What fails is in ``fault``."""
    ear = _Ear(round(voice_s / INTERVAL_S))
    async with contextlib.AsyncExitStack() as lines:
        try:
            mouth, mouth_at = await _open(lines, carrier, who, _Ear(0))
            listener, listener_at = await _open(lines, carrier, who, ear)
            await asyncio.gather(_bind(mouth, listener_at), _bind(listener, mouth_at))
        except UpstreamError as error:
            return VoiceSeen(path, over_udp, (), fault=printable(str(error)))
        late_ms = await _talk(mouth, listener_at, ear)
    return VoiceSeen(path, over_udp, tuple(ear.delays_ms), late_ms)


async def _open(
    lines: contextlib.AsyncExitStack, carrier: Carrier, who: Credentials, ear: _Ear
) -> tuple[Line, Address]:
    line = await carrier.open(who, ear.on_data)
    lines.push_async_callback(line.close)
    if isinstance(line, TurnConnection):
        return line, await line.allocate()
    return line, line.relayed_address


async def _bind(line: Line, peer: Address) -> None:
    await (line.bind_channel(peer) if isinstance(line, TurnConnection) else line.bind(peer))


async def _talk(mouth: Line, to: Address, ear: _Ear) -> float:
    """Send all packets at their time. Returns by how many ms the latest left too late."""
    loop = asyncio.get_running_loop()
    started, late_s = loop.time(), 0.0
    for number in range(len(ear.delays_ms)):
        due = started + number * INTERVAL_S
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait)
        late_s = max(late_s, loop.time() - due)
        mouth.send(to, _packet(ear.ssrc, number))
    end = loop.time() + STRAGGLERS_S
    while not ear.heard_all and loop.time() < end:  # noqa: ASYNC110 - what arrives is noted in a callback
        await asyncio.sleep(INTERVAL_S)
    return late_s * 1000


def _packet(ssrc: int, number: int) -> bytes:
    header = RtpHeader(
        payload_type=PCMU,
        sequence_number=number & 0xFFFF,
        timestamp=number * SAMPLES_PER_PACKET & 0xFFFFFFFF,
        ssrc=ssrc,
        marker=number == 0,
    )
    stamp = time.monotonic_ns().to_bytes(_STAMP_BYTES)
    return build_packet(header, stamp + bytes(PAYLOAD_BYTES - _STAMP_BYTES))


def lost_percent(delays_ms: Sequence[float | None]) -> float:
    """The share of packets that never came."""
    return 100 * sum(delay is None for delay in delays_ms) / len(delays_ms) if delays_ms else 0.0
