"""The side of the clients that the application sees: its callbacks, and how it hears that a connection has ended."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, Self

import structlog

from relay.errors import UpstreamError
from relay.rate_limit import RateLimit

log = structlog.get_logger()

# There are 50 packets a second: an application that fails at each of them would fill its log.
FAILURES_LOGGED_PER_S = 1.0

P = ParamSpec("P")


def guarded(callback: Callable[P, object], name: str) -> Callable[P, None]:
    """The callback, with errors logged and not passed on: a mistake in the application must not end a call."""
    limit = RateLimit(FAILURES_LOGGED_PER_S)
    loop = asyncio.get_running_loop()

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        # CancelledError comes from a future of the application that was cancelled. It is not ours.
        except (Exception, asyncio.CancelledError) as error:
            if limit.allows(loop.time(), name):
                log.error("callback of the application failed", callback=name, exc_info=error)

    return call


def fail(future: asyncio.Future[None], error: BaseException) -> None:
    """Set the error unless the future is done. asyncio does not warn if nobody retrieves it."""
    if not future.done():
        future.set_exception(error)
        future.exception()


class ClosedOnExit(ABC):
    """A connection that ``async with`` closes."""

    @abstractmethod
    async def close(self) -> None:
        """End the connection."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Ending:
    """The end of a connection. It is reached once, whatever the application does with the future that reports it."""

    def __init__(self) -> None:
        self.reached = False
        self._error: UpstreamError | None = None
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def future(self) -> asyncio.Future[None]:
        """Done at the end, with None or the error. If it was cancelled, as by a timeout, there is a new one."""
        if self._future.cancelled():
            self._future = self._future.get_loop().create_future()
            if self.reached:
                self._settle()
        return self._future

    def reach(self, error: UpstreamError | None) -> bool:
        """The connection has ended. Returns False if it had ended before."""
        if self.reached:
            return False
        self.reached, self._error = True, error
        self._settle()
        return True

    def _settle(self) -> None:
        if self._error is not None:
            fail(self._future, self._error)
        elif not self._future.done():
            self._future.set_result(None)
