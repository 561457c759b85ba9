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
from relay.emulator.signaling.invariants import check
from relay.emulator.signaling.messages import LineJoin, MediaDescription, PresenceStatus
from relay.emulator.signaling.shared import Decide, MemoryShared, Session
from relay.emulator.signaling.state import Decision, Line, LineSpec
from relay.errors import UpstreamError
from tests.support.benches.emulated_signaling import People, running_signaling
from tests.support.emulated_lines import NUMBERS, line
from tests.support.peers.redis_server import needs_redis, redis_server
from tests.support.waiting import becomes, eventually

RING: tuple[str, dict[str, Any]] = ("line.ring", {})
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
        two.server.hub.announcer.observe(on_line)
        await a1.do("line.ring", line=SHOUT)
        await becomes(lambda: seen, [(SHOUT, "talking")])
        # And lines that were changed in one process are read again in the other.
        people.specs.pop(SHOUT)
        await one.server.hub.lines_changed()
        await becomes(lambda: seen[-1], (SHOUT, "talking"))
        await b1.heard("line.state", line=SHOUT, state="idle", reason="removed")
        while (await b1.heard("welcome"))["lines"]:
            pass


@pytest.mark.parametrize("kind", [LineKind.HOOT, LineKind.SHOUTDOWN, LineKind.BROADCAST])
async def test_who_is_made_a_listener_loses_the_floor(kind: LineKind) -> None:
    number = NUMBERS[kind]
    people = People.with_lines(line(kind, "a1", "b1"))
    async with running_hub(people, MemoryShared()) as (hub, told):
        await connect(hub, "a1", "b1")
        for event, fields in [("line.join", {}), ("line.talk", {"on": True})] if kind is LineKind.HOOT else [RING]:
            assert (await hub.handle("connection of a1", event, {"line": number, **fields}))["ok"]
        people.specs[number] = line(kind, "a1", "b1", listeners=("a1",))
        await hub.lines_changed()
        state = told.events("line.state")[-1]
        assert state["state"] == "connected"
        assert not any(party["talking"] for party in state["participants"])
        assert hub.event_log.entries[-1]["event"] == "silenced"
        answer = await hub.handle("connection of a1", "line.talk", {"line": number, "on": True})
        assert answer["error"]["code"] == "wrong_state"
        assert check(hub.event_log.entries) == []


async def test_a_role_that_changes_while_a_message_is_handled_counts() -> None:
    people = People.with_lines(line(LineKind.HOOT, "a1", "b1"))

    class Slow(MemoryShared):
        async def change_line(self, spec: LineSpec, decide: Decide) -> Decision:
            decision = await super().change_line(spec, decide)
            if decision.line.talkers and people.specs[HOOT] is spec:
                # The change was on its way, and was stored by now.
                people.specs[HOOT] = line(LineKind.HOOT, "a1", "b1", listeners=("a1",))
            return decision

    shared = Slow()
    async with running_hub(people, shared) as (hub, _):
        await connect(hub, "a1")
        await hub.handle("connection of a1", "line.join", {"line": HOOT})
        await hub.handle("connection of a1", "line.talk", {"line": HOOT, "on": True})
        assert (await shared.read_lines([HOOT]))[HOOT].talkers == ()


@pytest.mark.parametrize(
    ("ends_at", "disabled", "reason"), [(1.0, False, "expired"), (1e12, False, "ended"), (1.0, True, "disabled")]
)
async def test_a_login_that_ends_leaves_no_grace(ends_at: float, disabled: bool, reason: str) -> None:
    people = People.with_lines(line(LineKind.HOOT, "a1", "b1"))
    people.ended, people.ends_at = set(), ends_at
    shared = MemoryShared()
    async with running_hub(people, shared) as (hub, told):
        await connect(hub, "a1", "b1")
        for user in ("a1", "b1"):
            await hub.handle(f"connection of {user}", "line.join", {"line": HOOT})
        people.ended.add("a1")
        people.disabled_users.update({"a1"} if disabled else ())
        await hub.logins_ended()
        assert told.events("session.ended") == [{"reason": reason}]
        assert told.events("session.replaced") == []
        assert told.dropped == ["connection of a1"]
        # What the server's library tells of the connection afterwards gives no grace.
        await hub.disconnect("connection of a1", for_good=False)
        await eventually(lambda: told.events("presence.state")[-1] == {"user_id": "a1", "state": "offline"})
        assert list((await shared.read_lines([HOOT]))[HOOT].parties) == ["b1"]
        assert "a1" not in await shared.sessions(["a1"])
        assert check(hub.event_log.entries) == []


