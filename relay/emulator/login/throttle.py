"""Slows down who guesses passwords, by name and by address; sans-I/O, in bounded memory.

After some failures in a row each further attempt has to wait, twice as long each time. A success forgets the failures
of the name. Known names and unknown ones are treated alike, so that nobody learns which exist.
"""

from __future__ import annotations

import ipaddress
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
    """Ask ``wait`` before an attempt, and tell its end by ``failed`` or ``succeeded``.

    An address that fails often takes the free failures from the names that fail there. A name without failures never
    waits: others may sit behind the same address. This machine's own addresses do not count: everyone on it shares
    them, and so does everyone who comes through a relay on it.
    """

    def __init__(self) -> None:
        self._by_key: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def wait(self, now: float, name: str, address: str) -> float:
        """How many seconds this name must wait before its next attempt from here; 0 if it may try now."""
        of_name = self._found(now, ("name", name.lower()))
        if of_name is None:
            return 0.0
        of_address = self._found(now, ("address", address))
        return max(0.0, of_name.allowed_at - now, 0.0 if of_address is None else of_address.allowed_at - now)

    def failed(self, now: float, name: str, address: str) -> None:
        """The attempt was wrong."""
        self._count(now, ("name", name.lower()), FREE_FAILURES)
        if not _is_loopback(address):
            self._count(now, ("address", address), FREE_FAILURES_OF_ADDRESS)

    def succeeded(self, name: str) -> None:
        """The attempt was right: the name is free again."""
        self._by_key.pop(("name", name.lower()), None)

    def _found(self, now: float, key: tuple[str, str]) -> _Failures | None:
        found = self._by_key.get(key)
        return found if found is not None and now - found.last <= MEMORY_S else None

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


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
