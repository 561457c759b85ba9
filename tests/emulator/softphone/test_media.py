"""Two ends of a call on lines and signaling of the test's own: what they say to each other, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from relay.addresses import Address
from relay.client.requests import TurnRequestError
from relay.client.session import SessionError
from relay.emulator.softphone import media as media_module
from relay.emulator.softphone.carriers import MediaLine, OnData, OnMoved, explained
from relay.emulator.softphone.errors import MediaFailed, NotEntitled, SoftphoneError, Unreachable
from relay.emulator.softphone.media import CallMedia, DescriptionType
from relay.emulator.softphone.pacer import Pacer
from relay.emulator.softphone.recorder import Recorder
from relay.errors import UpstreamError
from relay.wire.stun import Method
from tests.support.waiting import eventually


class Network:
    """Relayed addresses, and who is there."""

    def __init__(self) -> None:
        self.lines: dict[Address, Line] = {}
        self._ports = iter(range(50000, 60000))

    def new_address(self) -> Address:
        return Address("192.0.2.7", next(self._ports))


class Line:
    """A way with an allocation, that drops what comes from peers without a channel, as TURN does."""

    def __init__(self, network: Network, on_data: OnData) -> None:
        self._network, self._on_data = network, on_data
        self._address = network.new_address()
        self.bound: list[Address] = []
        self.alive = True
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        network.lines[self._address] = self

    @property
    def relayed_address(self) -> Address | None:
        return self._address

    async def bind(self, peer: Address) -> None:
        if not self.alive:
            raise UpstreamError("no answer")
        self.bound.append(peer)

    def send(self, peer: Address, data: bytes) -> None:
        assert peer in self.bound
        there = self._network.lines.get(peer)
        if self.alive and there is not None and there.alive and self._address in there.bound:
            there._on_data(self._address, data)

    async def check(self) -> None:
        if not self.alive:
            raise UpstreamError("the TURN host does not answer")

    async def close(self) -> None:
        self._network.lines.pop(self._address, None)
        if not self.closed.done():
            self.closed.set_result(None)


class End:
    """One party: its media, its lines, and what it tells the other."""

    def __init__(self, own: str, network: Network, pacer: Pacer, *, speaks: bool = True) -> None:
        self.own, self.network = own, network
        self.others: dict[str, End] = {}
        self.lines: list[Line] = []
        self.on_moved: OnMoved
        self.told: list[str] = []
        self.lost = 0
        self.recorder = Recorder()
        self.media = CallMedia(own, self.open_line, self, pacer, recorder=self.recorder, speaks=speaks)
        self.media.talking = True

    async def open_line(self, attempt: int, on_data: OnData, on_moved: OnMoved) -> MediaLine:
        self.lines.append(Line(self.network, on_data))
        self.on_moved = on_moved
        return self.lines[-1]

    async def describe(self, to: str, kind: DescriptionType, text: str) -> None:
        self.told.append(kind)
        if self.lost:
            self.lost -= 1
            raise Unreachable("the connection was cut")
        self.others[to].media.on_description(self.own, kind, text)

    async def ready(self, to: str) -> None:
        self.told.append("ready")
        self.others[to].media.on_ready(self.own)

    @property
    def received(self) -> int:
        return sum(leg.listener.received for leg in self.media.legs.values() if leg.listener is not None)

    @property
    def wrong(self) -> int:
        return sum(leg.listener.wrong for leg in self.media.legs.values() if leg.listener is not None)


@contextlib.asynccontextmanager
async def ends(*, speaks: bool = True) -> AsyncIterator[tuple[End, End]]:
    network, pacer = Network(), Pacer()
    a, b = End("anna", network, pacer, speaks=speaks), End("ben", network, pacer, speaks=speaks)
    a.others, b.others = {"ben": b}, {"anna": a}
    try:
        yield a, b
    finally:
        await a.media.close()
        await b.media.close()
        await pacer.close()
        assert network.lines == {}
        assert len(pacer) == 0


def begin(a: End, b: End) -> None:
    a.media.set_parties([b.own], [])
    b.media.set_parties([], [a.own])


async def test_each_packet_of_both_arrives() -> None:
    async with ends(speaks=False) as (a, b):
        begin(a, b)
        await a.media.wait_ready()
        await b.media.wait_ready()
        await asyncio.gather(a.media.say(20), b.media.say(20))
        assert (a.received, b.received, a.wrong, b.wrong) == (20, 20, 0, 0)
        assert (a.told, b.told) == (["offer", "ready"], ["answer"])
        assert [leg.speaker.sent for leg in (*a.media.legs.values(), *b.media.legs.values())] == [20, 20]
    recording = a.recorder.finish("call", "anna", "line", ("anna", "ben"))
    assert recording.duration_s >= 0.4


async def test_who_may_not_talk_is_silent_and_hears() -> None:
    async with ends() as (a, b):
        b.media.talking = False
        begin(a, b)
        await eventually(lambda: b.received >= 5)
        assert a.received == 0
        b.media.talking = True
        await eventually(lambda: a.received >= 5)
        assert b.media.legs["anna"].listener is not None


async def test_a_third_party_comes_and_goes() -> None:
    async with ends() as (a, b):
        c = End("chen", a.network, a.media._pacer)
        c.others, a.others = {"anna": a}, {"ben": b, "chen": c}
        begin(a, b)
        await a.media.wait_ready()
        a.media.set_parties(["ben", "chen"], [])
        c.media.set_parties([], ["anna"])
        await eventually(lambda: c.received >= 3)
        a.media.set_parties(["ben"], [])
        await c.media.close()
        before = b.received
        await eventually(lambda: b.received >= before + 3)
        assert list(a.media.legs) == ["ben"]
        assert a.wrong + b.wrong + c.wrong == 0


async def test_offer_that_was_lost_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "OFFER_AGAIN_S", 0.0)
    monkeypatch.setattr(media_module, "WATCH_S", 0.01)
    async with ends() as (a, b):
        a.lost = 2
        begin(a, b)
        await a.media.wait_ready()
        await eventually(lambda: a.received >= 3 and b.received >= 3)
        assert a.told.count("offer") >= 3


async def test_way_that_dies_is_opened_again_and_the_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than a busy machine stands still: a's way must not seem dead as well.
    monkeypatch.setattr(media_module, "SILENCE_S", 1.0)
    monkeypatch.setattr(media_module, "WATCH_S", 0.02)
    async with ends() as (a, b):
        begin(a, b)
        await eventually(lambda: a.received >= 3 and b.received >= 3)
        keys = [a.media.legs["ben"].speaker.master_key, b.media.legs["anna"].speaker.master_key]
        b.lines[0].alive = False
        await eventually(lambda: len(b.lines) == 2)
        before = a.received, b.received
        await eventually(lambda: a.received >= before[0] + 3 and b.received >= before[1] + 3)
        # The other side's way was asked, and stays.
        assert (len(a.lines), a.media.reopenings, b.media.reopenings) == (1, 0, 1)
        assert keys == [a.media.legs["ben"].speaker.master_key, b.media.legs["anna"].speaker.master_key]
        assert a.wrong + b.wrong == 0


async def test_who_has_moved_tells_the_other() -> None:
    async with ends() as (a, b):
        begin(a, b)
        await eventually(lambda: a.received >= 3 and b.received >= 3)
        line = b.lines[0]
        a.network.lines.pop(line._address)
        line._address = a.network.new_address()
        a.network.lines[line._address] = line
        b.on_moved(line._address)
        before = a.received, b.received
        await eventually(lambda: a.received >= before[0] + 3 and b.received >= before[1] + 3)
        assert a.lines[0].bound[-1] == line._address


async def test_no_way_at_all_is_told() -> None:
    async with ends() as (a, b):

        async def refuse(attempt: int, on_data: OnData, on_moved: OnMoved) -> MediaLine:
            raise NotEntitled("the setting Voice via Web Proxy is off")

        a.media._open_line = refuse
        begin(a, b)
        with pytest.raises(NotEntitled, match="Voice via Web Proxy"):
            await a.media.wait_ready()
        assert isinstance(a.media.failed, NotEntitled)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v=0", "expected v=0, o=, s= and t="),
        ("v=0\no=- 1 1 IN IP4 0.0.0.0\ns=-\nt=0 0\nm=audio 9 UDP/TLS/RTP/SAVPF 111", "as a browser does"),
    ],
)
async def test_description_that_cannot_be_used_is_told(text: str, said: str) -> None:
    async with ends() as (a, b):
        a.media.set_parties([], ["ben"])
        a.media.on_description("ben", "offer", text)
        with pytest.raises(MediaFailed, match=said):
            await a.media.wait_ready()
        assert b.told == []


async def test_descriptions_without_end_are_refused() -> None:
    async with ends() as (a, b):
        begin(a, b)
        await a.media.wait_ready()
        texts: list[str] = []
        b.describe = lambda to, kind, text: _keep(texts, text)  # type: ignore[method-assign]
        await b.media._describe(b.media.legs["anna"], "offer")
        for _ in range(media_module.MAX_DESCRIPTIONS + 1):
            a.media.on_description("ben", "offer", texts[0])
        await eventually(lambda: a.media.legs["ben"].error)
        assert "more than 32 times" in str(a.media.legs["ben"].error)


async def _keep(texts: list[str], text: str) -> None:
    texts.append(text)


async def test_more_than_the_inbox_holds_is_dropped() -> None:
    async with ends() as (a, _):
        a.media.set_parties([], ["ben"])
        for _ in range(2 * media_module.MAX_INBOX):
            a.media.on_description("stranger", "offer", "v=0")
        assert a.media._inbox.qsize() <= media_module.MAX_INBOX


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            TurnRequestError(Method.ALLOCATE, 403, "Forbidden: not entitled to voice through this relay"),
            NotEntitled,
            "Voice via Web Proxy is off .* firm administrator .* next login",
        ),
        (SessionError(403, "Forbidden: not entitled to this region"), NotEntitled, "relay's operator"),
        (SessionError(403, "Forbidden: entitlement cannot be checked now"), NotEntitled, "entitlement service"),
        (TurnRequestError(Method.ALLOCATE, 486, "Allocation Quota Reached"), NotEntitled, "too many calls"),
        (TurnRequestError(Method.ALLOCATE, 401, "Unauthorized"), MediaFailed, "401 Unauthorized"),
        (TurnRequestError(Method.CHANNEL_BIND, 403, "Forbidden"), MediaFailed, "CHANNEL_BIND"),
        (UpstreamError("no route"), MediaFailed, "no route"),
    ],
)
def test_errors_say_who_must_act(error: UpstreamError, kind: type[SoftphoneError], said: str) -> None:
    told = explained(error, "TURN/TLS", "chen")
    assert type(told) is kind
    with pytest.raises(kind, match=said):
        raise told
