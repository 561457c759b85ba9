"""A relay that serves while a block runs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from relay.config import Config
from relay.gateway.app import Gateway


@contextlib.asynccontextmanager
async def running_gateway(settings: Config) -> AsyncIterator[Gateway]:
    """A gateway that serves while the block runs. Raises OperatorError if it cannot start."""
    gateway = Gateway(settings)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()
