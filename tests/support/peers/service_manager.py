"""A service manager: a datagram socket, as systemd's, and what it was told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tests.support.waiting import EVENTUALLY_S


class Manager:
    """What has come, in order."""

    def __init__(self, listening: socket.socket, name: str) -> None:
        self.name = name
        self.told: list[str] = []
        self._socket = listening

    async def hears(self, assignment: str) -> list[str]:
        """Wait for a message with this assignment, or one that begins so. Returns all of the message."""
        async with asyncio.timeout(EVENTUALLY_S):
            while True:
                text = (await asyncio.get_running_loop().sock_recv(self._socket, 4096)).decode()
                self.told.append(text)
                lines = text.split("\n")
                if any(line.startswith(assignment) for line in lines):
                    return lines

    def rest(self) -> list[str]:
        """What else has come already."""
        return list(self._waiting())

    def _waiting(self) -> Iterator[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self._socket.recv(4096).decode()


@contextlib.asynccontextmanager
async def service_manager(name: str | Path) -> AsyncIterator[Manager]:
    """It listens at a path, or at an abstract name, which begins with @."""
    text = str(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.setblocking(False)
        listening.bind(f"\0{text[1:]}" if text.startswith("@") else text)
        yield Manager(listening, text)
