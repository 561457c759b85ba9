"""What a client may say before its handshake is done: judged on the wire, before TLS spends memory or time on it.

It also finds where records end, which TLS does not tell: after a record without data OpenSSL reads on, for as long as
such records come.
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.errors import PeerError
from relay.plane.certificates import HandshakeFailure
from relay.plane.reference.first_bytes import FirstBytes, decide
from relay.wire.proxy_header import V1_PREFIX, V2_SIGNATURE

# A ClientHello has 2 KB, or 4 KB with tickets and keys of every kind. OpenSSL begins with this much memory for a
# message. If the client announces more, it takes up to 128 KiB before the bytes have come.
MAX_HELLO_BYTES = 16 * 1024
# Of a client's certificate and those above it: a leaf and three authorities with RSA 4096 have 8 KB. It fits into the
# memory that OpenSSL has for a message anyway. A session ticket holds the leaf, and with it a ClientHello must still be
# short enough.
MAX_CLIENT_CHAIN_BYTES = 12 * 1024
# A client needs four records for a handshake, and some cut their first in pieces. Each record costs a turn's time.
MAX_HELLO_RECORDS = 64
# Records that carry no data: new keys after millions of records, an empty record before the first. A client needs one
# or two in an hour. Each costs OpenSSL up to 20 us, and 16 cost no more than a handshake. One is forgotten each second.
MAX_SILENT_RECORDS = 16
# The records of a whole handshake. OpenSSL skips early data that it does not want, even endless empty records of it.
MAX_HANDSHAKE_RECORDS = MAX_HELLO_RECORDS + MAX_SILENT_RECORDS

_RECORD_HEAD_BYTES, _MESSAGE_HEAD_BYTES = 5, 4
_CHANGE_CIPHER_SPEC, _HANDSHAKE, _APPLICATION_DATA = 20, 22, 23
# The message with the client's certificates; in clear only in TLS 1.2.
_CERTIFICATE = 11
# RFC 8446 section 4.1.3: what a HelloRetryRequest has instead of random bytes, and where.
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_RANDOM = slice(11, 43)


class HelloFault(PeerError):
    """The client must not go on."""

    def __init__(self, failure: HandshakeFailure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


class ChainTooLong(HelloFault):
    """The certificates that the client shows are too many, or too large."""

    def __init__(self) -> None:
        super().__init__(HandshakeFailure.CLIENT_CERTIFICATE_TOO_LONG, "client certificate chain too long")


class RecordCutter:
    """Finds where the records of a stream end. It keeps only the head of one record."""

    def __init__(self) -> None:
        # How many records a piece has at most. It may change from one piece to the next.
        self.max_records = 1
        self._head = b""
        self._left = 0

    def cut(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Pieces of the data in order, and how many records end in each."""
        start = at = records = 0
        while at < len(data):
            at += self._advance(data, at)
            if not self._left and not self._head:
                records += 1
                if records >= self.max_records:
                    yield data[start:at], records
                    start, records = at, 0
        if start < at:
            yield data[start:at], records

    def _advance(self, data: bytes, at: int) -> int:
        """Take bytes of the head, or of what follows it. Returns how many."""
        if self._left:
            used = min(self._left, len(data) - at)
            self._left -= used
            return used
        taken = data[at : at + _RECORD_HEAD_BYTES - len(self._head)]
        self._head += taken
        if len(self._head) == _RECORD_HEAD_BYTES:
            self._left, self._head = int.from_bytes(self._head[3:]), b""
        return len(taken)


