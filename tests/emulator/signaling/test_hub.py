"""The hub and its housekeeping, without sockets: crowds, lost connections, processes that are taken for dead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from relay.emulator.lines import LineKind
from relay.emulator.signaling.housekeeping import Housekeeping
from relay.emulator.signaling.hub import Hub
from relay.emulator.signaling.messages import LineJoin, MediaDescription, PresenceStatus
from relay.emulator.signaling.shared import MemoryShared, Session
from relay.emulator.signaling.state import Line, LineSpec
from relay.errors import UpstreamError
from tests.support.benches.emulated_signaling import People, running_signaling
from tests.support.emulated_lines import NUMBERS, line
from tests.support.peers.redis_server import needs_redis, redis_server
from tests.support.waiting import becomes, eventually

SHOUT, HOOT = NUMBERS[LineKind.SHOUTDOWN], NUMBERS[LineKind.HOOT]


class Told:
    """A delivery that keeps what it was given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, list[str]]] = []
        self.dropped: list[str] = []

    async def emit(self, event: str, payload: Any, rooms: list[str]) -> None:
        self.sent.append((event, payload, rooms))

    async def enter(self, connection: str, rooms: Iterable[str]) -> None:
        pass

    async def drop(self, connection: str) -> None:
        self.dropped.append(connection)

    async def tell_others(self, what: str) -> None:
        pass

    def events(self, event: str) -> list[Any]:
        return [payload for name, payload, _ in self.sent if name == event]


class ForgetfulShared(MemoryShared):
    """Can fail, and can be told that others took this process for dead."""

    failing = False
    buried = False

    async def vanish(self, user_id: str, connection: str, until: float) -> bool:
        if self.failing:
            raise UpstreamError("Redis: gone")
        return await super().vanish(user_id, connection, until)

    async def beat(self, now: float) -> bool:
        buried, self.buried = self.buried, False
        return not buried


@contextlib.asynccontextmanager
async def running_hub(people: People, shared: MemoryShared) -> AsyncIterator[tuple[Hub, Told]]:
    told = Told()
    hub = Hub(people, shared, told, people.on_call_ended, process="one", grace_s=3600.0)
    housekeeping = Housekeeping(hub, tick_s=0.01)
    housekeeping.start()
    try:
        yield hub, told
    finally:
        await housekeeping.stop()


async def connect(hub: Hub, *users: str) -> None:
    for user in users:
        await hub.connect(f"connection of {user}", {"token": f"token-{user}"})
        await hub.admit(f"connection of {user}")


async def test_a_crowd_is_told_of_listeners_now_and_then_and_of_talkers_at_once() -> None:
    users = [f"a{number}" for number in range(300)]
    people = People.with_lines(line(LineKind.HOOT, *users))
    async with running_hub(people, MemoryShared()) as (hub, told):
        for user in users:
            await hub.act(user, "use1", LineJoin(line=HOOT))
        # One for each of the first 51, and not 249 more.
        first = len(told.events("line.state"))
        assert 51 <= first < 100
        await eventually(lambda: told.events("line.state")[-1]["subscribers"] == 300)
        assert len(told.events("line.state")) < first + 20
        await connect(hub, "a7")
        before = len(told.sent)
        answer = await hub.handle("connection of a7", "line.talk", {"line": HOOT, "on": True})
        assert answer["ok"]
        # Whatever housekeeping may have told in between.
        news = [(event, payload) for event, payload, _ in told.sent[before:]]
        assert ("floor.state", {"line": HOOT, "talkers": ("a7",), "max_talkers": 12}) in news
        [state] = [payload for event, payload in news if event == "line.state" and payload["state"] == "talking"]
        assert [party["user_id"] for party in state["participants"]] == ["a7"]
        assert [event for event, _ in news].count("presence.state") == 0


async def test_a_lost_connection_that_could_not_be_stored_is_stored_later() -> None:
    shared = ForgetfulShared()
    async with running_hub(People.with_lines(line(LineKind.SHOUTDOWN, "a1", "b1")), shared) as (hub, _):
        await connect(hub, "a1", "b1")
        shared.failing = True
        await hub.disconnect("connection of a1", for_good=False)
        assert (await shared.sessions(["a1"]))["a1"].is_connected
        assert set(hub.unsaid) == {"a1"}
        shared.failing = False
        await eventually(lambda: not hub.unsaid)
        assert not (await shared.sessions(["a1"]))["a1"].is_connected
        # Whoever has come back meanwhile stays.
        shared.failing = True
        await hub.disconnect("connection of b1", for_good=False)
        await connect(hub, "b1")
        shared.failing = False
        await eventually(lambda: not hub.unsaid)
        assert (await shared.sessions(["b1"]))["b1"].is_connected


