"""One client connection of the reference plane, from its first byte to its last: its transport, TLS and HTTP.

Once it carries media, ``media`` has what the client and the upstream say.

A connection goes through these states, and never back::

    HANDSHAKE ─▶ DECIDING ─┬─▶ WAITING ──▶ MEDIA ──▶ CLOSED
                           └─▶ HTTP ────────┴──────▶ CLOSED
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, cast

from relay.addresses import Address
from relay.plane.api import (
    CLOSE_CODES,
    AllocationOrphaned,
    Carrier,
    ClientLink,
    Closed,
    CloseReason,
    ConnectionId,
    FlowSnapshot,
    HttpOpened,
    Totals,
    TurnOpened,
    Upstream,
)
from relay.plane.certificates import HandshakeFailure
from relay.plane.client_certificates import ClientCertificates
from relay.plane.endings import first_bytes_detail, reason_without_socket, unread_detail
from relay.plane.reference.carriers import close_frame, is_websocket
from relay.plane.reference.client_link import LinkProbe, configure_client_socket
from relay.plane.reference.delays import Delays
from relay.plane.reference.first_bytes import FirstBytes, decide
from relay.plane.reference.handover import Handover
from relay.plane.reference.intake import Intake
from relay.plane.reference.media import Media
from relay.plane.reference.pace import Pace
from relay.plane.reference.reserve import Reserve
from relay.plane.reference.session_media import SessionMedia
from relay.plane.reference.tap import FlowTap
from relay.plane.reference.tls import TlsError, TlsFlood, TlsSession

if TYPE_CHECKING:
    from relay.plane.reference.plane import ReferencePlane

# What is written when a connection closes has this long to leave.
CLOSE_TIMEOUT_S = 2.0


class State(Enum):
    """Where a connection is."""

    HANDSHAKE = "handshake"
    DECIDING = "deciding"
    WAITING = "waiting"
    MEDIA = "media"
    HTTP = "http"
    CLOSED = "closed"


class Connection(asyncio.Protocol):
    """The protocol of one accepted transport."""

    def __init__(
        self,
        plane: ReferencePlane,
        identity: ConnectionId,
        preread: bytes,
        reserve: Reserve,
        *,
        client: Address,
        refused: CloseReason | None,
        asks: ClientCertificates,
    ) -> None:
        """``refused`` is why the connection ends at once, if it does."""
        self.identity = identity
        self.client = client
        self._refused = refused
        self._media: Media | None = None
        self._pace = Pace()
        # Bytes that the transport has taken.
        self._given = 0
        self._plane = plane
        self._preread = preread
        # None before there is a transport, and for a client that is refused at once.
        self._intake: Intake | None = None
        # For the UDP socket of the flow, or for the pair to control.
        self.reserve = reserve
        self._tls = TlsSession(plane.contexts, asks)
        self._state = State.HANDSHAKE
        # Plain bytes that came before it was known what to do with them.
        self._early = b""
        self._handover: Handover | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._lost = False

    @property
    def server_name(self) -> str:
        """What the client asked for in the handshake."""
        return self._tls.server_name

    @property
    def client_certificate(self) -> str:
        """Whose certificate the client has shown; empty without one."""
        return self._tls.client_certificate

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake, or refuse the client."""
        self._transport = cast("asyncio.Transport", transport)
        settings = self._plane.settings
        # HTTP is paused beyond this.
        self._transport.set_write_buffer_limits(high=settings.downlink_media_bytes)
        refused = None if self._plane.enter(self) else CloseReason.STOPPED
        if (refused := self._refused or refused) is not None:
            self._end(refused, "", None)
            self._transport.abort()
            return
        connected = transport.get_extra_info("socket")
        configure_client_socket(connected)
        self._link = LinkProbe(connected)
        self.set_deadline(settings.handshake_timeout_s, self._on_handshake_timeout)
        self._intake = Intake(self._plane.loop, self._transport, self._take)
        if self._preread:
            self.data_received(self._preread)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the wire."""
        if self._state is not State.CLOSED and self._intake is not None:
            self._intake.receive(data)

    def _take(self, data: bytes) -> None:
        if self._state is State.CLOSED:
            return
        try:
            plain = self._tls.receive(data, self._plane.loop.time())
        except TlsError as error:
            self._write(self._tls.take_output())
            self._on_tls_error(error)
            return
        if output := self._tls.take_output():
            self._write(output)
            if self._close_if_deaf():
                return
        if self._state is State.HANDSHAKE and self._tls.established:
            self._state = State.DECIDING
            self.set_deadline(self._plane.settings.first_bytes_timeout_s, self._on_first_bytes_timeout)
        if plain or self._state is State.DECIDING:
            self._on_plain(plain)
        if self._tls.client_closed:
            self._on_client_end()

    def eof_received(self) -> bool:
        """The client has closed its side; True keeps ours open for the response of an HTTP request."""
        self._on_client_end()
        return self._state is State.HTTP

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._lost = True
        if self._state is State.HANDSHAKE:
            self._on_client_end()
        reason = CloseReason.CLIENT_CLOSED if exc is None else CloseReason.CLIENT_LOST
        self.close(reason, "" if exc is None else str(exc))
        self.set_deadline(None)
        self._plane.forget(self)

    def pause_writing(self) -> None:
        """The client does not read: neither are HTTP responses read. Media waits in its schedule."""
        if self._handover is not None:
            self._handover.pause_response(True)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._handover is not None:
            self._handover.pause_response(False)
        if self._media is not None:
            self._media.downlink.wake()

    def _write(self, data: bytes) -> None:
        if data and not self._lost:
            self._given += len(data)
            self._transport.write(data)

    def pause_reading(self, paused: bool) -> None:
        """Take nothing more of the client for now."""
        if self._state is not State.CLOSED and self._intake is not None:
            self._intake.pause(paused)

    # Deadlines: one at a time, which belongs to the state

    def set_deadline(self, seconds: float | None, expired: Callable[[], None] | None = None) -> None:
        """Replace the deadline: ``expired`` is called after this many seconds, or nothing is with None."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None:
            assert expired is not None
            self._deadline = self._plane.loop.call_later(seconds, expired)

    def _on_handshake_timeout(self) -> None:
        self.close(CloseReason.HANDSHAKE_FAILED, "no whole handshake in time", HandshakeFailure.TIMEOUT)

    def _on_first_bytes_timeout(self) -> None:
        self.close(CloseReason.FIRST_BYTES_TIMEOUT)

    def on_control_timeout(self) -> None:
        """Control was asked something, and has not answered."""
        self.close(CloseReason.CONTROL_TIMEOUT)

    # What the client says

    def _on_tls_error(self, error: TlsError) -> None:
        if not self._tls.established:
            self.close(CloseReason.HANDSHAKE_FAILED, str(error), error.failure)
        else:
            flooded = isinstance(error, TlsFlood)
            self.close(CloseReason.TLS_FLOOD if flooded else CloseReason.TLS_BROKEN, str(error))

    def _on_client_end(self) -> None:
        if self._state is State.WAITING or (self._media is not None and self._media.busy):
            return  # what came before the end goes first: see on_caught_up
        if self._state is State.HTTP and self._handover is not None:
            self._handover.end_request()
        elif self._state is State.HANDSHAKE:
            self.close(CloseReason.HANDSHAKE_FAILED, "closed in the handshake", HandshakeFailure.CLIENT_CLOSED)
        else:
            self.close(CloseReason.CLIENT_CLOSED, "" if self._media is None else self._media.unfinished())

    def on_caught_up(self) -> None:
        """Everything that the client has said has been dealt with."""
        if self._tls.client_closed:
            self._on_client_end()

    def _on_plain(self, plain: bytes) -> None:
        if self._media is not None:
            self._media.feed(plain)
        elif self._state is State.HTTP and self._handover is not None:
            self._handover.send_request(plain)
        elif self._state is State.WAITING:
            self._early += plain
        elif self._state is State.DECIDING:
            self._early += plain
            self._decide()

    def _decide(self) -> None:
        verdict = decide(self._early, self._tls.alpn)
        if verdict is None:
            return
        self.set_deadline(None)
        if verdict is FirstBytes.TURN:
            self._on_turn()
        elif verdict is FirstBytes.HTTP:
            self._on_http()
        else:
            self.close(CloseReason.FIRST_BYTES_UNKNOWN, first_bytes_detail(self._early))

    def _on_turn(self) -> None:
        self._state = State.WAITING
        # At most one read of the transport waits for control.
        self.pause_reading(True)
        self.set_deadline(self._plane.settings.control_timeout_s, self.on_control_timeout)
        opened = TurnOpened(self.identity, self.client, self.server_name, self._tls.alpn, self.client_certificate)
        self._plane.emit(opened)

    def _on_http(self) -> None:
        self.reserve.give_up()
        try:
            self._handover = Handover(self._plane.loop, self._send_plain, self._on_http_end, self.pause_reading)
        except OSError as error:
            self.close(CloseReason.NO_DESCRIPTORS, str(error))
            return
        self._state = State.HTTP
        # An upgrade needs a UDP socket. Without a reserve it may still get one.
        with contextlib.suppress(OSError):
            self.reserve.fill(1, self._plane.settings.max_descriptors)
        certificate = self.client_certificate
        opened = HttpOpened(
            self.identity, self._handover.fd, self.client, self.server_name, self._tls.version, certificate
        )
        self._plane.emit(opened)
        early, self._early = self._early, b""
        self._handover.send_request(early)

    def _on_http_end(self) -> None:
        self.close(CloseReason.HTTP_CLOSED)

    # Media

    def attach(self, upstream: Upstream) -> None:
        """Go on as media towards this upstream."""
        if self._state is State.WAITING:
            self.set_deadline(None)
            self._start_media(Carrier.TURN, upstream)

    def upgrade(self, response: bytes, carrier: Carrier, upstream: Upstream | None) -> None:
        """Leave HTTP with this response, and go on as media."""
        if self._state is State.HTTP and self._handover is not None:
            if self._handover.ended:
                self.close(CloseReason.CLIENT_CLOSED)
                return
            self._handover.close()
            self._handover = None
            self._send_plain(response)
        if self._state is State.HTTP:  # the response could be sent
            self._start_media(carrier, upstream)

    def _start_media(self, carrier: Carrier, upstream: Upstream | None) -> None:
        kind = SessionMedia if carrier is Carrier.SESSION else Media
        self._media = kind(self._plane, self, carrier)
        if upstream is not None:
            self.reserve.give_up()
        try:
            self._media.start(upstream)
        except OSError as error:
            self.close(reason_without_socket(error), str(error))
            return
        # What waits in the transport cannot be dropped, so nothing should. ``resume_writing`` tells when it is empty.
        self._transport.set_write_buffer_limits(high=0)
        self._state = State.MEDIA
        self.pause_reading(False)
        early, self._early = self._early, b""
        self._media.feed(early)

    @property
    def media(self) -> Media | None:
        """What control may speak to, from the start of media to the end."""
        return self._media

    def send_media(self, plain: bytes) -> None:
        """Encrypt and send, and remember when."""
        self._send_plain(plain)
        self._pace.note_write(self._given, time.monotonic_ns() // 1000, self._link.min_rtt_us)

    def is_behind(self, *, beside_data: bool) -> bool:
        """True if TCP has taken more than it delivers."""
        if self._lost or not self._pace.is_much:
            self._pace.holds_data = False
            return False
        acknowledged = self._given - self._transport.get_write_buffer_size() - self._link.unacknowledged()
        now_us = time.monotonic_ns() // 1000
        return self._pace.is_behind(acknowledged, self._link.min_rtt_us, now_us, beside_data=beside_data)

    def holds_data(self) -> bool:
        """Whether data had to wait when ``is_behind`` was last asked."""
        return self._pace.holds_data

    def is_blocked(self) -> bool:
        """True if the socket has not taken everything."""
        return self._transport.get_write_buffer_size() > 0

    def sample_link(self, clock: float) -> ClientLink | None:
        """What TCP says of the way to the client."""
        if not self._lost:
            self._link.sample(clock)
        return self._link.last

    def _close_if_deaf(self) -> bool:
        """Close a client that does not read what must not be dropped. Returns True if it did."""
        waiting = self._transport.get_write_buffer_size()
        if waiting <= self._plane.settings.downlink_control_bytes:
            return False
        self.close(CloseReason.SLOW_CLIENT, unread_detail(waiting))
        return True

    def _send_plain(self, plain: bytes) -> None:
        try:
            output = self._tls.send(plain)
        except TlsError as error:
            self._on_tls_error(error)
        else:
            self._write(output)

    def tap(self) -> FlowTap | None:
        """Copy the datagrams of the flow, if there is one."""
        return None if self._media is None else self._media.tap()

    # The end

    def close(
        self,
        reason: CloseReason,
        detail: str = "",
        failure: HandshakeFailure | None = None,
        *,
        farewell: bytes = b"",
    ) -> None:
        """End the connection; only the first reason counts.

        ``farewell`` is what the client is told at last, in plain bytes. A WebSocket is told most reasons anyway.
        """
        if self._state is State.CLOSED:
            return
        if not farewell and self._is_websocket() and reason in CLOSE_CODES:
            farewell = close_frame(CLOSE_CODES[reason], reason.value)
        self._end(reason, detail, failure)
        if self._lost:
            return
        if farewell:
            self._say_farewell(farewell)
        self._write(self._tls.close())
        if farewell or reason is CloseReason.HTTP_CLOSED:
            self._linger()
        else:
            self._transport.close()
        self.set_deadline(CLOSE_TIMEOUT_S, self._transport.abort)

    def _is_websocket(self) -> bool:
        return self._media is not None and is_websocket(self._media.carrier)

    def _say_farewell(self, plain: bytes) -> None:
        # If TLS can say nothing more, the connection is closed all the same.
        with contextlib.suppress(TlsError):
            self._write(self._tls.send(plain))

    def _linger(self) -> None:
        """Read on until the client ends, and forget what it says: a reset would take our last words with it."""
        self._transport.write_eof()
        if not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    def _end(self, reason: CloseReason, detail: str, failure: HandshakeFailure | None) -> None:
        self._state = State.CLOSED
        self.set_deadline(None)
        self._early = b""
        if self._intake is not None:
            self._intake.close()
        self.reserve.give_up()
        if self._handover is not None:
            self._handover.close()
        media, self._media = self._media, None
        totals, last, delays = Totals(), None, Delays()
        if media is not None:
            totals, last, delays = media.totals, media.describe(self._plane.loop.time()), media.downlink.delays
            orphan = media.close()
            if orphan is not None and media.flow is not None:
                self._plane.emit(AllocationOrphaned(self.identity, orphan[0], media.flow.upstream, orphan[1]))
        certificate = self.client_certificate
        self._plane.on_closed(
            Closed(self.identity, reason, self.client, self.server_name, totals, last, detail, failure, certificate),
            delays,
        )

    def snapshot(self, now: float) -> FlowSnapshot | None:
        """The flow as it is now, if there is one."""
        return None if self._media is None else self._media.describe(now)

    def delays(self) -> Delays | None:
        """How long the packets of the flow waited, if there is one."""
        return None if self._media is None else self._media.downlink.delays
