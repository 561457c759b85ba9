"""How connections end when the relay goes: one after the other, so that their clients do not all come back at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

# A relay takes some hundred logins a second without disturbing its calls. A floor of 300 desks with four connections
# each then comes back at 240 a second. systemd waits for it: TimeoutStopSec in relay.service.
SPREAD_S = 5.0
# A few connections need not take so long: 50 a second disturb nobody.
MAX_PAUSE_S = 0.02


async def close_spread(endings: Sequence[Callable[[], object]]) -> None:
    """Call each, in order, at equal distances: all within ``SPREAD_S``."""
    loop = asyncio.get_running_loop()
    begin, pause = loop.time(), min(MAX_PAUSE_S, SPREAD_S / max(1, len(endings)))
    for number, end in enumerate(endings, 1):
        end()
        await asyncio.sleep(begin + number * pause - loop.time())
