"""A plane of which everything comes back: its upstream echoes datagrams, and its control echoes texts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from relay.plane.api import TextReceived
from tests.support.benches.plane import Bench, MakePlane, bounds, plane_bench


@contextlib.asynccontextmanager
async def echoing_bench(make: MakePlane, folder: Path) -> AsyncIterator[Bench]:
    """A plane whose upstream sends datagrams back, and whose control sends texts back."""
    async with plane_bench(make, folder, bounds(websocket_ping_s=3600)) as bench:

        async def echo_datagrams() -> None:
            while True:
                data, sender = await bench.upstream.receive()
                bench.upstream.send(sender, data)

        async def echo_texts() -> None:
            while True:
                event = await bench.event(TextReceived)
                bench.plane.tell(event.connection, event.text)

        echoes = [asyncio.ensure_future(echo_datagrams()), asyncio.ensure_future(echo_texts())]
        try:
            yield bench
        finally:
            for echo in echoes:
                echo.cancel()
            await asyncio.gather(*echoes, return_exceptions=True)
