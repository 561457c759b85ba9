"""Who is told what a TURN server grants: for an adapter that carries data without asking the server."""

from __future__ import annotations

from relay.turn.allocation import Allocation, Channel


class Observer:
    """Is told of each grant before its answer is returned. This one ignores them.

    The end of a relayed address is a command (``CloseRelayed``). Lifetimes end by themselves.
    """

    def on_allocation(self, allocation: Allocation) -> None:
        """An allocation began."""

    def on_refresh(self, allocation: Allocation) -> None:
        """Relayed addresses of the allocation have a new expiry."""

    def on_permission(self, allocation: Allocation, host: str) -> None:
        """A permission was created or renewed."""

    def on_channel(self, allocation: Allocation, channel: Channel) -> None:
        """A channel was bound or renewed, and with it the permission for its peer."""
