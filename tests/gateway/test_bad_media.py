"""RTP that is wrong, both ways through each plane: it is counted and forwarded, and no call is called bad for it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay._fastpath import live_objects
from relay.addresses import Address
from relay.gateway.calls.call import Call
from relay.gateway.calls.calls import Calls
from relay.gateway.calls.windows import Heard
from relay.plane.api import FlowSnapshot
from relay.quality.emodel import mos
from relay.quality.stream import Direction, RtpStream
from relay.wire.channeldata import build_channel_data, pad
from relay.wire.rtp import RtpHeader, build_packet
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.messages import HELLO
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

# Whatever this machine is busy with, nothing is late; what is lost is lost.
SETTINGS = bounds(playout_deadline_s=3600, max_media_age_s=3600)
VOICE_SSRC = 0xC0FFEE
# G.711 with concealment, 60 ms of jitter buffer, nothing missing.
BEST_MOS = mos(93.2)
MAX_STREAMS = 16
BATCH = 32


def rtp(sequence_number: int, timestamp: int, ssrc: int, payload_type: int = 0, payload: bytes = bytes(20)) -> bytes:
    header = RtpHeader(payload_type, sequence_number % 65_536, timestamp % 2**32, ssrc)
    return build_packet(header, payload)


def voice(number: int) -> bytes:
    """2 ms of G.711 each: no clock goes faster than these tests send."""
    return rtp(65_500 + number, 2**32 - 1000 + 16 * number, VOICE_SSRC)


def every_version() -> list[bytes]:
    """The first bytes of all packets there are: STUN, ZRTP, DTLS, TURN, RTP with all of its bits, and beyond."""
    return [bytes([first]) + rtp(first, 16 * first, 7, payload=bytes(80))[1:] for first in range(256)]


def wrong_lengths() -> list[bytes]:
    """Packets cut off everywhere, with more contributing sources or a longer extension than there are bytes.

    In the voice's own sequence, too, where they do not stand for the packets whose numbers they have.
    """
    cut = [rtp(n, 16 * n, 100 + n)[:n] for n in range(20)]
    sources = [bytes([0x80 | count]) + voice(400)[1 : 12 + 4 * count - 1] for count in range(1, 16)]
    extensions = [b"\x90" + voice(401)[1:12] + b"\xbe\xde" + n.to_bytes(2) + bytes(4 * n)[1:] for n in range(1, 9)]
    far = [b"\x9f" + voice(402)[1:12] + b"\xff" * size for size in range(0, 90, 3)]
    rtcp = [b"\x80\xc8" + bytes(size) for size in range(10)]
    return [*cut, *sources, *extensions, *far, *rtcp]


def many_sources() -> list[bytes]:
    return [rtp(ssrc, ssrc, 1000 + ssrc) for ssrc in range(1000)]


def sequence_jumps() -> list[bytes]:
    """Of a stranger, each thousands away from the one before; and of the voice itself, now and then."""
    return [rtp(n * 7919, 16 * n, 9) for n in range(300)] + [
        rtp(30_000 + 7919 * n, 16 * n, VOICE_SSRC) for n in range(20)
    ]


def timestamps_that_go_back() -> list[bytes]:
    """A sequence in order whose clock runs backwards, jumps to either end, or stands."""
    back = [rtp(n, 2**31 - 160 * n, 10) for n in range(100)]
    ends = [rtp(n, (0, 2**31, 2**32 - 1)[n % 3], 11) for n in range(100)]
    return [*back, *ends, *(rtp(n, 5, 12) for n in range(100))]


def anything() -> list[bytes]:
    source = random.Random(4)
    return [source.randbytes(source.randrange(60)) for _ in range(500)]


BAD = [every_version, wrong_lengths, many_sources, sequence_jumps, timestamps_that_go_back, anything]


@dataclass
class Ways:
    """A client with its flow, and the calls of the gateway over it."""

    bench: Bench
    client: TlsClient
    address: Address
    calls: Calls
    sent: int = 1  # its first word

    def flow(self) -> FlowSnapshot:
        (flow,) = self.bench.plane.snapshot().flows
        return flow

    def call(self) -> Call:
        (call,) = self.calls
        return call

    async def send(self, packets: Sequence[bytes]) -> None:
        """Each of them both ways, and all of them arrive as they were: the relay judges, and changes nothing."""
        units = [build_channel_data(0x4001, packet) for packet in packets]
        for start in range(0, len(units), BATCH):
            batch = units[start : start + BATCH]
            await self.client.send(*(pad(unit) for unit in batch))
            for unit in batch:
                assert await self.bench.upstream.expect(unit) == self.address
                self.bench.upstream.send(self.address, unit)
            for unit in batch:
                assert await self.client.receive_unit() == unit
        self.sent += len(units)
        await becomes(self.counted, (self.sent, self.sent - 1))

    def counted(self) -> tuple[int, int]:
        """Packets up and down, as the plane has counted them."""
        totals = self.flow().totals
        return totals.uplink_packets - totals.retransmissions, totals.downlink_packets

    def streams(self, ssrc: int) -> list[RtpStream]:
        """What is known of one source, uplink and downlink."""
        return [stream for stream in self.flow().streams if stream.ssrc == ssrc]


@contextlib.asynccontextmanager
async def both_ways(make: MakePlane, folder: Path) -> AsyncIterator[Ways]:
    async with plane_bench(make, folder, SETTINGS) as bench, bench.flow(HELLO) as (client, address):
        # By way of the bench, which lets go of the plane at the end.
        yield Ways(bench, client, address, Calls(lambda: bench.plane.snapshot(), lambda _: "region"))  # noqa: PLW0108


def among(bad: Sequence[bytes], good: Sequence[bytes]) -> list[bytes]:
    """The bad ones between the good ones, as evenly as may be."""
    mixed = []
    for number, packet in enumerate(good):
        mixed.append(packet)
        mixed += bad[number * len(bad) // len(good) : (number + 1) * len(bad) // len(good)]
    return mixed


@pytest.mark.parametrize("bad", BAD)
async def test_a_good_call_stays_good(make: MakePlane, tmp_path: Path, bad: Callable[[], list[bytes]]) -> None:
    async with both_ways(make, tmp_path) as ways:
        await ways.send([voice(number) for number in range(50)])
        await ways.calls.look()
        await ways.send(among(bad(), [voice(number) for number in range(50, 300)]))
        await ways.calls.look()
        await ways.send([voice(number) for number in range(300, 350)])
        await ways.calls.look()
        for stream in ways.streams(VOICE_SSRC):
            assert (stream.packets, stream.lost, stream.late, stream.restarts) == (350, 0, 0, 0)
        assert len(ways.streams(VOICE_SSRC)) == 2
        assert [len(list(ways.call().windows)), ways.calls.mos_bands()] == [3, ([1, 0, 0, 0, 0, 0], 0)]
        for window in ways.call().windows:
            for heard in (window.uplink, window.downlink):
                assert heard.mos == pytest.approx(BEST_MOS, abs=0.05)
        # All of it is counted, and nothing is dropped.
        assert ways.counted() == (ways.sent, ways.sent - 1)
        assert ways.flow().totals.drops == {}


@pytest.mark.parametrize("bad", BAD)
async def test_what_is_no_call_has_no_score(make: MakePlane, tmp_path: Path, bad: Callable[[], list[bytes]]) -> None:
    """But where it looks like speech of which nothing is missing."""
    async with both_ways(make, tmp_path) as ways:
        packets = bad()
        for start in range(0, len(packets), 100):
            await ways.send(packets[start : start + 100])
            await ways.calls.look()
        for call in ways.calls:
            for window in call.windows:
                for heard in (window.uplink, window.downlink):
                    assert heard.mos is None or heard.mos == pytest.approx(BEST_MOS, abs=0.05), heard
                    assert heard.lost == 0 or heard.mos is None
        await ways.client.close()
        closed = await ways.bench.closed()
        ended = ways.calls.on_closed(closed)
        assert ended is not None
        assert ended.mos_min is None or ended.mos_min == pytest.approx(BEST_MOS, abs=0.05)


async def test_a_bad_call_is_bad_among_all_that(make: MakePlane, tmp_path: Path) -> None:
    """The same figures say so where a tenth of the voice is missing."""
    async with both_ways(make, tmp_path) as ways:
        heard = [voice(number) for number in range(300) if number % 10]
        await ways.send(among([packet for make_bad in BAD for packet in make_bad()], heard))
        await ways.calls.look()
        window = ways.call().window
        assert window is not None
        for way in (window.uplink, window.downlink):
            assert way.mos is not None
            assert way.mos < BEST_MOS - 0.3
            assert lost_of(ways.streams(VOICE_SSRC)) == [29, 29]


def lost_of(streams: Sequence[RtpStream]) -> list[int]:
    return [stream.lost for stream in streams]


async def test_a_thousand_sources_take_no_memory(make: MakePlane, tmp_path: Path) -> None:
    """The places of 16 are all there is, each way; who speaks now has one."""
    async with both_ways(make, tmp_path) as ways:
        await ways.send([voice(0), voice(1)])
        before = live_objects().get("buffers", 0)
        for start in range(0, 1000, 250):
            await ways.send(among(many_sources()[start : start + 250], [voice(2 + start // 250)]))
            await ways.calls.look()
            streams = ways.flow().streams
            for direction in Direction:
                assert sum(stream.direction is direction for stream in streams) == MAX_STREAMS
            assert len(ways.streams(VOICE_SSRC)) == 2
            assert ways.streams(1000 + start + 249)
        await asyncio.sleep(0)
        assert live_objects().get("buffers", 0) == before
        assert all(heard == Heard(heard.expected) for heard in last(ways.call()))


def last(call: Call) -> list[Heard]:
    assert call.window is not None
    return [call.window.uplink, call.window.downlink]
