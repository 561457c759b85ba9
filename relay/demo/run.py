"""Runs the demo: the emulated cloud, a relay, and calls over each path at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from relay.demo import calls
from relay.demo.calls import Pair
from relay.demo.cloud import Floor, pairs_of, running_floor, with_pairs
from relay.demo.report import Row, rows_of
from relay.emulator import fixtures
from relay.emulator.softphone import Pacer
from relay.emulator.store.passwords import hash_password

# The relay is asked for by this name, which its route sends to the region use1.
SERVER_NAME = "use1-stun1.xhoot.com"
# Direct, and through the relay over TURN/TLS, WebSocket, sessions and CONNECT-UDP.
PATHS = 5


@dataclass(frozen=True)
class DemoFloor(Floor):
    """The cloud and the relay, and for each path two users."""

    pairs: Sequence[Pair]


@contextlib.asynccontextmanager
async def demo_floor(*, known_ports: bool = False) -> AsyncIterator[DemoFloor]:
    """The cloud and the relay of a demo, in a folder that goes with them. Raises OperatorError."""
    password = secrets.token_urlsafe(16)
    pairs = pairs_of(PATHS, password)
    people = with_pairs(fixtures.bundled(), pairs, await asyncio.to_thread(hash_password, password))
    # A browser that browser.sh started may still write its profile there.
    with tempfile.TemporaryDirectory(prefix="relay-demo-", ignore_cleanup_errors=True) as name:
        async with running_floor(Path(name), people, known_ports=known_ports) as floor:
            yield DemoFloor(floor.cloud, floor.gateway, pairs)


async def run_demo(seconds: float, on_tick: Callable[[], None]) -> list[Row]:
    """Place the calls; ``on_tick`` is called for each 20 ms of each call. Raises RelayError."""
    async with demo_floor() as floor:
        return await place_calls(floor, seconds, on_tick)


async def place_calls(floor: DemoFloor, seconds: float, on_tick: Callable[[], None]) -> list[Row]:
    """Place all calls at the same time. If one cannot be set up, the others end, too. Raises RelayError."""
    paths = calls.paths(floor.relay_access(SERVER_NAME))
    pacer = Pacer()
    try:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(calls.place_call(floor.url, pair, path, seconds, on_tick=on_tick, pacer=pacer))
                for pair, path in zip(floor.pairs, paths, strict=True)
            ]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        await pacer.close()
    return rows_of([one for call in running for one in call.result()])
