"""Slows down who guesses passwords, by name and by address; sans-I/O, in bounded memory.

After some failures in a row each further attempt has to wait, twice as long each time. A success forgets the failures
of the name. Known names and unknown ones are treated alike, so that nobody learns which exist.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

# People mistype. A guesser gets this many for nothing, and then one a minute.
FREE_FAILURES = 5
# A floor behind one address mistypes more in all.
FREE_FAILURES_OF_ADDRESS = 50
FIRST_WAIT_S = 1.0
# Longer would let anyone lock out a user whose name they know.
LONGEST_WAIT_S = 60.0
# Failures older than this are forgotten.
MEMORY_S = 900.0
# Some 200 bytes each. Beyond it the one that failed longest ago is forgotten.
MAX_KEPT = 10_000


@dataclass
class _Failures:
    count: int
    last: float
    allowed_at: float


class Throttle:
    """Ask ``wait`` before an attempt, and tell its end by ``failed`` or ``succeeded``."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def wait(self, now: float, name: str, address: str) -> float:
        """How many seconds this name or address must wait before its next attempt; 0 if it may try now."""
        waits = [0.0]
        for key in (("name", name.lower()), ("address", address)):
            found = self._by_key.get(key)
            if found is not None and now - found.last <= MEMORY_S:
                waits.append(found.allowed_at - now)
        return max(waits)

    def attempt(self, now: float, name: str, address: str) -> None:
        """An attempt begins. It counts as failed until it has succeeded, so that many at once gain nothing."""
        self._count(now, ("name", name.lower()), FREE_FAILURES)
        self._count(now, ("address", address), FREE_FAILURES_OF_ADDRESS)

    def succeeded(self, name: str, address: str) -> None:
        """The attempt was right: the name is free again, and the address has one failure less."""
        self._by_key.pop(("name", name.lower()), None)
        found = self._by_key.get(("address", address))
        if found is not None:
            found.count -= 1
            if found.count < FREE_FAILURES_OF_ADDRESS:
                found.allowed_at = 0.0

    def _count(self, now: float, key: tuple[str, str], free: int) -> None:
        found = self._by_key.pop(key, None)
        if found is None or now - found.last > MEMORY_S:
            found = _Failures(0, now, 0.0)
        found.count += 1
        found.last = now
        if found.count >= free:
            # The exponent is bounded, or a patient guesser would make the number huge.
            found.allowed_at = now + min(FIRST_WAIT_S * 2.0 ** min(found.count - free, 10), LONGEST_WAIT_S)
        self._by_key[key] = found
        if len(self._by_key) > MAX_KEPT:
            self._by_key.popitem(last=False)
