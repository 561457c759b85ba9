"""Calls at once: who holds how many places; sans-I/O, ``now`` is the loop's time in seconds.

A connection takes its place when its user is admitted, before the upstream has checked his password. So that a name
which the upstream then refuses does not keep others out, a place whose connection has no allocation PROVISIONAL_S later
is given up to the next call of that user that needs one, and its connection is closed: it carries nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass

# An Allocate and its answers take some round trips; a login storm makes seconds of them.
PROVISIONAL_S = 10.0
# Looking at the allocations means looking at all flows, and who has too many calls may ask often.
LOOK_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class _Place:
    user: str
    since: float
    provisional: bool


class Places:
    """The places of all users. A holder has one at most: a connection, or whatever else ends."""

    def __init__(self, allocated: Callable[[], Collection[Hashable]], give_up: Callable[[Hashable], None]) -> None:
        """``allocated`` are the holders that have an allocation now, ``give_up`` is told who has lost his place."""
        self._allocated = allocated
        self._give_up = give_up
        self._places: dict[Hashable, _Place] = {}
        self._holders: dict[str, dict[Hashable, _Place]] = {}
        self._looked_at: float | None = None

    def __len__(self) -> int:
        return len(self._places)

    def count(self, user: str) -> int:
        """How many places a user holds."""
        return len(self._holders.get(user, ()))

    def take(self, now: float, holder: Hashable, user: str, most: int | None, *, provisional: bool) -> bool:
        """Give the holder a place of this user instead of the one it has, if he has fewer than ``most`` others."""
        others = [one for one in self._holders.get(user, ()) if one != holder]
        if most is not None and len(others) >= most and not self._make_room(now, user, len(others) - most + 1, holder):
            return False
        self.release(holder)
        place = self._places[holder] = _Place(user, now, provisional)
        self._holders.setdefault(user, {})[holder] = place
        return True

    def _make_room(self, now: float, user: str, wanted: int, holder: Hashable) -> bool:
        """Take away as many places without an allocation, oldest first; none if they are too few."""
        old = [
            one
            for one, place in self._holders[user].items()
            if one != holder and place.provisional and now - place.since >= PROVISIONAL_S
        ]
        if len(old) < wanted or (self._looked_at is not None and now - self._looked_at < LOOK_INTERVAL_S):
            return False
        self._looked_at = now
        allocated = self._allocated()
        idle = [one for one in old if one not in allocated]
        if len(idle) < wanted:
            return False
        for one in idle[:wanted]:
            self.release(one)
            self._give_up(one)
        return True

    def release(self, holder: Hashable) -> None:
        """The holder needs no place any more, if it had one."""
        place = self._places.pop(holder, None)
        if place is None:
            return
        holders = self._holders[place.user]
        del holders[holder]
        if not holders:
            del self._holders[place.user]
