"""The server with python-socketio's client: calls, presence, media, sessions, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import socketio
from structlog.testing import capture_logs

from relay.emulator.lines import LineKind
from relay.emulator.signaling import entrance
from relay.emulator.signaling.invariants import check
from relay.emulator.signaling.messages import FROM_SERVER, StateAccepted, Welcome
from relay.emulator.signaling.state import LineSpec
from tests.support.benches.emulated_signaling import POLLING, WEBSOCKET, People, Phone, Signaling, running_signaling
from tests.support.emulated_lines import NUMBERS, line
from tests.support.waiting import becomes, eventually

RINGDOWN, HOOT, SHOUT = NUMBERS[LineKind.RINGDOWN], NUMBERS[LineKind.HOOT], NUMBERS[LineKind.SHOUTDOWN]
MODELS = {model.event: model for model in FROM_SERVER}
WAYS = pytest.mark.parametrize("transports", [POLLING, WEBSOCKET, [*POLLING, *WEBSOCKET]], ids="-".join)


def people() -> People:
    """Four users who share one line of each kind."""
    known = People.with_lines(
        *(line(kind, "a1", "a2", "b1", "b2") for kind in LineKind if kind is not LineKind.DIAL_TONE)
    )
    known.specs[NUMBERS[LineKind.DIAL_TONE]] = line(LineKind.DIAL_TONE, "a1")
    known.extensions["2001"] = "b1"
    return known


@contextlib.asynccontextmanager
async def phones(signaling: Signaling, *users: str, **options: object) -> AsyncIterator[list[Phone]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(signaling.phone(user, **options)) for user in users]  # type: ignore[arg-type]


@WAYS
async def test_a_call(transports: list[str]) -> None:
    async with (
        running_signaling(people()) as signaling,
        phones(signaling, "a1", "b1", transports=transports) as (a1, b1),
    ):
        ringing = await a1.do("line.ring", line=RINGDOWN)
        heard = await b1.heard("line.state", line=RINGDOWN, state="ringing")
        assert heard == ringing["line_state"]
        call_id = heard["call_id"]
        await b1.do("line.answer", line=RINGDOWN)
        state = await a1.heard("line.state", line=RINGDOWN, state="connected")
        assert {party["user_id"] for party in state["participants"]} == {"a1", "b1"}
        await a1.do("media.description", call_id=call_id, to="b1", type="offer", sdp="v=0\r\n")
        assert await b1.heard("media.description") == {
            "call_id": call_id,
            "from": "a1",
            "type": "offer",
            "sdp": "v=0\r\n",
        }
        await b1.do("media.candidate", call_id=call_id, to="a1", candidate="candidate:1 1 udp 1 127.0.0.1 9 typ host")
        assert (await a1.heard("media.candidate"))["from"] == "b1"
        await b1.do("line.release", line=RINGDOWN)
        # The record was written before the acknowledgement.
        [record] = signaling.people.records
        assert (record.call_id, record.end_reason, record.region) == (call_id, "released", "use1")
        assert (await a1.heard("line.state", line=RINGDOWN, state="idle"))["reason"] == "released"
        assert check(signaling.server.hub.event_log.entries, finished=True) == []


async def test_every_message_is_of_its_model() -> None:
    async with running_signaling(people()) as signaling, phones(signaling, "a1", "b1") as (a1, b1):
        await a1.do("line.ring", line=SHOUT)
        await b1.do("line.talk", line=SHOUT, on=True)
        await b1.do("line.join", line=HOOT)
        await b1.do("line.talk", line=HOOT, on=True)
        call_id = (await b1.heard("line.state", line=SHOUT))["call_id"]
        await a1.do("media.description", call_id=call_id, to="b1", type="offer", sdp="v=0")
        await b1.do("presence.set", state="busy")
        everything = await b1.do("state.get")
        StateAccepted.model_validate_json(json.dumps(everything))
        assert everything["joined"] == [SHOUT, HOOT]
        await b1.heard("media.description")
        await a1.heard("presence.state", user_id="b1", state="busy")
        await a1.heard("floor.state", line=HOOT, talkers=["b1"])
        for event, data in [*a1.told, *b1.told]:
            MODELS[event].model_validate_json(json.dumps(data))


async def test_welcome_tells_what_a_user_may_see() -> None:
    known = people()
    known.specs["sPK-20000000-000001"] = line(LineKind.INTERCOM, "b1", "c1", number="sPK-20000000-000001")
    async with running_signaling(known) as signaling, phones(signaling, "b1", "a1") as (_, a1):
        welcome = Welcome.model_validate_json(json.dumps(await a1.heard("welcome")))
        assert {state.line for state in welcome.lines} == set(NUMBERS.values())
        assert {user.user_id for user in welcome.users} == {"a1", "a2", "b1", "b2"}
        assert welcome.presence == {"a1": "available", "b1": "available", "a2": "offline", "b2": "offline"}
        assert (welcome.firm_id, welcome.region) == ("a", "use1")
        # Others do not even learn whether such a line exists.
        unknown = await a1.ask("line.ring", line="sPK-99999999-999999")
        hidden = await a1.ask("line.ring", line="sPK-20000000-000001")
        assert unknown["error"]["code"] == hidden["error"]["code"] == "unknown_line"
        assert hidden["error"] == {**unknown["error"], "message": "You have no line sPK-20000000-000001."}


async def test_others_hear_nothing_of_a_line_that_is_not_theirs() -> None:
    known = people()
    known.specs["sPK-20000000-000001"] = line(LineKind.INTERCOM, "b1", "b2", number="sPK-20000000-000001")
    async with running_signaling(known) as signaling, phones(signaling, "a1", "b1", "b2") as (a1, b1, b2):
        await b1.do("line.ring", line="sPK-20000000-000001")
        await b2.heard("line.state", line="sPK-20000000-000001")
        # What was sent before this has arrived before this.
        await b1.do("line.ring", line=SHOUT)
        await a1.heard("line.state", line=SHOUT)
        assert [data["line"] for event, data in a1.told if event == "line.state"] == []


async def test_dial_tone_rings_for_someone_who_does_not_have_the_line() -> None:
    number = NUMBERS[LineKind.DIAL_TONE]
    async with running_signaling(people()) as signaling, phones(signaling, "a1", "b1") as (a1, b1):
        await a1.do("line.ring", line=number, number="2001")
        await b1.heard("line.state", line=number, state="ringing")
        assert number in (await b1.do("state.get"))["joined"]
        await b1.do("line.answer", line=number)
        await a1.heard("line.state", line=number, state="connected")
        await b1.do("line.release", line=number)
        await b1.heard("line.state", line=number, state="idle")
        assert number not in [state["line"] for state in (await b1.do("state.get"))["lines"]]
        assert await b1.refused("line.ring", line=number, number="2001") == "unknown_line"


async def test_deadlines_come_by_themselves() -> None:
    async with running_signaling(people()) as signaling, phones(signaling, "a1") as (a1,):
        await a1.do("line.ring", line=NUMBERS[LineKind.DIAL_TONE], number="+442071234567")
        await a1.heard("line.state", state="connected")
        await a1.do("line.release", line=NUMBERS[LineKind.DIAL_TONE])
        await a1.do("line.ring", line=NUMBERS[LineKind.DIAL_TONE], number="5550486")
        await a1.heard("line.state", state="idle", reason="busy")
        await becomes(lambda: [record.end_reason for record in signaling.people.records], ["released", "busy"])


async def test_do_not_disturb() -> None:
    async with running_signaling(people()) as signaling, phones(signaling, "a1", "b1") as (a1, b1):
        await b1.do("presence.set", state="do_not_disturb")
        await a1.heard("presence.state", user_id="b1", state="do_not_disturb")
        assert await a1.refused("line.ring", line=SHOUT) == "nobody_there"
        ringing = await a1.do("line.ring", line=RINGDOWN)
        assert {party["user_id"] for party in ringing["line_state"]["participants"]} == {"a1", "b2"}


# Sessions


async def test_a_second_login_replaces_the_first_and_finds_its_call() -> None:
    async with running_signaling(people()) as signaling, phones(signaling, "a1", "b1") as (first, b1):
        await first.do("line.ring", line=SHOUT)
        async with signaling.phone("a1") as second:
            await first.heard("session.replaced")
            await first.heard("disconnect")
            welcome = await second.heard("welcome")
            assert welcome["joined"] == [SHOUT]
            await second.do("line.release", line=SHOUT)
            await b1.heard("line.state", line=SHOUT, state="idle")
            assert await b1.do("state.get")
            assert [data for event, data in b1.told if event == "presence.state" and data["user_id"] == "a1"] == []


async def test_a_vanished_client_finds_its_call_when_it_comes_back() -> None:
    async with running_signaling(people()) as signaling, phones(signaling, "b1") as (b1,):
        async with signaling.phone("a1") as first:
            await first.do("line.ring", line=SHOUT)
            first.cut()
            await eventually(lambda: len(signaling.server.hub.connections) == 1)
        assert (await b1.do("state.get"))["joined"] == [SHOUT]
        assert await b1.refused("media.candidate", **(await media_to("a1", b1))) == "nobody_there"
        async with signaling.phone("a1") as again:
            assert (await again.heard("welcome"))["joined"] == [SHOUT]
            await b1.do("media.candidate", **(await media_to("a1", b1)))
            await again.heard("media.candidate")


async def media_to(user: str, phone: Phone) -> dict[str, str]:
    [state] = [one for one in (await phone.do("state.get"))["lines"] if one["line"] == SHOUT]
    return {"call_id": state["call_id"], "to": user, "candidate": ""}


async def test_a_vanished_client_that_does_not_come_back_is_released() -> None:
    async with running_signaling(people(), grace_s=0.05) as signaling, phones(signaling, "b1") as (b1,):
        async with signaling.phone("a1") as first:
            await first.do("line.ring", line=SHOUT)
            first.cut()
            state = await b1.heard("line.state", line=SHOUT, state="idle")
            assert state["reason"] == "gone"
            await b1.heard("presence.state", user_id="a1", state="offline")
        [record] = signaling.people.records
        assert record.end_reason == "gone"
        assert check(signaling.server.hub.event_log.entries, finished=True) == []


@WAYS
async def test_who_says_goodbye_is_released_at_once(transports: list[str]) -> None:
    async with running_signaling(people()) as signaling, phones(signaling, "b1") as (b1,):
        async with signaling.phone("a1", transports=transports) as first:
            await first.do("line.ring", line=SHOUT)
        assert (await b1.heard("line.state", line=SHOUT, state="idle"))["reason"] == "gone"


@pytest.mark.parametrize(
    "auth", [None, {}, {"token": ""}, {"token": 7}, "token-a1", {"token": "x" * 5000}, {"token": "token-nobody"}]
)
async def test_who_has_not_logged_in_is_refused(auth: object) -> None:
    async with running_signaling(people()) as signaling:
        phone = Phone()
        with pytest.raises(socketio.exceptions.ConnectionError):
            await phone.client.connect(signaling.url, auth=auth, transports=WEBSOCKET)
        error = await phone.heard("connect_error")
        assert error["data"]["code"] == "not_logged_in"
        assert error["data"]["expected"]
        assert signaling.server.hub.connections == {}


async def test_a_directory_that_fails_is_told_without_a_trace() -> None:
    async with running_signaling(people()) as signaling, phones(signaling, "a1", "b1") as (a1, _):
        await a1.do("line.ring", line=SHOUT)
        signaling.people.failure = RuntimeError("the disk is full: /secret/path")
        answer = await a1.ask("line.release", line=SHOUT)
        assert answer["error"]["code"] == "unavailable"
        assert "secret" not in json.dumps(answer)
        phone = Phone()
        with pytest.raises(socketio.exceptions.ConnectionError):
            await phone.client.connect(signaling.url, auth={"token": "token-b2"}, transports=WEBSOCKET)
        assert (await phone.heard("connect_error"))["data"]["code"] == "unavailable"
        signaling.people.failure = None
        await a1.do("line.release", line=SHOUT)


async def test_a_record_that_cannot_be_written_is_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.emulator.signaling.shared.RECORD_PATIENCE_S", 0.0)
    known = people()
    failing = True

    async def on_call_ended(record: object) -> None:
        if failing:
            raise OSError("no space left")
        await People.on_call_ended(known, record)  # type: ignore[arg-type]

    known.on_call_ended = on_call_ended  # type: ignore[method-assign]
    async with running_signaling(known, tick_s=0.01) as signaling, phones(signaling, "a1", "b1") as (a1, b1):
        await a1.do("line.ring", line=SHOUT)
        # It is not acknowledged as done, but the line is free.
        assert await a1.refused("line.release", line=SHOUT) == "unavailable"
        await b1.heard("line.state", line=SHOUT, state="idle")
        failing = False
        await eventually(lambda: len(signaling.people.records) == 1)


# Bad messages


@pytest.mark.parametrize(
    ("event", "payload", "code"),
    [
        ("line.ring", None, "bad_message"),
        ("line.ring", "sPK-1-1", "bad_message"),
        ("line.ring", ["sPK-1-1"], "bad_message"),
        ("line.ring", {"line": 1}, "bad_message"),
        ("line.ring", {"line": "x" * 10_000}, "bad_message"),
        ("line.ring", {"line": RINGDOWN, "number": "call the police"}, "bad_message"),
        ("line.ring", {"line": RINGDOWN, "number": "1"}, "bad_message"),
        ("line.talk", {"line": HOOT, "on": 1}, "bad_message"),
        ("line.talk", {"line": HOOT, "on": True}, "wrong_state"),
        ("line.join", {"line": RINGDOWN}, "wrong_state"),
        ("line.answer", {"line": RINGDOWN}, "wrong_state"),
        ("presence.set", {"state": "offline"}, "bad_message"),
        ("presence.set", {"state": "asleep"}, "bad_message"),
        ("state.get", {"more": 1}, "bad_message"),
        ("state.get", ({}, {}), "bad_message"),
        ("media.candidate", {"call_id": "0" * 36, "to": "b1", "candidate": ""}, "bad_message"),
        (
            "media.candidate",
            {"call_id": "00000000-0000-4000-8000-000000000000", "to": "b1", "candidate": ""},
            "not_in_call",
        ),
        (
            "media.description",
            {"call_id": "00000000-0000-4000-8000-000000000000", "to": "b1", "type": "offer", "sdp": "x" * 65537},
            "bad_message",
        ),
        ("line.explode", {}, "unknown_event"),
        ("connect", {}, "unknown_event"),
        ("disconnect", {}, "unknown_event"),
        ("welcome", {}, "unknown_event"),
    ],
)
async def test_a_bad_message_is_answered_with_what_was_expected(event: str, payload: object, code: str) -> None:
    async with running_signaling(people()) as signaling, phones(signaling, "a1") as (a1,):
        answer = await a1.client.call(event, payload)
        assert answer["ok"] is False
        assert answer["error"]["code"] == code
        assert answer["error"]["message"]
        assert answer["error"]["expected"]
        # And nothing else has happened.
        assert (await a1.do("state.get"))["joined"] == []
        assert len(signaling.server.hub.connections) == 1


class SlowLines(People):
    """A directory whose first reader of lines waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(people().specs)
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def lines_of(self, user_id: str) -> tuple[LineSpec, ...]:
        if user_id == "a1" and not self.asked.is_set():
            self.asked.set()
            await self.may_answer.wait()
        return await super().lines_of(user_id)


