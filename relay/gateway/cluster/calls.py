"""Calls at once of each user, over all relays.

Each relay writes how many calls a user has there, always the whole number. A call gets its place in two steps: here,
where this relay's count goes up, and then in Redis, which adds what the user has elsewhere, and takes the number only
if that is not too much. While Redis is away the first step decides.

Questions use several connections, so one may overtake another. Whatever has been written is therefore compared with the
count once more, and all numbers are written anew now and then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from relay.gateway.cluster.client import StoreError
from relay.gateway.cluster.store import Store

# How many calls a user has at this relay.
Count = Callable[[str], int]


class SharedCalls:
    """What this relay tells the others of its users' calls, and asks them."""

    def __init__(self, store: Store, lease_s: float, wake: Callable[[], None]) -> None:
        """``wake`` is called when something is to be written."""
        self._store = store
        self._lease_s = lease_s
        self._wake = wake
        # By hash: users with a bound on their calls who have some here, and those of whom Redis does not know yet.
        self._counts: dict[str, int] = {}
        self._changed: set[str] = set()
        # Goes up when a write begins, and when it ends.
        self._writes = 0

    @property
    def up(self) -> bool:
        """False if there is nobody to ask: this relay counts alone."""
        return self._store.up

    def __len__(self) -> int:
        return len(self._counts)

    def _key(self, user: str) -> str:
        return self._store.client.hashed("user", user)

    def note(self, user: str, count: int, *, bounded: bool = False) -> None:
        """A user has this many calls here now. Users who were never ``bounded`` are of no interest to others."""
        key = self._key(user)
        if bounded or key in self._counts:
            self._put(key, count)

    def _put(self, key: str, count: int) -> None:
        self._counts[key] = count
        self._changed.add(key)
        self._wake()

    async def has_room(self, user: str, count: int, max_calls: int) -> bool:
        """Whether a user may have this many calls here, as far as that can be known now. Changes nothing."""
        key = self._key(user)
        with contextlib.suppress(StoreError):
            return count + await self._claim(key, count, max_calls, 0.0) <= max_calls
        return True

    async def claim(self, user: str, count: Count, max_calls: int) -> bool:
        """Tell the others how many calls the user has here. Returns False if that is too much, together with theirs."""
        key = self._key(user)
        while True:
            asked, writes = count(user), self._writes
            try:
                elsewhere = await self._claim(key, asked, max_calls, self._lease_s)
            except StoreError:
                self._put(key, count(user))
                return True
            now = count(user)
            if elsewhere + asked <= max_calls:
                if now != asked or writes != self._writes:
                    self._put(key, now)
                else:
                    self._counts[key] = now
                return True
            if now >= asked:
                return False
            # Another call of this user has given way here meanwhile, so there may be room for this one.

    async def _claim(self, key: str, count: int, max_calls: int, lease_s: float) -> int:
        client = self._store.client
        return await self._store.ask(lambda: client.claim(key, count, max_calls, lease_s))

    # What the cluster's own task writes

    async def write_changed(self) -> None:
        """Write what has changed. Raises StoreError."""
        counts = {key: self._counts.get(key, 0) for key in self._changed}
        if counts:
            with self._writing(counts):
                await self._store.ask(lambda: self._store.client.write_counts(counts, self._lease_s))

    async def write_all(self, record: bytes) -> None:
        """Write all that this relay has in Redis, with what it says of itself. Raises StoreError."""
        counts = dict(self._counts)
        some = {key: count for key, count in counts.items() if count}
        with self._writing(counts, whole=True):
            await self._store.ask(lambda: self._store.client.rewrite(record, some, self._lease_s))

    @contextlib.contextmanager
    def _writing(self, counts: Mapping[str, int], *, whole: bool = False) -> Iterator[None]:
        """These are written, or ``whole``: these and no others. What has changed meanwhile is then to be written."""
        self._writes += 1
        try:
            yield
        finally:
            self._writes += 1
        for key in {*counts, *(self._counts if whole else ())}:
            count = self._counts.get(key, 0)
            if count != counts.get(key, 0):
                self._changed.add(key)
                continue
            self._changed.discard(key)
            if not count:
                self._counts.pop(key, None)
        if self._changed:
            self._wake()
