"""Who uploads to which recording now. A newer request takes over: the older one is a client that has lost its line."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from relay import deadlines
from relay.emulator.http.errors import ApiError

# Each holds less than a megabyte, with what aiohttp reads ahead. 64 softphones that upload at once are a whole floor
# after the closing bell.
MAX_UPLOADS = 64
MAX_UPLOADS_OF_USER = 8
# An older request only has to finish what it writes, which is a megabyte and an fsync.
TAKE_OVER_S = 30.0


class Place:
    """The right to change one recording. ``stop`` is set when another request wants it."""

    def __init__(self, user_id: str | None = None) -> None:
        self.user_id = user_id
        self._reading: deadlines.Deadline | None = None
        self.stopped = False
        # What an upload that goes on has still to send.
        self.promised_bytes = 0
        self.free = asyncio.Event()

    @contextlib.asynccontextmanager
    async def reading(self, deadline: float) -> AsyncIterator[None]:
        """Read from the client until this time of the loop's clock, or until stopped. Raises TimeoutError."""
        if self.stopped:
            raise TimeoutError
        self._reading = deadlines.timeout_at(deadline)
        try:
            async with self._reading:
                yield
        finally:
            self._reading = None

    def stop(self) -> None:
        """Ask who has the place to give it up."""
        self.stopped = True
        if self._reading is not None:
            self._reading.reschedule(0)


def in_use() -> ApiError:
    """409: another request has the place."""
    message = "Another request changes this recording, and does not end."
    return ApiError(409, "in_use", message, where="path", expected="one request at a time")


class Places:
    """All places that are taken."""

    def __init__(self) -> None:
        self._taken: dict[str, Place] = {}
        self._uploads: Counter[str] = Counter()

    @property
    def promised_bytes(self) -> int:
        """What all uploads that go on have still to send. They end by a deadline, whatever they have promised."""
        return sum(place.promised_bytes for place in self._taken.values())

    def check_room(self, user_id: str) -> None:
        """Whether the user may upload one more. Raises ApiError 429 or 503."""
        headers = {"Retry-After": "5"}
        if self._uploads[user_id] >= MAX_UPLOADS_OF_USER:
            expected = f"at most {MAX_UPLOADS_OF_USER} at once"
            raise ApiError(429, "too_many_uploads", "You upload too much at once.", expected=expected, headers=headers)
        if self._uploads.total() >= MAX_UPLOADS:
            expected = f"at most {MAX_UPLOADS} at once"
            raise ApiError(503, "busy", "Too many uploads at once.", expected=expected, headers=headers)

    @contextlib.asynccontextmanager
    async def take(
        self, recording_id: str, user_id: str | None = None, *, counted: bool = False
    ) -> AsyncIterator[Place]:
        """Have the recording for oneself. Who has it is asked to stop, and waited for. Raises ApiError 409.

        Of another user's place, one waits for the end and stops nothing. With ``counted`` it is one of the user's
        uploads.
        """
        place = Place(user_id)
        await self._wait_for(recording_id, user_id)
        self._taken[recording_id] = place
        if counted and user_id is not None:
            self._uploads[user_id] += 1
        try:
            yield place
        finally:
            del self._taken[recording_id]
            place.free.set()
            if counted and user_id is not None:
                self._uploads[user_id] -= 1
                self._uploads += Counter()

    async def _wait_for(self, recording_id: str, user_id: str | None) -> None:
        try:
            async with deadlines.timeout(TAKE_OVER_S):
                while (other := self._taken.get(recording_id)) is not None:
                    if user_id in {None, other.user_id}:
                        other.stop()
                    await other.free.wait()
        except TimeoutError:
            raise in_use() from None

    def stop(self) -> None:
        """Ask all to give up their places."""
        for place in self._taken.values():
            place.stop()
