"""Sessions of media.v1, as a scripted relay speaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.engine.engine import Cause, Moved, Opened, Phase
from loadtest.engine.plans import Carrier, ClientPlan
from relay.addresses import Address
from tests.loadtest.engine.driver import running_engine
from tests.support.peers.scripted_relay import OPENED, Line, Script, ScriptedRelay, scripted_relay

PEERS = (Address("192.0.2.7", 16384), Address("2001:db8::7", 16384))


def plan(relay: ScriptedRelay, *peers: Address) -> ClientPlan:
    return ClientPlan(relay.address, Carrier.SESSION, "trader", "secret", peers, server_name="relay.test")


async def bound(line: Line) -> dict[str, object]:
    """Agree to the next ``bind``."""
    heard = await line.hear()
    assert heard["type"] == "bind"
    line.say(type="bound", peer=heard["peer"], channel=heard["channel"])
    return heard


async def opened(line: Line) -> None:
    heard = await line.hear()
    assert heard == {"type": "open", "username": "trader", "password": "secret"}
    line.say(**OPENED)


async def test_peers_of_both_families_are_bound_in_their_order(tmp_path: Path) -> None:
    heard: list[dict[str, object]] = []

    async def script(line: Line) -> None:
        await opened(line)
        heard.extend([await bound(line) for _ in range(3)])
        assert (await line.hear())["type"] == "close"
        line.say(type="closed")

    async with scripted_relay(tmp_path, script) as relay, running_engine() as driver:
        ready = await driver.opened(plan(relay, *PEERS))
        assert ready.relayed == Address("192.0.2.1", 50000)
        driver.engine.bind(ready.client, Address("192.0.2.8", 1))
        while len(heard) < 3:
            await driver.window()
        assert (await driver.closed(ready.client)).cause is Cause.ASKED
    assert [(one["peer"], one["channel"]) for one in heard] == [
        ("192.0.2.7:16384", 0x4000),
        ("[2001:db8::7]:16384", 0x4001),
        ("192.0.2.8:1", 0x4002),
    ]


async def test_a_session_asks_for_the_family_of_its_peers(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        assert (await line.hear())["family"] == "ipv6"
        line.say(**OPENED | {"relayed": "[2001:db8::1]:50000"})
        await bound(line)
        await line.hear()

    async with scripted_relay(tmp_path, script) as relay, running_engine() as driver:
        ready = await driver.opened(plan(relay, PEERS[1]))
        assert ready.relayed == Address("2001:db8::1", 50000)


async def test_a_session_that_moves_says_where_to(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await opened(line)
        await bound(line)
        line.say(type="moved", relayed="192.0.2.2:50001", upstream="other")
        await line.hear()

    async with scripted_relay(tmp_path, script) as relay, running_engine() as driver:
        ready = await driver.opened(plan(relay, PEERS[0]))
        assert await driver.next(Moved) == Moved(ready.client, Address("192.0.2.2", 50001))


async def test_more_news_than_python_takes_are_counted(tmp_path: Path) -> None:
    """Python looks only at the end. There is room for as many as its clients have places for, and no more."""

    async def script(line: Line) -> None:
        await opened(line)
        for number in range(2000):
            line.say(type="moved", relayed=f"192.0.2.2:{number}", upstream="other")
        await line.hear()

    async with scripted_relay(tmp_path, script) as relay, running_engine() as driver:
        driver.deaf = True
        driver.engine.open(plan(relay))
        untold = 0
        while not untold:
            untold += (await driver.window()).counters["untold"]
        driver.deaf = False
        driver.take()
        assert (await driver.next(Opened)).client == 0


def error(code: int) -> Script:
    async def script(line: Line) -> None:
        await line.hear()
        line.say(type="error", code=code, reason="of a test")
        await line.hear()

    return script


@pytest.mark.parametrize("code", [401, 486])
async def test_an_error_ends_a_session(tmp_path: Path, code: int) -> None:
    async with scripted_relay(tmp_path, error(code)) as relay, running_engine() as driver:
        ended = await driver.ended(plan(relay))
        assert (ended.cause, ended.code, ended.phase) == (Cause.SESSION, code, Phase.ALLOCATE)
        assert "of a test" in ended.words


async def test_a_relay_that_closes_says_why(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await opened(line)
        line.say_close(1013, "draining")
        await line.hear()

    async with scripted_relay(tmp_path, script) as relay, running_engine() as driver:
        await driver.opened(plan(relay))
        ended = await driver.next_ended()
        assert (ended.cause, ended.code, ended.words) == (Cause.CLOSED, 1013, "draining")
