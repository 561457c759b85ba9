"""Links over HTTP/1.1 upgrades: WebSocket messages (RFC 6455) and the capsules of CONNECT-UDP (RFC 9298).

Each begins with its request. From the 101 on it is a link like those of ``links``.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Protocol

from relay.client.application import fail
from relay.client.links import MAX_DATAGRAM_BYTES, LinkOwner, StreamLink
from relay.errors import UpstreamError
from relay.wire.capsule import CapsuleCutter, build_datagram
from relay.wire.upgrade import Response, UpgradeError, parse_response
from relay.wire.websocket import (
    MAX_TEXT_BYTES,
    CloseCode,
    MessageCutter,
    Opcode,
    build_close,
    build_frame,
    parse_close,
)

# A relay answers a ping within a round trip. If two are not answered, a proxy has cut the connection, or has answered
# 101 itself and swallows what follows. Nobody waits for voice for more than five seconds.
SILENCE_S = 4.0
# At most this much of the text of a refusal is read.
_MAX_BODY_BYTES = 1024


class WebSocketClosed(UpstreamError):
    """The server itself has closed the WebSocket, so do not come back at once. ``code`` is 0 if it gave none."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"the server closed the WebSocket: {code or 'no code'} {reason}".rstrip())
        self.code = code or 0
        self.reason = reason


