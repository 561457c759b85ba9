"""What is asked of Redis, and how that fails. ``redis_client`` does it; ``store`` gives each question its deadline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from relay.errors import UpstreamError


class Failure(StrEnum):
    """Why Redis did not do what it was asked: a label of metrics, so the set is closed."""

    TIMEOUT = "timeout"  # no answer in time
    UNREACHABLE = "unreachable"  # no connection, or it was cut
    REFUSED = "refused"  # the password is wrong, or the user may not do it
    FULL = "full"  # maxmemory is reached
    ERROR = "error"  # anything else that Redis says


class StoreError(UpstreamError):
    """Redis did not do what it was asked. The message is the cause, for people."""

    def __init__(self, failure: Failure, cause: str) -> None:
        super().__init__(cause)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Renewed:
    """Which of a relay's own keys were still there."""

    record: bool
    counts: bool


class Client(Protocol):
    """All of them raise StoreError. Users and sessions come as hashes. Leases are in seconds."""

    def hashed(self, *parts: str) -> str:
        """What Redis sees in place of names: 32 characters. It does not ask, and does not fail."""

    async def renew(self, lease_s: float) -> Renewed:
        """Renew what this relay has there."""

    async def rewrite(self, record: bytes, counts: Mapping[str, int], lease_s: float) -> None:
        """Replace all that this relay has there: what it says of itself, and how many calls its users have."""

    async def write_counts(self, counts: Mapping[str, int], lease_s: float) -> None:
        """Replace some of the numbers of calls."""

    async def claim(self, user: str, count: int, max_calls: int, lease_s: float) -> int:
        """Write that a user has ``count`` calls here, unless that is too many together with those elsewhere.

        Returns how many there are elsewhere. With a lease of 0 it only looks.
        """

    async def relays(self) -> Mapping[str, bytes]:
        """What the relays that are up say of themselves, by id."""

    async def leave(self) -> None:
        """This relay ends: remove all that it has there."""

    async def find_session(self, session: str) -> str | None:
        """What is kept under a session."""

    async def keep_session(self, session: str, value: str, for_s: float) -> None:
        """Keep something under a session."""

    async def say_returned(self, token: str, for_s: float) -> None:
        """Say to all that a token was shown to another relay than its own; the last thousand are kept for a while."""

    async def find_returned(self, since: str) -> tuple[list[str], str]:
        """The tokens of which that was said, and how to ask for later ones; at first ``since`` is empty."""

    async def probe(self) -> None:
        """Write something, and let it end at once: proves that all of this would work."""

    async def close(self) -> None:
        """Close all connections."""