async def test_a_process_that_was_taken_for_dead_takes_its_users_back() -> None:
    shared = ForgetfulShared()
    async with running_hub(People.with_lines(line(LineKind.SHOUTDOWN, "a1", "b1")), shared) as (hub, told):
        await connect(hub, "a1", "b1")
        await shared.vanish("a1", "connection of a1", 9e9)
        await shared.open_session(Session("b1", "elsewhere", "two"))
        told.sent.clear()
        shared.buried = True
        await eventually(lambda: told.events("welcome"))
        assert (await shared.sessions(["a1"]))["a1"].is_connected
        # b1 has logged in at another process meanwhile.
        assert told.dropped == ["connection of b1"]
        assert (await shared.sessions(["b1"]))["b1"].connection == "elsewhere"


async def test_what_a_media_server_sends_and_hears() -> None:
    heard: list[tuple[str, str, str]] = []

    async def on_media(user_id: str, number: str, message: Any) -> None:
        heard.append((user_id, number, message.sdp))

    async with running_hub(People.with_lines(line(LineKind.HOOT, "a1", "b1")), MemoryShared()) as (hub, told):
        hub.serve_media(on_media)
        await connect(hub, "a1", "b1")
        call_id = (await hub.act("a1", "use1", LineJoin(line=HOOT))).call_id
        offer = {"call_id": call_id, "to": "@sfu", "type": "offer", "sdp": "v=0"}
        assert (await hub.handle("connection of a1", "media.description", offer))["ok"]
        refused = await hub.handle("connection of b1", "media.description", offer)
        assert refused["error"]["code"] == "not_in_call"
        assert heard == [("a1", HOOT, "v=0")]
        assert call_id is not None
        answer = MediaDescription.model_validate(
            {"call_id": call_id, "from": "@sfu", "type": "answer", "sdp": "v=0 key"}
        )
        await hub.send_media("a1", answer)
        assert told.sent[-1] == (
            "media.description",
            {"call_id": call_id, "from": "@sfu", "type": "answer", "sdp": "v=0 key"},
            ["user:a1"],
        )


async def test_a_housekeeping_that_fails_goes_on() -> None:
    class Broken(MemoryShared):
        rounds = 0

        async def due_lines(self, now: float) -> list[str]:
            self.rounds += 1
            if self.rounds in {1, 3}:
                raise UpstreamError("Redis: gone")
            if self.rounds == 2:
                raise RuntimeError("a fault of ours")
            return await super().due_lines(now)

    shared = Broken()
    async with running_hub(People(), shared):
        await eventually(lambda: shared.rounds > 4)


@needs_redis
async def test_observers_hear_of_what_other_processes_do(tmp_path: Path) -> None:
    people = People.with_lines(line(LineKind.SHOUTDOWN, "a1", "b1"))
    seen: list[tuple[str, str]] = []

    def on_line(spec: LineSpec, state: Line) -> None:
        seen.append((spec.number, state.status))

    async with (
        redis_server(tmp_path) as redis,
        running_signaling(people, redis_url=redis.url) as one,
        running_signaling(people, redis_url=redis.url) as two,
        two.phone("b1") as b1,
        one.phone("a1") as a1,
    ):
        await b1.heard("presence.state", user_id="a1")
        two.server.hub.observe(on_line)
        await a1.do("line.ring", line=SHOUT)
        await becomes(lambda: seen, [(SHOUT, "talking")])
        # And lines that were changed in one process are read again in the other.
        people.specs.pop(SHOUT)
        await one.server.hub.lines_changed()
        await becomes(lambda: seen[-1], (SHOUT, "talking"))
        await b1.heard("line.state", line=SHOUT, state="idle", reason="removed")
        while (await b1.heard("welcome"))["lines"]:
            pass


async def test_presence_is_kept_for_who_comes_back() -> None:
    shared = MemoryShared()
    async with running_hub(People.with_lines(line(LineKind.SHOUTDOWN, "a1", "b1")), shared) as (hub, told):
        await connect(hub, "a1")
        await hub.handle("connection of a1", "presence.set", {"state": "away"})
        await hub.disconnect("connection of a1", for_good=False)
        await connect(hub, "a1")
        assert (await shared.sessions(["a1"]))["a1"].presence is PresenceStatus.AWAY
        assert [payload["state"] for payload in told.events("presence.state")] == ["available", "away"]
        await hub.disconnect("connection of a1", for_good=True)
        await eventually(lambda: told.events("presence.state")[-1]["state"] == "offline")


async def test_a_slow_directory_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.emulator.signaling.hub.HANDLE_TIMEOUT_S", 0.01)

    class Slow(People):
        async def line(self, number: str) -> LineSpec | None:
            await asyncio.Event().wait()
            return None

    async with running_hub(Slow(), MemoryShared()) as (hub, _):
        await connect(hub, "a1")
        answer = await hub.handle("connection of a1", "line.ring", {"line": SHOUT})
        assert answer["error"]["code"] == "unavailable"
