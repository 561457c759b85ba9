"""How each carrier frames media on the client's side: what the client's bytes say, and a unit's bytes on its stream.

There is one class for each carrier, without I/O and without a clock. ``feed`` gives what the client has said, in order:
units for the upstream, as bytes, and whatever else a WebSocket says. When something is broken ``fault`` is set: what
came before it still counts, and nothing after it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from relay.plane.api import Carrier
from relay.plane.reference.traffic import is_media
from relay.wire.capsule import CapsuleCutter, build_datagram
from relay.wire.channeldata import (
    FIRST_CHANNEL,
    HEADER_BYTES,
    LAST_RFC5766_CHANNEL,
    build_channel_data,
    is_channel_data,
    pad,
)
from relay.wire.stream import StreamCutter
from relay.wire.stun import HEADER_BYTES as STUN_HEADER_BYTES
from relay.wire.stun import is_stun
from relay.wire.websocket import (
    CloseCode,
    Message,
    MessageCutter,
    Opcode,
    build_close,
    build_frame,
    parse_close,
)


class Text(NamedTuple):
    """A text message."""

    text: str


class Ping(NamedTuple):
    """A Ping frame, which wants its payload back."""

    payload: bytes


class Closing(NamedTuple):
    """A good Close frame; ``code`` is None if the frame is empty."""

    code: int | None


class Malformed(NamedTuple):
    """A datagram that is not media, and is not forwarded."""


class Oversize(NamedTuple):
    """A datagram that was too long to be kept."""


Said = bytes | Text | Ping | Closing | Malformed | Oversize


class Fault(NamedTuple):
    """What is wrong with a stream, for the log, and the bytes that tell the client, if there are any."""

    detail: str
    farewell: bytes = b""


class Framing(Protocol):
    """One connection's carrier."""

    @property
    def fault(self) -> Fault | None:
        """Why nothing more can be read."""

    @property
    def pending(self) -> int:
        """Bytes that wait for the rest of what they begin."""

    def feed(self, plain: bytes) -> list[Said]:
        """Take plain bytes of the client."""

    def frame(self, unit: bytes) -> bytes:
        """A unit of the upstream in its bytes on the client's stream."""

    def unfinished(self) -> str:
        """What the log says of a client that ends at this point, if anything."""


class TurnFraming:
    """The stream of RFC 8656 section 12.5."""

    def __init__(self) -> None:
        self._cutter = StreamCutter()

    @property
    def fault(self) -> Fault | None:
        """The fault of the first bytes that are not a unit."""
        return None if self._cutter.fault is None else Fault(self._cutter.fault)

    @property
    def pending(self) -> int:
        """Bytes of a unit that is not whole."""
        return self._cutter.pending

    def feed(self, plain: bytes) -> list[Said]:
        """Take plain bytes; give units without their padding."""
        return [*self._cutter.feed(plain)]

    def frame(self, unit: bytes) -> bytes:
        """The unit with its padding."""
        return pad(unit)

    def unfinished(self) -> str:
        """Nothing: a stream may end anywhere."""
        return ""


class WebSocketFraming:
    """RFC 6455 from the server's side, for both sub-protocols."""

    def __init__(
        self, parse: Callable[[bytes], bytes | None], wrap: Callable[[bytes], bytes], no_unit: str, *, takes_text: bool
    ) -> None:
        """``parse`` reads the unit of a binary message, ``wrap`` is its inverse; the fault of others is ``no_unit``."""
        self.fault: Fault | None = None
        self._cutter = MessageCutter(from_client=True, takes_text=takes_text)
        self._parse = parse
        self._wrap = wrap
        self._no_unit = no_unit

    @property
    def pending(self) -> int:
        """Bytes of a message that is not whole."""
        return self._cutter.pending

    def feed(self, plain: bytes) -> list[Said]:
        """Take plain bytes; give units, texts, pings, and at most one Closing, which is the last."""
        said = [one for message in self._cutter.feed(plain) if (one := self._read(message)) is not None]
        if self.fault is None and (fault := self._cutter.fault) is not None:
            self.fault = websocket_fault(fault.code, fault.text)
        return said

    def _read(self, message: Message) -> Said | None:
        if self.fault is not None:
            return None
        if message.opcode is Opcode.BINARY:
            unit = self._parse(message.payload)
            if unit is None:
                self.fault = websocket_fault(CloseCode.INVALID_DATA, self._no_unit)
            return unit
        if message.opcode is Opcode.TEXT:
            return Text(message.payload.decode())
        if message.opcode is Opcode.PING:
            return Ping(message.payload)
        return Closing(parse_close(message.payload)[0]) if message.opcode is Opcode.CLOSE else None

    def frame(self, unit: bytes) -> bytes:
        """One binary message, in one frame."""
        return build_frame(Opcode.BINARY, self._wrap(unit))

    def unfinished(self) -> str:
        """Nothing: a WebSocket ends with a Close frame, and the log says enough of one that does not."""
        return ""


