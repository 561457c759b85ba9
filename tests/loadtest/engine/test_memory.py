"""The engine without memory: a clear end, and nothing is left. Only a debug build can be told to have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.engine._engine import leave_memory, live_objects
from loadtest.engine.engine import Cause
from loadtest.engine.plans import Carrier, ClientPlan, StreamPlan
from relay.addresses import Address
from tests.loadtest.engine.driver import running_engine
from tests.support.peers.scripted_relay import OPENED, Line, scripted_relay

pytestmark = pytest.mark.skipif(not live_objects(), reason="not a debug build")

PEER = ClientPlan(Address("127.0.0.1", 0), Carrier.PEER)


async def test_what_is_open_is_counted() -> None:
    """Each test of this folder asserts that nothing is left. That says something only if what is there is seen."""
    async with running_engine() as driver:
        mirror = await driver.opened(replace(PEER, reflects=True))
        assert mirror.relayed is not None
        opened = await driver.opened(replace(PEER, peers=(mirror.relayed,)))
        before = live_objects()
        assert before["sockets"] == 2
        assert before["buffers"] > 0
        number = driver.engine.talk(StreamPlan(opened.client))
        # A cipher and a MAC to send with, and the same to receive with.
        assert live_objects()["contexts"] == before["contexts"] + 4
        driver.engine.silence(number)
        await driver.next_silenced()
        assert live_objects()["contexts"] == before["contexts"]


async def test_python_has_none() -> None:
    async with running_engine() as driver:
        calls: list[Callable[[], int]] = [
            lambda: driver.engine.open(PEER),
            lambda: driver.engine.talk(StreamPlan(0)),
        ]
        for call in calls:
            before = live_objects()
            for blocks in range(2):
                leave_memory(blocks)
                try:
                    with pytest.raises(MemoryError):
                        call()
                finally:
                    leave_memory(-1)
                assert live_objects() == before
        # No number was lost.
        for _ in range(16):
            await driver.opened(PEER)


async def test_the_thread_has_none(tmp_path: Path) -> None:
    """What is not whole yet has nowhere to wait."""

    async def script(line: Line) -> None:
        assert (await line.hear())["type"] == "open"
        line.say(**OPENED)
        assert (await line.hear())["type"] == "bind"
        leave_memory(0)
        # Half a frame.
        line.writer.write(b"\x82\x7e")
        await line.hear()

    async with scripted_relay(tmp_path, script) as relay, running_engine() as driver:
        peers = (Address("192.0.2.7", 16384),)
        try:
            ended = await driver.ended(ClientPlan(relay.address, Carrier.SESSION, "trader", "secret", peers))
        finally:
            leave_memory(-1)
        assert (ended.cause, ended.words) == (Cause.RESOURCES, "no room for what came")
