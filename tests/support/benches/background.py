"""An event loop in a thread of its own, for servers that outlive one test: each test has a loop that ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextlib import AbstractAsyncContextManager
from typing import Self, TypeVar

T = TypeVar("T")
# What takes longer hangs.
TIMEOUT_S = 60.0


class Background:
    """Enter it, then ``enter`` what it is to keep open; all of that is closed again at its end, the last first."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="background")
        self._open = contextlib.AsyncExitStack()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self._open.aclose(), self._loop).result(TIMEOUT_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def enter(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Open this in the thread's loop; what it gives."""
        return asyncio.run_coroutine_threadsafe(self._open.enter_async_context(manager), self._loop).result(TIMEOUT_S)