class ConnectUdpFraming:
    """RFC 9298: any datagram of media in a capsule."""

    def __init__(self) -> None:
        self._cutter = CapsuleCutter()

    @property
    def fault(self) -> Fault | None:
        """The fault of the first broken capsule."""
        return None if self._cutter.fault is None else Fault(f"capsule: {self._cutter.fault}")

    @property
    def pending(self) -> int:
        """Bytes of a capsule that is kept until it is whole."""
        return self._cutter.pending

    def feed(self, plain: bytes) -> list[Said]:
        """Take plain bytes; give payloads as they are."""
        before = self._cutter.oversize
        said: list[Said] = [payload if is_media(payload) else Malformed() for payload in self._cutter.feed(plain)]
        return said + [Oversize()] * (self._cutter.oversize - before)

    def frame(self, unit: bytes) -> bytes:
        """One DATAGRAM capsule."""
        return build_datagram(unit)

    def unfinished(self) -> str:
        """Whether a capsule is cut off."""
        return "within a capsule" if self._cutter.within else ""


def new_framing(carrier: Carrier) -> Framing:
    """The framing of a connection that begins."""
    if carrier is Carrier.WEBSOCKET:
        return WebSocketFraming(parse_turn, bytes, "no TURN message", takes_text=False)
    if carrier is Carrier.SESSION:
        return WebSocketFraming(_parse_session, _wrap_session, "no channel number", takes_text=True)
    return ConnectUdpFraming() if carrier is Carrier.CONNECT_UDP else TurnFraming()


def is_websocket(carrier: Carrier) -> bool:
    """True for the carriers that speak RFC 6455."""
    return carrier in {Carrier.WEBSOCKET, Carrier.SESSION}


# What a server says on a WebSocket that is not media


def text_frame(text: str) -> bytes:
    """A text message."""
    return build_frame(Opcode.TEXT, text.encode())


def ping_frame() -> bytes:
    """A ping without a payload: any answer is a sign of life."""
    return build_frame(Opcode.PING, b"")


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping."""
    return build_frame(Opcode.PONG, payload)


def close_frame(code: int | None, text: str = "") -> bytes:
    """The last frame."""
    return build_frame(Opcode.CLOSE, build_close(code, text))


def websocket_fault(code: int, text: str) -> Fault:
    """A fault that the client is told about."""
    return Fault(f"websocket: {text}", close_frame(code, text))


# Units in binary messages


def parse_turn(message: bytes) -> bytes | None:
    """The one STUN or ChannelData message in a binary message, without padding. None if it has anything else."""
    if is_channel_data(message):
        size = HEADER_BYTES + int.from_bytes(message[2:4])
        return message[:size] if len(message) in {size, size + (-size & 3)} else None
    if is_stun(message) and not len(message) & 3:
        return message if STUN_HEADER_BYTES + int.from_bytes(message[2:4]) == len(message) else None
    return None


def _parse_session(message: bytes) -> bytes | None:
    channel_number = int.from_bytes(message[:2])
    if len(message) < 2 or not FIRST_CHANNEL <= channel_number <= LAST_RFC5766_CHANNEL:
        return None
    return build_channel_data(channel_number, message[2:])


def _wrap_session(unit: bytes) -> bytes:
    return unit[:2] + unit[HEADER_BYTES:]
