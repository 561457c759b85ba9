"""Copies of what a flow sends to its upstream and receives from it, for a capture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from relay.addresses import Address
from relay.quality.stream import Direction

if TYPE_CHECKING:
    from relay.plane.api import Upstream


@dataclass(frozen=True, slots=True)
class TappedDatagram:
    """One datagram of a flow's UDP leg, as it was sent to the upstream or came from there, with any padding.

    ``at_us`` is a time of the monotonic clock, ``local`` the flow's own address. ``missed`` is how many datagrams just
    before it found no room, because nobody took the ones that waited.
    """

    at_us: int
    direction: Direction
    local: Address
    missed: int
    data: bytes = field(repr=False)


class Tap(Protocol):
    """Copies of what a flow sends to its upstream and receives from it. Media never waits for their reader."""

    @property
    def client(self) -> Address:
        """The flow's client."""

    @property
    def server_name(self) -> str:
        """What the client asked for."""

    @property
    def upstream(self) -> Upstream:
        """The other end of the UDP leg."""

    @property
    def missed(self) -> int:
        """How many datagrams found no room, from the start."""

    @property
    def ended(self) -> bool:
        """True if nothing more will come: the flow has ended, or has a new tap. What has come can still be taken."""

    def take(self, limit: int) -> list[TappedDatagram]:
        """What has come since the last call, in order, at most this many."""

    def close(self) -> None:
        """Copy no more, and let go of what has not been taken. May be repeated."""
