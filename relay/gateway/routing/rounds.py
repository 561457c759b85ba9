"""The loop of everything that watches upstreams: one round after another, whatever happens in a round."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Never

import structlog

log = structlog.get_logger()

# Gets the loop's time at which the round began.
Step = Callable[[float], Awaitable[None]]


async def go_round(work: Step, pause: Step, *, failure: str, upstream: str) -> Never:
    """Do the work and then the pause, until cancelled.

    If the work raises an exception, ``failure`` is logged, and the next round comes all the same: a watch that
    has ended would leave its upstream as it is for ever.
    """
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            await work(began)
        except Exception:
            log.exception(failure, upstream=upstream)
        await pause(began)


def spread(interval_s: float, share: float) -> float:
    """The interval, longer or shorter by up to this share of it, so that relays do not all ask at the same moment."""
    return interval_s * random.uniform(1 - share, 1 + share)  # noqa: S311
