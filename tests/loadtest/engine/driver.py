"""The packet engine in a test's loop: what has happened is gathered as it happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TypeVar

from loadtest.engine.engine import Ended, Engine, Happening, Opened, Silenced
from loadtest.engine.plans import ClientPlan, StreamPlan
from loadtest.engine.windows import Window

WINDOW_S = 0.02

One = TypeVar("One", bound=Happening)


class Driver:
    """An engine, and what it has told."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.deaf = False
        self._told: list[Happening] = []
        self._news = asyncio.Event()

    def take(self) -> None:
        """Gather what has happened, unless it is deaf."""
        if self.deaf:
            return
        self._told += self.engine.happenings()
        self._news.set()

    async def next(self, kind: type[One]) -> One:
        """The first happening of this kind. What came before it stays. Fails if a client ends meanwhile."""
        while True:
            for one in list(self._told):
                if isinstance(one, kind):
                    self._told.remove(one)
                    return one
                assert not isinstance(one, Ended), one
            self._news.clear()
            await self._news.wait()

    async def next_silenced(self) -> Silenced:
        """The next end of a stream."""
        return await self.next(Silenced)

    async def next_ended(self) -> Ended:
        """The next end of a client."""
        return await self.next(Ended)

    async def opened(self, plan: ClientPlan) -> Opened:
        """A client that is ready."""
        number = self.engine.open(plan)
        opened = await self.next(Opened)
        assert opened.client == number
        return opened

    async def ended(self, plan: ClientPlan) -> Ended:
        """A client that comes to nothing."""
        number = self.engine.open(plan)
        ended = await self.next(Ended)
        assert ended.client == number
        return ended

    async def closed(self, client: int) -> Ended:
        """Let a client go."""
        self.engine.close(client)
        return await self.next(Ended)

    async def window(self) -> Window:
        """What was counted since the last one, some packets later: who reflects them has this loop, too."""
        await asyncio.sleep(WINDOW_S)
        return self.engine.window()

    async def spoken(self, plan: StreamPlan, packets: int) -> Silenced:
        """A stream of this many packets, when all of them were received, or lost."""
        number = self.engine.talk(replace(plan, packets=packets))
        silenced = await self.next(Silenced)
        assert silenced.stream == number
        assert silenced.sent + silenced.unsent == packets
        return silenced


@contextlib.asynccontextmanager
async def running_engine(clients: int = 16) -> AsyncIterator[Driver]:
    """A small engine."""
    with Engine(max_clients=clients, max_streams=16) as engine:
        driver, loop = Driver(engine), asyncio.get_running_loop()
        loop.add_reader(engine.event_fd, driver.take)
        try:
            yield driver
        finally:
            loop.remove_reader(engine.event_fd)
