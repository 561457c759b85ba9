"""The media of one call: one way to a TURN host, and for each other party a leg with its keys, both directions.

The caller offers, and the other side answers. The offerer binds a channel to the address in the answer, and then tells
the other side with an empty candidate that it can hear. So no packet is sent before somebody can receive it. Whoever
gets another relayed address offers again, with the same keys.

Everything happens in one task, in order: a queue has what signaling tells, what the way tells, and what the watch asks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import structlog

from relay.addresses import Address
from relay.emulator.softphone import sdp
from relay.emulator.softphone.carriers import MediaLine, OnData, OnMoved, close_line
from relay.emulator.softphone.errors import MediaFailed, SoftphoneError
from relay.emulator.softphone.pacer import Pacer
from relay.emulator.softphone.recorder import Recorder
from relay.emulator.softphone.voice import Listener, Saying, Speaker
from relay.errors import UpstreamError
from relay.tasks import Tasks

log = structlog.get_logger()

# Descriptions of one party in one call. It moves when a TURN host fails, or a relay; never this often.
MAX_DESCRIPTIONS = 32
# What signaling has told and has not been done: a few for each party, of whom 50 are listed at most.
MAX_INBOX = 256
# No voice for this long from someone who talks: ask the TURN host whether it is still there.
SILENCE_S = 3.0
WATCH_S = 1.0
# An answer takes two round trips, and what opening a way takes. Then one of the messages was lost.
OFFER_AGAIN_S = 3.0
# The TURN hosts of a region are three or four; after this many ways that failed there is none.
MAX_REOPENINGS = 6
REOPEN_PAUSE_S = 0.25

DescriptionType = Literal["offer", "answer"]
OpenLine = Callable[[int, OnData, OnMoved], Awaitable[MediaLine]]


class Teller(Protocol):
    """Tells the other parties, over signaling. Raises SoftphoneError."""

    async def describe(self, to: str, kind: DescriptionType, text: str) -> None:
        """Send a description."""

    async def ready(self, to: str) -> None:
        """Send the empty candidate."""


@dataclass
class Leg:
    """One other party. ``ready`` is set when voice can go both ways, or when it is known that it never will."""

    user_id: str
    offers: bool
    speaker: Speaker = field(default_factory=Speaker)
    listener: Listener | None = None
    bound: Address | None = None
    error: SoftphoneError | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    remote: sdp.Description | None = None
    session_id: int = field(default_factory=lambda: secrets.randbits(62))
    version: int = 0
    descriptions: int = 0
    # When the offer was sent that has not been answered.
    offered_at: float | None = None
    # The other side has said that it hears us.
    is_heard: bool = False
    # When the watch looked: packets so far, and since when they are this many.
    seen: int = 0
    seen_at: float = 0.0

    @property
    def can_speak(self) -> bool:
        """True if packets may be sent."""
        return self.bound is not None and self.is_heard


class CallMedia:
    """``set_parties`` begins it, ``close`` ends it. ``failed`` is why there is no voice at all, if so."""

    def __init__(
        self,
        own: str,
        open_line: OpenLine,
        tell: Teller,
        pacer: Pacer,
        *,
        recorder: Recorder | None = None,
        speaks: bool = True,
    ) -> None:
        self.legs: dict[str, Leg] = {}
        self.failed: SoftphoneError | None = None
        self.reopenings = 0
        self.strangers = 0
        self.talking = False
        self._own = own
        self._open_line = open_line
        self._tell = tell
        self._pacer = pacer
        self._recorder = recorder
        self._saying = Saying(speaks=speaks)
        self._heard = 0
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue(MAX_INBOX)
        self._checking = False
        self._line: MediaLine | None = None
        self._by_address: dict[Address, Leg] = {}
        self._tasks = Tasks()
        self._started = False
        self._closed = False

    # What the call does

    def set_parties(self, offer_to: Iterable[str], answer_to: Iterable[str]) -> None:
        """The other parties now: those whom we offer to, and those who offer to us."""
        wanted = {**dict.fromkeys(offer_to, True), **dict.fromkeys(answer_to, False)}
        for user_id in [user_id for user_id in self.legs if user_id not in wanted]:
            self._drop(self.legs.pop(user_id))
        new = [Leg(user_id, offers) for user_id, offers in wanted.items() if user_id not in self.legs]
        self.legs |= {leg.user_id: leg for leg in new}
        if self._closed or not (wanted or self._started):
            return
        if not self._started:
            self._started = True
            self._pacer.add(self.tick)
            self._tasks.start(self._run(), "media of a call")
            self._tasks.start(self._watch(), "watch of a call's media")
        for leg in new:
            if leg.offers:
                self._put(lambda leg=leg: self._describe(leg, "offer"))  # type: ignore[misc]

    def on_description(self, user_id: str, kind: DescriptionType, text: str) -> None:
        """Another party has described itself."""
        self._put(lambda: self._take(user_id, kind, text))

    def on_ready(self, user_id: str) -> None:
        """Another party can hear us."""
        self._put(lambda: self._take_ready(user_id))

    async def wait_ready(self) -> None:
        """Wait until voice can go to and from all parties. Raises MediaFailed. The caller has a deadline."""
        for leg in list(self.legs.values()):
            await leg.ready.wait()
            if (error := leg.error or self.failed) is not None:
                raise error

    async def say(self, packets: int) -> None:
        """Say this many packets to each party, and then be silent. It waits while it may not talk."""
        await self._saying.say(packets)

    async def close(self) -> None:
        """End everything. May be repeated."""
        self._closed = True
        self._pacer.discard(self.tick)
        for leg in self.legs.values():
            leg.error = leg.error or MediaFailed("The call has ended.")
            leg.ready.set()
        try:
            await self._tasks.cancel()
        finally:
            await self._close_line()

    # Every 20 ms

    def tick(self) -> None:
        """Speak, and note who spoke."""
        said = self._speak() if self.talking and self._saying.left != 0 else False
        heard = sum(leg.listener.received for leg in self.legs.values() if leg.listener is not None)
        if self._recorder is not None:
            self._recorder.tick(said=said, heard=heard > self._heard)
        self._heard = heard

    def _speak(self) -> bool:
        line = self._line
        speaking = [leg for leg in self.legs.values() if leg.can_speak]
        if line is None or not speaking:
            return False
        for leg in speaking:
            assert leg.bound is not None
            line.send(leg.bound, leg.speaker.next_packet())
        self._saying.said()
        return True

    def _on_data(self, peer: Address, packet: bytes) -> None:
        leg = self._by_address.get(peer)
        if leg is None or leg.listener is None:
            self.strangers += 1
            return
        if leg.bound is not None and not leg.is_heard:
            # They send, so they have bound our address, and hear us. What told us so may have been lost.
            leg.is_heard = True
            leg.ready.set()
        leg.listener.hear(packet)

    # The task

    def _put(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            self._inbox.put_nowait(work)
        except asyncio.QueueFull:
            log.warning("too much is told about the media of a call", user=self._own, limit=MAX_INBOX)

    async def _run(self) -> None:
        try:
            self._line = await self._open_line(0, self._on_data, self._on_moved)
            while True:
                work = await self._inbox.get()
                await work()
        except SoftphoneError as error:
            self._fail(error)

    def _fail(self, error: SoftphoneError) -> None:
        self.failed = error
        log.warning("call without voice", user=self._own, error=str(error))
        for leg in self.legs.values():
            leg.ready.set()

    def _fail_leg(self, leg: Leg, error: Exception) -> None:
        leg.error = error if isinstance(error, SoftphoneError) else MediaFailed(f"{leg.user_id}: {error}")
        log.warning("no voice with another party", user=self._own, party=leg.user_id, error=str(error))
        leg.ready.set()

    # Descriptions

    async def _describe(self, leg: Leg, kind: DescriptionType) -> None:
        line = self._line
        if line is None or line.relayed_address is None or self.legs.get(leg.user_id) is not leg:
            return
        leg.version += 1
        if kind == "offer":
            leg.offered_at = self._loop.time()
        speaker = leg.speaker
        description = sdp.Description(
            line.relayed_address, speaker.ssrc, speaker.master_key, self._own, leg.session_id, leg.version
        )
        try:
            await self._tell.describe(leg.user_id, kind, sdp.build(description))
        except SoftphoneError as error:
            # They, or we, are away from signaling for a moment. If they have left, the state of the line tells that.
            log.info("description not delivered", user=self._own, party=leg.user_id, error=str(error))

    async def _take(self, user_id: str, kind: DescriptionType, text: str) -> None:
        leg = self.legs.get(user_id)
        if leg is None:
            return
        leg.descriptions += 1
        try:
            if leg.descriptions > MAX_DESCRIPTIONS:
                raise MediaFailed(f"{user_id} has described itself more than {MAX_DESCRIPTIONS} times")
            await self._settle(leg, sdp.parse(text))
            if kind == "offer":
                await self._describe(leg, "answer")
            else:
                leg.offered_at = None
                leg.is_heard = True
                leg.ready.set()
                await self._tell_ready(leg)
        except (SoftphoneError, sdp.SdpError, UpstreamError) as error:
            self._fail_leg(leg, error)

    async def _tell_ready(self, leg: Leg) -> None:
        try:
            await self._tell.ready(leg.user_id)
        except SoftphoneError as error:
            log.info("not told that we can hear", user=self._own, party=leg.user_id, error=str(error))
            leg.offered_at = self._loop.time()

    async def _settle(self, leg: Leg, remote: sdp.Description) -> None:
        """Hear with the other side's key, and be able to send to its address."""
        before = leg.remote
        if before is not None and before.session_id == remote.session_id and before.version > remote.version:
            return
        if before is None or (before.ssrc, before.master_key) != (remote.ssrc, remote.master_key):
            leg.listener = Listener(remote.ssrc, remote.master_key)
        leg.remote = remote
        await self._bind(leg)

    async def _bind(self, leg: Leg) -> None:
        assert leg.remote is not None
        address = leg.remote.relayed
        if self._line is None:
            return
        # Packets may come as soon as the server has bound the channel, before we hear of that.
        if leg.bound is not None and leg.bound != address:
            self._by_address.pop(leg.bound, None)
        self._by_address[address] = leg
        await self._line.bind(address)
        leg.bound = address

    async def _take_ready(self, user_id: str) -> None:
        leg = self.legs.get(user_id)
        if leg is not None and leg.bound is not None:
            leg.is_heard = True
            leg.ready.set()

    def _drop(self, leg: Leg) -> None:
        if leg.bound is not None:
            self._by_address.pop(leg.bound, None)
        leg.ready.set()

    # When the way fails

    def _on_moved(self, relayed: Address) -> None:
        self._put(self._offer_again)

    async def _offer_again(self) -> None:
        for leg in list(self.legs.values()):
            await self._describe(leg, "offer")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now, line = self._loop.time(), self._line
            for leg in self.legs.values():
                if leg.offered_at is not None and now - leg.offered_at >= OFFER_AGAIN_S:
                    self._offer_once_more(leg)
            if line is not None and not self._checking and (line.closed.done() or self._is_silent(now)):
                self._checking = True
                self._put(self._check)

    def _offer_once_more(self, leg: Leg) -> None:
        """Nobody has answered: they, or we, were away from signaling."""
        leg.offered_at = None
        if leg.version < MAX_DESCRIPTIONS:
            self._put(lambda: self._describe(leg, "offer"))
        elif not leg.ready.is_set():
            self._fail_leg(leg, MediaFailed(f"{leg.user_id} has answered none of {leg.version} offers"))

    def _is_silent(self, now: float) -> bool:
        """True if a party that was heard before is not heard any longer, although it may only be silent."""
        silent = False
        for leg in self.legs.values():
            received = leg.listener.received if leg.listener is not None else 0
            if received != leg.seen or not leg.seen_at:
                leg.seen, leg.seen_at = received, now
            elif leg.can_speak and now - leg.seen_at >= SILENCE_S:
                leg.seen_at, silent = now, True
        return silent

    async def _check(self) -> None:
        line = self._line
        try:
            if line is not None and not line.closed.done():
                await line.check()
                return
        except UpstreamError as error:
            log.info("the way to the TURN host has failed", user=self._own, error=str(error))
        finally:
            self._checking = False
        await self._reopen()

    async def _reopen(self) -> None:
        """Another way, maybe to another TURN host. Raises SoftphoneError if there is none."""
        await self._close_line()
        while True:
            self.reopenings += 1
            try:
                self._line = await self._open_line(self.reopenings, self._on_data, self._on_moved)
                break
            except MediaFailed:
                if self.reopenings >= MAX_REOPENINGS:
                    raise
                await asyncio.sleep(REOPEN_PAUSE_S)
        for leg in list(self.legs.values()):
            if leg.remote is not None:
                try:
                    await self._bind(leg)
                except UpstreamError as error:
                    self._fail_leg(leg, error)
                    continue
            await self._describe(leg, "offer")

    async def _close_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            await close_line(line)
