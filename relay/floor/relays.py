"""A relay that serves while a block runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from relay.config import Config
from relay.gateway.app import Gateway
from relay.gateway.routing.upstreams import Health

# The first probe of a TURN host on this machine is answered within milliseconds, and is repeated each second.
UPSTREAMS_UP_S = 5.0
_POLL_S = 0.05


@contextlib.asynccontextmanager
async def running_gateway(settings: Config, folder: Path | None = None) -> AsyncIterator[Gateway]:
    """A gateway that serves while the block runs. Raises OperatorError if it cannot start.

    It keeps ended calls in ``folder``, and keeps none without it.
    """
    gateway = Gateway(settings, folder=folder)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


async def upstreams_up(gateway: Gateway) -> None:
    """Wait until all upstreams are up, for at most ``UPSTREAMS_UP_S``: the relay logs those that are down itself."""
    for _ in range(round(UPSTREAMS_UP_S / _POLL_S)):
        if all(state.health is Health.UP for state in gateway.upstreams):
            return
        await asyncio.sleep(_POLL_S)
