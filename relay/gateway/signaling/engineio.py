"""What the proxy reads of Engine.IO, the transport of socket.io: which transport is asked for, and the session's id.

Everything else passes unread. Engine.IO 3 (socket.io 1 and 2) and 4 (socket.io 3 and 4) frame their packets
differently, but both begin a session with the same open packet, ``0{"sid":"...",...}``.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple
from urllib.parse import parse_qs

# Servers make ids of 20 characters. A text longer than this is not an id, and would fill the table of sessions.
MAX_SID_CHARACTERS = 128
# The open packet has some 120 bytes; packets that follow it in the same answer are of no interest.
MAX_OPEN_BYTES = 4096

_SID = re.compile(rf"[A-Za-z0-9._~+/=-]{{1,{MAX_SID_CHARACTERS}}}")
# What is before the packet depends on version and encoding: nothing (4), the length in digits and a colon (3), a binary
# length (3, XHR2: 00 for text, a digit in each byte, FF), or the call of a JSONP client, whose quotes are escaped.
_OPEN = re.compile(
    rb"(?:[0-9]{1,4}:|\x00[\x00-\x09]{1,4}\xff|___eio\[[0-9]{1,9}\]\(\"(?:[0-9]{1,4}:)?)?"
    rb"0\{[^{}]{0,1024}?\\?\"sid\\?\"\s*:\s*\\?\"([^\"\\]{1,256})\\?\""
)
# How any answer of a session begins: a packet's type, alone or with its length before it, a JSONP call, or what a POST
# is answered. Pages and JSON of other servers begin otherwise.
_ANSWER = re.compile(rb"[0-6b]|[1-9][0-9]{0,6}:|[\x00\x01][\x00-\x09]|___eio\[|ok\Z")


class Asked(NamedTuple):
    """What a request's query says of Engine.IO; a missing part is empty."""

    version: str
    transport: str
    sid: str

    @property
    def is_handshake(self) -> bool:
        """True if the answer opens a session."""
        return bool(self.version and self.transport and not self.sid)

    @property
    def is_of_session(self) -> bool:
        """True if it belongs to a session that is open."""
        return bool(self.version and self.sid and self.transport in {"polling", "websocket"})

    @property
    def is_upgrade_of_session(self) -> bool:
        """True if a session that polls asks for its WebSocket."""
        return self.is_of_session and self.transport == "websocket"


def parse_query(query: str) -> Asked:
    """Read the query of a request. A key that comes twice has no value, and a text that cannot be an id is left out."""
    # The bound of the request target bounds their number.
    found = parse_qs(query, keep_blank_values=True)

    def single(key: str) -> str:
        values = found.get(key, [])
        return values[0] if len(values) == 1 else ""

    sid = single("sid")
    return Asked(single("EIO"), single("transport"), sid if _SID.fullmatch(sid) else "")


def asks_for_websocket(query: str) -> bool:
    """True if a request of Engine.IO asks for a WebSocket: any ``transport`` of its query, even one of several."""
    found = parse_qs(query, keep_blank_values=True)
    return "EIO" in found and "websocket" in found.get("transport", [])


def is_answer(beginning: bytes) -> bool:
    """True if the body of an answer begins as answers of Engine.IO do."""
    return _ANSWER.match(beginning) is not None


def sid_of_polling(body: bytes) -> str:
    """The id in the answer to a polling handshake, given its beginning; empty if there is none."""
    found = _OPEN.match(body)
    sid = "" if found is None else found[1].decode("latin-1")
    return sid if _SID.fullmatch(sid) else ""


def sid_of_websocket(stream: bytes) -> str | None:
    """The id in a server's first frame, given the stream's beginning; None for "need more", empty for none.

    The frame may be compressed (RSV1): a message is the first of its stream, so it needs no context.
    """
    if len(stream) < 2:
        return None
    # FIN, and text: the open packet is one whole message. A server does not mask.
    if stream[0] & 0xBF != 0x81 or stream[1] & 0x80:
        return ""
    length, start = stream[1], 2
    if length == 127:
        return ""
    if length == 126:
        if len(stream) < 4:
            return None
        length, start = int.from_bytes(stream[2:4]), 4
    if length > MAX_OPEN_BYTES:
        return ""
    if len(stream) < start + length:
        return None
    payload = stream[start : start + length]
    if stream[0] & 0x40:
        try:
            payload = zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff", MAX_OPEN_BYTES)
        except zlib.error:
            return ""
    return sid_of_polling(payload)
