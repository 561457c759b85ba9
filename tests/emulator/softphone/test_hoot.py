"""Softphones on a hoot, in a real cloud with a relay: who is heard, over which carrier, and what happens to the key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.demo.calls import paths
from relay.demo.cloud import Floor, running_floor, softphone_user, with_more
from relay.emulator import fixtures
from relay.emulator.fixtures import LineFixture
from relay.emulator.lines import LineKind
from relay.emulator.sfu import Hoot
from relay.emulator.signaling import state as state_module
from relay.emulator.signaling.invariants import check
from relay.emulator.signaling.messages import EndReason, ErrorCode
from relay.emulator.softphone import (
    Call,
    Carrier,
    MediaFailed,
    NoMedia,
    SignalingRefused,
    Softphone,
    Trust,
    TurnTls,
    UdpTurn,
)
from relay.emulator.softphone import hoot as hoot_module
from relay.emulator.softphone.hoot import HootMedia
from relay.emulator.softphone.ogg import HEARD, SAID, read_recording
from relay.emulator.store.passwords import hash_password
from tests.support.benches.cloud import running_cloud
from tests.support.peers.redis_server import needs_redis, redis_server
from tests.support.waiting import EVENTUALLY_S, becomes, eventually

HOOT = "sPK-10000009-000001"
USERS = tuple(f"hoot-{number:02}" for number in range(13))
SERVER_NAME = "use1-stun1.xhoot.com"


@dataclass
class Bench:
    floor: Floor
    stack: contextlib.AsyncExitStack

    @property
    def hoot(self) -> Hoot:
        return self.floor.cloud.hoots._rooms[HOOT].hoot

    async def phone(self, user: str, carrier: Carrier | None = None, *, records: bool = False) -> Softphone:
        phone = Softphone(self.floor.url, user, "trader", carrier=carrier or UdpTurn(), records=records, speaks=False)
        return await self.stack.enter_async_context(phone)

    async def joined(self, user: str, carrier: Carrier | None = None, *, records: bool = False) -> Call:
        """Someone whom the SFU sends the voice of the others."""
        phone = await self.phone(user, carrier, records=records)
        rooms = self.floor.cloud.hoots._rooms
        before = self.hoot.figures().keepalives if HOOT in rooms else 0
        call = await phone.join(HOOT)
        await call.ready()
        await eventually(lambda: self.hoot.figures().keepalives > before)
        return call


def people() -> fixtures.Fixtures:
    hashed = hash_password("trader")
    line = LineFixture(number=HOOT, kind=LineKind.HOOT, label="All", members=USERS)
    return with_more(fixtures.bundled(), [softphone_user(user, hashed) for user in USERS], [line])


@contextlib.asynccontextmanager
async def hoots(tmp_path: Path) -> AsyncIterator[Bench]:
    """A cloud and a relay. At the end no call is open, and nothing is held."""
    async with running_floor(tmp_path, people()) as running:
        async with contextlib.AsyncExitStack() as stack:
            yield Bench(running, stack)
        await eventually(lambda: not running.gateway.plane.snapshot().flows, "flows are left in the relay")
        await eventually(lambda: running.cloud.turn_allocations == 0, "allocations are left")
        await becomes(lambda: running.cloud.hoots._rooms, {})
        assert check(running.cloud.signaling.hub.event_log.entries, finished=True) == []


def media(call: Call) -> HootMedia:
    assert isinstance(call.media, HootMedia)
    return call.media


def ssrc(call: Call) -> int:
    return media(call).speaker.ssrc


def key_number(call: Call) -> int | None:
    """The number of the key that a talker uses."""
    under = media(call).speaker._under
    return None if under is None else under[1]


def wrong(*calls: Call) -> int:
    return sum(
        media(call).listeners.wrong + sum(voice.wrong for voice in call.voices.values()) + media(call).strangers
        for call in calls
    )


async def hear_all(talker: Call, packets: int, *listeners: Call) -> None:
    """Each packet that was said so far has come, and is as it was said."""
    heard = await asyncio.gather(*(call.heard_voice(ssrc(talker), packets, EVENTUALLY_S) for call in listeners))
    assert heard == [packets] * len(listeners)


async def test_all_hear_all_over_every_carrier(tmp_path: Path) -> None:
    async with hoots(tmp_path) as bench:
        access = bench.floor.relay_access(SERVER_NAME)
        carriers = [*paths(access), TurnTls(None, Trust(access.trust, "127.0.0.1"), name="TURN/TLS direct")]
        calls = [await bench.joined(user, carrier) for user, carrier in zip(USERS, carriers, strict=False)]
        assert len(calls) == 6
        listener = await bench.joined(USERS[6])
        for call in calls:
            await call.talk(on=True)
        await asyncio.gather(*(call.say(10) for call in calls))
        for call in calls:
            await hear_all(call, 10, listener, *(other for other in calls if other is not call))
        assert wrong(*calls, listener) == 0
        assert bench.hoot.figures().refused == 0
        assert ssrc(calls[0]) not in calls[0].voices
        playout = listener.voices[ssrc(calls[0])].playout(10)
        assert (playout.sent, playout.lost) == (10, 0)
        assert playout.mos is not None


async def test_only_the_floor_lets_one_speak_and_the_thirteenth_does_not_get_it(tmp_path: Path) -> None:
    async with hoots(tmp_path) as bench:
        talker, listener = await bench.joined(USERS[0]), await bench.joined(USERS[12])
        others = [await (await bench.phone(user, NoMedia())).join(HOOT) for user in USERS[1:12]]
        for call in others:
            await call.talk(on=True)
        saying = asyncio.ensure_future(talker.say(10))
        await talker.talk(on=True)
        await saying
        await hear_all(talker, 10, listener)
        with pytest.raises(SignalingRefused) as refused:
            await listener.talk(on=True)
        assert refused.value.code is ErrorCode.FLOOR_FULL
        await talker.talk(on=False)
        await listener.talk(on=True)
        await listener.say(10)
        await hear_all(listener, 10, talker)
        assert wrong(talker, listener) == 0
        assert bench.hoot.figures().refused == 0


async def test_no_packet_is_lost_when_someone_leaves_and_the_key_changes(tmp_path: Path) -> None:
    async with hoots(tmp_path) as bench:
        first, second, third, leaver = [await bench.joined(user) for user in USERS[:4]]
        for call in (first, second):
            await call.talk(on=True)
        saying = [asyncio.ensure_future(call.say(100_000)) for call in (first, second)]
        assert await leaver.heard_voice(ssrc(first), 10, EVENTUALLY_S) >= 10
        await leaver.release()
        assert not leaver.is_open
        for call in (first, second):
            await becomes(lambda call=call: key_number(call), 2)  # type: ignore[misc]
        # The last ones of all.
        await asyncio.gather(first.say(10), second.say(10), *saying)
        assert bench.hoot.key.number == 2
        said = media(first).speaker.sent
        await hear_all(first, said, second, third)
        await hear_all(second, media(second).speaker.sent, first, third)
        assert third.voices[ssrc(first)].playout(said).lost == 0
        assert wrong(first, second, third, leaver) == 0
        # Whoever has left hears nothing more, and their way is closed.
        assert leaver.voices[ssrc(first)].received < said
        await becomes(lambda: bench.floor.cloud.turn_allocations, 3)


async def test_one_who_joins_late_misses_nothing_from_then_on(tmp_path: Path) -> None:
    async with hoots(tmp_path) as bench:
        talker, early, leaver = [await bench.joined(user) for user in USERS[:3]]
        await leaver.release()
        await becomes(lambda: bench.hoot.key.number, 2)
        await talker.talk(on=True)
        await talker.say(20)
        await hear_all(talker, 20, early)
        late = await bench.joined(USERS[3])
        await talker.say(15)
        await hear_all(talker, 35, early)
        await hear_all(talker, 15, late)
        assert late.voices[ssrc(talker)].playout().lost == 0
        assert wrong(talker, early, late) == 0


async def test_a_hoot_is_recorded(tmp_path: Path) -> None:
    async with hoots(tmp_path) as bench:
        one, other = [await bench.joined(user, records=True) for user in USERS[:2]]
        for call in (one, other):
            await call.talk(on=True)
        await one.say(20)
        await hear_all(one, 20, other)
        await other.say(10)
        await hear_all(other, 10, one)
        await one.release()
        recording = await one.recorded()
        assert recording is not None
        assert recording.participants == USERS[:2]
        activity, _ = read_recording(recording.media)
        assert sum(bool(each & SAID) for each in activity) == 20
        assert any(each & HEARD for each in activity)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"SILENCE_S": 0.3, "MAX_SILENCE_S": 0.3, "TALKER_ASKS_S": 0.3, "WATCH_S": 0.05}.items():
        monkeypatch.setattr(hoot_module, name, seconds)


async def hear_again(talker: Call, listener: Call) -> None:
    before = listener.voices[ssrc(talker)].received
    assert await listener.heard_voice(ssrc(talker), before + 5, EVENTUALLY_S) >= before + 5


@pytest.mark.usefixtures("impatient")
async def test_a_hoot_that_the_sfu_has_lost_is_found_again_and_a_lost_sfu_is_told(tmp_path: Path) -> None:
    async with hoots(tmp_path) as bench:
        talker, listener = [await bench.joined(user) for user in USERS[:2]]
        await talker.talk(on=True)
        saying = asyncio.ensure_future(talker.say(100_000))
        assert await listener.heard_voice(ssrc(talker), 5, EVENTUALLY_S) >= 5
        lost = bench.hoot
        await bench.floor.cloud.hoots.stop()
        await hear_again(talker, listener)
        assert bench.hoot is not lost
        assert media(listener).reopenings == 0
        await bench.floor.cloud.hoots.stop()
        await bench.floor.cloud.hoots._sfu.stop()
        for call in (talker, listener):
            await eventually(lambda call=call: media(call).failed is not None)  # type: ignore[misc]
            with pytest.raises(MediaFailed, match=r"no voice for hoot-0.*the SFU does not run"):
                await call.ready()
        # Signaling works all the same, and the ways are closed.
        await becomes(lambda: bench.floor.cloud.turn_allocations, 0)
        saying.cancel()
        await talker.talk(on=False)


@pytest.mark.usefixtures("impatient")
async def test_a_turn_host_that_stops_in_mid_hoot(tmp_path: Path) -> None:
    async with hoots(tmp_path) as bench:
        talker, listener = [await bench.joined(user) for user in USERS[:2]]
        await talker.talk(on=True)
        saying = asyncio.ensure_future(talker.say(100_000))
        assert await listener.heard_voice(ssrc(talker), 5, EVENTUALLY_S) >= 5
        # Both have the nearest host.
        phone = await bench.phone(USERS[2], NoMedia())
        await bench.floor.cloud.switch_host(phone.login.settings.media.hosts[0].name, on=False)
        await eventually(lambda: media(talker).reopenings >= 1 and media(listener).reopenings >= 1)
        await hear_again(talker, listener)
        saying.cancel()


async def test_who_leaves_a_crowd_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowded line lists its talkers only, so that a user who is not listed may be in it."""
    monkeypatch.setattr(state_module, "MAX_LISTED_PARTICIPANTS", 2)
    async with hoots(tmp_path) as bench:
        calls = [await (await bench.phone(user, NoMedia())).join(HOOT) for user in USERS[:4]]
        assert [(call.own, call.is_open) for call in calls] == [(None, True)] * 4
        await calls[1].release()
        assert [call.is_open for call in calls] == [True, False, True, True]
        assert await calls[1].ended(EVENTUALLY_S) is EndReason.RELEASED


async def test_a_user_of_no_media_has_no_voices(tmp_path: Path) -> None:
    async with hoots(tmp_path) as bench:
        call = await (await bench.phone(USERS[0], NoMedia())).join(HOOT)
        await call.ready()
        assert (call.voices, call.legs) == ({}, {})


@needs_redis
async def test_with_redis_the_softphone_says_that_hoots_have_no_voice(tmp_path: Path) -> None:
    async with (
        redis_server(tmp_path) as redis,
        running_cloud(tmp_path, runs_turn=True, redis_url=redis.url) as client,
        Softphone(f"http://{client.cloud.http}", "dora", "trader", carrier=UdpTurn()) as dora,
    ):
        call = await dora.join("sPK-10000003-100001")
        with pytest.raises(MediaFailed, match=r"no voice for dora: There is no SFU.*--redis.*Expected: .*one process"):
            await call.ready()
        await call.talk(on=True)
        await call.release()
