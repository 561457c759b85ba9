"""Questions to Redis: each has a deadline, and failures are counted. After one, nobody asks before Redis works again.

So a Redis that is away costs whoever places a call one deadline, and only at the moment when it goes away. Whether it
works again is found out by the cluster's own task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from relay import deadlines
from relay.gateway.cluster.client import Client, Failure, StoreError

log = structlog.get_logger()

# Questions at once, each with a connection: 500 desks that log in at the same moment have their answers within 50 ms.
MAX_QUESTIONS = 16

_T = TypeVar("_T")


class Store:
    """Asks a Redis. ``up`` says whether it works, ``cause`` why not.

    ``failures`` are counted from the start, and so are ``answers`` and the ``seconds`` that these took.
    """

    def __init__(self, client: Client, timeout_s: float, address: str) -> None:
        self.client = client
        self.up = False
        self.cause = ""
        self.failures = dict.fromkeys(Failure, 0)
        self.answers = 0
        self.seconds = 0.0
        self._timeout_s = timeout_s
        self._address = address
        self._slots = asyncio.Semaphore(MAX_QUESTIONS)

    async def ask(self, question: Callable[[], Awaitable[_T]]) -> _T:
        """The answer, within the deadline. Raises StoreError, and then Redis counts as away."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with deadlines.timeout(self._timeout_s), self._slots:
                answer = await question()
        except TimeoutError:
            failed = StoreError(Failure.TIMEOUT, f"no answer within {self._timeout_s:g} s")
        except StoreError as error:
            failed = error
        else:
            self.answers += 1
            self.seconds += loop.time() - began
            return answer
        self._on_failed(failed)
        raise failed

    def _on_failed(self, failed: StoreError) -> None:
        self.failures[failed.failure] += 1
        if self.up or not self.cause:
            log.error("shared state is away: limits count for this relay alone", redis=self._address, cause=str(failed))
        self.up, self.cause = False, str(failed)

    def on_working(self) -> None:
        """All that this relay has there is there again: others may be asked."""
        if not self.up:
            log.info("shared state works: limits count for all relays", redis=self._address)
        self.up, self.cause = True, ""
