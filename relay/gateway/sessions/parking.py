"""Allocations whose client was cut and may come back, and how many sessions each source and each user has.

Every session has a seat for as long as it lives, connected or waiting. Beyond a bound the oldest session that waits
gives way, and it is always one of the same source or user: nobody can push out somebody else.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from relay import addresses
from relay.gateway.sessions.allocation import Seat, SessionAllocation

# A proxy that restarts cuts all its clients at once. Each of them takes a descriptor while it is away.
MAX_PARKED = 4096


class AccountKind(StrEnum):
    """Whether an account is a source or a user."""

    SOURCE = "source"
    USER = "user"


class Account(NamedTuple):
    """A source or a user, whose sessions are counted."""

    kind: AccountKind
    name: str


class Parked(NamedTuple):
    """An allocation that waits for its client, and the socket that it owns; None if it was lost just before."""

    allocation: SessionAllocation
    socket: socket.socket | None
    expiry: asyncio.TimerHandle


class Parking:
    """Which account holds which seat, and what waits under which key, the hash of a token.

    ``give_up`` takes what has waited in vain.
    """

    def __init__(self, give_up: Callable[[SessionAllocation, socket.socket | None], None]) -> None:
        # Sessions of one source, and of one user; 0 for no bound.
        self.bounds = {AccountKind.SOURCE: 0, AccountKind.USER: 0}
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._accounts: dict[Seat, set[Account]] = {}
        self._held: Counter[Account] = Counter()
        self._parked: OrderedDict[bytes, Parked] = OrderedDict()
        # The keys of each account, oldest first.
        self._keys: dict[Account, dict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._parked)

    # Seats

    def hold(self, seat: Seat, account: Account) -> bool:
        """Count the seat as the account's. Returns False if there is no room, and nothing waits that could give way."""
        if account in self._accounts.get(seat, ()):
            return True
        bound = self.bounds[account.kind]
        while bound and self._held[account] >= bound:
            keys = self._keys.get(account)
            if not keys:
                return False
            self.expire(next(iter(keys)))
        self._accounts.setdefault(seat, set()).add(account)
        self._held[account] += 1
        return True

    def has_room(self, seat: Seat, account: Account) -> bool:
        """Whether ``hold`` would succeed. This takes no seat."""
        bound = self.bounds[account.kind]
        free = not bound or self._held[account] < bound or bool(self._keys.get(account))
        return free or account in self._accounts.get(seat, ())

    def release(self, seat: Seat) -> None:
        """The session has ended. May be repeated."""
        for account in self._accounts.pop(seat, ()):
            self._held[account] -= 1
            if not self._held[account]:
                del self._held[account]

    # What waits

    def park(self, key: bytes, allocation: SessionAllocation, left: socket.socket | None, within_s: float) -> None:
        """Keep an allocation for as long as its client may come back."""
        self._parked[key] = Parked(allocation, left, self._loop.call_later(within_s, self.expire, key))
        for account in self._accounts.get(allocation.seat, ()):
            self._keys.setdefault(account, {})[key] = None
        if len(self._parked) > MAX_PARKED:
            self.expire(self._one_too_many())

    def _one_too_many(self) -> bytes:
        """The oldest that waits, of the source that has the most of them."""
        sources = [keys for account, keys in self._keys.items() if account.kind is AccountKind.SOURCE]
        largest: dict[bytes, None] = max(sources, key=len, default={})
        return next(iter(largest or self._parked))

    def take(self, key: bytes) -> Parked | None:
        """What waits under this key, if anything does. It waits no longer."""
        parked = self._parked.pop(key, None)
        if parked is None:
            return None
        parked.expiry.cancel()
        for account in self._accounts.get(parked.allocation.seat, ()):
            keys = self._keys.get(account, {})
            keys.pop(key, None)
            if not keys:
                self._keys.pop(account, None)
        return parked

    def expire(self, key: bytes) -> None:
        """No client has come back for this, or it gives way to another one."""
        if (parked := self.take(key)) is not None:
            self._give_up(parked.allocation, parked.socket)

    def stop(self) -> None:
        """Nobody may come back from now on."""
        for key in list(self._parked):
            self.expire(key)


def source_of(host: str) -> Account:
    """The account of sessions from this address: the address, or the network of an IPv6 one."""
    return Account(AccountKind.SOURCE, addresses.source_of(host))
