"""WebSocket frames (RFC 6455 section 5), both ends: bytes to whole messages and back.

The opening handshake is in ``upgrade``. There are no extensions, because media does not compress.
"""

from __future__ import annotations

from collections.abc import Container
from enum import IntEnum
from itertools import chain
from typing import NamedTuple

# Section 5.5: the most that a control frame may carry, and so the text of a Close frame after its code.
MAX_CONTROL_BYTES = 125
MAX_CLOSE_TEXT_BYTES = MAX_CONTROL_BYTES - 2
# Our limits. A media packet with its header fits an Ethernet frame. Control messages are JSON of some hundred bytes.
MAX_BINARY_BYTES = 2048
MAX_TEXT_BYTES = 64 * 1024


class Opcode(IntEnum):
    """What a frame is (section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Why a connection is closed (section 7.4.1 and IANA's registry): the codes that are sent here."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013


# 1004 means nothing yet; 1005, 1006 and 1015 are never sent; 3000-4999 are for libraries and applications.
SENDABLE_CODES: Container[int] = frozenset(chain(range(1000, 1004), range(1007, 1015), range(3000, 5000)))


class Message(NamedTuple):
    """A whole message, or a control frame: ``opcode`` is never CONTINUATION."""

    opcode: Opcode
    payload: bytes


class Fault(NamedTuple):
    """What is wrong with a stream, and its close code. The text is ASCII and fits into a Close frame."""

    code: int
    text: str


class MessageCutter:
    """Collects bytes and gives whole messages. It holds at most one message and one frame that are incomplete."""

    def __init__(
        self,
        *,
        from_client: bool,
        max_binary_bytes: int = MAX_BINARY_BYTES,
        max_text_bytes: int = MAX_TEXT_BYTES,
        takes_text: bool = True,
    ) -> None:
        """``from_client``: frames must be masked, and must not be otherwise (section 5.1)."""
        self.fault: Fault | None = None
        # A Close frame has come. Bytes after it are not looked at.
        self.closed = False
        self._from_client = from_client
        self._limits = {Opcode.TEXT: max_text_bytes, Opcode.BINARY: max_binary_bytes}
        self._takes_text = takes_text
        self._rest = bytearray()
        # The message whose fragments are arriving, if there is one.
        self._opcode: Opcode | None = None
        self._fragments = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that wait for the rest of their frame."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes of the stream, and return the messages that are complete. TEXT and CLOSE are valid.

        After a broken frame ``fault`` is set: the messages before it are still returned, and later bytes are ignored. A
        fault is found at the first byte that shows it, so the result does not depend on how the stream was split.
        """
        messages: list[Message] = []
        if self._is_over():
            return messages
        self._rest += data
        while (frame := self._next_frame()) is not None:
            message = self._on_frame(*frame)
            if message is not None:
                messages.append(message)
            if self._is_over():
                self._rest.clear()
                self._fragments.clear()
                break
        return messages

    def _is_over(self) -> bool:
        return self.fault is not None or self.closed

    def _next_frame(self) -> tuple[bool, Opcode, bytes] | None:
        """The next whole frame, unmasked, or None for "need more" or a fault."""
        head = self._rest
        if not head or self._is_bad_start(head[0]) or len(head) < 2 or self._is_bad_second(head[0], head[1]):
            return None
        length, offset = head[1] & 0x7F, 2
        if length >= 126:
            offset = 4 if length == 126 else 10
            if len(head) < offset:
                return None
            extended = int.from_bytes(head[2:offset])
            if self._is_bad_length(length, extended):
                return None
            length = extended
        opcode = Opcode(head[0] & 0x0F)
        if self._is_too_big(opcode, length):
            return None
        mask = bytes(head[offset : offset + 4]) if self._from_client else b""
        start = offset + (4 if self._from_client else 0)
        if len(head) < start + length:
            return None
        payload = bytes(head[start : start + length])
        final = bool(head[0] & 0x80)
        del head[: start + length]
        return final, opcode, apply_mask(payload, mask) if mask else payload

    # What is wrong with a header, in the order of its bytes

    def _is_bad_start(self, first: int) -> bool:
        opcode = first & 0x0F
        if first & 0x70:
            return self._fail(CloseCode.PROTOCOL_ERROR, "reserved bits")
        if 3 <= opcode <= 7 or opcode > Opcode.PONG:
            return self._fail(CloseCode.PROTOCOL_ERROR, f"reserved opcode {opcode}")
        if opcode >= Opcode.CLOSE:
            return not first & 0x80 and self._fail(CloseCode.PROTOCOL_ERROR, "fragmented control frame")
        if opcode == Opcode.CONTINUATION:
            return self._opcode is None and self._fail(CloseCode.PROTOCOL_ERROR, "continuation of nothing")
        if self._opcode is not None:
            return self._fail(CloseCode.PROTOCOL_ERROR, "message within a message")
        if opcode == Opcode.TEXT and not self._takes_text:
            return self._fail(CloseCode.UNSUPPORTED_DATA, "text message")
        return False

    def _is_bad_second(self, first: int, second: int) -> bool:
        if bool(second & 0x80) is not self._from_client:
            return self._fail(CloseCode.PROTOCOL_ERROR, "unmasked frame" if self._from_client else "masked frame")
        if first & 0x08 and second & 0x7F > MAX_CONTROL_BYTES:
            return self._fail(CloseCode.PROTOCOL_ERROR, f"control frame of more than {MAX_CONTROL_BYTES} bytes")
        return False

    def _is_bad_length(self, short: int, extended: int) -> bool:
        if extended >> 63:
            return self._fail(CloseCode.PROTOCOL_ERROR, "length of 64 bits")
        if extended < (126 if short == 126 else 1 << 16):
            return self._fail(CloseCode.PROTOCOL_ERROR, "length not in its shortest form")
        return False

    def _is_too_big(self, opcode: Opcode, length: int) -> bool:
        if opcode >= Opcode.CLOSE:
            return False
        limit = self._limits[self._opcode or opcode]
        if len(self._fragments) + length > limit:
            return self._fail(CloseCode.TOO_BIG, f"message of more than {limit} bytes")
        return False

    def _fail(self, code: CloseCode, text: str) -> bool:
        self.fault = Fault(code, text)
        self._rest.clear()
        self._fragments.clear()
        return True

    # Whole frames

    def _on_frame(self, final: bool, opcode: Opcode, payload: bytes) -> Message | None:
        if opcode is Opcode.CLOSE:
            self.fault = check_close(payload)
            self.closed = True
            return None if self.fault is not None else Message(opcode, payload)
        if opcode >= Opcode.PING:
            return Message(opcode, payload)
        if opcode is not Opcode.CONTINUATION:
            self._opcode = opcode
        self._fragments += payload
        return self._end_message() if final else None

    def _end_message(self) -> Message | None:
        assert self._opcode is not None
        message = Message(self._opcode, bytes(self._fragments))
        self._opcode = None
        self._fragments.clear()
        if message.opcode is Opcode.TEXT and not _is_utf8(message.payload):
            self._fail(CloseCode.INVALID_DATA, "text is not UTF-8")
            return None
        return message


