"""Who may log in now. A login reads the database several times, and a crowd at once would hold up everybody else."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from relay.emulator.signaling.messages import ErrorCode
from relay.emulator.signaling.state import Refusal

# The database has some 15 connections. The rest of them are for those who are logged in.
MAX_AT_ONCE = 8
# A browser with several tabs, and a client that comes back while its last try goes on. A token has one session anyway.
MAX_OF_TOKEN = 4


class Entrance:
    """Lets a bounded number of clients log in at once. Others wait in the order in which they came."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)
        self._of_token: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def turn(self, auth: object) -> AsyncIterator[None]:
        """Wait for a turn. Raises Refusal if too many with the same token wait already.

        The caller bounds how many wait in all.
        """
        token = auth.get("token") if isinstance(auth, dict) else None
        key = token if isinstance(token, str) else ""
        if key and self._of_token[key] >= MAX_OF_TOKEN:
            expected = f"at most {MAX_OF_TOKEN} at once"
            raise Refusal(ErrorCode.RATE_LIMITED, "Too many connections log in with this token.", expected)
        self._of_token[key] += 1
        try:
            async with self._turns:
                yield
        finally:
            self._of_token[key] -= 1
            if not self._of_token[key]:
                del self._of_token[key]
