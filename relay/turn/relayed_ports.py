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


def _sibling(address: Address) -> Address:
    return Address(address.host, address.port + 1)


@dataclass(slots=True)
class _Reservation:
    address: Address
    expires: float


class RelayedPorts:
    """The ports of a server's relayed hosts: free, taken, or reserved under a token."""

    def __init__(self, choose: random.Random, first_port: int = FIRST_PORT) -> None:
        self._choose = choose
        self._first_port = first_port
        self._taken: set[Address] = set()
        self._reserved: dict[bytes, _Reservation] = {}

    def take(self, now: float, host: str, *, even: bool = False, with_sibling: bool = False) -> Address | None:
        """Take a free port, on request an even one, or also its next higher sibling. Returns None if none is found."""
        self._drop_expired(now)
        reserved = {reservation.address for reservation in self._reserved.values()}
        for _ in range(MAX_PICKS):
            port = self._choose.randrange(self._first_port, LAST_PORT + 1) & (~1 if even else ~0)
            address = Address(host, port)
            wanted = {address, _sibling(address)} if with_sibling else {address}
            if not wanted & self._taken and not wanted & reserved:
                self._taken |= wanted
                return address
        return None

    def reserve_sibling(self, now: float, address: Address) -> bytes:
        """Reserve the sibling that was taken with ``address``. Returns the token for RESERVATION-TOKEN."""
        token = secrets.token_bytes(8)
        sibling = _sibling(address)
        self._taken.discard(sibling)
        self._reserved[token] = _Reservation(sibling, now + RESERVATION_LIFETIME_S)
        return token

    def redeem(self, now: float, token: bytes) -> Address | None:
        """Take the reserved port of a token. Returns None if the token is unknown or has expired."""
        self._drop_expired(now)
        reservation = self._reserved.pop(token, None)
        if reservation is None:
            return None
        self._taken.add(reservation.address)
        return reservation.address

    def release(self, address: Address, *, with_sibling: bool = False) -> None:
        """Give a taken port back, and the sibling that was taken with it."""
        self._taken.discard(address)
        if with_sibling:
            self._taken.discard(_sibling(address))

    def _drop_expired(self, now: float) -> None:
        # Reservations are made in the order of their expiry.
        for token, reservation in list(self._reserved.items()):
            if reservation.expires > now:
                return
            del self._reserved[token]