class Hello:
    """Looks at what both sides say until what the client says is encrypted."""

    def __init__(self) -> None:
        # The client's first message, once it is whole.
        self.message: bytes | None = None
        # It is whole, or it is so wrong that TLS must judge it.
        self.whole = False
        # Everything that follows is encrypted, and is not looked at.
        self.done = False
        self._begun = False
        self._answered = False
        self._retried = False
        self._kind = 0
        self._record_head = b""
        self._record_left = 0
        self._records = 0
        self._first = b""
        self._message_head = b""
        self._message_left = 0

    def take(self, data: bytes) -> None:
        """Look at bytes of the client, however they were split. Raises HelloFault."""
        if not self._begun and data:
            self._begun = True
            if data[0] != _HANDSHAKE:
                raise _fault_of(data)
        while data and not self.done:
            if not self._record_left:
                data = self._take_record_head(data)
                continue
            body, data = data[: self._record_left], data[self._record_left :]
            self._record_left -= len(body)
            if self._kind == _HANDSHAKE:
                self._take_messages(body)

    def _take_record_head(self, data: bytes) -> bytes:
        missing = _RECORD_HEAD_BYTES - len(self._record_head)
        self._record_head += data[:missing]
        if len(self._record_head) == _RECORD_HEAD_BYTES:
            self._kind, self._record_left = self._record_head[0], int.from_bytes(self._record_head[3:])
            self._record_head = b""
            self._on_record()
        return data[missing:]

    def _on_record(self) -> None:
        # After its ChangeCipherSpec a client's messages are encrypted, except a second ClientHello of TLS 1.3.
        self.done = self._kind == _CHANGE_CIPHER_SPEC and self._answered and not self._retried
        self.whole = self.whole or self._kind != _HANDSHAKE
        if self._kind != _APPLICATION_DATA:
            self._records += 1
            if self._records > MAX_HELLO_RECORDS:
                raise HelloFault(HandshakeFailure.HELLO_TOO_LONG, "client hello in too many records")

    def _take_messages(self, data: bytes) -> None:
        while data:
            if self._message_left:
                body, data = data[: self._message_left], data[self._message_left :]
                self._message_left -= len(body)
                self._keep(body)
                continue
            missing = _MESSAGE_HEAD_BYTES - len(self._message_head)
            self._message_head += data[:missing]
            data = data[missing:]
            if len(self._message_head) == _MESSAGE_HEAD_BYTES:
                self._on_message_head(self._message_head)
                self._message_head = b""

    def _on_message_head(self, head: bytes) -> None:
        self._message_left = int.from_bytes(head[1:])
        if self._message_left > MAX_HELLO_BYTES - _MESSAGE_HEAD_BYTES:
            if head[0] == _CERTIFICATE:
                raise ChainTooLong
            raise HelloFault(HandshakeFailure.HELLO_TOO_LONG, "client hello too long")
        self._keep(head)

    def _keep(self, part: bytes) -> None:
        if self.message is None:
            self._first += part
            if not self._message_left:
                self.message, self._first, self.whole = self._first, b"", True

    def note_answer(self, data: bytes) -> None:
        """Look at bytes that we send."""
        if data and not self._answered:
            self._answered = True
            self._retried = data[_RANDOM] == _RETRY


def _fault_of(data: bytes) -> HelloFault:
    """What a client speaks if it does not begin with a record of a handshake."""
    if data.startswith((V1_PREFIX, V2_SIGNATURE)):
        return HelloFault(HandshakeFailure.PROXY_HEADER, "proxy header")
    spoken = decide(data, None)
    if spoken is FirstBytes.TURN:
        return HelloFault(HandshakeFailure.PLAIN_STUN, "stun in clear")
    if spoken is FirstBytes.HTTP or (spoken is None and data[0] >= 0x40):
        return HelloFault(HandshakeFailure.PLAIN_HTTP, "http request")
    return HelloFault(HandshakeFailure.NOT_TLS, "wrong version number")


class SilentRecords:
    """Counts a client's records without data, and forgets one of them each second."""

    def __init__(self) -> None:
        self._count = 0
        self._forgiven_at = 0.0

    def add(self, count: int, now: float) -> bool:
        """Count these. Returns False beyond the bound."""
        seconds = int(now - self._forgiven_at)
        if seconds > 0:
            self._count = max(0, self._count - seconds)
            self._forgiven_at = now
        self._count += count
        return self._count <= MAX_SILENT_RECORDS
