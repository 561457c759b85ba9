"""A disk that hangs, as a network's file system may: a pipe that nobody writes to, in place of a file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.waiting import eventually
from tests.test_cli import open_host, serving


async def is_being_read(path: Path) -> int:
    """Put a pipe in place of a file, and wait until somebody reads it; a descriptor to write to."""
    pipe = path.with_suffix(".pipe")
    os.mkfifo(pipe)
    pipe.replace(path)
    opened: list[int] = []

    def is_opened() -> bool:
        try:
            opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads it yet
            return False
        return True

    await eventually(is_opened, f"nobody reads {path}")
    return opened[0]


async def test_a_list_of_users_that_cannot_be_read_to_its_end(tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    users.write_text("[[users]]\nuser = 'trader'\n")
    entitlement = {"policy": "file", "file": "users.toml"}
    async with open_host() as host, serving(tmp_path, host.address, entitlement=entitlement) as relay:
        writer = await is_being_read(users)
        try:
            # The list that was there counts.
            await (await relay.open_turn()).close()
            relay.send_signal(signal.SIGTERM)
            assert await relay.ended() == 0
        finally:
            os.close(writer)
