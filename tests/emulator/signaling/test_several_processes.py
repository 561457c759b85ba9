"""Two emulators with one Redis and one database: users on both, and one of them is killed."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from sqlalchemy import select

from relay.emulator.lines import LineKind
from relay.emulator.signaling.event_log import read_event_log
from relay.emulator.signaling.invariants import check
from relay.emulator.store import Store, tables
from tests.support.benches.emulated_signaling import People, Phone, phone, running_signaling
from tests.support.emulated_lines import NUMBERS, line
from tests.support.peers.redis_server import needs_redis, redis_server, start_redis
from tests.support.peers.socketio import Peer

pytestmark = needs_redis
RATES_SALES, DESK, ANNA_BEN = "sPK-10000001-100002", "sPK-10000004-100001", "sPK-10000001-100001"


class Emulator(Peer):
    """One of the processes."""

    port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def login(self, user: str) -> str:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/rest/v1/login", json={"user": user, "password": "trader"}) as answer,
        ):
            body: dict[str, Any] = await answer.json()
        return str(body["token"])

    @contextlib.asynccontextmanager
    async def phone(self, user: str) -> AsyncIterator[Phone]:
        async with phone(self.url, await self.login(user)) as opened:
            yield opened


@contextlib.asynccontextmanager
async def two_emulators(folder: Path, grace_s: float) -> AsyncIterator[tuple[Emulator, Emulator]]:
    """Both share a Redis and a database; each has a folder ``one`` or ``two`` of its own."""
    async with redis_server(folder) as redis, AsyncExitStack() as stack:
        both = []
        for name in ("one", "two"):
            own = folder / name
            options = {
                "folder": str(own),
                "grace_s": grace_s,
                "redis_url": redis.url,
                "database": str(folder / "emulator.db"),
            }
            own.mkdir()
            command = (sys.executable, "-m", "tests.support.peers.emulator_process", json.dumps(options))
            emulator = await Emulator.run(*command, environment={})
            stack.push_async_callback(emulator.stop)
            emulator.port = (await emulator.heard("ready"))["port"]
            both.append(emulator)
        yield both[0], both[1]


def violations(folder: Path) -> list[str]:
    return check(read_event_log(*folder.glob("*/events.jsonl")), finished=True)


async def calls(folder: Path) -> dict[str, str]:
    """The records: line to reason."""
    store = await Store.open(str(folder / "emulator.db"))
    try:
        async with store.reading() as session:
            return {call.line: call.reason for call in await session.scalars(select(tables.Call))}
    finally:
        await store.close()


async def test_users_on_two_processes_call_each_other(tmp_path: Path) -> None:
    async with two_emulators(tmp_path, 3600.0) as (one, two), one.phone("anna") as anna, two.phone("fay") as fay:
        ringing = await anna.do("line.ring", line=RATES_SALES)
        heard = await fay.heard("line.state", line=RATES_SALES, state="ringing")
        assert heard == ringing["line_state"]
        await fay.do("line.answer", line=RATES_SALES)
        await anna.heard("line.state", line=RATES_SALES, state="connected")
        sent = {"call_id": heard["call_id"], "type": "offer", "sdp": "v=0"}
        await anna.do("media.description", to="fay", **sent)
        assert await fay.heard("media.description") == {**sent, "from": "anna"}
        # A login on the other process replaces this one.
        async with two.phone("anna") as again:
            await anna.heard("session.replaced")
            await anna.heard("disconnect")
            assert (await again.heard("welcome"))["joined"] == [RATES_SALES]
            await again.do("line.release", line=RATES_SALES)
        await fay.heard("line.state", line=RATES_SALES, state="idle")
        assert await calls(tmp_path) == {RATES_SALES: "released"}
    assert violations(tmp_path) == []


async def test_calls_go_on_when_a_process_is_killed_and_its_users_come_back(tmp_path: Path) -> None:
    async with two_emulators(tmp_path, 3600.0) as (one, two), two.phone("fay") as fay, AsyncExitStack() as lost:
        anna = await lost.enter_async_context(one.phone("anna"))
        ringing = await anna.do("line.ring", line=RATES_SALES)
        await fay.do("line.answer", line=RATES_SALES)
        await one.kill()
        await anna.heard("disconnect")
        async with two.phone("anna") as again:
            welcome = await again.heard("welcome")
            assert welcome["joined"] == [RATES_SALES]
            call_id = ringing["line_state"]["call_id"]
            await again.do("media.description", call_id=call_id, to="fay", type="offer", sdp="v=0 again")
            await fay.heard("media.description", sdp="v=0 again")
            await fay.do("line.release", line=RATES_SALES)
            state = await again.heard("line.state", line=RATES_SALES, state="idle")
            assert state["reason"] == "released"
        assert await calls(tmp_path) == {RATES_SALES: "released"}
    assert violations(tmp_path) == []


async def test_users_of_a_killed_process_who_do_not_come_back_are_released(tmp_path: Path) -> None:
    async with two_emulators(tmp_path, 0.1) as (one, two):
        async with two.phone("fay") as fay, two.phone("dora") as dora, AsyncExitStack() as lost:
            anna, ben = [await lost.enter_async_context(one.phone(user)) for user in ("anna", "ben")]
            # A call between the processes, one on the dead process alone, and one that rings for someone else.
            await anna.do("line.ring", line=RATES_SALES)
            await fay.do("line.answer", line=RATES_SALES)
            await dora.do("line.ring", line=DESK)
            await anna.do("line.ring", line=ANNA_BEN)
            await ben.do("line.answer", line=ANNA_BEN)
            await one.kill()
            state = await fay.heard("line.state", line=RATES_SALES, state="idle")
            assert state["reason"] == "gone"
            state = await dora.heard("line.state", line=DESK, state="idle")
            assert state["reason"] == "gone"
            async with two.phone("ben") as back:
                everything = await back.do("state.get")
                if everything["joined"]:
                    await back.heard("line.state", line=ANNA_BEN, state="idle")
        assert await calls(tmp_path) == {RATES_SALES: "gone", DESK: "gone", ANNA_BEN: "gone"}
    assert violations(tmp_path) == []


async def test_a_restarted_redis_is_found_again(tmp_path: Path) -> None:
    people = People.with_lines(line(LineKind.SHOUTDOWN, "a1", "b1"))
    shout = NUMBERS[LineKind.SHOUTDOWN]
    async with (
        redis_server(tmp_path) as redis,
        running_signaling(people, redis_url=redis.url, tick_s=0.05) as signaling,
        signaling.phone("a1") as a1,
        signaling.phone("b1") as b1,
    ):
        await b1.heard("welcome")
        await a1.do("line.ring", line=shout)
        await b1.heard("line.state", line=shout, state="talking")
        await redis.kill()
        assert await a1.refused("line.release", line=shout) == "unavailable"
        again = await start_redis(tmp_path, redis.port)
        try:
            # It has forgotten everything: the call is over, and everyone is told so. But the users are there.
            assert (await b1.heard("welcome"))["joined"] == []
            await a1.do("line.ring", line=shout)
            await b1.heard("line.state", line=shout, state="talking", seq=1)
        finally:
            await again.end()