async def test_a_login_that_ends_ends_the_grace_of_a_client_that_has_vanished() -> None:
    people = People.with_lines(line(LineKind.HOOT, "a1", "b1"))
    people.ended = set()
    shared = MemoryShared()
    async with running_hub(people, shared) as (hub, told):
        await connect(hub, "a1", "b1")
        await hub.handle("connection of a1", "line.join", {"line": HOOT})
        await hub.disconnect("connection of a1", for_good=False)
        people.ended.add("a1")
        await hub.end_logged_out()
        await eventually(lambda: told.events("presence.state")[-1] == {"user_id": "a1", "state": "offline"})
        assert (await shared.read_lines([HOOT]))[HOOT].parties == {}


async def test_a_message_that_is_handled_while_its_login_ends_begins_nothing() -> None:
    people = People.with_lines(line(LineKind.HOOT, "a1", "b1"))
    people.ended = ended = set[str]()

    class Late(MemoryShared):
        async def change_line(self, spec: LineSpec, decide: Decide) -> Decision:
            if "a1" not in ended and not (await self.read_lines([HOOT]))[HOOT].parties:
                ended.add("a1")
                await hub.end_logged_out()
                while await self.sessions(["a1"]):  # noqa: ASYNC110
                    await asyncio.sleep(0)
            return await super().change_line(spec, decide)

    shared = Late()
    async with running_hub(people, shared) as (hub, _):
        await connect(hub, "a1")
        await hub.handle("connection of a1", "line.join", {"line": HOOT})
        assert (await shared.read_lines([HOOT]))[HOOT].parties == {}


@needs_redis
async def test_a_login_that_ends_and_a_role_that_changes_count_in_all_processes(tmp_path: Path) -> None:
    people = People.with_lines(line(LineKind.HOOT, "a1", "b1"), line(LineKind.SHOUTDOWN, "a1", "b1"))
    people.ended = set()
    async with (
        redis_server(tmp_path) as redis,
        running_signaling(people, redis_url=redis.url) as one,
        running_signaling(people, redis_url=redis.url) as two,
        two.phone("b1") as b1,
        one.phone("a1") as a1,
    ):
        for phone in (a1, b1):
            await phone.do("line.join", line=HOOT)
        await b1.do("line.talk", line=HOOT, on=True)
        people.specs[HOOT] = line(LineKind.HOOT, "a1", "b1", listeners=("b1",))
        await one.server.hub.lines_changed()
        await a1.heard("floor.state", line=HOOT, talkers=[])
        people.ended, people.disabled_users = {"b1"}, {"b1"}
        await one.server.hub.logins_ended()
        assert await b1.heard("session.ended") == {"reason": "disabled"}
        await b1.heard("disconnect")
        await a1.heard("presence.state", user_id="b1", state="offline")
        assert list((await one.server.hub.shared.read_lines([HOOT]))[HOOT].parties) == ["a1"]
        # And who has vanished has no grace, wherever that was.
        people.ended = set()
        async with two.phone("b1") as again:
            await again.do("line.join", line=HOOT)
            await a1.heard("line.state", line=HOOT, subscribers=2)
            again.cut()
            await again.heard("disconnect")
        log = two.server.hub.event_log
        await eventually(lambda: [one["what"] for one in log.entries if one["entry"] == "session"][-1] == "vanished")
        people.ended = {"b1"}
        await one.server.hub.logins_ended()
        await a1.heard("presence.state", user_id="b1", state="offline")


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
