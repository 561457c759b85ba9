"""What every page stands on: the database, the clock, and the neighbours that are told of changes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog

from relay.emulator.portal.neighbours import Listener
from relay.emulator.store import Store

log = structlog.get_logger()


@dataclass(frozen=True)
class Parts:
    """Shared by all pages."""

    store: Store
    clock: Callable[[], float]
    listener: Listener

    async def tell_lines(self, numbers: Collection[str]) -> None:
        """These lines have changed. The change is on disk, so a neighbour that fails is only noted."""
        try:
            await self.listener.on_lines(numbers)
        except Exception:
            log.exception("signaling did not take a change", lines=sorted(numbers))

    async def tell_logins_ended(self, user_id: str) -> None:
        """The logins of this user have ended."""
        try:
            await self.listener.on_logins_ended((user_id,))
        except Exception:
            log.exception("signaling did not take a change", user=user_id)
