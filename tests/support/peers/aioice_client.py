"""What tests with aioice need: a protocol that keeps what comes, and an end that is awaited."""

from __future__ import annotations

import asyncio
from typing import Any


class Received(asyncio.DatagramProtocol):
    """Keeps what the peer sends back."""

    def __init__(self) -> None:
        self.data: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.data.put_nowait(data)


async def closed(transport: Any) -> None:
    """Wait for the tasks in which aioice deletes its allocation."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    mine = [task for task in others if "aioice" in repr(task)]
    if mine:
        await asyncio.wait(mine)
