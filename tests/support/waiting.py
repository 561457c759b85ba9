"""Wait for what another thread, process or socket does: ask again and again, never once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# A condition that is not true by then never will be: the slowest takes a small part of this.
EVENTUALLY_S = 60.0
POLL_S = 0.005


async def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Wait until the condition is true. For what no event tells of. Raises AssertionError."""
    try:
        async with asyncio.timeout(EVENTUALLY_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(what or "the condition did not come true") from None


async def becomes(value: Callable[[], object], expected: object) -> None:
    """Wait until the value equals what is expected. Raises AssertionError that shows both.

    For counters and lists of another thread: a packet that has arrived was sent a moment before it was counted.
    """
    try:
        async with asyncio.timeout(EVENTUALLY_S):
            while value() != expected:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        assert value() == expected
