"""Chooses relayed transport addresses: random ports, even ports, and reserved siblings (RFC 8656 section 7.2)."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass

from relay.addresses import Address

# The dynamic ports (RFC 6335), as RFC 8656 section 7.2 recommends.
FIRST_PORT = 49152
LAST_PORT = 65535
# RFC 8656 section 7.2 asks for at least 30 s.
RESERVATION_LIFETIME_S = 30.0
# A random pick fails as often as ports are taken. 64 picks find a free one even when nine in ten are taken.
MAX_PICKS = 64


def sibling_of(address: Address) -> Address:
    """The other port of its pair: an even one, and the next higher."""
    return Address(address.host, address.port ^ 1)


@dataclass(slots=True)
class _Reservation:
    address: Address
    expires: float
    user: str


class RelayedPorts:
    """The ports of a server's relayed hosts: free, taken, or reserved under a token for a user."""

    def __init__(self, choose: random.Random, first_port: int = FIRST_PORT) -> None:
        self._choose = choose
        self._first_port = first_port
        self._taken: set[Address] = set()
        # In the order of their expiry.
        self._reserved: dict[bytes, _Reservation] = {}

    def take(self, host: str, *, even: bool = False, with_sibling: bool = False) -> Address | None:
        """Take a free port, on request an even one, or also its next higher sibling. Returns None if none is found."""
        for _ in range(MAX_PICKS):
            port = self._choose.randrange(self._first_port, LAST_PORT + 1) & (~1 if even else ~0)
            address = Address(host, port)
            wanted = {address, sibling_of(address)} if with_sibling else {address}
            if not wanted & self._taken:
                self._taken |= wanted
                return address
        return None

    def reserve(self, now: float, address: Address, user: str) -> bytes:
        """Keep a port that was taken for the client that brings its token (RESERVATION-TOKEN). Returns the token."""
        token = secrets.token_bytes(8)
        self._reserved[token] = _Reservation(address, now + RESERVATION_LIFETIME_S, user)
        return token

    def redeem(self, now: float, token: bytes) -> Address | None:
        """The port of a token, which stays taken. Returns None if the token is unknown or has expired."""
        reservation = self._reserved.get(token)
        if reservation is None or reservation.expires <= now:
            return None
        return self._reserved.pop(token).address

    def reservations(self, user: str | None = None) -> int:
        """How many there are, or how many of a user."""
        if user is None:
            return len(self._reserved)
        return sum(reservation.user == user for reservation in self._reserved.values())

    def first_expiry(self) -> float | None:
        """When the first reservation ends, or None."""
        return next((reservation.expires for reservation in self._reserved.values()), None)

    def expire(self, now: float) -> list[Address]:
        """Give back the ports whose reservation has ended. Returns them."""
        ended = [token for token, reservation in self._reserved.items() if reservation.expires <= now]
        addresses = [self._reserved.pop(token).address for token in ended]
        self._taken.difference_update(addresses)
        return addresses

    def release(self, *addresses: Address) -> None:
        """Give back ports that were taken."""
        self._taken.difference_update(addresses)
