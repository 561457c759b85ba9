"""What an Allocate asks for: its attributes, checked in the order of RFC 8656 section 7.2. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from relay.turn.authentication import TurnError
from relay.wire.stun import AttributeType, Family, Message

UDP_PROTOCOL = 17
# RFC 8656 sections 3.2 and 7.2: the default, which is also the shortest that is granted, and the longest.
DEFAULT_LIFETIME_S = 600
MAX_LIFETIME_S = 3600


@dataclass(frozen=True, slots=True)
class AllocateWish:
    """``families`` are in the order in which their relayed addresses are opened; ``token`` redeems a reservation."""

    families: tuple[int, ...]
    lifetime_s: int
    even: bool = False
    with_sibling: bool = False
    token: bytes | None = None

    @property
    def places(self) -> int:
        """How many more it takes of a quota. A reserved port has its place already: it counts as an allocation."""
        return 0 if self.token is not None else 1 + self.with_sibling


def read_allocate(message: Message) -> AllocateWish:
    """Read and check the attributes. Raises TurnError, and StunError for a malformed one."""
    transport = message.uint32(AttributeType.REQUESTED_TRANSPORT)
    if transport is None:
        raise TurnError(400, "REQUESTED-TRANSPORT is required")
    if transport >> 24 != UDP_PROTOCOL:
        raise TurnError(442, "only UDP is relayed")
    even_port = message.get(AttributeType.EVEN_PORT)
    requested = message.family(AttributeType.REQUESTED_ADDRESS_FAMILY)
    additional = message.family(AttributeType.ADDITIONAL_ADDRESS_FAMILY)
    token = message.get(AttributeType.RESERVATION_TOKEN)
    if token is not None and not (even_port is None and requested is None and additional is None):
        raise TurnError(400, "RESERVATION-TOKEN excludes EVEN-PORT and address families")
    if requested is not None and additional is not None:
        raise TurnError(400, "REQUESTED-ADDRESS-FAMILY excludes ADDITIONAL-ADDRESS-FAMILY")
    with_sibling = even_port is not None and bool(even_port[0] & 0x80)
    if additional is not None and with_sibling:
        raise TurnError(400, "ADDITIONAL-ADDRESS-FAMILY excludes EVEN-PORT with a reservation")
    if additional not in {None, Family.IPV6}:
        raise TurnError(400, "ADDITIONAL-ADDRESS-FAMILY can only be IPv6")
    return AllocateWish(
        (requested or Family.IPV4,) if additional is None else (Family.IPV4, Family.IPV6),
        granted_lifetime(message),
        even_port is not None,
        with_sibling,
        token,
    )


def granted_lifetime(message: Message) -> int:
    """The lifetime in seconds that is granted to a request with this LIFETIME (section 7.2)."""
    wanted = message.uint32(AttributeType.LIFETIME)
    return DEFAULT_LIFETIME_S if wanted is None else min(max(wanted, DEFAULT_LIFETIME_S), MAX_LIFETIME_S)