class UpgradedLink(StreamLink):
    """The stream of an upgraded connection. ``opened`` is done with the 101, or has an UpstreamError."""

    def __init__(
        self, request: bytes, check: Callable[[Response], None], lost: Callable[[UpstreamError], None]
    ) -> None:
        super().__init__()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Why it has ended, if it has, other than by ``close``.
        self.ended: UpstreamError | None = None
        self._is_open = False
        # The owner hears nothing more.
        self._is_over = False
        self._request = request
        self._check = check
        self._tell_lost = lost
        self._head = b""
        self._refusal: UpgradeError | None = None
        self._body_bytes = 0

    # The stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TLS handshake is done: ask for the upgrade."""
        super().connection_made(transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take the response, then frames."""
        if self._is_open:
            self._on_bytes(data)
        if self._is_open or self.opened.done():
            return
        self._head += data
        try:
            response = None if self._refusal is not None else parse_response(self._head)
            if response is not None:
                self._head = self._head[response.size :]
                length = response.headers.get("content-length", "")
                # Four digits are more than is read.
                stated = int(length) if length.isdecimal() and len(length) <= 4 else _MAX_BODY_BYTES
                self._body_bytes = min(stated, _MAX_BODY_BYTES)
                self._check(response)
        except UpgradeError as error:
            self._refusal = error
            response = None
        if response is None:
            self._take_body(ended=False)
            return
        early, self._head = self._head, b""
        self._is_open = True
        self.opened.set_result(None)
        self._on_opened()
        if early:
            self._on_bytes(early)

    def _take_body(self, *, ended: bool) -> None:
        """The text of a refusal says what to do about it."""
        if self._refusal is not None and (ended or len(self._head) >= self._body_bytes):
            body = self._head[:_MAX_BODY_BYTES].decode(errors="replace").strip().partition("\n")[0]
            text = body if body.isprintable() and not body.startswith("<") else ""
            error = UpstreamError(f"{self._refusal}{': ' if text else ''}{text}")
            # Callers find the status there.
            error.__cause__ = self._refusal
            self._fail_opening(error)

    def _fail_opening(self, error: UpstreamError) -> None:
        if not self.opened.done():
            fail(self.opened, error)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream has ended, from either side."""
        super().connection_lost(exc)
        error = self._ended(exc)
        if self._is_open:
            self._end(error)
            return
        self._take_body(ended=True)
        fail(self.opened, error)

    def _end(self, error: UpstreamError) -> None:
        if self._is_over:
            return
        self.ended = error
        self._is_over = True
        self._stop()
        self._tell_lost(error)

    def _abort(self, error: UpstreamError) -> None:
        self._end(error)
        self._transport.abort()

    def close(self) -> None:
        """Flush what waits, tell the server that it is the end, and close."""
        if self._is_open and not self._is_over:
            self._say_end()
        self._is_over = True
        self._stop()
        self._transport.close()

    def abort(self) -> None:
        """Close at once, without a word."""
        self._is_over = True
        self._stop()
        self._transport.abort()

    # What each framing does

    def _on_opened(self) -> None:
        raise NotImplementedError

    def _on_bytes(self, data: bytes) -> None:
        raise NotImplementedError

    def _say_end(self) -> None:
        """Tell the server, if the framing has a word for it."""

    def _stop(self) -> None:
        """Stop what runs, if the framing has anything that does."""


class CapsuleLink(UpgradedLink):
    """CONNECT-UDP: each message is a datagram, in a capsule."""

    def __init__(self, request: bytes, check: Callable[[Response], None], owner: LinkOwner) -> None:
        super().__init__(request, check, owner.on_lost)
        self._owner = owner
        self._cutter = CapsuleCutter(MAX_DATAGRAM_BYTES)

    def _on_opened(self) -> None:
        self._owner.on_opened(self)

    def _on_bytes(self, data: bytes) -> None:
        for payload in self._cutter.feed(data):
            if not self._is_over:
                self._owner.on_message(payload)
        if self._cutter.fault is not None and not self._is_over:
            self._abort(UpstreamError(f"the server broke the capsules: {self._cutter.fault}"))

    def send(self, message: bytes) -> None:
        """Send a STUN message. It may be lost, as over UDP, and the client will send it again."""
        self._write(build_datagram(message))

    def send_data(self, message: bytes) -> None:
        """Send data, or drop it if 64 KiB wait already."""
        self._write_data_or_drop(build_datagram(message))


class WebSocketLink(UpgradedLink):
    """Masked WebSocket frames, and a ping whenever nothing has been heard for a while."""

    def __init__(
        self, request: bytes, check: Callable[[Response], None], lost: Callable[[UpstreamError], None]
    ) -> None:
        super().__init__(request, check, lost)
        self._cutter = MessageCutter(from_client=False, max_binary_bytes=MAX_TEXT_BYTES)
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._heard_frames = False
        self._look_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def _on_opened(self) -> None:
        self._heard_at = self._loop.time()
        # The first ping goes at once: a proxy that swallows frames is found before anybody waits for voice.
        self._send_frame(Opcode.PING, b"")
        self._look_again(SILENCE_S / 2)

    def _look_again(self, within_s: float) -> None:
        self._look_at = self._loop.time() + within_s
        self._timer = self._loop.call_later(within_s, self._on_quiet)

    def _on_quiet(self) -> None:
        now = self._loop.time()
        # While the application blocked the loop nothing could be heard. What has come meanwhile is still unread.
        self._heard_at = min(now, self._heard_at + max(0.0, now - self._look_at))
        quiet_s = now - self._heard_at
        # Clocks of loops count milliseconds.
        if quiet_s >= SILENCE_S - 0.01:
            cause = (
                ""
                if self._heard_frames
                else ", and nothing at all since the 101: a proxy on the way may swallow frames"
            )
            self._abort(UpstreamError(f"the server has said nothing for {SILENCE_S:g} s{cause}"))
            return
        if quiet_s >= SILENCE_S / 4:
            self._send_frame(Opcode.PING, b"")
        self._look_again(SILENCE_S / 4)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_bytes(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        for message in self._cutter.feed(data):
            if self._is_over:
                return
            self._heard_frames = True
            match message.opcode:
                case Opcode.BINARY:
                    self._on_binary(message.payload)
                case Opcode.TEXT:
                    self._on_text(message.payload.decode())
                case Opcode.PING:
                    # RFC 6455 section 5.5.3: only the last ping must be answered. A server that sends pings, and does
                    # not read, must not fill our memory.
                    self._write_or_drop(build_frame(Opcode.PONG, message.payload, mask=secrets.token_bytes(4)))
                case Opcode.CLOSE:
                    self._on_close(message.payload)
        if self._cutter.fault is not None and not self._is_over:
            fault = self._cutter.fault
            self._send_frame(Opcode.CLOSE, build_close(fault.code, fault.text))
            self._abort(UpstreamError(f"the server broke the framing: {fault.text}"))

    def _on_close(self, payload: bytes) -> None:
        self._send_frame(Opcode.CLOSE, payload[:2])
        self._end(WebSocketClosed(*parse_close(payload)))
        self._transport.close()

    def _on_binary(self, payload: bytes) -> None:
        raise NotImplementedError

    def _on_text(self, text: str) -> None:
        raise NotImplementedError

    def _send_frame(self, opcode: Opcode, payload: bytes) -> None:
        self._write(build_frame(opcode, payload, mask=secrets.token_bytes(4)))

    def _send_binary_or_drop(self, payload: bytes) -> None:
        self._write_data_or_drop(build_frame(Opcode.BINARY, payload, mask=secrets.token_bytes(4)))

    def _say_end(self) -> None:
        self._send_frame(Opcode.CLOSE, build_close(CloseCode.NORMAL))


class TurnWebSocketLink(WebSocketLink):
    """Sub-protocol ``turn``: a STUN or ChannelData message in each binary message, without padding."""

    def __init__(self, request: bytes, check: Callable[[Response], None], owner: LinkOwner) -> None:
        super().__init__(request, check, owner.on_lost)
        self._owner = owner

    def _on_opened(self) -> None:
        super()._on_opened()
        self._owner.on_opened(self)

    def _on_binary(self, payload: bytes) -> None:
        self._owner.on_message(payload)

    def _on_text(self, text: str) -> None:
        self._abort(UpstreamError("the server sent a text message, but this sub-protocol has none"))

    def send(self, message: bytes) -> None:
        """Send a STUN message, however much waits before it: over a stream it is sent only once."""
        self._send_frame(Opcode.BINARY, message)

    def send_data(self, message: bytes) -> None:
        """Send data, or drop it if 64 KiB wait already."""
        self._send_binary_or_drop(message)


class SessionOwner(Protocol):
    """Hears what happens on the link of a session."""

    def on_text(self, text: str) -> None:
        """A control message came."""

    def on_binary(self, payload: bytes) -> None:
        """Media came."""

    def on_lost(self, link: SessionLink, error: UpstreamError) -> None:
        """The link has ended, but not because of ``close``."""


class SessionLink(WebSocketLink):
    """Sub-protocol ``media.v1``: texts are control messages, binary messages media."""

    def __init__(self, request: bytes, check: Callable[[Response], None], owner: SessionOwner) -> None:
        super().__init__(request, check, lambda error: owner.on_lost(self, error))
        self._owner = owner

    def _on_binary(self, payload: bytes) -> None:
        self._owner.on_binary(payload)

    def _on_text(self, text: str) -> None:
        self._owner.on_text(text)

    def send_text(self, text: str) -> None:
        """Send a control message, however much waits before it."""
        self._send_frame(Opcode.TEXT, text.encode())

    def send_media(self, payload: bytes) -> None:
        """Send media, or drop it if 64 KiB wait already."""
        self._send_binary_or_drop(payload)
