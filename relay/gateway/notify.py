"""What the service manager is told (sd_notify(3)): that we are ready, that we stop, and that we are alive.

systemd says in the environment where it listens. Where nobody does, nothing is sent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence

import structlog

from relay import local_datagrams

log = structlog.get_logger()

# Each thread of a plane goes round at least once a second. One that has not for this long hangs, or has ended.
STANDSTILL_S = 5.0


class ServiceManager:
    """Whoever has started the process, if it wants to be told how it is doing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._socket = environment.get("NOTIFY_SOCKET", "")
        self._interval_s = _watchdog_interval_s(environment)
        self._failed = False

    @property
    def listens(self) -> bool:
        """True if there is one that wants to know."""
        return bool(self._socket)

    def fall_silent(self) -> None:
        """Tell it nothing more: another process is the service now."""
        self._socket = ""

    def tell(self, *assignments: str) -> None:
        """Send assignments such as READY=1. What cannot be sent is lost: calls go on without it."""
        if not self._socket:
            return
        try:
            local_datagrams.send(self._socket, "\n".join(assignments))
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("the service manager cannot be told", socket=self._socket, cause=str(error))
            self._failed = True

    async def watch(self, turns: Callable[[], Sequence[int]]) -> None:
        """Feed the watchdog, if there is one, as long as the loop turns and so does each thread of the plane.

        ``turns`` says how often each of them has gone round. Runs until it is cancelled.
        """
        if self._interval_s is None:
            return
        loop, told = asyncio.get_running_loop(), False
        threads = _Threads(loop.time(), turns())
        while True:
            if still := threads.standing_still(loop.time(), turns()):
                if not told:
                    log.error("the data plane stands still: the watchdog is not fed", threads=still)
                told = True
            else:
                self.tell("WATCHDOG=1")
                told = False
            await asyncio.sleep(self._interval_s)


class _Threads:
    """When each thread was last seen to have gone round."""

    def __init__(self, now: float, turns: Sequence[int]) -> None:
        self._seen = [(count, now) for count in turns]

    def standing_still(self, now: float, turns: Sequence[int]) -> list[int]:
        """The numbers of those that have not gone round for ``STANDSTILL_S``."""
        self._seen = [
            (count, at if count == before else now) for count, (before, at) in zip(turns, self._seen, strict=True)
        ]
        return [number for number, (_, at) in enumerate(self._seen) if now - at > STANDSTILL_S]


def _watchdog_interval_s(environment: Mapping[str, str]) -> float | None:
    """Half of what the watchdog waits (sd_watchdog_enabled(3)); None if there is none for this process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    meant = environment.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
    if not meant or not microseconds.isascii() or not microseconds.isdigit() or not int(microseconds):
        return None
    return int(microseconds) / 1e6 / 2
