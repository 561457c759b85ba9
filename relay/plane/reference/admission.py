"""Users whom control lets in: the Allocate that waits for its word, and the grant whose answer does.

The compiled twin is ``admission.pxd``.
"""

from __future__ import annotations

from relay.plane.reference.allocation import ALLOCATE_REQUEST, REFRESH_REQUEST
from relay.plane.reference.traffic import find_attribute
from relay.wire.stun import HEADER_BYTES, AttributeType

# An Allocate with a name and a hash is 200 bytes; this much of one may wait for control.
MAX_ASKED_BYTES = 2048
# A request with one of these is authenticated, or tries to be.
_CREDENTIALS = (
    AttributeType.USERNAME,
    AttributeType.MESSAGE_INTEGRITY,
    AttributeType.MESSAGE_INTEGRITY_SHA256,
    AttributeType.USERHASH,
)


class Admission:
    """What one flow has asked control."""

    def __init__(self) -> None:
        # The Allocate that waits.
        self.asked: bytes | None = None
        # The upstream has granted an allocation, and control has the answer.
        self.granted = False

    @property
    def is_waiting(self) -> bool:
        """True until control has answered everything."""
        return self.asked is not None or self.granted

    def take_asked(self) -> bytes | None:
        """The Allocate that waits, which control has decided about."""
        request, self.asked = self.asked, None
        return request

    def take_granted(self) -> bool:
        """Whether a grant waited, which control has answered."""
        granted, self.granted = self.granted, False
        return granted

    def clear(self) -> None:
        """Nobody waits for an answer."""
        self.asked, self.granted = None, False


def is_to_ask(unit: bytes) -> bool:
    """True for an Allocate that names a user, and for what takes over the allocation of another connection.

    Over CONNECT-UDP it is also true for one that is not whole, as it may be whole to some server.
    """
    kind = unit[0] << 8 | unit[1] if len(unit) >= HEADER_BYTES else 0
    if kind == REFRESH_REQUEST:
        return find_attribute(unit, AttributeType.MOBILITY_TICKET) is not None
    # Nobody slips by without a name, or with one where only some servers look for it.
    return kind == ALLOCATE_REQUEST and any(find_attribute(unit, one) is not None for one in _CREDENTIALS)


def is_turn_datagram(datagram: bytes) -> bool:
    """True if a TURN server takes it for TURN, or throws it away. DTLS is neither: inside it could be any Allocate."""
    return not datagram or datagram[0] < 4 or datagram[0] & 0xC0 == 0x40
