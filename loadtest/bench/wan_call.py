"""The two ends of the calls that ``wan.py`` measures: a TURN/TLS client, and the UDP socket that answers and feeds it.

Every frame carries the time at which it was sent, by CLOCK_MONOTONIC. The machine has only one, so the frame's age on
arrival is exact. The rest of a frame follows from its stream and number, so a damaged frame is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from relay import deadlines
from relay.addresses import Address
from relay.wire.channeldata import build_channel_data, is_channel_data, parse_channel_data
from relay.wire.stream import StreamCutter
from relay.wire.stun import (
    AttributeType,
    Message,
    MessageClass,
    Method,
    build_message,
    build_uint32,
    build_xor_address,
    is_stun,
    parse_message,
)

CHANNEL = 0x4000
# SRTP of G.711 in frames of 20 ms. A call has two streams, because a trader listens to more than one line.
VOICE_BYTES = 182
VOICE_INTERVAL_S = 0.02
VOICE_STREAMS = (1, 2)
VOICE_PAYLOAD_TYPE = 0
# The burst: packets in the size of video, on a stream of their own.
BURST_BYTES = 1200
BURST_PACKETS = 170
BURST_STREAM = 3
BURST_PAYLOAD_TYPE = 96
# This many at once, then a pause of a millisecond: about 80 Mbit/s. Default socket buffers on the way are enough.
BURST_GROUP = 8
BURST_INTERVAL_S = 1.0
REQUEST_INTERVAL_S = 0.5
SETUP_TIMEOUT_S = 10.0
# A client drops voice if this much waits, so that its own end does not delay requests.
CLIENT_BACKLOG_BYTES = 4096
# The most that its kernel may hold unsent.
CLIENT_UNSENT_BYTES = 4096
SOURCE_BUFFER_BYTES = 1 << 20
# Datagrams or records read in one go.
BATCH = 64

# An RTP header (RFC 3550 section 5.1) with the stream as SSRC, then the time in nanoseconds and the frame's number.
_FRAME = struct.Struct("!BBHIIQI")


def build_frame(stream: int, number: int, size: int) -> bytes:
    """A frame with the current time."""
    kind = BURST_PAYLOAD_TYPE if stream == BURST_STREAM else VOICE_PAYLOAD_TYPE
    head = _FRAME.pack(0x80, kind, number & 0xFFFF, number * 160 & 0xFFFFFFFF, stream, time.monotonic_ns(), number)
    return head + _filler(stream, number, size - _FRAME.size)


def _filler(stream: int, number: int, size: int) -> bytes:
    return bytes([(7 * number + 31 * stream) & 0xFF]) * size


@dataclass(frozen=True, slots=True)
class Delivery:
    """One frame: when it was sent and when it came, in seconds of CLOCK_MONOTONIC."""

    sent: float
    came: float

    @property
    def age_s(self) -> float:
        """The age of the frame when it came."""
        return self.came - self.sent


@dataclass
class Track:
    """One stream at both ends: when its frames were sent, and what became of them."""

    sent: list[float] = field(default_factory=list)
    deliveries: dict[int, Delivery] = field(default_factory=dict)
    wrong: int = 0  # damaged, twice or out of order
    _last: int = -1

    def judge(self, stream: int, frame: bytes, came: float) -> None:
        """Note that a frame has come."""
        *_, sent_ns, number = _FRAME.unpack_from(frame)
        intact = frame[_FRAME.size :] == _filler(stream, number, len(frame) - _FRAME.size)
        if not intact or number in self.deliveries or number <= self._last:
            self.wrong += 1
            return
        self._last = number
        self.deliveries[number] = Delivery(sent_ns / 1e9, came)

    def sent_between(self, begin: float, end: float) -> list[int]:
        """The numbers of the frames that were sent in a period of time."""
        return [number for number, when in enumerate(self.sent) if begin <= when < end]


def stream_of(frame: bytes) -> int:
    """The SSRC of a frame, or 0 if it is not one of ours."""
    return int(_FRAME.unpack_from(frame)[4]) if len(frame) >= _FRAME.size else 0


@dataclass(slots=True)
class Request:
    """A STUN request over the carrier, and when it was answered."""

    sent: float
    answered: float | None = None


def ticks(interval_s: float, late: list[float] | None = None) -> Iterator[float]:
    """The waits until each next tick of an absolute clock. ``late`` is called with how late each was, in seconds."""
    due = time.monotonic()
    while True:
        if late is not None:
            late.append(time.monotonic() - due)
        due += interval_s
        yield max(0.0, due - time.monotonic())


class Source:
    """A UDP socket that is the upstream of a relay, or the peer of a TURN server. It feeds those who send to it.

    As an upstream it grants all requests. It identifies a call by its address.
    """

    def __init__(self, bound: socket.socket) -> None:
        self._socket = bound
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOURCE_BUFFER_BYTES)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOURCE_BUFFER_BYTES)
        self.address = Address(*bound.getsockname()[:2])
        # Whether an address speaks ChannelData, as a relay forwards it, or bare frames, as a TURN server sends them.
        self.flows: dict[Address, bool] = {}
        self.uplink: dict[int, Track] = {}
        self.refused = 0  # datagrams that the socket refused
        self.late_s: list[float] = []  # how late voice left, because the machine was busy
        self.heard = asyncio.Event()
        asyncio.get_running_loop().add_reader(bound.fileno(), self._on_readable)

    def close(self) -> None:
        """Close the socket."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def send(self, flow: Address, frame: bytes) -> None:
        """Send a frame down a flow."""
        try:
            self._socket.sendto(build_channel_data(CHANNEL, frame) if self.flows[flow] else frame, flow)
        except OSError:
            self.refused += 1

    def _on_readable(self) -> None:
        for _ in range(BATCH):
            try:
                data, sender = self._socket.recvfrom(65536)
            except OSError:
                return
            self._on_datagram(data, Address(*sender[:2]))

    def _on_datagram(self, data: bytes, sender: Address) -> None:
        if is_stun(data):
            with contextlib.suppress(OSError):
                self._socket.sendto(self._answer(parse_message(data), sender), sender)
            return
        framed = is_channel_data(data)
        frame = parse_channel_data(data).data if framed else data
        stream = stream_of(frame)
        if sender not in self.flows:
            self.flows[sender] = framed
            self.heard.set()
        self.uplink.setdefault(stream, Track()).judge(stream, frame, time.monotonic())

    def _answer(self, request: Message, sender: Address) -> bytes:
        identity = request.transaction_id
        attributes = {
            Method.BINDING: [(AttributeType.XOR_MAPPED_ADDRESS, build_xor_address(sender, identity))],
            Method.ALLOCATE: [
                (AttributeType.XOR_RELAYED_ADDRESS, build_xor_address(self.address, identity)),
                (AttributeType.LIFETIME, build_uint32(600)),
                (AttributeType.XOR_MAPPED_ADDRESS, build_xor_address(sender, identity)),
            ],
            Method.REFRESH: [(AttributeType.LIFETIME, build_uint32(600))],
        }
        return build_message(request.method, MessageClass.SUCCESS, identity, attributes.get(Method(request.method), ()))


