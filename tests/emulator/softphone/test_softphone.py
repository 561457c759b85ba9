"""Softphones in a real cloud, with a relay: calls of each kind, and what a user is told when something fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import update

from relay.addresses import Address
from relay.demo.cloud import Floor, running_floor
from relay.emulator.signaling.invariants import check
from relay.emulator.signaling.messages import EndReason, ErrorCode, LineState, LineStatus, PresenceStatus, SessionEnd
from relay.emulator.softphone import (
    Call,
    CallEnded,
    LoginRefused,
    MediaSession,
    NoMedia,
    NotEntitled,
    SessionEnded,
    SessionReplaced,
    SignalingRefused,
    Softphone,
    Trust,
    TurnTls,
    UdpTurn,
    Unreachable,
)
from relay.emulator.softphone import media as media_module
from relay.emulator.softphone.ogg import HEARD, SAID, read_recording
from relay.emulator.softphone.pacer import Pacer
from relay.emulator.store import tables
from tests.support.benches.cloud import through_relay
from tests.support.waiting import becomes, eventually

RINGDOWN, SHARED = "sPK-10000001-100001", "sPK-10000001-100002"
SHOUT, HOOT, INTERCOM = "sPK-10000002-100001", "sPK-10000003-100001", "sPK-10000004-100001"
DIAL_TONE, BROADCAST = "sPK-10000005-100001", "sPK-10000006-100001"
SERVER_NAME = "use1-stun1.xhoot.com"


@contextlib.asynccontextmanager
async def floor(tmp_path: Path) -> AsyncIterator[Floor]:
    """A cloud and a relay that Anna and Ben may use. At the end no call is open, and nothing is held."""
    async with running_floor(tmp_path, through_relay("anna", "ben")) as running:
        yield running
        await eventually(lambda: not running.gateway.plane.snapshot().flows, "flows are left in the relay")
        await eventually(lambda: running.cloud.turn_allocations == 0, "allocations are left")
        assert check(running.cloud.signaling.hub.event_log.entries, finished=True) == []


def phone(floor: Floor, user: str, **options: object) -> Softphone:
    return Softphone(floor.url, user, "trader", **options)  # type: ignore[arg-type]


async def talk(caller: Softphone, callee: Softphone, line: str, number: str | None = None) -> tuple[Call, Call]:
    """A call that is answered if it rings, with voice both ways."""
    there = await caller.ring(line, number)
    here = await callee.next_incoming(10)
    if here.state.state is LineStatus.RINGING:
        await here.answer()
    await asyncio.gather(there.ready(), here.ready())
    return there, here


def heard(call: Call) -> int:
    return sum(leg.listener.received for leg in call.legs.values() if leg.listener is not None)


def wrong(call: Call) -> int:
    return sum(leg.listener.wrong for leg in call.legs.values() if leg.listener is not None)


async def hear_more(*calls: Call) -> None:
    before = [heard(call) for call in calls]
    await eventually(lambda: all(heard(call) >= was + 5 for call, was in zip(calls, before, strict=True)))


async def test_softphones_share_a_pacer_that_nobody_uses_yet() -> None:
    pacer = Pacer()
    assert [Softphone("http://a.test", user, "secret", pacer=pacer).pacer for user in ("ann", "bob")] == [pacer, pacer]


async def test_a_recorded_call(tmp_path: Path) -> None:
    async with (
        floor(tmp_path) as running,
        phone(running, "anna", carrier=UdpTurn(), records=True, speaks=False) as anna,
        phone(running, "ben", carrier=UdpTurn(), records=True, speaks=False) as ben,
    ):
        assert anna.presence["ben"] is PresenceStatus.AVAILABLE
        there, here = await talk(anna, ben, RINGDOWN)
        await there.say(20)
        assert await here.heard("anna", 20) == 20
        await here.say(10)
        assert await there.heard("ben", 10) == 10
        await there.release()
        assert await here.ended(10) is EndReason.RELEASED
        mine, theirs = await there.recorded(), await here.recorded()
        assert mine is not None
        assert theirs is not None
        assert await anna.fetch_recording(mine.recording_id) == mine.media
        activity, comments = read_recording(mine.media)
        assert (comments["CALL_ID"], comments["USER_ID"]) == (there.call_id, "anna")
        assert sum(bool(each & SAID) for each in activity) == 20
        assert any(each & HEARD for each in activity)
        assert mine.sha256 != theirs.sha256


async def test_a_close_that_is_cancelled_leaves_no_call_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of its calls have not begun by then. No task is left either, which each test here looks for."""
    waits = asyncio.Event()

    async def for_ever(_: Softphone) -> None:
        waits.set()
        await asyncio.Event().wait()

    async with (
        floor(tmp_path) as running,
        phone(running, "anna", carrier=UdpTurn(), records=True) as anna,
        phone(running, "ben", carrier=UdpTurn()) as ben,
    ):
        there, _ = await talk(anna, ben, RINGDOWN)
        with monkeypatch.context() as patched:
            patched.setattr(Softphone, "_release_all", for_ever)
            closing = asyncio.create_task(anna.close())
            await waits.wait()
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        with pytest.raises(Unreachable, match="closed before the recording was uploaded"):
            await there.recorded()


