"""Ends a flow that holds a UDP socket without an allocation, or that has begun a first unit and does not end it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from relay.plane.api import CloseReason
from relay.plane.reference.allocation import Allocation
from relay.plane.settings import PlaneSettings

# RFC 9298 section 3.1: a proxy keeps a flow for two minutes at least.
MEDIA_IDLE_S = 120.0


class Watched(Protocol):
    """A flow that is watched. Times are the loop's."""

    @property
    def allocation(self) -> Allocation:
        """What is known of its allocation."""
        ...

    @property
    def heard_media_at(self) -> float | None:
        """When something other than STUN last came, on the carrier where that shows that the flow is in use."""


class AllocationWatch:
    """Watches one flow from its start to ``close``."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: PlaneSettings,
        flow: Watched,
        begins: Callable[[], bool],
        end: Callable[[CloseReason], None],
    ) -> None:
        """``begins`` is True while a first unit is not whole; ``end`` ends the connection."""
        self._loop = loop
        self._settings = settings
        self._flow = flow
        self._begins = begins
        self._end = end
        self._first_byte_at: float | None = None
        self._timer = loop.call_later(settings.allocation_timeout_s, self._look)

    def on_part(self) -> None:
        """Something has come that may not be whole. The first time counts."""
        if self._first_byte_at is None and self._begins():
            self._first_byte_at = self._loop.time()
            self._arm(min(self._timer.when(), self._first_byte_at + self._settings.first_bytes_timeout_s))

    def _look(self) -> None:
        now = self._loop.time()
        whole_by = None
        if self._first_byte_at is not None and self._begins():
            whole_by = self._first_byte_at + self._settings.first_bytes_timeout_s
        if whole_by is not None and now >= whole_by:
            self._end(CloseReason.FIRST_BYTES_TIMEOUT)
        elif now >= (wanted := self._allocation_wanted_at()):
            self._end(CloseReason.NO_ALLOCATION)
        else:
            # A Refresh may give the allocation up long before its time.
            due = min(wanted, now + self._settings.allocation_timeout_s)
            self._arm(due if whole_by is None else min(due, whole_by))

    def _allocation_wanted_at(self) -> float:
        """When the flow will have been without an allocation for too long."""
        flow, allocation = self._flow, self._flow.allocation
        ends_at = allocation.idle_since if allocation.ends_at is None else allocation.ends_at
        due = ends_at + self._settings.allocation_timeout_s
        # A peer that is not a TURN server says nothing of allocations.
        return due if flow.heard_media_at is None else max(due, flow.heard_media_at + MEDIA_IDLE_S)

    def _arm(self, when: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def close(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
