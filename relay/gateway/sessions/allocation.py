"""What a session holds at its upstream: an allocation, its channels, and the seat of its user."""

from __future__ import annotations

from dataclasses import dataclass, field

from relay.addresses import Address
from relay.gateway.entitlement.verdicts import Verdict
from relay.plane.api import Upstream
from relay.turn.client import TurnClient
from relay.wire.media_v1 import Open


@dataclass(eq=False)
class Seat:
    """Holds a place among a user's calls at once, wherever the session goes; ``region`` is where they may be."""

    region: str | None = None


@dataclass
class SessionAllocation:
    """What outlives a connection that is cut: what the client asked for, and its channels. The socket is kept apart."""

    asked: Open
    turn: TurnClient
    upstream: Upstream
    channels: dict[Address, int] = field(default_factory=dict)
    seat: Seat = field(default_factory=Seat)
    # The user may have it. None before the policy has said so, after the upstream has granted it, and where nobody is
    # asked.
    verdict: Verdict | None = None

    @property
    def place(self) -> tuple[str, Address]:
        """Name and address of its upstream, as a search avoids them."""
        return self.upstream.name, self.upstream.address

    @property
    def relayed_addresses(self) -> dict[str, str]:
        """The relayed addresses, as fields of a log line."""
        addresses = {"relayed": self.turn.relayed_address, "additional": self.turn.additional_address}
        return {key: str(address) for key, address in addresses.items() if address is not None}
