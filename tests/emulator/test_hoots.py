"""The media of hoots: signaling over socket.io, SRTP over UDP, and what ties the two."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.emulator import hoots as hoots_module
from relay.emulator.hoots import MAX_HOOTS_OF_A_FIRM, HootMedia, parse_end
from relay.emulator.lines import LineKind
from relay.emulator.sfu import FloorFull, GroupCipher, GroupKey, Hoot, HootError, Sfu, keepalive
from relay.emulator.sfu._fanout import MAX_ROOMS
from relay.emulator.signaling.messages import MEDIA_SERVER
from relay.emulator.signaling.state import Refusal
from relay.emulator.softphone import sdp as softphone_sdp
from relay.wire.rtp import RtpHeader, build_packet
from tests.support.benches.cloud import running_cloud
from tests.support.benches.emulated_signaling import People, Phone, Signaling, phone, running_signaling
from tests.support.emulated_lines import NUMBERS, line
from tests.support.waiting import becomes

HOOT = NUMBERS[LineKind.HOOT]
OTHER_HOOTS = ["sPK-10000000-000101", "sPK-10000000-000102"]
INTERCOM = NUMBERS[LineKind.INTERCOM]
VOICE = b"v" * 160
NOWHERE = Address("", 0)


@dataclass
class Ear:
    """A softphone on a hoot: its signaling, its socket, and the keys that it was told."""

    phone: Phone
    socket: socket.socket
    ssrc: int = field(default_factory=lambda: secrets.randbits(32))
    call_id: str = ""
    cipher: GroupCipher | None = None
    hoot: Address = NOWHERE
    heard: list[bytes] = field(default_factory=list)
    _number: int = 0

    @property
    def address(self) -> Address:
        return Address(*self.socket.getsockname())

    async def join(self, number: str = HOOT) -> None:
        answer = await self.phone.do("line.join", line=number)
        self.call_id = answer["line_state"]["call_id"]

    def offer(self, **changes: Any) -> str:
        return softphone_sdp.build(
            softphone_sdp.Description(
                relayed=changes.get("relayed", self.address),
                ssrc=changes.get("ssrc", self.ssrc),
                master_key=bytes(30),
                cname="desk",
                session_id=1,
            )
        )

    async def tell(self, sdp: str) -> Any:
        return await self.phone.ask("media.description", call_id=self.call_id, to=MEDIA_SERVER, type="offer", sdp=sdp)

    async def describe(self) -> None:
        """Offer, take the answer, and show life."""
        assert (await self.tell(self.offer()))["ok"]
        answer = await self.phone.heard("media.description", type="answer")
        assert answer["from"] == MEDIA_SERVER
        self.take(answer["sdp"])
        self.socket.sendto(keepalive(), self.hoot)

    def take(self, sdp: str) -> GroupKey:
        values = dict(one.split(":", 1) for one in sdp.split("\r\n") if one.startswith("a=crypto"))
        port = next(one.split(" ")[1] for one in sdp.split("\r\n") if one.startswith("m="))
        key = GroupKey.parse(values["a=crypto"])
        self.hoot = Address("127.0.0.1", int(port))
        if self.cipher is None:
            self.cipher = GroupCipher(key)
        self.cipher.use(key, 0.0)
        return key

    def say(self) -> None:
        assert self.cipher is not None
        self._number += 1
        header = RtpHeader(0, self._number, self._number * 160, self.ssrc)
        self.socket.sendto(self.cipher.protect(build_packet(header, VOICE), 100.0), self.hoot)

    def listen(self) -> list[bytes]:
        assert self.cipher is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self.cipher.unprotect(self.socket.recv(2048), 1.0)[12:])
        return self.heard


@dataclass
class Bench:
    signaling: Signaling
    media: HootMedia
    sfu: Sfu
    stack: contextlib.AsyncExitStack

    async def ear(self, user_id: str) -> Ear:
        opened = self.stack.enter_context(socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        opened.bind(("127.0.0.1", 0))
        return Ear(await self.stack.enter_async_context(self.signaling.phone(user_id)), opened)

    async def joined(self, user_id: str) -> Ear:
        """Someone who hears the hoot."""
        ear = await self.ear(user_id)
        await ear.join()
        before = self.hoot.figures().keepalives if HOOT in self.sfu.hoots else 0
        await ear.describe()
        await becomes(lambda: self.hoot.figures().keepalives, before + 1)
        return ear

    @property
    def hoot(self) -> Hoot:
        return self.sfu.hoots[HOOT]


@contextlib.asynccontextmanager
async def hoots(**options: Any) -> AsyncIterator[Bench]:
    people = People.with_lines(
        line(LineKind.HOOT, "a1", "a2", "b1", "b2", listeners=("b2",)),
        line(LineKind.INTERCOM, "a1", "b1"),
        *(line(LineKind.HOOT, "a1", "a2", "b1", number=number) for number in OTHER_HOOTS),
    )
    async with running_signaling(people) as signaling, contextlib.AsyncExitStack() as stack:
        media = HootMedia(signaling.server.hub)
        async with Sfu(on_key=media.on_key, on_vanished=media.on_vanished, **options) as sfu:
            media.start(sfu)
            try:
                yield Bench(signaling, media, sfu, stack)
                await stack.aclose()
            finally:
                await media.stop()


async def test_who_has_the_floor_is_heard_by_all() -> None:
    async with hoots() as bench:
        anna, bert, carl = [await bench.joined(user_id) for user_id in ("a1", "a2", "b1")]
        anna.say()
        await becomes(lambda: bench.hoot.figures().no_floor, 1)
        await anna.phone.do("line.talk", line=HOOT, on=True)
        anna.say()
        for ear in (bert, carl):
            await becomes(ear.listen, [VOICE])
        await anna.phone.do("line.talk", line=HOOT, on=False)
        anna.say()
        await becomes(lambda: bench.hoot.figures().no_floor, 2)
        assert bench.hoot.talkers == []
        assert anna.listen() == []


async def test_one_who_has_the_floor_before_the_offer_is_heard_after_it() -> None:
    async with hoots() as bench:
        bert, anna = await bench.joined("a2"), await bench.ear("a1")
        await anna.join()
        await anna.phone.do("line.talk", line=HOOT, on=True)
        assert bench.hoot.talkers == []
        await anna.describe()
        assert bench.hoot.talkers == ["a1"]
        anna.say()
        await becomes(bert.listen, [VOICE])


async def test_who_leaves_does_not_get_the_new_key() -> None:
    async with hoots() as bench:
        anna, bert, carl = [await bench.joined(user_id) for user_id in ("a1", "a2", "b1")]
        await carl.phone.do("line.leave", line=HOOT)
        for ear in (anna, bert):
            told = await ear.phone.heard("media.description", type="offer")
            assert ear.take(told["sdp"]).number == 2
        assert not [told for told in carl.phone.told if told[0] == "media.description"]
        await anna.phone.do("line.talk", line=HOOT, on=True)
        anna.say()
        await becomes(bert.listen, [VOICE])
        with pytest.raises(BlockingIOError):
            carl.socket.recv(2048)


async def test_the_last_one_ends_the_hoot_and_the_next_one_begins_another() -> None:
    async with hoots() as bench:
        anna = await bench.joined("a1")
        first = bench.hoot
        assert bench.media.serves(first.address)
        await anna.phone.do("line.leave", line=HOOT)
        await becomes(lambda: bench.sfu.hoots, {})
        assert first.closed
        assert not bench.media.serves(first.address)
        bert = await bench.joined("a2")
        assert bench.hoot.key.master_key != first.key.master_key
        assert bert.call_id != anna.call_id


async def test_a_softphone_that_vanishes_may_offer_again() -> None:
    async with hoots(vanish_s=1.5) as bench:
        anna = await bench.ear("a1")
        await anna.join()
        await anna.describe()
        await becomes(lambda: bench.sfu.hoots, {})
        assert bench.media._rooms == {}
        await anna.describe()
        assert bench.hoot.subscribers == ["a1"]


async def test_offers_that_cannot_be() -> None:
    async with hoots() as bench:
        anna, bert = await bench.joined("a1"), await bench.ear("a2")
        bert.call_id = anna.call_id
        assert (await bert.tell(bert.offer()))["error"]["code"] == "not_in_call"
        await bert.join()
        for sdp in ("", "v=0", bert.offer() + bert.offer(), bert.offer(relayed=Address("2001:db8::1", 5000))):
            assert (await bert.tell(sdp))["error"]["code"] == "bad_message", sdp
        taken = await bert.tell(bert.offer(relayed=anna.address))
        assert taken["error"] == {
            "code": "bad_message",
            "message": f"{anna.address}: another user has this address",
            "expected": taken["error"]["expected"],
        }
        browser = await bert.tell("v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\n")
        assert "browser" in browser["error"]["message"]
        # A candidate is nothing to answer.
        await bert.phone.do("media.candidate", call_id=bert.call_id, to=MEDIA_SERVER, candidate="")
        assert bench.hoot.subscribers == ["a1"]


async def test_only_hoots_have_media_here() -> None:
    async with hoots() as bench:
        anna = await bench.ear("a1")
        await bench.ear("b1")
        answer = await anna.phone.do("line.ring", line=INTERCOM)
        anna.call_id = answer["line_state"]["call_id"]
        assert (await anna.tell(anna.offer()))["error"]["code"] == "wrong_state"


async def test_a_second_user_of_a_ssrc_is_not_let_talk() -> None:
    async with hoots() as bench:
        anna, bert = await bench.joined("a1"), await bench.ear("a2")
        bert.ssrc = anna.ssrc
        await bert.join()
        await bert.describe()
        for ear in (anna, bert):
            await ear.phone.do("line.talk", line=HOOT, on=True)
        assert bench.hoot.talkers == ["a1"]
        told = await bert.phone.heard("fault")
        assert told["code"] == "bad_message"
        assert "another user has it" in told["message"]
        refused = await bert.tell(bert.offer())
        assert "another user has it" in refused["error"]["message"]


async def test_a_talker_who_is_made_a_listener_is_not_heard() -> None:
    async with hoots() as bench:
        anna, bert = [await bench.joined(user_id) for user_id in ("a1", "a2")]
        await anna.phone.do("line.talk", line=HOOT, on=True)
        await bert.phone.heard("floor.state", line=HOOT, talkers=["a1"])
        people = bench.signaling.people
        people.specs[HOOT] = line(LineKind.HOOT, "a1", "a2", "b1", "b2", listeners=("a1", "b2"))
        await bench.signaling.server.hub.lines_changed()
        await bert.phone.heard("floor.state", line=HOOT, talkers=[])
        assert bench.hoot.talkers == []
        anna.say()
        await becomes(lambda: bench.hoot.figures().no_floor, 1)
        # A new offer does not bring the floor back, and to give it back is no error.
        assert (await anna.tell(anna.offer()))["ok"]
        assert bench.hoot.talkers == []
        await anna.phone.do("line.talk", line=HOOT, on=False)
        assert await anna.phone.refused("line.talk", line=HOOT, on=True) == "wrong_state"
        assert bert.listen() == []


async def test_a_disabled_user_does_not_get_the_new_key() -> None:
    async with hoots() as bench:
        people = bench.signaling.people
        people.ended = set()
        anna, bert, carl = [await bench.joined(user_id) for user_id in ("a1", "a2", "b1")]
        people.ended, people.disabled_users = {"b1"}, {"b1"}
        await bench.signaling.server.hub.logins_ended()
        assert await carl.phone.heard("session.ended") == {"reason": "disabled"}
        await carl.phone.heard("disconnect")
        for ear in (anna, bert):
            told = await ear.phone.heard("media.description", type="offer")
            assert ear.take(told["sdp"]).number == 2
        assert bench.hoot.subscribers == ["a1", "a2"]
        told_carl = {event for event, _ in carl.phone.told}
        assert not told_carl & {"session.replaced", "media.description"}


async def test_a_refused_ssrc_is_not_tried_again_and_each_grant_says_so() -> None:
    async with hoots() as bench:
        anna, bert = await bench.joined("a1"), await bench.ear("a2")
        bert.ssrc = anna.ssrc
        await bert.join()
        await bert.describe()
        for ear in (anna, bert):
            await ear.phone.do("line.talk", line=HOOT, on=True)
        await bert.phone.heard("fault")
        # Other changes of the line are no grant.
        await bench.joined("b1")
        assert not [told for told in bert.phone.told if told[0] == "fault"]
        await bert.phone.do("line.talk", line=HOOT, on=False)
        await bert.phone.do("line.talk", line=HOOT, on=True)
        assert "offer with another" in (await bert.phone.heard("fault"))["message"]
        bert.ssrc += 1 if bert.ssrc == 0 else -1
        await bert.describe()
        assert set(bench.hoot.talkers) == {"a1", "a2"}
        bert.say()
        await becomes(anna.listen, [VOICE])


async def test_a_refused_offer_leaves_the_one_before() -> None:
    async with hoots() as bench:
        anna, bert = await bench.joined("a1"), await bench.joined("a2")
        await anna.phone.do("line.talk", line=HOOT, on=True)
        refused = await bert.tell(bert.offer(ssrc=anna.ssrc))
        assert "another user has it" in refused["error"]["message"]
        await bert.phone.do("line.talk", line=HOOT, on=True)
        assert set(bench.hoot.talkers) == {"a1", "a2"}
        bert.say()
        await becomes(anna.listen, [VOICE])


async def test_nobody_gets_the_ssrc_of_a_talker_after_a_key_change() -> None:
    async with hoots() as bench:
        anna, bert, carl = [await bench.joined(user_id) for user_id in ("a1", "a2", "b1")]
        for ear in (anna, carl):
            await ear.phone.do("line.talk", line=HOOT, on=True)
        await bert.phone.do("line.leave", line=HOOT)
        await anna.phone.heard("media.description", type="offer")
        assert bench.hoot.key.number == 2
        refused = await carl.tell(carl.offer(ssrc=anna.ssrc))
        assert "another user has it" in refused["error"]["message"]
        assert (await anna.tell(anna.offer()))["ok"]
        anna.say()
        await becomes(lambda: bench.hoot.figures().forwarded, 1)


async def test_an_sfu_that_cannot_take_a_talker_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hoots() as bench:
        anna = await bench.joined("a1")
        for error, code in ((FloorFull("full"), "floor_full"), (HootError("does not keep up"), "unavailable")):

            def refuse(*_: object, why: HootError = error) -> None:
                raise why

            monkeypatch.setattr(bench.hoot, "allow", refuse)
            await anna.phone.do("line.talk", line=HOOT, on=True)
            assert await anna.phone.heard("fault") == {"code": code, "message": str(error)}
            await anna.phone.do("line.talk", line=HOOT, on=False)
        monkeypatch.undo()
        await anna.phone.do("line.talk", line=HOOT, on=True)
        assert bench.hoot.talkers == ["a1"]


async def test_one_firm_cannot_take_all_hoots(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2 * MAX_HOOTS_OF_A_FIRM <= MAX_ROOMS
    monkeypatch.setattr(hoots_module, "MAX_HOOTS_OF_A_FIRM", 2)
    async with hoots() as bench:
        anna, bert, carl = [await bench.ear(user_id) for user_id in ("a1", "a2", "b1")]
        for ear, number in ((anna, HOOT), (bert, OTHER_HOOTS[0])):
            await ear.join(number)
            await ear.describe()
        await anna.join(OTHER_HOOTS[1])
        refused = (await anna.tell(anna.offer()))["error"]
        assert refused["code"] == "unavailable"
        assert refused["message"] == "Your firm has 2 hoots open, which is the limit."
        for number in (OTHER_HOOTS[1], HOOT):
            await carl.join(number)
            await carl.describe()
        # The hoot is the other firm's now: theirs is the one who has been in it longest.
        await anna.phone.do("line.leave", line=HOOT)
        assert [room.firm for room in bench.media._rooms.values()] == ["b", "a", "b"]
        await carl.phone.do("line.leave", line=OTHER_HOOTS[1])
        assert (await anna.tell(anna.offer()))["ok"]


async def test_a_hoot_in_which_nobody_shows_life_is_closed() -> None:
    async with hoots(vanish_s=0.1) as bench:
        anna = await bench.ear("a1")
        await anna.join()
        assert (await anna.tell(anna.offer()))["ok"]
        await becomes(lambda: bench.sfu.hoots, {})
        assert bench.media._rooms == {}


async def test_a_refused_first_offer_opens_no_hoot() -> None:
    async with hoots() as bench:
        anna = await bench.ear("a1")
        await anna.join()
        refused = await anna.tell(anna.offer(relayed=Address("224.0.0.1", 5000)))
        assert refused["error"]["code"] == "bad_message"
        assert bench.sfu.hoots == {}


@pytest.mark.parametrize(
    "line_of_sdp", ["a=ssrc:99999999999 cname:x", "a=candidate:1 2 udp 1 127.0.0.1 5000 typ relay", "a=candidate:1"]
)
def test_what_an_offer_must_have(line_of_sdp: str) -> None:
    with pytest.raises(Refusal):
        parse_end(f"m=audio 5000 RTP/SAVP 0\n{line_of_sdp}\na=ssrc:x\n")


async def test_a_hoot_in_a_whole_cloud(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client, contextlib.AsyncExitStack() as stack:
        ears = []
        for user in ("dora", "anna"):
            token = (await client.login(user))["token"]
            opened = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            opened.bind(("127.0.0.1", 0))
            ears.append(Ear(await stack.enter_async_context(phone(f"http://{client.cloud.http}", token)), opened))
        welcome = await ears[0].phone.heard("welcome")
        number = next(one["line"] for one in welcome["lines"] if one["kind"] == "hoot")
        for ear in ears:
            answer = await ear.phone.do("line.join", line=number)
            ear.call_id = answer["line_state"]["call_id"]
            await ear.describe()
        await ears[0].phone.do("line.talk", line=number, on=True)
        hoot = client.cloud.hoots._rooms[number].hoot
        await becomes(lambda: hoot.figures().keepalives, 2)
        ears[0].say()
        await becomes(ears[1].listen, [VOICE])
