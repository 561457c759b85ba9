"""Watches the configuration's file, for those who cannot send SIGHUP: whoever changes it in Kubernetes, for example.

There the file is a link to a link to a folder, and a change turns the middle one to a new folder. What else comes from
the same volume, such as secrets, is new with it. Links are followed, so that is a change of the file.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path

import structlog

from relay.gateway.file_state import FileState, state_of
from relay.tasks import in_daemon_thread

log = structlog.get_logger()

# Whoever has changed the file can wait this long, and one look takes microseconds.
WATCH_INTERVAL_S = 2.0


async def watch(path: Path, taken: FileState, on_change: Callable[[], None]) -> None:
    """Call ``on_change`` whenever the file has changed and was then the same in two looks; until cancelled.

    ``taken`` is how the file was before it was last read. A file that is gone may come back, and is no change.
    """
    seen = taken
    while True:
        await asyncio.sleep(WATCH_INTERVAL_S)
        # In a thread: a network file system may hang.
        now = await in_daemon_thread(functools.partial(state_of, path), "configuration")
        if now is not None and now == seen and now != taken:
            taken = now
            log.info("configuration has changed", path=str(path))
            on_change()
        seen = now
