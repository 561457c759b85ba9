"""Signaling of a whole cloud: users, lines and extensions of its database, and records of calls in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from relay.emulator.lines import LineKind
from relay.emulator.signaling import housekeeping
from relay.emulator.signaling.event_log import read_event_log
from relay.emulator.signaling.in_store import StoreDirectory
from relay.emulator.signaling.invariants import check
from relay.emulator.signaling.messages import EndReason, LineRing, PartyRole
from relay.emulator.signaling.state import CallRecord, Stay
from relay.emulator.store import tables
from tests.support.benches.cloud import CloudClient, running_cloud
from tests.support.benches.emulated_signaling import phone

ANNA_BEN, DIAL, HOOT = "sPK-10000001-100001", "sPK-10000005-100001", "sPK-10000003-100001"


async def calls_of(client: CloudClient) -> list[tables.Call]:
    async with client.cloud.store.reading() as session:
        return list(await session.scalars(select(tables.Call).order_by(tables.Call.ended_at)))


async def people_of(client: CloudClient, call_id: str) -> dict[str, tables.CallParticipant]:
    people = tables.CallParticipant
    async with client.cloud.store.reading() as session:
        found = await session.scalars(select(people).where(people.call_id == call_id))
        return {one.user_id: one for one in found}


async def test_a_call_of_two_users_is_in_the_database(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    async with running_cloud(tmp_path, event_log=log) as client:
        tokens = [(await client.login(user))["token"] for user in ("anna", "ben")]
        url = f"http://{client.cloud.http}"
        async with phone(url, tokens[0]) as anna, phone(url, tokens[1], transports=["polling"]) as ben:
            ringing = await anna.do("line.ring", line=ANNA_BEN)
            await ben.heard("line.state", line=ANNA_BEN, state="ringing")
            await ben.do("line.answer", line=ANNA_BEN)
            await ben.do("line.release", line=ANNA_BEN)
            [call] = await calls_of(client)
            assert (call.call_id, call.kind, call.reason) == (ringing["line_state"]["call_id"], "ringdown", "released")
            assert call.answered_at is not None
            assert call.started_at <= call.answered_at <= call.ended_at
            people = await people_of(client, call.call_id)
            assert {name: (one.firm_id, one.role) for name, one in people.items()} == {
                "anna": ("atlas", "caller"),
                "ben": ("atlas", "callee"),
            }
    assert check(read_event_log(log), finished=True) == []


async def test_an_extension_and_a_listener(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        tokens = [(await client.login(user))["token"] for user in ("anna", "fay")]
        url = f"http://{client.cloud.http}"
        async with phone(url, tokens[0]) as anna, phone(url, tokens[1]) as fay:
            await anna.do("line.ring", line=DIAL, number="2001")
            await fay.heard("line.state", line=DIAL, state="ringing")
            await fay.do("line.release", line=DIAL)
            await anna.heard("line.state", line=DIAL, state="idle", reason="declined")
            [call] = await calls_of(client)
            fays = (await people_of(client, call.call_id))["fay"]
            assert fays.joined_at == fays.left_at == call.ended_at
            # Fay is a talker of the hoot, and Anna is not.
            for one in (anna, fay):
                await one.do("line.join", line=HOOT)
            await fay.do("line.talk", line=HOOT, on=True)
            assert await anna.refused("line.talk", line=HOOT, on=True) == "wrong_state"


async def test_a_record_is_written_once(tmp_path: Path) -> None:
    record = CallRecord(
        call_id="0b0fa6b2-7f0b-4a7b-9d3c-2f6b1c9f7a10",
        line=ANNA_BEN,
        kind=LineKind.RINGDOWN,
        label="",
        region="use1",
        number=None,
        participants=(("anna", Stay(PartyRole.CALLER, 1.0, 2.0)),),
        started_at=1.0,
        answered_at=None,
        ended_at=2.0,
        end_reason=EndReason.TIMEOUT,
    )
    async with running_cloud(tmp_path) as client:
        await client.cloud.directory.on_call_ended(record)
        await client.cloud.directory.on_call_ended(replace(record, end_reason=EndReason.GONE))
        [call] = await calls_of(client)
        assert call.reason == "timeout"


async def test_a_line_that_is_taken_away_ends_its_call(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        tokens = [(await client.login(user))["token"] for user in ("anna", "ben")]
        url = f"http://{client.cloud.http}"
        async with phone(url, tokens[0]) as anna, phone(url, tokens[1]) as ben:
            await anna.heard("welcome")
            await ben.heard("welcome")
            await anna.do("line.ring", line=ANNA_BEN)
            members = tables.LineMember
            async with client.cloud.store.writing() as session:
                await session.execute(delete(members).where(members.number == ANNA_BEN, members.user_id == "anna"))
            client.cloud.directory.forget()
            await client.cloud.signaling.hub.lines_changed()
            await ben.heard("line.state", line=ANNA_BEN, state="idle", reason="gone")
            assert ANNA_BEN not in [line["line"] for line in (await anna.heard("welcome"))["lines"]]


async def test_a_line_that_is_deleted_ends_its_call(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        token = (await client.login("anna"))["token"]
        async with phone(f"http://{client.cloud.http}", token) as anna:
            await anna.do("line.ring", line=DIAL, number="5550408")
            async with client.cloud.store.writing() as session:
                await session.execute(delete(tables.Line).where(tables.Line.number == DIAL))
            client.cloud.directory.forget()
            await client.cloud.signaling.hub.lines_changed()
            await anna.heard("line.state", line=DIAL, state="idle", reason="removed")
            assert [call.reason for call in await calls_of(client)] == ["removed"]


async def test_lines_are_kept_for_a_while(tmp_path: Path) -> None:
    now = 0.0
    async with running_cloud(tmp_path) as client:
        directory = StoreDirectory(client.cloud.store, client.cloud.login.tokens, clock=lambda: now)
        assert len(await directory.lines_of("anna")) == 6
        async with client.cloud.store.writing() as session:
            await session.execute(delete(tables.Line).where(tables.Line.number == DIAL))
        assert await directory.line(DIAL) is not None
        now = 6.0
        assert await directory.line(DIAL) is None
        assert len(await directory.lines_of("anna")) == 5


async def test_other_parts_act_for_users(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        seen = []
        hub = client.cloud.signaling.hub
        hub.announcer.observe(lambda spec, line: seen.append((spec.number, line.status)))
        token = (await client.login("ben"))["token"]
        async with phone(f"http://{client.cloud.http}", token) as ben:
            state = await hub.act("anna", "use1", LineRing(line=ANNA_BEN))
            await ben.heard("line.state", line=ANNA_BEN, call_id=state.call_id)
            assert seen == [(ANNA_BEN, "ringing")]
            assert [(spec.number, line.status) for spec, line in await hub.live_lines()] == seen


async def test_the_end_of_a_login_ends_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "LOGINS_INTERVAL_S", 0.05)
    async with running_cloud(tmp_path) as client:
        logins = tables.LoginSession
        tokens = [(await client.login(user))["token"] for user in ("anna", "ben", "fay")]
        url = f"http://{client.cloud.http}"
        async with phone(url, tokens[0]) as anna, phone(url, tokens[1]) as ben, phone(url, tokens[2]) as fay:
            assert (await client.ask("POST", "/rest/v1/logout", token=tokens[0]))[0] == 200
            assert await anna.heard("session.ended") == {"reason": "ended"}
            await anna.heard("disconnect")
            async with client.cloud.store.writing() as session:
                await session.execute(update(logins).where(logins.user_id == "ben").values(expires_at=1.0))
            await ben.heard("disconnect")
            await fay.do("state.get")
