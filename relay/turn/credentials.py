"""Long-term credentials, time-limited (REST) credentials and stateless nonces.

Long-term: RFC 8489 section 9.2. Time-limited: the user name is ``expiry:user`` and the password the base64 of an
HMAC-SHA1 over it, with a secret that the issuer and the TURN server share (draft-uberti-behave-turn-rest).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from relay.addresses import Address

# How long a nonce is accepted: RFC 8489 section 9.2 asks for at most an hour; coturn's stale-nonce is 600 s.
NONCE_LIFETIME_S = 600


def prepared(text: str) -> str:
    """The text in Unicode form C: the part of OpaqueString (RFC 8265) that changes characters silently."""
    return unicodedata.normalize("NFC", text)


def long_term_key(username: str, realm: str, password: str) -> bytes:
    """The key of MESSAGE-INTEGRITY (RFC 8489 section 9.2.2): MD5(username:realm:password) of the prepared texts."""
    return raw_long_term_key(prepared(username), prepared(realm), prepared(password))


def raw_long_term_key(username: str, realm: str, password: str) -> bytes:
    """The same for the texts as they are: many implementations, coturn and browsers among them, prepare nothing."""
    return hashlib.md5(f"{username}:{realm}:{password}".encode(), usedforsecurity=False).digest()


def long_term_keys(username: str, realm: str, password: str) -> tuple[bytes, bytes]:
    """Both keys that a peer may mean, the prepared one first. For texts in form C, such as ASCII, they are equal."""
    return long_term_key(username, realm, password), raw_long_term_key(username, realm, password)


def rest_password(secret: str, username: str) -> str:
    """The password that belongs to a time-limited user name."""
    return base64.b64encode(hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()).decode()


def rest_username(user: str, expires: int) -> str:
    """The time-limited name of ``user``; ``expires`` is a Unix time in seconds."""
    return f"{expires}:{user}"


def user_of_rest(username: str) -> str:
    """Whose time-limited name this is; a name without a time is its own."""
    expires, colon, user = username.partition(":")
    return user if colon and expires.isascii() and expires.isdigit() else username


class CredentialStore(Protocol):
    """Finds the keys of a user; the server asks it once per authenticated request."""

    def keys(self, username: str, realm: str, unix_time: float) -> tuple[bytes, ...]:
        """The long-term keys, either of which proves the user; empty if the user is unknown or has expired."""


class StaticCredentials:
    """User names and passwords from a table. A name is found in the form it has there, and in its prepared form."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._passwords = {prepared(username): password for username, password in passwords.items()}

    def keys(self, username: str, realm: str, unix_time: float) -> tuple[bytes, ...]:
        """The keys of a user in the table, at any time."""
        password = self._passwords.get(prepared(username))
        return () if password is None else long_term_keys(username, realm, password)


class RestCredentials:
    """Time-limited credentials from a shared secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def keys(self, username: str, realm: str, unix_time: float) -> tuple[bytes, ...]:
        """The keys of ``expiry:user`` while the expiry is ahead."""
        expires, colon, _ = username.partition(":")
        if not colon or not expires.isascii() or not expires.isdigit() or int(expires[:20]) <= unix_time:
            return ()
        return long_term_keys(username, realm, rest_password(self._secret, username))


@dataclass(frozen=True)
class NonceMint:
    """Makes and checks nonces without keeping any: four bytes of time and a MAC over time and client address.

    A nonce has sixteen characters, so that a 401 with a realm of eight fits into 72 bytes: a flood with forged sources
    is not amplified.
    """

    lifetime_s: int = NONCE_LIFETIME_S
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def mint(self, client: Address, now: float) -> str:
        """A fresh nonce for this client."""
        return self._nonce(client, int(now) & 0xFFFFFFFF)

    def accepts(self, nonce: str, client: Address, now: float) -> bool:
        """True if we made this nonce for this client and it is not stale."""
        try:
            made = int.from_bytes(base64.b64decode(nonce, validate=True)[:4])
        except ValueError:
            return False
        age = (int(now) - made) & 0xFFFFFFFF
        return age <= self.lifetime_s and hmac.compare_digest(nonce.encode(), self._nonce(client, made).encode())

    def _nonce(self, client: Address, made: int) -> str:
        stamp = made.to_bytes(4)
        mac = hmac.new(self.key, stamp + f"{client.host} {client.port}".encode(), hashlib.sha256).digest()
        return base64.b64encode(stamp + mac[:8]).decode()
