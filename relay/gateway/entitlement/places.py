"""Calls at once: who holds how many places.

A place belongs to a call whose allocation the upstream has granted, because the upstream has then checked the password.
A request alone takes no place, so nobody can lock out another user by knowing their name. When a user has no place
left, places whose allocation has ended meanwhile become free.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable


class Places:
    """The places of all users. A holder has at most one: a connection, or the seat of a session."""

    def __init__(self, allocated: Callable[[Hashable], bool], on_fewer: Callable[[str], None] = lambda _: None) -> None:
        """``allocated`` says whether the allocation of a holder lives. ``on_fewer`` hears who has one place less."""
        self._allocated = allocated
        self._on_fewer = on_fewer
        self._places: dict[Hashable, str] = {}
        self._holders: dict[str, set[Hashable]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def count(self, user: str) -> int:
        """How many places a user holds."""
        return len(self._holders.get(user, ()))

    def holds(self, holder: Hashable, user: str) -> bool:
        """Whether the holder has a place of this user."""
        return self._places.get(holder) == user

    def has_room(self, holder: Hashable, user: str, max_calls: int | None) -> bool:
        """Whether the user has fewer than ``max_calls`` places, the holder's own not counted."""
        if max_calls is None or self._others(holder, user) < max_calls:
            return True
        for one in [one for one in self._holders[user] if one != holder and not self._allocated(one)]:
            self.release(one)
        return self._others(holder, user) < max_calls

    def _others(self, holder: Hashable, user: str) -> int:
        holders = self._holders.get(user, set())
        return len(holders) - (holder in holders)

    def take(self, holder: Hashable, user: str, max_calls: int | None) -> bool:
        """Give the holder a place of this user instead of the one that it has. Returns False if there is no room."""
        if not self.has_room(holder, user, max_calls):
            return False
        self.release(holder)
        self._places[holder] = user
        self._holders.setdefault(user, set()).add(holder)
        return True

    def release(self, holder: Hashable) -> None:
        """The holder no longer needs a place, if it had one."""
        user = self._places.pop(holder, None)
        if user is None:
            return
        holders = self._holders[user]
        holders.remove(holder)
        if not holders:
            del self._holders[user]
        self._on_fewer(user)

    def release_ended(self) -> None:
        """Release all places whose allocation has ended, for others who count them as well."""
        for one in [one for one in self._places if not self._allocated(one)]:
            self.release(one)
