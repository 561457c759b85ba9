"""Whether a flow has an allocation, as far as the requests and answers that pass say."""

from __future__ import annotations

from relay.plane.reference.traffic import find_attribute
from relay.plane.source_ports import ALLOCATION_LIFETIME_S
from relay.wire.stun import AttributeType, MessageClass, Method, StunError, message_type, parse_message

ALLOCATE_REQUEST = message_type(Method.ALLOCATE, MessageClass.REQUEST)
ALLOCATE_ERROR = message_type(Method.ALLOCATE, MessageClass.ERROR)
ALLOCATE_SUCCESS = message_type(Method.ALLOCATE, MessageClass.SUCCESS)
REFRESH_REQUEST = message_type(Method.REFRESH, MessageClass.REQUEST)
REFRESH_SUCCESS = message_type(Method.REFRESH, MessageClass.SUCCESS)

# The error of an Allocate that met another client's allocation (RFC 8656 section 7.2).
ALLOCATION_MISMATCH = 437


class Allocation:
    """The allocation of one flow. Times are the loop's."""

    def __init__(self, now: float, ends_at: float | None = None) -> None:
        # When it ends; None without one.
        self.ends_at = ends_at
        # Since when there is none, if there is none.
        self.idle_since = now
        # The last answer with a lifetime was to a Refresh, and the allocation had ended as far as we knew. coturn keeps
        # an allocation for a second after it was given up, and one that ran out may have been refreshed just before.
        self.brought_back = False
        self._requested = False
        self._both_families = False

    def is_live(self, now: float) -> bool:
        """True while there is one, as far as its lifetime says."""
        return self.ends_at is not None and now < self.ends_at

    def may_stay_until(self, now: float) -> float | None:
        """Until when the upstream may hold one at the flow's port. None if it holds none."""
        if self.ends_at is None and not self._requested:
            return None
        return self.ends_at or now + ALLOCATION_LIFETIME_S

    def on_request(self) -> None:
        """An Allocate is on its way."""
        self._requested = True

    def on_answer(self, now: float, message: bytes) -> None:
        """The upstream has answered; only answers to Allocate and Refresh count."""
        kind = message[0] << 8 | message[1]
        if kind == ALLOCATE_ERROR:
            # A port with another client's allocation rests like one with an allocation of the flow's own.
            self._requested = error_code(message) == ALLOCATION_MISMATCH
        elif kind in {ALLOCATE_SUCCESS, REFRESH_SUCCESS}:
            self._on_lifetime(now, kind, message)

    def _on_lifetime(self, now: float, kind: int, message: bytes) -> None:
        try:
            answer = parse_message(message)
            lifetime_s = answer.uint32(AttributeType.LIFETIME)
        except StunError:
            return  # the client judges it
        if lifetime_s is None:
            lifetime_s = int(ALLOCATION_LIFETIME_S)
        self._requested = False
        if kind == ALLOCATE_SUCCESS:
            self._both_families = len(answer.get_all(AttributeType.XOR_RELAYED_ADDRESS)) > 1
        elif self._both_families and not lifetime_s:
            return  # one of its addresses may have been given up while the other lives (RFC 8656 section 7.2)
        self.brought_back = kind == REFRESH_SUCCESS and lifetime_s > 0 and not self.is_live(now)
        self.idle_since = now
        self.ends_at = now + lifetime_s if lifetime_s else None


def error_code(response: bytes) -> int:
    """The number in ERROR-CODE. 0 if it is missing or cannot be read."""
    value = find_attribute(response, AttributeType.ERROR_CODE)
    return 0 if value is None or len(value) < 4 else (value[2] & 7) * 100 + value[3]
