"""asyncio in a native thread, for softphones: greenlets give it coroutines, and wait for what becomes of them.

gevent runs in the main thread, and a second ``asyncio.run`` fails there. So one loop (uvloop, which needs nothing of
what gevent replaces) serves all softphones of this process. What is done passes back through one watcher of gevent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

import gevent
import uvloop
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from loadtest.plan.target import Target
from relay.emulator.softphone import Call, NoMedia, Softphone, SoftphoneError, Unreachable

# Everything that softphones do has deadlines of its own. This is for a loop that does not run.
MAX_WAIT_S = 150.0
# How long a phone that rings may take to hear of it.
RINGS_WITHIN_S = 20.0

# Connections of TLS that were closed say so before they are gone.
GOODBYE_S = 0.1

Result = TypeVar("Result")


class PhoneLoop:
    """The loop, in its thread. ``do`` is for greenlets of the thread that made it."""

    def __init__(self) -> None:
        self._done: deque[tuple[AsyncResult, Any, BaseException | None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waker = gevent.get_hub().loop.async_()
        self._waker.start(self._settle)
        self._loop = uvloop.new_event_loop()
        self._pool = ThreadPool(1)
        self._running = self._pool.spawn(self._run)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Let a coroutine run, and wait for it. A greenlet that is killed meanwhile cancels it."""
        waiting, task = AsyncResult(), _Begun()
        self._loop.call_soon_threadsafe(self._begin, work, waiting, task)
        try:
            result: Result = waiting.get(timeout=MAX_WAIT_S)
        except BaseException:
            self._loop.call_soon_threadsafe(task.cancel)
            raise
        return result

    def close(self) -> None:
        """End the loop. Waits until what runs has ended."""
        with contextlib.suppress(gevent.Timeout):
            self.do(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._running.get()
        self._pool.kill()
        self._waker.stop()
        self._waker.close()

    async def _finish(self) -> None:
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(GOODBYE_S)

    def _begin(self, work: Coroutine[Any, Any, Any], waiting: AsyncResult, begun: _Begun) -> None:
        if begun.cancelled:
            work.close()
            return
        task = begun.task = self._loop.create_task(self._carry(work, waiting))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before its first step has not begun it.
        task.add_done_callback(lambda _: work.close())

    async def _carry(self, work: Coroutine[Any, Any, Any], waiting: AsyncResult) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = await work
        except asyncio.CancelledError as cancelled:
            error = Unreachable("it was cancelled")
            error.__cause__ = cancelled
        except BaseException as failed:  # it goes to the greenlet that waits
            error = failed
        self._done.append((waiting, result, error))
        self._waker.send()

    def _settle(self) -> None:
        while self._done:
            waiting, result, error = self._done.popleft()
            if error is None:
                waiting.set(result)
            else:
                waiting.set_exception(error)


class _Begun:
    """A task that another thread may want to cancel before it has begun."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """In the loop's thread."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()


class Pair:
    """Two softphones on one line: the caller and the callee. Its methods run in the phones' loop.

    Each returns how many seconds it took.
    """

    def __init__(self, target: Target, number: int, transports: tuple[str, ...]) -> None:
        lines = max(1, target.users // 2) if target.users else 1 << 40
        self.line = target.line_of(number % lines)
        self._phones = [phone_of(target, 2 * (number % lines) + which, transports) for which in (0, 1)]
        self._there: Call | None = None
        self._here: Call | None = None

    @property
    def caller(self) -> Softphone:
        """Who rings."""
        return self._phones[0]

    async def open(self) -> float:
        """Log in, and connect. Raises SoftphoneError."""
        begun = time.perf_counter()
        opened: list[Softphone] = []
        try:
            for phone in self._phones:
                await phone.open()
                opened.append(phone)
        except BaseException:
            for phone in opened:
                await phone.close()
            raise
        return (time.perf_counter() - begun) / len(self._phones)

    async def ring(self) -> float:
        """Ring, until the other side rings. Raises SoftphoneError."""
        caller, callee = self._phones
        begun = time.perf_counter()
        self._there = await caller.ring(self.line)
        self._here = await callee.next_incoming(RINGS_WITHIN_S)
        return time.perf_counter() - begun

    async def answer(self) -> float:
        """Answer, until the caller knows. Raises SoftphoneError."""
        assert self._here is not None
        assert self._there is not None
        begun = time.perf_counter()
        await self._here.answer()
        await self._there.answered()
        return time.perf_counter() - begun

    async def release(self) -> float:
        """Hang up, until the other side knows. Raises SoftphoneError."""
        there, here = self._there, self._here
        self._there = self._here = None
        begun = time.perf_counter()
        if there is not None:
            await there.release()
        if here is not None:
            await here.ended(RINGS_WITHIN_S)
        return time.perf_counter() - begun

    async def close(self) -> None:
        """Log out."""
        for phone in self._phones:
            with contextlib.suppress(SoftphoneError, AttributeError):
                await phone.close()


def phone_of(target: Target, number: int, transports: tuple[str, ...]) -> Softphone:
    """A softphone without media. Raises SoftphoneError if the target does not say how to log in."""
    assert target.cloud is not None
    password = target.cloud_password.get_secret_value()
    if not password:
        raise SoftphoneError("the target has no cloud_password; expected the password with which its users log in")
    context = ssl.create_default_context(cafile=target.authorities) if target.cloud.startswith("https:") else None
    return Softphone(
        target.cloud,
        target.user_name(number),
        password,
        carrier=NoMedia(),
        ssl_context=context,
        transports=transports,
    )


async def opened_phone(target: Target, number: int, transports: tuple[str, ...]) -> Softphone:
    """A softphone that has logged in, and is connected. Raises SoftphoneError."""
    phone = phone_of(target, number, transports)
    await phone.open()
    return phone


_loops: list[PhoneLoop] = []


def phone_loop() -> PhoneLoop:
    """The one of this process. It starts when it is first asked for, after Locust has forked its workers."""
    if not _loops:
        _loops.append(PhoneLoop())
    return _loops[0]


def close_phone_loop() -> None:
    """End it, if there is one."""
    while _loops:
        _loops.pop().close()
