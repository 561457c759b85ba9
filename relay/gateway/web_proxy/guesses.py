"""Slows down clients that guess passwords, and nobody else: by client address and name, in bounded memory. No I/O.

Anyone may mistype a password a few times. After that, each attempt at the same name from the same address waits before
it is looked at: longer each time, and only a few may wait at once. The same user at another address does not notice,
nor do other users at the same address, which may be the address of a whole firm. A client that tries one password for
many names gets its refusals late.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

# Wrong passwords that cost nothing: for one name, and for all names from one address.
FREE_OF_NAME = 5
FREE_OF_SOURCE = 50
# The first wait and the longest. With four attempts that wait, there is one a second.
FIRST_WAIT_S = 0.25
MAX_WAIT_S = 4.0
MAX_WAITING = 4
# After this long without a wrong password, everything is forgotten.
FORGET_S = 300.0
# Names of each address, and addresses and names in all. The one that was not used for the longest goes first. To have a
# name forgotten, a client needs this many wrong names from the same address, and each is answered late. A botnet can
# fill some 20 MB.
MAX_NAMES = 1024
MAX_SOURCES = 4096
MAX_NAMES_IN_ALL = 65_536


@dataclass(slots=True)
class _Tries:
    failures: int = 0
    failed_at: float = 0.0
    waiting: int = 0

    def fail(self, now: float) -> None:
        self.failures = 1 if now - self.failed_at > FORGET_S else self.failures + 1
        self.failed_at = now

    def wait_s(self, now: float, free: int) -> float:
        if self.failures < free or now - self.failed_at > FORGET_S:
            return 0.0
        return min(FIRST_WAIT_S * 2.0 ** min(self.failures - free, 30), MAX_WAIT_S)


@dataclass(slots=True)
class _Source:
    all: _Tries = field(default_factory=_Tries)
    # By hash: the client chooses the name, which may have a kilobyte.
    names: OrderedDict[bytes, _Tries] = field(default_factory=OrderedDict)


class Guesses:
    """What was guessed, by address and name. Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._names = 0

    def begin(self, now: float, source: str, name: str) -> float | None:
        """How long an attempt must wait before its password is looked at; None if too many wait already.

        If that is more than 0, the caller calls ``end`` when it has waited.
        """
        known = self._sources.get(source)
        tries = None if known is None else known.names.get(_key(name))
        wait_s = 0.0 if tries is None else tries.wait_s(now, FREE_OF_NAME)
        if tries is None or not wait_s:
            return 0.0
        if tries.waiting >= MAX_WAITING:
            return None
        tries.waiting += 1
        return wait_s

    def end(self, source: str, name: str) -> None:
        """An attempt has waited."""
        known = self._sources.get(source)
        tries = None if known is None else known.names.get(_key(name))
        if tries is not None:
            tries.waiting = max(0, tries.waiting - 1)

    def fail(self, now: float, source: str, name: str) -> float:
        """The password was wrong. Returns how long to wait before saying so."""
        known = self._sources.setdefault(source, _Source())
        self._sources.move_to_end(source)
        wait_s = known.all.wait_s(now, FREE_OF_SOURCE)
        known.all.fail(now)
        self._fail_name(now, known, _key(name))
        while len(self._sources) > MAX_SOURCES or self._names > MAX_NAMES_IN_ALL:
            _, oldest = self._sources.popitem(last=False)
            self._names -= len(oldest.names)
        return wait_s

    def _fail_name(self, now: float, known: _Source, key: bytes) -> None:
        self._names += key not in known.names
        known.names.setdefault(key, _Tries()).fail(now)
        known.names.move_to_end(key)
        if len(known.names) > MAX_NAMES:
            known.names.popitem(last=False)
            self._names -= 1

    def succeed(self, source: str, name: str) -> None:
        """The password was right, so the wrong ones before it were mistakes."""
        known = self._sources.get(source)
        if known is not None:
            self._names -= known.names.pop(_key(name), None) is not None
            if not known.names:
                del self._sources[source]


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
