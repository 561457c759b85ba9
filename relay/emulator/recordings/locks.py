"""Locks between processes that have one folder of media: two must not write to one file at once.

The kernel keeps them, so a killed process leaves none behind. The file of a lock is empty, and goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

from relay.emulator.recordings.places import TAKE_OVER_S, in_use
from relay.tasks import in_daemon_thread

# The kernel would let a thread wait, and nothing could end that.
TRY_AGAIN_S = 0.1


@contextlib.asynccontextmanager
async def locked(media: Path) -> AsyncIterator[None]:
    """Keep other processes off a file of media during the block. Raises ApiError 409 if one does not let go of it."""
    file = media.with_name(f"{media.name}.lock")
    descriptor = await _take(file)
    try:
        yield
    finally:
        # Before it is let go: who waits looks whether the file is still there.
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        os.close(descriptor)


async def _take(file: Path) -> int:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TAKE_OVER_S
    while (descriptor := await in_daemon_thread(lambda: _try(file), "recording lock")) is None:
        if loop.time() > deadline:
            raise in_use()
        await asyncio.sleep(TRY_AGAIN_S)
    return descriptor


def _try(file: Path) -> int | None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The one before has removed it, and another process may have made a new one.
        gone = not os.fstat(descriptor).st_nlink
    except BlockingIOError:
        gone = True
    except BaseException:
        os.close(descriptor)
        raise
    if gone:
        os.close(descriptor)
        return None
    return descriptor