async def test_one_way_lines_carry_voice_one_way(tmp_path: Path) -> None:
    async with (
        floor(tmp_path) as running,
        phone(running, "dora", carrier=UdpTurn()) as dora,
        phone(running, "fay", carrier=UdpTurn()) as fay,
    ):
        there, here = await talk(dora, fay, SHOUT)
        await hear_more(here)
        assert heard(there) == 0
        await here.talk(on=True)
        await hear_more(there)
        await there.talk(on=False)
        await becomes(lambda: here.state.state, LineStatus.TALKING)
        await there.release()
        assert wrong(there) + wrong(here) == 0


async def test_everyone_on_an_intercom_hears_everyone(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(floor(tmp_path))
        phones = [
            await stack.enter_async_context(phone(running, user, carrier=UdpTurn())) for user in ("anna", "ben", "chen")
        ]
        calls = [await phones[0].ring(INTERCOM)]
        calls += [await other.next_incoming(10) for other in phones[1:]]
        await asyncio.gather(*(call.ready() for call in calls))
        await eventually(
            lambda: all(
                leg.listener is not None and leg.listener.received >= 5 for call in calls for leg in call.legs.values()
            )
        )
        assert [sorted(call.legs) for call in calls] == [["ben", "chen"], ["anna", "chen"], ["anna", "ben"]]
        await calls[0].release()
        assert sum(map(wrong, calls)) == 0


async def test_dialling_rings_whoever_has_the_number(tmp_path: Path) -> None:
    async with (
        floor(tmp_path) as running,
        phone(running, "anna", carrier=UdpTurn()) as anna,
        phone(running, "fay", carrier=UdpTurn()) as fay,
    ):
        there, here = await talk(anna, fay, DIAL_TONE, "2001")
        await hear_more(there, here)
        await here.release()
        assert await there.ended(10) is EndReason.RELEASED


async def test_hoot_and_presence_without_media(tmp_path: Path) -> None:
    async with (
        floor(tmp_path) as running,
        phone(running, "dora", carrier=NoMedia()) as dora,
        phone(running, "emil", carrier=NoMedia()) as emil,
    ):
        call = await dora.join(HOOT)
        other = await emil.join(HOOT)
        assert not other.incoming
        await call.talk(on=True)
        await becomes(lambda: emil.talkers.get(HOOT), ("dora",))
        await dora.set_presence(PresenceStatus.BUSY)
        await becomes(lambda: emil.presence["dora"], PresenceStatus.BUSY)
        await call.release()
        await other.release()
        assert (dora.calls, emil.calls) == ({}, {})


async def test_calls_that_are_not_answered(tmp_path: Path) -> None:
    async with (
        floor(tmp_path) as running,
        phone(running, "anna", carrier=NoMedia()) as anna,
        phone(running, "ben", carrier=NoMedia()) as ben,
    ):
        states = [state async for state in _first(ben.watch(RINGDOWN, 10), 1)]
        assert states[0].state is LineStatus.IDLE
        call = await anna.ring(RINGDOWN)
        await (await ben.next_incoming(10)).release()
        with pytest.raises(CallEnded, match="declined"):
            await call.answered()
        call = await anna.ring(RINGDOWN)
        given_up = await ben.next_incoming(10)
        await call.release()
        assert await given_up.ended(10) is EndReason.RELEASED
        with pytest.raises(Unreachable, match="no call came"):
            await ben.next_incoming(0.01)


async def _first(states: AsyncIterator[LineState], count: int) -> AsyncIterator[LineState]:
    async for state in states:
        yield state
        count -= 1
        if not count:
            return


async def test_who_must_act_when_something_is_refused(tmp_path: Path) -> None:
    async with floor(tmp_path) as running:
        with pytest.raises(LoginRefused, match="401: The name or the password is wrong"):
            await Softphone(running.url, "anna", "wrong").open()
        with pytest.raises(Unreachable, match="9/rest/v1/login"):
            await Softphone("http://127.0.0.1:9", "anna", "trader").open()
        async with phone(running, "anna", carrier=NoMedia()) as anna:
            with pytest.raises(SignalingRefused) as refused:
                await anna.ring("sPK-99999999-999999")
            assert refused.value.code is ErrorCode.UNKNOWN_LINE
            with pytest.raises(SignalingRefused, match="Expected"):
                await anna.ring(RINGDOWN, "1002")
            with pytest.raises(SignalingRefused, match="Dial tone needs a number"):
                await anna.ring(DIAL_TONE)
            with pytest.raises(SignalingRefused):
                await anna.join(RINGDOWN)
            assert anna.calls == {}


async def test_user_without_the_setting_is_told_which_and_who_changes_it(tmp_path: Path) -> None:
    async with floor(tmp_path) as running:
        access = running.relay_access(SERVER_NAME)
        carriers = (
            TurnTls(access.address, Trust(access.trust, SERVER_NAME)),
            MediaSession(f"wss://{access.address}/media", Trust(access.trust, SERVER_NAME)),
        )
        for carrier in carriers:
            # The setting is on for Anna, and off for Chen.
            async with phone(running, "chen", carrier=carrier) as chen, phone(running, "fay", carrier=UdpTurn()) as fay:
                there = await chen.ring(SHARED)
                await (await fay.next_incoming(10)).answer()
                with pytest.raises(NotEntitled, match=r"Voice via Web Proxy.*administrator.*next login"):
                    await there.ready()
                # Signaling works all the same.
                await there.release()


async def test_signaling_that_is_cut_comes_back_and_the_call_goes_on(tmp_path: Path) -> None:
    async with (
        floor(tmp_path) as running,
        phone(running, "anna", carrier=UdpTurn()) as anna,
        phone(running, "ben", carrier=UdpTurn()) as ben,
    ):
        there, here = await talk(anna, ben, RINGDOWN)
        anna.signaling.cut()
        ben.signaling.cut()
        # Voice does not need it.
        await hear_more(there, here)
        await eventually(lambda: anna.signaling.returns == 1 and ben.signaling.returns == 1)
        assert anna.calls == {RINGDOWN: there}
        assert (there.is_open, here.is_open) == (True, True)
        await there.release()
        assert await here.ended(10) is EndReason.RELEASED
        assert wrong(there) + wrong(here) == 0


async def test_call_that_ends_while_signaling_is_cut(tmp_path: Path) -> None:
    async with (
        floor(tmp_path) as running,
        phone(running, "anna", carrier=NoMedia()) as anna,
        phone(running, "ben", carrier=NoMedia()) as ben,
    ):
        there, here = await talk(anna, ben, RINGDOWN)
        anna.signaling.cut()
        await here.release()
        assert await there.ended(10) is EndReason.RELEASED
        await eventually(lambda: anna.signaling.returns == 1)


async def test_second_login_ends_the_first(tmp_path: Path) -> None:
    async with floor(tmp_path) as running, phone(running, "anna", carrier=NoMedia()) as first:
        async with phone(running, "anna", carrier=NoMedia()):
            await eventually(first.closed.done)
            with pytest.raises(SessionReplaced):
                first.closed.result()
            with pytest.raises(Unreachable, match="ended"):
                await first.ring(RINGDOWN)
        assert first.signaling.returns == 0


async def test_a_disabled_user_is_told_so(tmp_path: Path) -> None:
    async with floor(tmp_path) as running, phone(running, "anna", carrier=NoMedia()) as anna:
        users = tables.User
        async with running.cloud.store.writing() as session:
            await session.execute(update(users).where(users.user_id == "anna").values(enabled=False))
        await running.cloud.signaling.hub.logins_ended()
        await eventually(anna.closed.done)
        with pytest.raises(SessionEnded, match="An administrator has disabled this user") as ended:
            anna.closed.result()
        assert ended.value.reason is SessionEnd.DISABLED
        assert anna.signaling.returns == 0


async def test_turn_host_that_stops_in_mid_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than a busy machine stands still: who hears nothing for so long opens a new way.
    monkeypatch.setattr(media_module, "SILENCE_S", 2.0)
    monkeypatch.setattr(media_module, "WATCH_S", 0.05)
    async with (
        floor(tmp_path) as running,
        phone(running, "anna", carrier=UdpTurn()) as anna,
        phone(running, "fay", carrier=UdpTurn()) as fay,
    ):
        there, here = await talk(anna, fay, SHARED)
        await hear_more(there, here)
        # Fay's region is another one, so her way stays.
        host = anna.login.settings.media.hosts[0].name
        await running.cloud.switch_host(host, on=False)
        await eventually(lambda: there.media is not None and there.media.reopenings >= 1)
        await hear_more(there, here)
        assert here.media is not None
        assert here.media.reopenings == 0
        await there.release()
        assert wrong(there) + wrong(here) == 0


async def test_relay_that_drains_in_mid_call(tmp_path: Path) -> None:
    async with floor(tmp_path) as running:
        access = running.relay_access(SERVER_NAME)
        carrier = TurnTls(access.address, Trust(access.trust, SERVER_NAME))
        async with phone(running, "anna", carrier=carrier) as anna, phone(running, "ben", carrier=carrier) as ben:
            there, here = await talk(anna, ben, RINGDOWN)
            draining = asyncio.ensure_future(running.gateway.drain())
            await eventually(lambda: running.gateway.draining)
            await hear_more(there, here)
            await there.release()
            await here.ended(10)
            await asyncio.wait_for(draining, 30)
            assert wrong(there) + wrong(here) == 0


async def test_without_a_carrier_the_login_says_how_voice_travels(tmp_path: Path) -> None:
    async with floor(tmp_path) as running, phone(running, "chen") as chen, phone(running, "dora") as dora:
        assert chen.carrier == UdpTurn()
        assert isinstance(dora.carrier, TurnTls)
        assert dora.carrier.server == Address("127.0.0.1", 0)


async def test_closed_in_mid_call(tmp_path: Path) -> None:
    async with floor(tmp_path) as running, phone(running, "ben", carrier=UdpTurn(), records=True) as ben:
        async with phone(running, "anna", carrier=UdpTurn(), records=True) as anna:
            there, here = await talk(anna, ben, RINGDOWN)
            await hear_more(there, here)
        assert await here.ended(10) is EndReason.RELEASED
        # It was uploaded before ``close`` returned.
        recording = await there.recorded(0.1)
        assert recording is not None
        await here.recorded()
        await anna.close()


async def test_both_transports(tmp_path: Path) -> None:
    async with (
        floor(tmp_path) as running,
        phone(running, "anna", carrier=NoMedia(), transports=("polling",)) as anna,
        phone(running, "ben", carrier=NoMedia(), transports=("polling", "websocket")) as ben,
    ):
        there, here = await talk(anna, ben, RINGDOWN)
        await here.release()
        assert await there.ended(10) is EndReason.RELEASED