async def feed_voice(source: Source, flow: Address, tracks: dict[int, Track]) -> None:
    """Send the voice of a call until cancelled."""
    for wait_s in ticks(VOICE_INTERVAL_S, source.late_s):
        for stream in VOICE_STREAMS:
            track = tracks[stream]
            frame = build_frame(stream, len(track.sent), VOICE_BYTES)
            track.sent.append(time.monotonic())
            source.send(flow, frame)
        await asyncio.sleep(wait_s)


async def feed_bursts(source: Source, flow: Address, track: Track) -> None:
    """Send a burst each second until cancelled."""
    for wait_s in ticks(BURST_INTERVAL_S):
        for sent in range(BURST_PACKETS):
            frame = build_frame(BURST_STREAM, len(track.sent), BURST_BYTES)
            track.sent.append(time.monotonic())
            source.send(flow, frame)
            if sent % BURST_GROUP == BURST_GROUP - 1:
                await asyncio.sleep(0.001)
        # The time of the burst is part of the second.
        await asyncio.sleep(max(0.0, wait_s - BURST_PACKETS / BURST_GROUP * 0.001))


class Client:
    """A TURN/TLS client that reads its socket itself, so that nothing is read ahead while it pauses."""

    def __init__(self, connected: ssl.SSLSocket) -> None:
        self._socket = connected
        connected.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._cutter = StreamCutter()
        self._backlog = bytearray()
        self._writing = False
        self._setup: dict[bytes, asyncio.Future[Message]] = {}
        self.requests: dict[bytes, Request] = {}
        self.refused_requests = 0
        self.downlink: dict[int, Track] = {stream: Track() for stream in (*VOICE_STREAMS, BURST_STREAM)}
        self.unsent = 0  # frames that this end dropped, because it had too much to send
        self.sent: dict[int, int] = dict.fromkeys(VOICE_STREAMS, 0)
        self.ended: str | None = None  # why the server ended it, if it did
        self.closed = False
        self._reading = False
        self.resume()

    # The socket

    def resume(self) -> None:
        """Read again, unless the connection has ended meanwhile."""
        if self.closed:
            return
        self._reading = True
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        # The descriptor is not readable for data that TLS has decrypted already.
        self._on_readable()

    def pause(self) -> None:
        """Stop reading. Only TCP tells the server."""
        self._reading = False
        if not self.closed:
            self._loop.remove_reader(self._socket.fileno())

    def close(self) -> None:
        """Close at once. Nothing that happens later counts."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def _end(self, reason: str) -> None:
        self.ended = reason
        self.close()

    def _on_readable(self) -> None:
        for _ in range(BATCH):
            if self.closed or not self._reading:
                return
            try:
                data = self._socket.recv(65536)
            except (ssl.SSLWantReadError, BlockingIOError):
                return
            except OSError as error:
                self._end(str(error))
                return
            if not data:
                self._end("the server closed the connection")
                return
            now = time.monotonic()
            for unit in self._cutter.feed(data):
                self._on_unit(unit, now)
            if self._cutter.fault is not None:
                self._end(f"broken framing: {self._cutter.fault.value}")
                return
        # TLS may hold more, which the descriptor does not show.
        self._loop.call_soon(self._on_readable)

    def _write(self, data: bytes) -> None:
        if self.closed:
            return
        self._backlog += data
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._backlog:
                del self._backlog[: self._socket.send(self._backlog)]
        except (ssl.SSLWantWriteError, BlockingIOError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._socket.fileno(), self._flush)
            return
        except OSError as error:
            self._end(str(error))
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())

    # What comes

    def _on_unit(self, unit: bytes, now: float) -> None:
        if is_channel_data(unit):
            frame = parse_channel_data(unit).data
            if (track := self.downlink.get(stream := stream_of(frame))) is not None:
                track.judge(stream, frame, now)
            return
        message = parse_message(unit)
        if (waiting := self._setup.pop(message.transaction_id, None)) is not None:
            if not waiting.done():
                waiting.set_result(message)
        elif (request := self.requests.get(message.transaction_id)) is not None and request.answered is None:
            request.answered = now
            self.refused_requests += message.message_class is not MessageClass.SUCCESS

    # What goes

    async def _ask(self, method: Method, attributes: Callable[[bytes], list[tuple[int, bytes]]]) -> None:
        identity = os.urandom(12)
        answer = self._setup[identity] = self._loop.create_future()
        self._write(build_message(method, MessageClass.REQUEST, identity, attributes(identity)))
        async with deadlines.timeout(SETUP_TIMEOUT_S):
            message = await answer
        if message.message_class is not MessageClass.SUCCESS:
            raise ConnectionError(f"{method.name}: {message.error}")

    async def set_up(self, peer: Address) -> None:
        """Allocate, and bind the channel to the source. Raises ConnectionError if refused, or TimeoutError."""
        await self._ask(Method.ALLOCATE, lambda _: [(AttributeType.REQUESTED_TRANSPORT, bytes([17, 0, 0, 0]))])
        await self._ask(
            Method.CHANNEL_BIND,
            lambda identity: [
                (AttributeType.CHANNEL_NUMBER, struct.pack("!HH", CHANNEL, 0)),
                (AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, identity)),
            ],
        )

    async def talk(self) -> None:
        """Send voice until cancelled. A frame is dropped if too much waits before it."""
        for wait_s in ticks(VOICE_INTERVAL_S):
            for stream in VOICE_STREAMS:
                if len(self._backlog) > CLIENT_BACKLOG_BYTES:
                    self.unsent += 1
                    continue
                frame = build_frame(stream, self.sent[stream], VOICE_BYTES)
                self.sent[stream] += 1
                self._write(build_channel_data(CHANNEL, frame, padded=True))
            await asyncio.sleep(wait_s)

    async def request(self) -> None:
        """Send a Refresh or a Binding, alternating, until cancelled."""
        bodies = [(Method.REFRESH, [(AttributeType.LIFETIME, build_uint32(600))]), (Method.BINDING, [])]
        for wait_s in ticks(REQUEST_INTERVAL_S):
            method, attributes = bodies[len(self.requests) % 2]
            identity = os.urandom(12)
            self.requests[identity] = Request(time.monotonic())
            self._write(build_message(method, MessageClass.REQUEST, identity, attributes))
            await asyncio.sleep(wait_s)


def connect(
    opened: socket.socket, server: Address, context: ssl.SSLContext, name: str, receive_buffer_bytes: int | None
) -> ssl.SSLSocket:
    """Connect and make the handshake; blocks. Raises OSError."""
    opened.settimeout(SETUP_TIMEOUT_S)
    try:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, CLIENT_UNSENT_BYTES)
        if receive_buffer_bytes is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        opened.connect(server)
        return context.wrap_socket(opened, server_hostname=name)
    except BaseException:
        opened.close()
        raise