def check_close(payload: bytes) -> Fault | None:
    """What is wrong with the payload of a Close frame (section 5.5.1), if anything."""
    if len(payload) == 1:
        return Fault(CloseCode.PROTOCOL_ERROR, "close frame of 1 byte")
    code = int.from_bytes(payload[:2])
    if payload and code not in SENDABLE_CODES:
        return Fault(CloseCode.PROTOCOL_ERROR, f"close code {code}")
    return None if _is_utf8(payload[2:]) else Fault(CloseCode.INVALID_DATA, "close reason is not UTF-8")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def apply_mask(data: bytes, mask: bytes) -> bytes:
    """Mask or unmask a payload with the four bytes of ``mask`` (section 5.3)."""
    size = len(data)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(size)


def build_frame(opcode: Opcode, payload: bytes, *, mask: bytes | None = None, final: bool = True) -> bytes:
    """One frame. A client masks each with four fresh random bytes, a server masks none (section 5.1)."""
    size = len(payload)
    masked = 0 if mask is None else 0x80
    head = bytes([opcode | (0x80 if final else 0)])
    if size < 126:
        head += bytes([masked | size])
    elif size < 1 << 16:
        head += bytes([masked | 126]) + size.to_bytes(2)
    else:
        head += bytes([masked | 127]) + size.to_bytes(8)
    return head + payload if mask is None else head + mask + apply_mask(payload, mask)


def build_close(code: int | None, text: str = "") -> bytes:
    """The payload of a Close frame: code and text, cut to what fits, or nothing without a code."""
    if code is None:
        return b""
    # Cut between characters.
    return code.to_bytes(2) + text.encode()[:MAX_CLOSE_TEXT_BYTES].decode(errors="ignore").encode()


def parse_close(payload: bytes) -> tuple[int | None, str]:
    """Code and text of a Close frame that ``check_close`` has found good. There is no code if it is empty."""
    return (int.from_bytes(payload[:2]), payload[2:].decode()) if payload else (None, "")
