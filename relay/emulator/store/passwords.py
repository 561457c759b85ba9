"""Passwords, as Argon2id hashes."""

from __future__ import annotations

import functools

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

# OWASP's second choice of parameters: 19 MiB, two passes, one lane. A check takes about 30 ms of one core.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


def hash_password(password: str) -> str:
    """A new hash. It takes about 30 ms, so call it in a thread."""
    return _HASHER.hash(password)


def check_password(hashed: str, password: str) -> bool:
    """True if this is the password. It takes about 30 ms, so call it in a thread."""
    try:
        return _HASHER.verify(hashed, password)
    except (VerificationError, InvalidHashError):
        return False


@functools.cache
def nobodys_hash() -> str:
    """A hash to check in vain, so that unknown names take as long as known ones."""
    return hash_password("the password of nobody")
