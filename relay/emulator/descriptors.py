"""Descriptors of this process: as many as the system lets it have, and a warning before there are none left."""

from __future__ import annotations

import asyncio
import os
import resource

import structlog

from relay.tasks import Tasks

log = structlog.get_logger()

# Each connection and each allocation takes one. More than this a laptop does not serve.
WANTED = 65_536
INTERVAL_S = 5.0
# The last tenth is gone in a moment, and without any left nobody can connect.
WARNING_SHARE = 0.9


def raise_limit() -> None:
    """Raise the soft limit as far as it goes. Many systems begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def watch() -> Tasks:
    """Warn when descriptors are about to run out, until the tasks are cancelled."""
    tasks = Tasks()
    tasks.start(_watch(), "descriptors")
    return tasks


async def _watch() -> None:
    was_scarce = False
    while True:
        is_scarce = _are_scarce()
        if is_scarce and not was_scarce:
            log.warning(
                "descriptors run out: new connections and allocations will fail",
                limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                expected="fewer clients, or a higher limit (ulimit -n)",
            )
        was_scarce = is_scarce
        await asyncio.sleep(INTERVAL_S)


def _are_scarce() -> bool:
    """The kernel gives the lowest number that is free."""
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    os.close(descriptor)
    return descriptor >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] * WARNING_SHARE
