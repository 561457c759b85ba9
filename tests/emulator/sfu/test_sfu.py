"""The SFU on real sockets: who hears whom, who may talk, what is dropped, and what is left at the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import socket
from collections.abc import AsyncIterator, Callable

import pylibsrtp
import pytest

from relay.addresses import Address
from relay.emulator.sfu import (
    FloorFull,
    GroupCipher,
    GroupKey,
    Hoot,
    HootError,
    HootFigures,
    Sfu,
    SsrcRefused,
    keepalive,
)
from relay.emulator.sfu import hoot as hoot_module
from relay.emulator.sfu import sfu as sfu_module
from relay.emulator.sfu._fanout import MAX_ROOMS, MAX_SUBSCRIBERS, MAX_TALKERS, live_objects
from relay.errors import OperatorError
from relay.wire.rtp import RtpHeader, build_packet
from tests.support.waiting import becomes, eventually

LINE = "sPK-12345678-987654"
VOICE = bytes(160)
FAR_OFF_S = 3600.0


class Phone:
    """A user's socket, and SRTP with the key that they were told last."""

    def __init__(self, user_id: str, key: GroupKey) -> None:
        self.user_id = user_id
        self.ssrc = secrets.randbits(32)
        self.cipher = GroupCipher(key)
        self.heard: list[bytes] = []
        self._number = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(("127.0.0.1", 0))
        self.address = Address(*self._socket.getsockname())

    def say(self, hoot: Hoot, words: bytes = VOICE, *, ssrc: int | None = None, now: float = 0.0) -> None:
        """One packet, protected."""
        self._number += 1
        header = RtpHeader(0, self._number, self._number * 160, self.ssrc if ssrc is None else ssrc)
        self.send(hoot, self.cipher.protect(build_packet(header, words), now))

    def send(self, hoot: Hoot, datagram: bytes) -> None:
        self._socket.sendto(datagram, hoot.address)

    def listen(self, *, now: float = 0.0) -> list[bytes]:
        """All words that have come until now, decrypted."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self.cipher.unprotect(self._socket.recv(2048), now)[12:])
        return self.heard

    def raw(self) -> bytes | None:
        """The next datagram as it came, or None."""
        try:
            return self._socket.recv(2048)
        except BlockingIOError:
            return None

    def close(self) -> None:
        self._socket.close()


def voices(phone: Phone, size: int) -> set[bytes]:
    """The first bytes of all words that have come."""
    return {words[:size] for words in phone.listen()}


class Floor:
    """A hoot, and phones in it."""

    def __init__(self, sfu: Sfu, hoot: Hoot, stack: contextlib.ExitStack) -> None:
        self.sfu = sfu
        self.hoot = hoot
        self._stack = stack

    def phone(self, user_id: str) -> Phone:
        phone = Phone(user_id, self.hoot.key)
        self._stack.callback(phone.close)
        return phone

    async def listener(self, user_id: str) -> Phone:
        """A phone that is subscribed and has been heard."""
        phone = self.phone(user_id)
        self.hoot.subscribe(user_id, phone.address)
        await self.show_life(phone)
        return phone

    async def show_life(self, *phones: Phone) -> None:
        # The thread takes a command before it reads a datagram that was sent later.
        before = self.hoot.figures().keepalives
        for phone in phones:
            phone.send(self.hoot, keepalive())
        await becomes(lambda: self.hoot.figures().keepalives, before + len(phones))

    async def talker(self, user_id: str) -> Phone:
        """A phone that listens and has the floor."""
        phone = await self.listener(user_id)
        self.hoot.allow(user_id, phone.ssrc, phone.address)
        return phone

    async def until(self, **expected: int) -> HootFigures:
        """Wait for these figures."""
        names = list(expected)

        def now() -> dict[str, int]:
            figures = self.hoot.figures()
            return {name: getattr(figures, name) for name in names}

        await becomes(now, expected)
        return self.hoot.figures()


def ignore(*_: object) -> None:
    """Nobody wants to know."""


@contextlib.asynccontextmanager
async def open_floor(
    *,
    vanish_s: float = FAR_OFF_S,
    on_key: Callable[[Hoot], None] = ignore,
    on_vanished: Callable[[Hoot, str], None] = ignore,
) -> AsyncIterator[Floor]:
    with contextlib.ExitStack() as stack:
        async with Sfu(vanish_s=vanish_s, on_key=on_key, on_vanished=on_vanished) as sfu:
            yield Floor(sfu, sfu.open(LINE), stack)
    assert set(live_objects().values()) <= {0}


# Who hears whom


async def test_every_subscriber_decrypts_what_a_talker_says() -> None:
    async with open_floor() as floor:
        talker = await floor.talker("anna")
        listeners = [await floor.listener(f"user-{number}") for number in range(20)]
        for number in range(5):
            talker.say(floor.hoot, bytes([number]) * 160)
        for listener in listeners:
            await becomes(listener.listen, [bytes([number]) * 160 for number in range(5)])
        figures = await floor.until(forwarded=5, copies=100)
        assert figures.refused == 0


async def test_talkers_hear_each_other_and_never_themselves() -> None:
    async with open_floor() as floor:
        anna, bert, carl = [await floor.talker(name) for name in ("anna", "bert", "carl")]
        anna.say(floor.hoot, b"anna" * 40)
        bert.say(floor.hoot, b"bert" * 40)
        carl.say(floor.hoot, b"carl" * 40)
        await floor.until(forwarded=3, copies=6)
        for phone, others in ((anna, {b"bert", b"carl"}), (bert, {b"anna", b"carl"}), (carl, {b"anna", b"bert"})):
            await becomes(functools.partial(voices, phone, 4), others)


async def test_a_talker_who_talks_from_another_address_does_not_hear_themself() -> None:
    async with open_floor() as floor:
        ear, mouth = await floor.listener("anna"), floor.phone("anna")
        bert = await floor.listener("bert")
        floor.hoot.allow("anna", mouth.ssrc, mouth.address)
        mouth.say(floor.hoot)
        await becomes(bert.listen, [VOICE])
        await floor.until(copies=1)
        assert ear.raw() is None


async def test_a_talker_need_not_listen() -> None:
    async with open_floor() as floor:
        mouth, bert = floor.phone("anna"), await floor.listener("bert")
        floor.hoot.allow("anna", mouth.ssrc, mouth.address)
        mouth.say(floor.hoot)
        await becomes(bert.listen, [VOICE])
        assert (floor.hoot.talkers, floor.hoot.subscribers) == (["anna"], ["bert"])


async def test_packets_pass_unchanged() -> None:
    """The SFU has no key: even bytes that nobody can decrypt pass, as they are."""
    async with open_floor() as floor:
        talker, bert = await floor.talker("anna"), await floor.listener("bert")
        packet = build_packet(RtpHeader(0, 1, 160, talker.ssrc), secrets.token_bytes(170))
        talker.send(floor.hoot, packet)
        await becomes(bert.raw, packet)


async def test_hoots_do_not_hear_each_other() -> None:
    async with open_floor() as floor:
        talker, bert = await floor.talker("anna"), await floor.listener("bert")
        other = floor.sfu.open("sPK-1-1")
        other.subscribe("carl", (carl := floor.phone("carl")).address)
        carl.send(other, keepalive())
        await becomes(lambda: other.figures().keepalives, 1)
        talker.say(floor.hoot)
        await becomes(bert.listen, [VOICE])
        assert carl.raw() is None
        talker.say(other)
        await becomes(lambda: other.figures().strangers, 1)


async def test_eight_hundred_hear_twelve() -> None:
    async with open_floor() as floor:
        phones = [floor.phone(f"user-{number}") for number in range(MAX_SUBSCRIBERS)]
        for phone in phones:
            floor.hoot.subscribe(phone.user_id, phone.address)
        await floor.show_life(*phones)
        with pytest.raises(HootError, match="800 subscribers already"):
            floor.hoot.subscribe("one-more", Address("127.0.0.1", 9))
        talkers = phones[:MAX_TALKERS]
        for phone in talkers:
            floor.hoot.allow(phone.user_id, phone.ssrc, phone.address)
        for phone in talkers:
            phone.say(floor.hoot, phone.user_id.encode().ljust(160))
        await floor.until(forwarded=12, copies=12 * 799, copies_no_room=0, copies_unreachable=0)
        said = {phone.user_id.encode().ljust(160) for phone in talkers}
        for phone in phones:
            await becomes(functools.partial(voices, phone, 160), said - {phone.user_id.encode().ljust(160)})


# The floor


async def test_at_most_twelve_talk() -> None:
    async with open_floor() as floor:
        talkers = [await floor.talker(f"user-{number}") for number in range(MAX_TALKERS)]
        late, bert = await floor.listener("late"), await floor.listener("bert")
        with pytest.raises(FloorFull, match="12 users talk already"):
            floor.hoot.allow("late", late.ssrc, late.address)
        late.say(floor.hoot)
        await floor.until(no_floor=1, forwarded=0)
        floor.hoot.allow(talkers[0].user_id, talkers[0].ssrc, talkers[0].address)  # has it already
        floor.hoot.revoke(talkers[0].user_id)
        floor.hoot.allow("late", late.ssrc, late.address)
        late.say(floor.hoot, b"late" * 40)
        await becomes(bert.listen, [b"late" * 40])
        talkers[0].say(floor.hoot)
        await floor.until(no_floor=2, forwarded=1)


async def test_a_ssrc_belongs_to_one_user_under_one_key() -> None:
    async with open_floor() as floor:
        anna, bert = await floor.talker("anna"), await floor.listener("bert")
        floor.hoot.revoke("anna")
        with pytest.raises(HootError, match="another user has it"):
            floor.hoot.allow("bert", anna.ssrc, bert.address)
        assert floor.hoot.talkers == []
        floor.hoot.allow("anna", anna.ssrc, anna.address)


@pytest.mark.parametrize("has_floor", [True, False])
async def test_a_key_change_leaves_the_ssrcs_of_those_in_the_hoot_theirs(
    monkeypatch: pytest.MonkeyPatch, has_floor: bool
) -> None:
    monkeypatch.setattr(hoot_module, "MIN_KEY_AGE_S", 0.0)
    # So that it is not the key before that keeps it theirs.
    monkeypatch.setattr(hoot_module, "LISTENER_KEEPS_S", 0.0)
    async with open_floor() as floor:
        anna, bert = await floor.talker("anna"), await floor.listener("bert")
        if not has_floor:
            floor.hoot.revoke("anna")
        for number in (2, 3):
            await floor.listener("carl")
            floor.hoot.unsubscribe("carl")
            assert floor.hoot.key.number == number
            with pytest.raises(SsrcRefused, match="another user has it"):
                floor.hoot.allow("bert", anna.ssrc, bert.address)
        assert "bert" not in floor.hoot.talkers
        floor.hoot.allow("anna", anna.ssrc, anna.address)
        assert floor.hoot.talkers == ["anna"]


async def test_the_ssrc_of_one_who_left_is_theirs_while_their_key_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoot_module, "LISTENER_KEEPS_S", FAR_OFF_S)
    async with open_floor() as floor:
        anna, bert = await floor.talker("anna"), await floor.listener("bert")
        floor.hoot.unsubscribe("anna")
        assert floor.hoot.key.number == 2
        with pytest.raises(SsrcRefused, match="another user has it"):
            floor.hoot.allow("bert", anna.ssrc, bert.address)
        floor.hoot.allow("anna", anna.ssrc, anna.address)


async def test_the_ssrc_of_one_who_left_is_free_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoot_module, "LISTENER_KEEPS_S", 0.0)
    monkeypatch.setattr(hoot_module, "MIN_KEY_AGE_S", 0.0)
    async with open_floor() as floor:
        anna, bert = await floor.talker("anna"), await floor.listener("bert")
        floor.hoot.unsubscribe("anna")
        floor.hoot.allow("bert", anna.ssrc, bert.address)
        for _ in range(2):
            await floor.listener("carl")
            floor.hoot.unsubscribe("carl")
        assert set(floor.hoot._ssrcs_before) == {anna.ssrc}
        assert floor.hoot._ssrcs == {anna.ssrc: "bert"}


async def test_one_user_has_few_ssrcs_under_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoot_module, "MAX_SSRCS_OF_ONE", 3)
    async with open_floor() as floor:
        anna, bert = await floor.listener("anna"), await floor.listener("bert")
        for ssrc in (1, 2, 3, 1):
            floor.hoot.allow("anna", ssrc, anna.address)
        with pytest.raises(SsrcRefused, match="3 others under this key"):
            floor.hoot.allow("anna", 4, anna.address)
        floor.hoot.allow("bert", 4, bert.address)
        await floor.listener("carl")
        floor.hoot.unsubscribe("carl")
        floor.hoot.allow("anna", 5, anna.address)


async def test_many_ssrcs_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoot_module, "MAX_SSRCS", 3)
    async with open_floor() as floor:
        anna = await floor.listener("anna")
        for ssrc in range(3):
            assert floor.hoot.key.number == 1
            floor.hoot.allow("anna", ssrc, anna.address)
        assert floor.hoot.key.number == 2


# Who leaves


async def test_leaving_changes_the_key_and_ends_the_voice() -> None:
    told: list[tuple[str, int]] = []
    async with open_floor(on_key=lambda hoot: told.append((hoot.line, hoot.key.number))) as floor:
        talker, bert, carl = await floor.talker("anna"), await floor.listener("bert"), await floor.listener("carl")
        first = floor.hoot.key
        floor.hoot.unsubscribe("carl")
        assert told == [(LINE, 2)]
        assert floor.hoot.key.master_key != first.master_key
        for phone in (talker, bert):
            phone.cipher.use(floor.hoot.key, now=10.0)
        talker.say(floor.hoot, now=11.0)
        await floor.until(forwarded=1, copies=1)
        packet = bert.raw()
        assert packet is not None
        assert carl.raw() is None
        with pytest.raises(pylibsrtp.Error):
            carl.cipher.unprotect(packet, 11.0)
        assert bert.cipher.unprotect(packet, 11.0)[12:] == VOICE


async def test_leaving_gives_up_the_floor() -> None:
    async with open_floor() as floor:
        anna = await floor.talker("anna")
        floor.hoot.unsubscribe("anna")
        assert (floor.hoot.talkers, floor.hoot.subscribers) == ([], [])
        anna.say(floor.hoot)
        await floor.until(strangers=1, forwarded=0)


async def test_giving_up_the_floor_is_not_leaving() -> None:
    async with open_floor() as floor:
        await floor.talker("anna")
        floor.hoot.revoke("anna")
        assert floor.hoot.key.number == 1
        mouth = floor.phone("bert")
        floor.hoot.allow("bert", mouth.ssrc, mouth.address)
        floor.hoot.revoke("bert")  # who was in it for nothing else
        assert floor.hoot.key.number == 2


async def test_a_floor_that_empties_at_once_changes_the_key_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoot_module, "MIN_KEY_AGE_S", FAR_OFF_S)
    keys: list[int] = []
    async with open_floor(on_key=lambda hoot: keys.append(hoot.key.number)) as floor:
        for number in range(50):
            floor.hoot.subscribe(f"user-{number}", Address("127.0.0.1", 20000 + number))
        for number in range(50):
            floor.hoot.unsubscribe(f"user-{number}")
        assert keys == [2]


async def test_the_second_change_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoot_module, "MIN_KEY_AGE_S", 0.05)
    async with open_floor() as floor:
        for name in ("anna", "bert"):
            floor.hoot.subscribe(name, Address("127.0.0.1", 20000 + len(name) + ord(name[0])))
        for name in ("anna", "bert"):
            floor.hoot.unsubscribe(name)
        await becomes(lambda: floor.hoot.key.number, 3)


async def test_a_key_grows_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoot_module, "KEY_LIFETIME_S", 0.01)
    async with open_floor() as floor:
        await eventually(lambda: floor.hoot.key.number >= 3)


async def test_who_is_silent_vanishes() -> None:
    gone: list[str] = []
    async with open_floor(vanish_s=1.5, on_vanished=lambda hoot, user_id: gone.append(user_id)) as floor:
        floor.hoot.subscribe("never-heard", Address("127.0.0.1", 9))
        anna = await floor.listener("anna")
        await becomes(lambda: gone, ["never-heard", "anna"])
        assert floor.hoot.subscribers == []
        assert floor.hoot.key.number > 1
        anna.send(floor.hoot, keepalive())
        await floor.until(strangers=1)


async def test_who_shows_life_stays() -> None:
    gone: list[str] = []
    async with open_floor(vanish_s=3.0, on_vanished=lambda hoot, user_id: gone.append(user_id)) as floor:
        anna = await floor.talker("anna")
        floor.hoot.subscribe("silent", Address("127.0.0.1", 9))
        # Voice and SRTCP count as well as STUN.
        signs = [keepalive(), build_packet(RtpHeader(0, 1, 1, anna.ssrc), bytes(20)), b"\x80\xc9" + bytes(30)]
        while not gone:
            for sign in signs:
                anna.send(floor.hoot, sign)
            await asyncio.sleep(0.05)
        assert gone == ["silent"]
        assert floor.hoot.subscribers == ["anna"]


async def test_one_who_came_back_is_not_taken_for_the_one_who_vanished() -> None:
    async with open_floor() as floor:
        await floor.listener("anna")
        floor.hoot.unsubscribe("anna")
        await floor.listener("anna")
        assert floor.hoot.on_vanished(1) is None
        assert floor.hoot.subscribers == ["anna"]


# Hostile input


async def test_nothing_goes_to_an_address_that_has_not_asked() -> None:
    async with open_floor() as floor:
        talker, victim = await floor.talker("anna"), floor.phone("victim")
        floor.hoot.subscribe("mallory", victim.address)
        talker.say(floor.hoot)
        await floor.until(forwarded=1, copies=0)
        assert victim.raw() is None


async def test_a_move_needs_a_new_sign_of_life() -> None:
    async with open_floor() as floor:
        talker, before, after = await floor.talker("anna"), await floor.listener("bert"), floor.phone("bert")
        floor.hoot.subscribe("bert", after.address)
        before.send(floor.hoot, keepalive())
        talker.say(floor.hoot)
        await floor.until(strangers=1, forwarded=1, copies=0)
        await floor.show_life(after)
        talker.say(floor.hoot)
        await becomes(after.listen, [VOICE])
        floor.hoot.subscribe("carl", before.address)  # it is free again
        assert floor.hoot.subscribers == ["anna", "bert", "carl"]


async def test_only_the_registered_address_and_ssrc_talk() -> None:
    async with open_floor() as floor:
        talker, bert, stranger = await floor.talker("anna"), await floor.listener("bert"), floor.phone("mallory")
        stranger.say(floor.hoot, ssrc=talker.ssrc)
        bert.say(floor.hoot, ssrc=talker.ssrc)
        talker.say(floor.hoot, ssrc=talker.ssrc ^ 1)
        figures = await floor.until(strangers=1, no_floor=1, wrong_ssrc=1)
        assert (figures.forwarded, figures.refused) == (0, 3)
        talker.say(floor.hoot, b"anna" * 40)
        await becomes(bert.listen, [b"anna" * 40])


async def test_garbage_is_counted_and_passes_nowhere() -> None:
    async with open_floor() as floor:
        talker, bert = await floor.talker("anna"), await floor.listener("bert")
        stun_cut = keepalive()[:19]
        for garbage in (b"", b"\x80", bytes(21), b"\x80" * 21, b"\xff" * 40, b"\x40" * 40, stun_cut, b"\x00" * 20):
            talker.send(floor.hoot, garbage)
        await floor.until(malformed=8)
        talker.send(floor.hoot, b"\x80\x00" + bytes(1471))
        talker.send(floor.hoot, b"\x80\x00" + bytes(60000))
        await floor.until(too_long=2)
        talker.send(floor.hoot, b"\x80\xc8" + bytes(40))  # SRTCP
        figures = await floor.until(keepalives=3)
        assert figures.forwarded == 0
        longest = build_packet(RtpHeader(0, 1, 1, talker.ssrc), bytes(1460))
        talker.send(floor.hoot, longest)
        await becomes(bert.raw, longest)


async def test_garbage_is_not_a_sign_of_life() -> None:
    async with open_floor() as floor:
        talker, bert = await floor.talker("anna"), floor.phone("bert")
        floor.hoot.subscribe("bert", bert.address)
        bert.send(floor.hoot, b"\xff" * 40)
        await floor.until(malformed=1)
        talker.say(floor.hoot)
        await floor.until(forwarded=1, copies=0)


async def test_a_talker_who_floods_is_slowed() -> None:
    async with open_floor() as floor:
        talker, other, bert = await floor.talker("anna"), await floor.talker("carl"), await floor.listener("bert")
        flood = build_packet(RtpHeader(0, 1, 1, talker.ssrc), bytes(20))
        before = floor.hoot.figures().received
        for batch in range(1, 41):
            for _ in range(50):
                talker.send(floor.hoot, flood)
            await floor.until(received=before + 50 * batch)
        figures = floor.hoot.figures()
        # 100 at once, and 200 in each second that the flood took.
        assert figures.forwarded >= 100
        assert figures.forwarded + figures.too_fast == 2000
        assert figures.too_fast > 0
        other.say(floor.hoot, b"carl" * 40)
        await eventually(lambda: any(packet[8:12] == other.ssrc.to_bytes(4) for packet in drain(bert)))


def drain(phone: Phone) -> list[bytes]:
    packets = []
    while (packet := phone.raw()) is not None:
        packets.append(packet)
    return packets


async def test_one_unreachable_subscriber_disturbs_nobody() -> None:
    async with open_floor() as floor:
        talker, first = await floor.talker("anna"), await floor.listener("first")
        gone = await floor.listener("gone")
        last = await floor.listener("last")
        gone.close()
        for _ in range(3):
            talker.say(floor.hoot)
        for phone in (first, last):
            await becomes(phone.listen, [VOICE] * 3)


@pytest.mark.parametrize(
    "address",
    [
        Address("localhost", 5000),
        Address("::1", 5000),
        Address("224.0.0.1", 5000),
        Address("0.0.0.0", 5000),
        Address("255.255.255.255", 5000),
        Address("127.0.0.1", 0),
        Address("127.0.0.1", 65536),
        Address("127.0.0.1", -1),
    ],
)
async def test_addresses_that_are_not_a_users(address: Address) -> None:
    async with open_floor() as floor:
        with pytest.raises(HootError, match="expected"):
            floor.hoot.subscribe("anna", address)
        with pytest.raises(HootError, match="expected"):
            floor.hoot.allow("anna", 1, address)
        assert (floor.hoot.subscribers, floor.hoot.talkers) == ([], [])


async def test_an_address_belongs_to_one_user() -> None:
    async with open_floor() as floor:
        here = Address("127.0.0.1", 5000)
        floor.hoot.subscribe("anna", here)
        with pytest.raises(HootError, match="another user has this address"):
            floor.hoot.subscribe("bert", here)
        with pytest.raises(HootError, match="another user has this address"):
            floor.hoot.allow("bert", 1, here)
        floor.hoot.allow("anna", 1, here)
        floor.hoot.revoke("anna")
        with pytest.raises(HootError, match="another user has this address"):
            floor.hoot.subscribe("bert", here)
        with pytest.raises(HootError, match="not the hoot's own"):
            floor.hoot.subscribe("bert", floor.hoot.address)
        with pytest.raises(HootError, match="32 bits"):
            floor.hoot.allow("anna", 1 << 32, here)
        floor.hoot.unsubscribe("anna")
        floor.hoot.subscribe("bert", here)


async def test_leaving_twice_and_leaving_what_one_is_not_in_is_nothing() -> None:
    async with open_floor() as floor:
        floor.hoot.unsubscribe("nobody")
        floor.hoot.revoke("nobody")
        assert floor.hoot.key.number == 1


# Commands, hoots and ends


async def test_commands_wait_for_a_thread_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sfu_module, "COMMANDS", 2)
    async with open_floor() as floor:
        for _ in range(50):
            for number in range(20):
                floor.hoot.subscribe(f"user-{number}", Address("127.0.0.1", 20000 + number))
            for number in range(20):
                floor.hoot.unsubscribe(f"user-{number}")
        await eventually(lambda: not floor.sfu._waiting)
        talker, bert = await floor.talker("anna"), await floor.listener("bert")
        talker.say(floor.hoot)
        await becomes(bert.listen, [VOICE])


async def test_changes_for_a_thread_that_is_stuck_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sfu_module, "COMMANDS", 2)
    monkeypatch.setattr(sfu_module, "MAX_WAITING", 3)
    async with open_floor() as floor:
        # A thread that has ended takes no commands.
        assert floor.sfu._fanout is not None
        floor.sfu._fanout.stop()
        await asyncio.to_thread(floor.sfu._thread.join)

        def join_all() -> None:
            for number in range(10):
                floor.hoot.subscribe(f"user-{number}", Address("127.0.0.1", 20000 + number))

        with pytest.raises(HootError, match="does not keep up"):
            join_all()
        for refused in (lambda: floor.sfu.open("line"), lambda: floor.hoot.allow("user-0", 1, Address("127.0.0.1", 1))):
            with pytest.raises(HootError, match="does not keep up"):
                refused()
        for user_id in floor.hoot.subscribers:
            floor.hoot.unsubscribe(user_id)
        assert floor.hoot.subscribers == []


async def test_hoots_are_bounded_and_places_are_free_again() -> None:
    async with open_floor() as floor:
        hoots = [floor.sfu.open(f"line-{number}") for number in range(MAX_ROOMS - 1)]
        with pytest.raises(HootError, match="64 hoots are open"):
            floor.sfu.open("one-more")
        with pytest.raises(HootError, match="has a hoot already"):
            floor.sfu.open(LINE)
        for hoot in hoots:
            hoot.close()
        await becomes(lambda: len(floor.sfu._hoots), 1)
        assert list(floor.sfu.hoots) == [LINE]
        floor.sfu.open("one-more")


async def test_a_closed_hoot_keeps_its_figures_and_refuses_all_else() -> None:
    async with open_floor() as floor:
        talker, bert = await floor.talker("anna"), await floor.listener("bert")
        talker.say(floor.hoot)
        await becomes(bert.listen, [VOICE])
        await floor.until(copies=1)
        floor.hoot.close()
        floor.hoot.close()
        assert floor.hoot.closed
        with pytest.raises(HootError, match="has ended"):
            floor.hoot.subscribe("carl", Address("127.0.0.1", 5000))
        floor.hoot.unsubscribe("bert")
        floor.hoot.revoke("anna")
        assert floor.hoot.on_vanished(1) is None
        await becomes(lambda: len(floor.sfu._hoots), 0)
        assert floor.hoot.figures().copies == 1
        again = floor.sfu.open(LINE)
        assert again.figures().copies == 0
        assert again.key.master_key != floor.hoot.key.master_key


async def test_no_socket_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_floor() as floor:

        def none_left(address: Address) -> socket.socket:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(sfu_module, "open_udp_socket", none_left)
        with pytest.raises(HootError, match="Too many open files"):
            floor.sfu.open("line")
        monkeypatch.undo()
        floor.sfu.open("line")


async def test_an_sfu_stops_with_its_hoots_and_starts_again() -> None:
    sfu = Sfu()
    with pytest.raises(HootError, match="does not run"):
        sfu.open(LINE)
    await sfu.stop()
    for _ in range(2):
        await sfu.start()
        hoot = sfu.open(LINE)
        hoot.subscribe("anna", Address("127.0.0.1", 5000))
        await sfu.stop()
        await sfu.stop()
        assert hoot.closed
        assert sfu.hoots == {}


def test_an_address_for_others_must_be_asked_for() -> None:
    with pytest.raises(OperatorError, match="not a loopback address"):
        Sfu("192.0.2.1")
    Sfu("192.0.2.1", exposed=True)


async def test_how_softphones_reach_it() -> None:
    async with open_floor() as floor:
        lines = floor.hoot.sdp.split("\r\n")
        host, port = floor.hoot.address
        assert f"m=audio {port} RTP/SAVP 0" in lines
        assert f"c=IN IP4 {host}" in lines
        [crypto] = [line.removeprefix("a=crypto:") for line in lines if line.startswith("a=crypto:")]
        assert GroupKey.parse(crypto) == floor.hoot.key
