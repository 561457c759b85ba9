"""Bytes through the web proxy, both ways at once: delayed, stalled, or cut because nothing passed. Faults act live."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from relay import deadlines
from relay.emulator.faults.board import FaultBoard
from relay.emulator.faults.kinds import Hop, Kind

READ_BYTES = 16_384
# Pieces of one direction that wait for a delay or a stall: 1 MiB. Beyond it, the sender waits, as TCP has it.
MAX_WAITING = 64
# After one direction has ended, the other may still say goodbye.
GOODBYE_S = 5.0

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def carry(one: Ends, other: Ends, board: FaultBoard) -> bool:
    """Pass bytes both ways until both directions have ended. Returns True if the connection was cut for idleness."""
    idle = _Idle(board)
    pumps = [
        asyncio.ensure_future(_pump(one[0], other[1], board, idle.note)),
        asyncio.ensure_future(_pump(other[0], one[1], board, idle.note)),
    ]
    watch = asyncio.ensure_future(idle.watch())
    try:
        await asyncio.wait([*pumps, watch], return_when=asyncio.FIRST_COMPLETED)
        if not watch.done():
            await asyncio.wait([*pumps], timeout=GOODBYE_S)
        return watch.done()
    finally:
        for task in (*pumps, watch):
            task.cancel()
        await asyncio.gather(*pumps, watch, return_exceptions=True)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, board: FaultBoard, note: Callable[[], None]
) -> None:
    """One direction, until it ends."""
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_WAITING)
    taking = asyncio.ensure_future(_take(reader, waiting, board, note))
    loop = asyncio.get_running_loop()
    try:
        while True:
            due, data = await waiting.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            await board.until_off(Hop.WEB_PROXY, Kind.STALL)
            if not data:
                break
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        pass
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


async def _take(
    reader: asyncio.StreamReader,
    waiting: asyncio.Queue[tuple[float, bytes]],
    board: FaultBoard,
    note: Callable[[], None],
) -> None:
    """Read, and say when each piece may leave. The last one is empty."""
    loop, data = asyncio.get_running_loop(), b"more"
    while data:
        data = b""
        with contextlib.suppress(OSError):
            data = await reader.read(READ_BYTES)
        note()
        delay = board.find(Hop.WEB_PROXY, Kind.DELAY)
        delay_s = 0.0 if delay is None else (delay.setting.delay_ms or 0) / 1000
        await waiting.put((loop.time() + delay_s, data))


class _Idle:
    """Knows when something passed last, in either direction."""

    def __init__(self, board: FaultBoard) -> None:
        self._board = board
        self._loop = asyncio.get_running_loop()
        self._passed_at = self._loop.time()

    def note(self) -> None:
        """Something has passed."""
        self._passed_at = self._loop.time()

    async def watch(self) -> None:
        """Return when the connection is to be cut."""
        while True:
            fault = self._board.find(Hop.WEB_PROXY, Kind.IDLE_CUT)
            wait_s = None
            if fault is not None:
                wait_s = self._passed_at + (fault.setting.idle_s or 0) - self._loop.time()
                if wait_s <= 0:
                    return
            with contextlib.suppress(TimeoutError):
                async with deadlines.timeout(wait_s):
                    await self._board.changed()
