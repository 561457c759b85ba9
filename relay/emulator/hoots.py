"""The media of hoots: what signaling decides about a line, the SFU does.

A softphone that has joined a hoot offers its relayed address and SSRC to ``@sfu``, by ``media.description``. The answer
has the hoot's address and its group key. Later keys come as offers from ``@sfu``, which want no answer. Who leaves, and
who has the floor, follows from the line.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, replace
from typing import Literal

import structlog

from relay.addresses import Address
from relay.emulator.lines import LineKind
from relay.emulator.sfu import FloorFull, Hoot, HootError, Sfu, SsrcRefused
from relay.emulator.signaling.hub import Hub
from relay.emulator.signaling.messages import (
    MEDIA_SERVER,
    ErrorCode,
    Fault,
    MediaDescription,
    SendCandidate,
    SendDescription,
)
from relay.emulator.signaling.state import Line, LineSpec, Refusal
from relay.tasks import Tasks

log = structlog.get_logger()

# Hoots of one firm that are open at once. The SFU has 64 for all firms, and a firm's floors have a handful of hoots: so
# four firms can each have more than they need, and one alone cannot take them all.
MAX_HOOTS_OF_A_FIRM = 16
# RFC 8839 section 5.1: component 1, UDP. RFC 5576 section 4.1.
_CANDIDATE = re.compile(
    r"^a=candidate:\S{1,32} 1 udp \d{1,10} (\S{1,45}) (\d{1,5}) typ \w+", re.MULTILINE | re.IGNORECASE
)
_SSRC = re.compile(r"^a=ssrc:(\d{1,10})\b", re.MULTILINE)
_AUDIO = re.compile(r"^m=audio \d+ (\S+)", re.MULTILINE)
_EXPECTED = "an offer with m=audio ... RTP/SAVP, one a=candidate with a relayed IPv4 address, and a=ssrc"


@dataclass(frozen=True)
class End:
    """Where a softphone hears, and from where and with which SSRC it talks."""

    address: Address
    # None: it was refused when they got the floor, and they have not offered another.
    ssrc: int | None


@dataclass
class _Room:
    """A hoot, its call, and the ends of those who have offered and are there: at least one, or else it is closed."""

    hoot: Hoot
    call_id: str
    spec: LineSpec
    ends: dict[str, End] = field(default_factory=dict)
    # Those who have the floor, were refused by the hoot, and know it.
    refused: set[str] = field(default_factory=set)

    @property
    def firm(self) -> str | None:
        """Whose share it takes: the firm of the one who has been in it longest."""
        return self.spec.firm_of.get(next(iter(self.ends), ""))


class HootMedia:
    """Connects a hub and an SFU. ``stop`` it before the SFU.

    The SFU tells of new keys and of subscribers that are gone: give it ``on_key`` and ``on_vanished`` of this object.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._rooms: dict[str, _Room] = {}
        self._tasks = Tasks()
        self._sfu: Sfu

    def start(self, sfu: Sfu) -> None:
        """Take offers from now on."""
        self._sfu = sfu
        self._hub.serve_media(self.on_media)
        self._hub.announcer.observe(self.on_line)

    async def stop(self) -> None:
        """End all hoots."""
        await self._tasks.cancel()
        while self._rooms:
            self._rooms.popitem()[1].hoot.close()

    def serves(self, address: Address) -> bool:
        """True for the address of a hoot that there is now."""
        return any(room.hoot.address == address for room in self._rooms.values())

    # Signaling

    async def on_media(self, user_id: str, number: str, message: SendDescription | SendCandidate) -> None:
        """A member of a call has sent something to the media server. Raises Refusal."""
        if isinstance(message, SendCandidate):
            return  # the offer has all that is needed
        spec = await self._hub.directory.line(number)
        if spec is None or spec.kind is not LineKind.HOOT:
            raise Refusal(ErrorCode.WRONG_STATE, f"{number} is not a hoot.", "a party of your call as the receiver")
        line = (await self._hub.shared.read_lines([number]))[number]
        if line.call is None or line.call.call_id != message.call_id or user_id not in line.parties:
            raise Refusal(ErrorCode.NOT_IN_CALL, "You are not in this call.", "line.join, and then an offer")
        end = parse_end(message.sdp)
        room = self._room(spec, message.call_id, user_id)
        try:
            self._take_offer(room, user_id, end, talks=line.parties[user_id].talking)
        except FloorFull as full:
            raise Refusal(ErrorCode.FLOOR_FULL, str(full)) from None
        except HootError as refused:
            raise Refusal(ErrorCode.BAD_MESSAGE, str(refused), _EXPECTED) from None
        finally:
            self._close_if_empty(room)
        await self._describe(user_id, room, "answer")

    @staticmethod
    def _take_offer(room: _Room, user_id: str, end: End, *, talks: bool) -> None:
        # First, because a refused offer changes nothing: the one before holds.
        assert end.ssrc is not None
        room.hoot.require_ssrc(user_id, end.ssrc)
        room.hoot.subscribe(user_id, end.address)
        room.ends[user_id] = end
        if talks:
            room.hoot.allow(user_id, end.ssrc, end.address)
            room.refused.discard(user_id)

    def on_line(self, spec: LineSpec, line: Line) -> None:
        """A line has changed."""
        room = self._rooms.get(spec.number)
        if room is None:
            return
        if line.call is None or line.call.call_id != room.call_id:
            self._rooms.pop(spec.number).hoot.close()
            return
        for user_id in room.ends.keys() - line.parties.keys():
            del room.ends[user_id]
            room.hoot.unsubscribe(user_id)
        if self._close_if_empty(room):
            return
        talkers = set(line.talkers)
        for user_id in set(room.hoot.talkers) - talkers:
            room.hoot.revoke(user_id)
        room.refused &= talkers
        for user_id in (talkers & room.ends.keys()) - set(room.hoot.talkers) - room.refused:
            self._allow(room, user_id)

    def _allow(self, room: _Room, user_id: str) -> None:
        end = room.ends[user_id]
        try:
            if end.ssrc is None:
                raise SsrcRefused(f"{room.hoot.line}: your SSRC was refused; expected an offer with another")
            room.hoot.allow(user_id, end.ssrc, end.address)
        except SsrcRefused as refused:
            room.ends[user_id] = replace(end, ssrc=None)
            self._refuse(room, user_id, ErrorCode.BAD_MESSAGE, refused)
        except FloorFull as refused:
            self._refuse(room, user_id, ErrorCode.FLOOR_FULL, refused)
        except HootError as refused:
            self._refuse(room, user_id, ErrorCode.UNAVAILABLE, refused)

    def _refuse(self, room: _Room, user_id: str, code: ErrorCode, refused: HootError) -> None:
        """Tell a user, once for each time they get the floor: signaling has acknowledged it, and nobody hears them."""
        log.warning("hoot talker refused", line=room.hoot.line, user=user_id, why=str(refused))
        room.refused.add(user_id)
        self._tasks.start(self._hub.send_media(user_id, Fault(code=code, message=str(refused))), "hoot refusal")

    def _room(self, spec: LineSpec, call_id: str, user_id: str) -> _Room:
        room = self._rooms.get(spec.number)
        if room is not None and room.call_id != call_id:
            self._rooms.pop(spec.number).hoot.close()
            room = None
        if room is None:
            self._require_share(spec.firm_of.get(user_id))
            try:
                room = self._rooms[spec.number] = _Room(self._sfu.open(spec.number), call_id, spec)
            except HootError as refused:
                raise Refusal(ErrorCode.UNAVAILABLE, str(refused), "a later try") from None
        return room

    def _require_share(self, firm: str | None) -> None:
        if sum(room.firm == firm for room in self._rooms.values()) >= MAX_HOOTS_OF_A_FIRM:
            message = f"Your firm has {MAX_HOOTS_OF_A_FIRM} hoots open, which is the limit."
            raise Refusal(ErrorCode.UNAVAILABLE, message, "a later try, or that your users leave a hoot")

    def _close_if_empty(self, room: _Room) -> bool:
        """Close a hoot in which nobody is: its place is for others. The next offer opens another."""
        if room.ends:
            return False
        room.hoot.close()
        if self._rooms.get(room.spec.number) is room:
            del self._rooms[room.spec.number]
        return True

    # The SFU

    def on_key(self, hoot: Hoot) -> None:
        """A hoot has a new key: tell everyone in it."""
        room = self._rooms.get(hoot.line)
        if room is not None and room.hoot is hoot:
            self._tasks.start(self._tell_key(room), "hoot key")

    async def _tell_key(self, room: _Room) -> None:
        for user_id in list(room.ends):
            await self._describe(user_id, room, "offer")
            # 800 of them take 0.1 s: others are not to wait for that.
            await asyncio.sleep(0)

    def on_vanished(self, hoot: Hoot, user_id: str) -> None:
        """A softphone shows no life. Its user is still on the line, and may offer again."""
        room = self._rooms.get(hoot.line)
        if room is not None and room.hoot is hoot:
            room.ends.pop(user_id, None)
            self._close_if_empty(room)

    async def _describe(self, user_id: str, room: _Room, kind: Literal["offer", "answer"]) -> None:
        said = {"call_id": room.call_id, "from": MEDIA_SERVER, "type": kind, "sdp": room.hoot.sdp}
        await self._hub.send_media(user_id, MediaDescription.model_validate(said))


def parse_end(sdp: str) -> End:
    """What the SFU needs of an offer. Raises Refusal."""
    text = sdp.replace("\r\n", "\n")
    audio, candidates, ssrcs = _AUDIO.search(text), _CANDIDATE.findall(text), set(_SSRC.findall(text))
    if audio is not None and "TLS" in audio[1]:
        message = "A browser cannot be in a hoot's media: WebRTC takes no group key from signaling."
        raise Refusal(ErrorCode.BAD_MESSAGE, message, _EXPECTED)
    if audio is None or len(candidates) != 1 or len(ssrcs) != 1:
        raise Refusal(ErrorCode.BAD_MESSAGE, "sdp: not the offer of a softphone.", _EXPECTED)
    host, port = candidates[0]
    # The hoot checks the address.
    return End(Address(host, int(port)), int(ssrcs.pop()))
