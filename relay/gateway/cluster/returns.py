"""Sessions of media.v1 whose client has come back to another relay: the one that it has left need not keep them.

It keeps a session that was cut for some seconds, or has not noticed the cut, and so the session's place among the calls
of its user. Meanwhile the client opens anew elsewhere, and would be refused because of that very place. So each relay
says which tokens it was shown that it does not know, as the hashes that relays keep of them, and the relay that knows
one gives its session up. Whoever has a token could have the session as well, and its hash is good for nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from relay.gateway.cluster.client import StoreError
from relay.gateway.cluster.store import Store
from relay.rate_limit import RateLimit
from relay.tasks import Tasks

# As long as the other relay may keep a session, and some to spare.
SAID_FOR_S = 15.0
# A floor of 300 desks comes back within a second. A client can make up tokens, and each of them is said: nobody here
# knows that it is good nowhere.
SAID_PER_S = 500.0


class SharedReturns:
    """Says which tokens were shown here, and hears which were shown elsewhere."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._limit = RateLimit(SAID_PER_S)
        self._tasks = Tasks()
        self._heard = ""
        self._any_sessions: Callable[[], bool] = lambda: False
        self._give_up: Callable[[bytes], None] = lambda _: None

    def watch(self, any_sessions: Callable[[], bool], give_up: Callable[[bytes], None]) -> None:
        """Be asked whether there are sessions that could be given up, and told which: by the hash of its token."""
        self._any_sessions, self._give_up = any_sessions, give_up

    @property
    def any_sessions(self) -> bool:
        """Whether there is anything to listen for."""
        return self._any_sessions()

    def say(self, key: bytes) -> None:
        """A client has shown a token with this hash, which nobody here knows."""
        if self._store.up and self._limit.allows(asyncio.get_running_loop().time(), ""):
            self._tasks.start(self._say(key), "cluster returns")

    async def _say(self, key: bytes) -> None:
        client = self._store.client
        try:
            await self._store.ask(lambda: client.say_returned(key.hex(), SAID_FOR_S))
        except StoreError:
            return

    async def listen(self) -> None:
        """Hear what has been said since the last time. Raises StoreError."""
        client, since = self._store.client, self._heard
        said, self._heard = await self._store.ask(lambda: client.find_returned(since))
        for text in said:
            try:
                self._give_up(bytes.fromhex(text))
            except ValueError:
                continue  # it is of another version

    async def stop(self) -> None:
        """End what is under way."""
        await self._tasks.cancel()
