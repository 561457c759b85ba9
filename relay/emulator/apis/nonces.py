"""Nonces of signed requests: each counts once, and is forgotten when its request would be too old anyway."""

from __future__ import annotations

import heapq
import uuid

# Of one key, at once. A nonce is remembered for at most ten minutes, so this allows 100 signed requests a second for as
# long as one likes. It takes about 12 MB. When it is full, new requests wait: to forget an old nonce would open a door.
MAX_NONCES_PER_KEY = 60_000


class NoncesFull(Exception):
    """A key has as many nonces as it may have. The message says what to do."""


class Nonces:
    """The nonces of all keys. In memory: after a restart, a request of the last minutes could be sent once more."""

    def __init__(self, limit: int = MAX_NONCES_PER_KEY) -> None:
        self._limit = limit
        self._of_keys: dict[str, _OfKey] = {}

    def use(self, key: str, nonce: uuid.UUID, until: float, now: float) -> bool:
        """Use up a nonce, and remember it until then. Returns False if it was used before. Raises NoncesFull."""
        return self._of_keys.setdefault(key, _OfKey()).use(nonce.bytes, until, now, self._limit)


class _OfKey:
    def __init__(self) -> None:
        self._used: set[bytes] = set()
        self._by_end: list[tuple[float, bytes]] = []

    def use(self, nonce: bytes, until: float, now: float, limit: int) -> bool:
        while self._by_end and self._by_end[0][0] < now:
            self._used.discard(heapq.heappop(self._by_end)[1])
        if nonce in self._used:
            return False
        if len(self._used) >= limit:
            wait_s = max(self._by_end[0][0] - now, 0)
            raise NoncesFull(f"at most {limit} requests of one key in ten minutes; the next in {wait_s:.0f} s")
        self._used.add(nonce)
        heapq.heappush(self._by_end, (until, nonce))
        return True
