"""The users whom a flow's Allocates name, until the upstream answers: only its answer proves who it is.

A client may send a second Allocate before the first is answered. So each name is kept with the id of its request. The
compiled twin is ``naming.pxd``.
"""

from __future__ import annotations

# Allocates of one flow whose answer may still come. Clients send two or three; with a ninth, a client could hide under
# whose name the first was granted, so it is dropped.
MAX_NAMED = 8
# RFC 8489 section 14.3: a USERNAME has fewer than 509 bytes.
MAX_NAME_BYTES = 508
# No answer comes after this: a request is sent again for 39.5 s (RFC 8489 section 6.2.1).
NAMED_S = 60.0


class Naming:
    """The names of one flow. Errors leave them: a client must not free a request's id for another name."""

    def __init__(self) -> None:
        # By transaction id, the oldest first: when it was asked, and the name.
        self._named: dict[bytes, tuple[float, bytes]] = {}

    def note(self, now: float, transaction_id: bytes, name: bytes) -> bool:
        """An Allocate names a user. Returns False if it must not go on."""
        for known in [known for known, (asked, _) in self._named.items() if now - asked >= NAMED_S]:
            del self._named[known]
        name = name[:MAX_NAME_BYTES]
        before = self._named.get(transaction_id)
        if before is not None:
            return before[1] == name
        if len(self._named) >= MAX_NAMED:
            return False
        self._named[transaction_id] = now, name
        return True

    def take(self, transaction_id: bytes) -> bytes | None:
        """Whom the request with this id named, which has been granted. None if it named nobody."""
        return self._named.pop(transaction_id, (0.0, None))[1]
