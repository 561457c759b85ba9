"""What the portal needs of signaling and recordings, and how it finds that in the hub of signaling."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from relay.emulator.signaling.hub import Hub
from relay.emulator.signaling.state import Line, LineSpec
from relay.emulator.store.tables import Recording


class LiveCalls(Protocol):
    """Signaling, as far as it tells of calls."""

    async def live_lines(self) -> Sequence[tuple[LineSpec, Line]]:
        """The lines on which a call goes on, and what goes on on them. Raises UpstreamError."""


class RecordedMedia(Protocol):
    """Recordings, as far as they are files."""

    def media_path(self, row: Recording) -> Path:
        """Where the media of a recording is that has arrived."""


class Listener(Protocol):
    """Is told after a change is on disk, so that clients see it without a new login."""

    async def on_lines(self, numbers: Collection[str]) -> None:
        """These lines, or who has them, have changed; or they were added or deleted."""

    async def on_logins_ended(self, user_ids: Collection[str]) -> None:
        """Every login of these users was ended: they were disabled, or have a new password."""


class HubListener:
    """Tells the hub of signaling."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def on_lines(self, numbers: Collection[str]) -> None:
        """Clients get the lines that they have now."""
        await self._hub.lines_changed()

    async def on_logins_ended(self, user_ids: Collection[str]) -> None:
        """They leave their calls at once, and their clients are told why."""
        await self._hub.logins_ended()


class NoCalls:
    """Signaling that does not run."""

    async def live_lines(self) -> Sequence[tuple[LineSpec, Line]]:
        """No line has a call."""
        return ()


class NoListener:
    """Nobody is to be told."""

    async def on_lines(self, numbers: Collection[str]) -> None:
        """Nothing follows."""

    async def on_logins_ended(self, user_ids: Collection[str]) -> None:
        """Nothing follows."""
