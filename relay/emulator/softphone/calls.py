"""One call as one of its parties has it: what the server says of its line, and the media."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from relay import deadlines
from relay.emulator.lines import LineKind
from relay.emulator.signaling.messages import (
    Accepted,
    EndReason,
    Event,
    LineAnswer,
    LineLeave,
    LineRelease,
    LineState,
    LineStatus,
    LineTalk,
    Participant,
    PartyRole,
    SendCandidate,
    SendDescription,
)
from relay.emulator.softphone.carriers import MediaLine, OnData, OnMoved
from relay.emulator.softphone.errors import CallEnded, SoftphoneError, Unreachable
from relay.emulator.softphone.group import GroupListener
from relay.emulator.softphone.hoot import HootMedia
from relay.emulator.softphone.media import CallMedia, DescriptionType, Leg
from relay.emulator.softphone.pacer import Pacer
from relay.emulator.softphone.recorder import Recorder, Recording
from relay.emulator.softphone.voice import PACKETS_PER_SECOND, Arrivals

# The server's own timeout of a ringing line is 30 s.
ANSWERED_TIMEOUT_S = 40.0
# Opening a way takes 10 s at most, a description and its answer each a round trip.
READY_TIMEOUT_S = 30.0
# An upload has deadlines of its own.
RECORDED_TIMEOUT_S = 120.0
_OPEN = frozenset({LineStatus.CONNECTED, LineStatus.TALKING})


def parties_of(state: LineState, own: str) -> tuple[list[str], list[str]]:
    """Whom this user offers to, and who offers to this user.

    The caller offers to everyone. On an intercom everyone also hears everyone: the one whose id comes first offers.
    """
    if state.kind is LineKind.HOOT or state.state not in _OPEN:
        return [], []
    roles = {one.user_id: one.role for one in state.participants}
    if own not in roles:
        return [], []
    others = [user_id for user_id in roles if user_id != own]
    if roles[own] is PartyRole.CALLER:
        return others, []
    callers = [user_id for user_id in others if roles[user_id] is PartyRole.CALLER]
    if state.kind is not LineKind.INTERCOM:
        return [], callers
    rest = [user_id for user_id in others if user_id not in callers]
    return [user_id for user_id in rest if own < user_id], callers + [user_id for user_id in rest if user_id < own]


class Owner(Protocol):
    """The softphone, as far as its calls need it."""

    user_id: str
    records: bool
    speaks: bool
    pacer: Pacer

    @property
    def has_media(self) -> bool:
        """False if it is for signaling alone."""

    async def tell(self, message: Event) -> Accepted:
        """Send a message of signaling. Raises SignalingRefused or Unreachable."""

    async def open_line(self, attempt: int, on_data: OnData, on_moved: OnMoved) -> MediaLine:
        """Open a way for voice. Raises MediaFailed or Unreachable."""


class Call:
    """A call. ``state`` is the last that the server has said of its line. ``incoming``: somebody else began it."""

    def __init__(self, phone: Owner, state: LineState, *, incoming: bool) -> None:
        assert state.call_id is not None
        self.call_id = state.call_id
        self.line = state.line
        self.kind = state.kind
        self.incoming = incoming
        self.state = state
        self.recording: Recording | None = None
        # Everyone who was listed while it was connected.
        self.met: set[str] = set()
        self._phone = phone
        self._answered = asyncio.Event()
        self._ended = asyncio.Event()
        self._reason: EndReason | None = None
        self._recorded: asyncio.Future[Recording | None] = asyncio.get_running_loop().create_future()
        self._recorder = Recorder() if phone.records else None
        # The user has asked for silence, which the server has not confirmed yet.
        self._hushed = False
        self.media: CallMedia | HootMedia | None = None
        if phone.has_media:
            media = HootMedia if self.kind is LineKind.HOOT else CallMedia
            self.media = media(
                phone.user_id,
                phone.open_line,
                _Teller(phone, self.call_id),
                phone.pacer,
                recorder=self._recorder,
                speaks=phone.speaks,
            )
            if isinstance(self.media, HootMedia):
                self.media.start()
        self.update(state)

    def __repr__(self) -> str:
        return f"<Call {self.call_id} on {self.line}: {self.state.state if self.is_open else 'ended'}>"

    # What it is

    @property
    def is_open(self) -> bool:
        """False once it has ended for this user."""
        return not self._ended.is_set()

    @property
    def own(self) -> Participant | None:
        """This user in it. On a large hoot only the talkers are listed."""
        return next((one for one in self.state.participants if one.user_id == self._phone.user_id), None)

    @property
    def legs(self) -> dict[str, Leg]:
        """The media with each other party. On a hoot there are ``voices`` instead."""
        return self.media.legs if isinstance(self.media, CallMedia) else {}

    @property
    def voices(self) -> dict[int, GroupListener]:
        """Who is heard on a hoot, by SSRC."""
        return self.media.voices if isinstance(self.media, HootMedia) else {}

    @property
    def recorder(self) -> Recorder | None:
        """What has been recorded so far."""
        return self._recorder

    # What a user does. Each raises SignalingRefused or Unreachable.

    async def answer(self) -> None:
        """Answer it."""
        await self._phone.tell(LineAnswer(line=self.line))

    async def release(self) -> None:
        """Hang up, or decline. Its record is on disk when this returns, if it has ended for all."""
        if self.is_open:
            message = LineLeave if self.kind is LineKind.HOOT else LineRelease
            await self._tell_in_silence(message(line=self.line))

    async def talk(self, on: bool) -> None:
        """Begin or end to talk, on a line where that is a choice."""
        message = LineTalk(line=self.line, on=on)
        if on:
            self._hushed = False
            await self._phone.tell(message)
        else:
            await self._tell_in_silence(message)

    async def _tell_in_silence(self, message: Event) -> None:
        """Say no more from now on: what is said after the floor is gone would be dropped, and be missing."""
        self._hushed = True
        if self.media is not None:
            self.media.talking = False
        try:
            await self._phone.tell(message)
        except SoftphoneError:
            self._hushed = False
            self.update(self.state)
            raise

    # What a user waits for

    async def answered(self, timeout_s: float = ANSWERED_TIMEOUT_S) -> None:
        """Wait until it is connected. Raises CallEnded if it ends before, and Unreachable."""
        await self._wait(self._answered, timeout_s, "not answered")
        if not self.is_open and self._reason is not EndReason.RELEASED:
            raise CallEnded(self._reason)

    async def ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until voice can go both ways. Raises CallEnded, MediaFailed and Unreachable."""
        await self.answered(timeout_s)
        if self.media is not None:
            try:
                async with deadlines.timeout(timeout_s):
                    await self.media.wait_ready()
            except TimeoutError:
                raise Unreachable(f"{self.line}: no voice within {timeout_s:g} s") from None
            except SoftphoneError:
                if not self.is_open:
                    raise CallEnded(self._reason) from None
                raise

    async def say(self, packets: int) -> None:
        """Say this many packets of 20 ms, and then be silent. Raises CallEnded, or Unreachable if it takes too long."""
        assert self.media is not None
        saying = asyncio.ensure_future(self.media.say(packets))
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            timeout_s = 2 * packets / PACKETS_PER_SECOND + READY_TIMEOUT_S
            await asyncio.wait({saying, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not saying.done():
                raise CallEnded(self._reason) if ended.done() else Unreachable(f"not said within {timeout_s:g} s")
        finally:
            saying.cancel()
            ended.cancel()
            await asyncio.gather(saying, ended, return_exceptions=True)

    async def heard(self, user_id: str, packets: int, timeout_s: float = 5.0) -> int:
        """Wait until this many packets of a party have come. Returns how many have when the time is over."""
        listener = self.legs[user_id].listener
        return 0 if listener is None else await self._heard(listener, packets, timeout_s)

    async def heard_voice(self, ssrc: int, packets: int, timeout_s: float = 5.0) -> int:
        """The same for a talker of a hoot, who has been heard before or not."""
        assert isinstance(self.media, HootMedia)
        return await self._heard(self.media.listeners.voice(ssrc), packets, timeout_s)

    async def _heard(self, listener: Arrivals, packets: int, timeout_s: float) -> int:
        with contextlib.suppress(TimeoutError):
            async with deadlines.timeout(timeout_s):
                await listener.wait_received(packets)
        return listener.received

    async def ended(self, timeout_s: float) -> EndReason | None:
        """Wait until it has ended, and return why. Raises Unreachable if it has not within the time."""
        await self._wait(self._ended, timeout_s, "still goes on")
        return self._reason

    async def recorded(self, timeout_s: float = RECORDED_TIMEOUT_S) -> Recording | None:
        """Wait until its recording is with the recorder. None if it is not recorded. Raises SoftphoneError."""
        try:
            async with deadlines.timeout(timeout_s):
                return await asyncio.shield(self._recorded)
        except TimeoutError:
            raise Unreachable(f"{self.line}: the recording was not uploaded within {timeout_s:g} s") from None

    async def _wait(self, event: asyncio.Event, timeout_s: float, otherwise: str) -> None:
        try:
            async with deadlines.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            raise Unreachable(f"{self.line}: {otherwise} within {timeout_s:g} s") from None

    # What the softphone tells

    def update(self, state: LineState) -> None:
        """The server has said something of the line while this call goes on."""
        self.state = state
        if state.state in _OPEN:
            self._answered.set()
            self.met.update(one.user_id for one in state.participants)
        if self.media is None:
            return
        own = self.own
        self.media.talking = own is not None and own.talking and not self._hushed
        if isinstance(self.media, HootMedia):
            self.media.others_talk = any(one.talking for one in state.participants if one is not own)
        else:
            self.media.set_parties(*parties_of(state, self._phone.user_id))

    def end(self, reason: EndReason | None) -> None:
        """It has ended for this user."""
        self._reason = reason
        self._ended.set()
        self._answered.set()

    async def close_media(self) -> None:
        """Release what the media holds."""
        if self.media is not None:
            await self.media.close()

    def settle_recording(self, result: Recording | SoftphoneError | None) -> None:
        """The recording is uploaded, has failed, or there is none."""
        if self._recorded.done():
            return
        if isinstance(result, SoftphoneError):
            self._recorded.set_exception(result)
            # Nobody need ask for it.
            self._recorded.exception()
        else:
            self.recording = result
            self._recorded.set_result(result)


class _Teller:
    def __init__(self, phone: Owner, call_id: str) -> None:
        self._phone = phone
        self._call_id = call_id

    async def describe(self, to: str, kind: DescriptionType, text: str) -> None:
        await self._phone.tell(SendDescription(call_id=self._call_id, to=to, type=kind, sdp=text))

    async def ready(self, to: str) -> None:
        await self._phone.tell(SendCandidate(call_id=self._call_id, to=to, candidate=""))
