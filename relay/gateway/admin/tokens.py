"""The token of the admin listener: new ones, their hashes, and whether a request brings the right one.

Only the hash is in the configuration. Argon2 is slow by design, so a token is checked in a thread, and the digest of
one that was right is remembered. A wrong one costs a check each time, and the number of checks is bounded.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import hmac
import secrets
from enum import Enum

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from pydantic import SecretStr

from relay.addresses import source_of
from relay.rate_limit import RateLimit
from relay.tasks import in_daemon_thread

# Nobody guesses 256 bits. This is for the log and the terminal, where the token can be told from other texts.
TOKEN_PREFIX = "relay-"  # noqa: S105
TOKEN_BYTES = 32
# A longer one is not a token that a person or a program was given.
MAX_TOKEN_CHARACTERS = 512
# Checks of tokens that are not the one that was right before, for each source and in all. One takes 30 ms of a core and
# 19 MiB, while calls need the cores.
CHECKS_OF_SOURCE_PER_S = 1.0
CHECKS_PER_S = 4.0

# OWASP's second choice of parameters: 19 MiB, two passes, one lane.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


def new_token() -> str:
    """A token that nobody can guess."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def hash_token(token: str) -> str:
    """A hash of it for the configuration. Takes about 30 ms."""
    return _HASHER.hash(token)


class TokenVerdict(Enum):
    """What was found about a request."""

    GOOD = "good"
    MISSING = "missing"
    WRONG = "wrong"
    TOO_MANY = "too many"  # it was not checked


def token_of(header: str | None) -> str:
    """The token in an Authorization field, or an empty text: Bearer, or Basic with the token as the password."""
    scheme, _, rest = (header or "").partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return rest
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest, validate=True).decode("ascii").partition(":")[2]
    except ValueError:  # not Base64, or not ASCII
        return ""


class TokenCheck:
    """Knows the hash of the token; without one, every request is good."""

    def __init__(self, token_hash: SecretStr | None = None) -> None:
        self._hash = token_hash
        self._key = secrets.token_bytes(32)
        # The digest of the token that was right.
        self._known: bytes | None = None
        self._one_at_a_time = asyncio.Lock()
        self._of_source = RateLimit(CHECKS_OF_SOURCE_PER_S)
        self._of_all = RateLimit(CHECKS_PER_S)

    def configure(self, token_hash: SecretStr | None) -> None:
        """Another hash from now on. Requests in progress go on."""
        if token_hash != self._hash:
            self._hash, self._known = token_hash, None

    @property
    def required(self) -> bool:
        """True if requests must bring a token."""
        return self._hash is not None

    async def check(self, authorization: str | None, client: str) -> TokenVerdict:
        """Judge the Authorization field of a request from this address."""
        if self._hash is None:
            return TokenVerdict.GOOD
        token = token_of(authorization)
        if not token:
            return TokenVerdict.MISSING
        if len(token) > MAX_TOKEN_CHARACTERS:
            return TokenVerdict.WRONG
        digest = hashlib.blake2b(token.encode(), key=self._key, digest_size=32).digest()
        if self._is_known(digest):
            return TokenVerdict.GOOD
        # A browser sends several requests at once. The first one is checked, and the others find what it has found.
        async with self._one_at_a_time:
            return TokenVerdict.GOOD if self._is_known(digest) else await self._check(token, digest, client)

    def _is_known(self, digest: bytes) -> bool:
        return self._known is not None and hmac.compare_digest(self._known, digest)

    async def _check(self, token: str, digest: bytes, client: str) -> TokenVerdict:
        asked, now = self._hash, asyncio.get_running_loop().time()
        if asked is None:
            return TokenVerdict.GOOD
        if not (self._of_source.allows(now, source_of(client)) and self._of_all.allows(now, "")):
            return TokenVerdict.TOO_MANY
        work = functools.partial(_verify, asked.get_secret_value(), token)
        if not await in_daemon_thread(work, "admin token"):
            return TokenVerdict.WRONG
        if asked is self._hash:
            self._known = digest
        return TokenVerdict.GOOD


def _verify(hashed: str, token: str) -> bool:
    try:
        return _HASHER.verify(hashed, token)
    except (VerificationError, InvalidHashError):
        return False
