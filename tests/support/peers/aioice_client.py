"""What clients of aioice need: somebody who keeps what came, and an end that is awaited."""

from __future__ import annotations

import asyncio
from typing import Any


class Received(asyncio.DatagramProtocol):
    """What the peer sent back."""

    def __init__(self) -> None:
        self.data: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.data.put_nowait(data)


async def closed(transport: Any) -> None:
    """aioice deletes its allocation in a task of its own: wait for what it leaves behind."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    mine = [task for task in others if "aioice" in repr(task)]
    if mine:
        await asyncio.wait(mine)
