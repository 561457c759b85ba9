"""The media of a session (media.v1): control holds the allocation, and the flow goes where control moves it."""

from __future__ import annotations

import socket
import time

from relay.plane.api import CloseReason, DropReason, StunReceived, TextReceived, Upstream, UpstreamLost
from relay.plane.endings import is_exhausted
from relay.plane.reference.carriers import text_frame, websocket_fault
from relay.plane.reference.media import Media
from relay.plane.reference.traffic import traffic_of
from relay.plane.reference.turn_flow import SessionFlow
from relay.wire.websocket import CloseCode


class SessionMedia(Media):
    """Control holds the allocation: it moves the session to an upstream, and speaks STUN with it."""

    def move(self, upstream: Upstream, left: socket.socket | None) -> None:
        """Go on at this upstream, from a fresh socket or one that an earlier flow has ``left``."""
        before = self.flow
        if before is None:
            self._account.opened_at = self._plane.loop.time()
        else:
            before.close()
        self._host.set_deadline(None)
        self._host.reserve.give_up()
        try:
            flow = self._open_session(upstream, left)
        except OSError as error:
            if left is not None:
                left.close()
            if is_exhausted(error):
                self._host.close(CloseReason.NO_DESCRIPTORS, str(error))
            else:
                self._on_upstream_lost(CloseReason.UPSTREAM_UNREACHABLE, error.strerror or str(error))
        else:
            self._use(upstream, flow)

    def _open_session(self, upstream: Upstream, left: socket.socket | None) -> SessionFlow:
        return SessionFlow(upstream, self._flow_setup(self._deliver), self._on_stun, left)

    def _on_stun(self, message: bytes, asked: bool) -> None:
        assert self._pings is not None
        if asked or self._pings.on_unasked():
            self._plane.emit(StunReceived(self._host.identity, message))
        else:
            self.totals.drop(DropReason.DOWNLINK_FULL, traffic_of(message))

    def tell(self, text: str) -> None:
        """Send the client a text message."""
        self._say(text_frame(text))

    def request(self, message: bytes) -> None:
        """Send the upstream a STUN message, if there is one."""
        self._on_unit(time.monotonic(), message)

    def _on_unit(self, arrived: float, unit: bytes) -> None:
        if self.flow is not None and self.flow.is_open:
            self.flow.send(arrived, unit)

    def _on_text(self, text: str) -> None:
        assert self._pings is not None
        if self._pings.on_text():
            self._plane.emit(TextReceived(self._host.identity, text))
        else:
            fault = websocket_fault(CloseCode.POLICY_VIOLATION, "too many text messages")
            self._host.close(CloseReason.BROKEN_FRAME, fault.detail, farewell=fault.farewell)

    def _on_upstream_lost(self, reason: CloseReason, detail: str) -> None:
        """Keep the client while control moves it."""
        if self.flow is not None:
            self.flow.close()
        self._host.set_deadline(self._plane.settings.control_timeout_s, self._host.on_control_timeout)
        self._plane.emit(UpstreamLost(self._host.identity, reason, detail))
