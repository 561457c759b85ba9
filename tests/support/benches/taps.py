"""Taps that copy already. A plane takes the command for a tap after the packets of its turn, so a test must wait."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import count

from relay.addresses import Address
from relay.plane.api import ConnectionId
from relay.plane.taps import Tap
from tests.support.benches.plane import Bench

# No carrier has this first byte: the datagram is dropped as malformed, and no client gets it.
PROBE = b"\xff"
# A probe that has not been copied by then was lost, because the flow's socket was full.
PROBE_TIMEOUT_S = 1.0


async def tapped(bench: Bench, connection: ConnectionId, flow: Address) -> Tap:
    """A tap of this flow, which has begun to copy."""
    tap = bench.plane.tap(connection)
    assert tap is not None
    await is_tapped(bench, tap, flow)
    return tap


async def is_tapped(bench: Bench, tap: Tap, flow: Address) -> None:
    """Wait until the plane copies, and take what has been copied so far."""
    for number in count():
        probe = PROBE + number.to_bytes(4)
        bench.upstream.send(flow, probe)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                while all(one.data != probe for one in tap.take(1000)):  # noqa: ASYNC110 - a tap does not tell
                    await asyncio.sleep(0.001)
                return
