"""Which clients stay with polling, because something on their way swallows the frames of WebSockets.

A session whose upgrade was swallowed stays with polling; it is known by its id. A client is known by its address and
User-Agent, which a whole floor behind a proxy may share. So it stays with polling only when several of its sessions
have failed one after the other, and none of its WebSockets works.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

# One session that failed may be one program on one desktop, and it stays with polling by its id anyway.
SEVERAL_SESSIONS = 3


class PollingOnly:
    """Both tables are bounded by ``max_entries``; the oldest go first. ``now`` is in seconds of a steady clock."""

    def __init__(self, max_entries: int = 1) -> None:
        self.max_entries = max_entries
        # Upgrades that were answered, and then nothing came through them.
        self.swallowed = 0
        self._until: OrderedDict[object, float] = OrderedDict()
        # The sessions of a client that have failed since one has succeeded.
        self._failed: OrderedDict[object, set[str]] = OrderedDict()
        # WebSockets that are open and through which a client has spoken.
        self._working: Counter[object] = Counter()

    def __len__(self) -> int:
        return len(self._until)

    def on_swallowed(self, now: float, hold_s: float, session: object, sid: str, client: object) -> bool:
        """An upgrade was answered and nothing came through it. Returns True if the client is held from now on."""
        self.swallowed += 1
        self._hold(session, now + hold_s)
        if self._working[client]:
            return False
        failed = self._failed.setdefault(client, set())
        self._failed.move_to_end(client)
        failed.add(sid)
        while len(self._failed) > self.max_entries:
            self._failed.popitem(last=False)
        if len(failed) < SEVERAL_SESSIONS:
            return False
        self._failed.pop(client, None)
        self._hold(client, now + hold_s)
        return True

    def _hold(self, key: object, until: float) -> None:
        self._until[key] = until
        self._until.move_to_end(key)
        while len(self._until) > self.max_entries:
            self._until.popitem(last=False)

    def on_working(self, client: object) -> None:
        """A client has spoken through a WebSocket; ``on_ended`` follows."""
        self._working[client] += 1
        self._failed.pop(client, None)
        self._until.pop(client, None)

    def on_ended(self, client: object) -> None:
        """Such a WebSocket has ended."""
        self._working[client] -= 1
        if not self._working[client]:
            del self._working[client]

    def holds(self, now: float, *keys: object) -> bool:
        """True if one of these stays with polling."""
        return any(self._until.get(key, 0.0) > now for key in keys)