async def test_a_connection_that_is_replaced_while_it_is_welcomed_is_no_failure() -> None:
    known = SlowLines()
    async with running_signaling(known) as signaling, phones(signaling, "b1") as (b1,):
        first = Phone()
        with capture_logs() as logs:
            await first.client.connect(signaling.url, auth={"token": "token-a1"}, transports=WEBSOCKET)
            await known.asked.wait()
            async with signaling.phone("a1") as second:
                # Its own coming was not told by the first one.
                await b1.heard("presence.state", user_id="a1", state="available")
                await first.heard("disconnect")
                known.may_answer.set()
                await second.do("state.get")
                await eventually(lambda: not signaling.server._entrance._of_token)
        await first.client.disconnect()
        assert [entry for entry in logs if entry["log_level"] in {"warning", "error"}] == []
        assert "welcome" not in [event for event, _ in first.told]


async def test_connections_that_log_in_with_one_token_are_bounded() -> None:
    known = SlowLines()
    async with running_signaling(known) as signaling:
        waiting = [Phone() for _ in range(entrance.MAX_OF_TOKEN)]
        for phone in waiting:
            await phone.client.connect(signaling.url, auth={"token": "token-a1"}, transports=WEBSOCKET, wait=False)
            if phone is waiting[0]:
                await known.asked.wait()
                # The others wait behind those who are not theirs.
                for _ in range(entrance.MAX_AT_ONCE - 1):
                    await signaling.server._entrance._turns.acquire()
        await becomes(lambda: signaling.server._entrance._of_token["token-a1"], entrance.MAX_OF_TOKEN)
        refused = Phone()
        await refused.client.connect(signaling.url, auth={"token": "token-a1"}, transports=WEBSOCKET, wait=False)
        assert (await refused.heard("connect_error"))["data"]["code"] == "rate_limited"
        known.may_answer.set()
        # The last one of those who waited stays.
        await waiting[-1].heard("welcome")
        for phone in [*waiting, refused]:
            await phone.client.disconnect()
        await eventually(lambda: not signaling.server._entrance._of_token)
