"""Which server of signaling holds a session of socket.io, for a client that comes to another relay.

Redis sees hashes of session ids and URLs: whoever has an id can take the session over.
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.gateway.cluster.client import StoreError
from relay.gateway.cluster.store import Store


class SharedSessions:
    """Asks and tells the other relays. A session's key are the texts that name it here: its route and its id."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(self, session: tuple[str, ...], urls: Iterable[str]) -> str | None:
        """The one of these URLs that holds the session, if another relay has told so and Redis works."""
        if not self._store.up:
            return None
        client = self._store.client
        key = client.hashed("session", *session)
        try:
            held = await self._store.ask(lambda: client.find_session(key))
        except StoreError:
            return None
        return next((url for url in urls if client.hashed("url", url) == held), None)

    async def keep(self, session: tuple[str, ...], url: str, for_s: float) -> None:
        """Tell the other relays which URL holds a session. While Redis is away they are not told."""
        if not self._store.up:
            return
        client = self._store.client
        key, value = client.hashed("session", *session), client.hashed("url", url)
        try:
            await self._store.ask(lambda: client.keep_session(key, value, for_s))
        except StoreError:
            return
