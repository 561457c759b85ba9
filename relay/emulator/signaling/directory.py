"""What signaling asks of the keeper of firms and users: whose token this is, which lines a user has, and the like."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from relay.emulator.signaling.state import CallRecord, LineSpec


@dataclass(frozen=True, slots=True)
class Account:
    """A user who has logged in. ``login`` is a name for the login that is not its token, or empty: it never ends.

    ``ends_at`` is when it ends by itself, in Unix time.
    """

    user_id: str
    name: str
    firm_id: str
    firm: str
    region: str
    login: str = ""
    ends_at: float = math.inf


class Directory(Protocol):
    """Answers from memory or from a database. Each method may raise any exception: the client is told to come again."""

    async def user_of_token(self, token: str) -> Account | None:
        """Whose login this is. None for an unknown token, or one that has ended."""

    async def still_open(self, logins: Collection[str]) -> Collection[str]:
        """Those of these logins that have not ended."""

    async def disabled(self, user_ids: Collection[str]) -> Collection[str]:
        """Those of these users who can no longer log in."""

    def forget(self) -> None:
        """Read every line again: lines or their members have changed."""

    async def lines_of(self, user_id: str) -> tuple[LineSpec, ...]:
        """The lines that a user has."""

    async def line(self, number: str) -> LineSpec | None:
        """A line by its number."""

    async def user_of_extension(self, number: str) -> str | None:
        """Whose extension this is."""


# Makes the record of a call durable. It may be called twice with the same call id: the second time changes nothing.
OnCallEnded = Callable[[CallRecord], Awaitable[None]]
