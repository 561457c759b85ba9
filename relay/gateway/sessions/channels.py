"""The channels that the client of a session asks for: which numbers they get, and who waits for which answer."""

from __future__ import annotations

from collections.abc import Iterable

from relay.addresses import Address
from relay.wire.channeldata import FIRST_CHANNEL, LAST_CHANNEL
from relay.wire.media_v1 import Bind, Bound, Failed, RequestId

# Twice the lines of a desk. Each channel is renewed every four minutes.
MAX_CHANNELS = 64


class Channels:
    """The binds that are not answered yet. The numbers themselves are kept with the allocation, as ``bound``."""

    def __init__(self) -> None:
        # The ids of the messages that wait, by peer.
        self.asked: dict[Address, list[RequestId]] = {}
        # Peers whose channel a new upstream has still to bind, before the client is told that the session has moved.
        self.rebinding: set[Address] = set()

    def answer(self, bound: dict[Address, int], bind: Bind) -> Bound | Failed | None:
        """What the client is told at once. None if the upstream must answer first: then ``ask``."""
        known = bound.get(bind.peer)
        taken = set(bound.values())
        number = _number(bound, bind)
        if bind.channel not in {None, number}:
            return Failed(409, f"bind: the peer has channel {known:#x} already", bind.peer, bind.id)
        if known is None and number in taken:
            return Failed(409, f"bind: channel {number:#x} belongs to another peer", bind.peer, bind.id)
        if known is None and len(bound) >= MAX_CHANNELS:
            return Failed(429, f"bind: expected at most {MAX_CHANNELS} channels", bind.peer, bind.id)
        if known is not None and bind.peer not in self.asked and bind.peer not in self.rebinding:
            return Bound(bind.peer, number, bind.id)
        return None

    def ask(self, bound: dict[Address, int], bind: Bind) -> int | None:
        """Have the client wait. Returns the number for the upstream to bind; None if it has been asked already."""
        waiting = self.asked.setdefault(bind.peer, [])
        # A client that asks a thousand times for one peer gets as many answers as there are channels.
        if len(waiting) < MAX_CHANNELS:
            waiting.append(bind.id)
        if bind.peer in bound:
            return None
        number = bound[bind.peer] = _number(bound, bind)
        return number

    def settle(self, peer: Address) -> list[RequestId] | None:
        """The upstream has answered for this peer. Returns the ids of the messages that wait; None if none was sent."""
        self.rebinding.discard(peer)
        return self.asked.pop(peer, None)

    def wait_for(self, peers: Iterable[Address]) -> None:
        """These are under way at the upstream, asked for over another connection, where nobody waits any longer."""
        self.asked = {peer: [] for peer in peers}


def _number(bound: dict[Address, int], bind: Bind) -> int:
    """The number that the peer has, or that the client wants for it, or the first free one."""
    if (known := bound.get(bind.peer)) is not None:
        return known
    taken = set(bound.values())
    return bind.channel or next(number for number in range(FIRST_CHANNEL, LAST_CHANNEL + 1) if number not in taken)
