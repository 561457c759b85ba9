"""The media of hoots: what signaling decides about a line, the SFU does.

A softphone that has joined a hoot offers its relayed address and SSRC to ``@sfu``, by ``media.description``. The answer
has the hoot's address and its group key. Later keys come as offers from ``@sfu``, which want no answer. Who leaves, and
who has the floor, follows from the line.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Literal

import structlog

from relay.addresses import Address
from relay.emulator.lines import LineKind
from relay.emulator.sfu import FloorFull, Hoot, HootError, Sfu
from relay.emulator.signaling.hub import Hub
from relay.emulator.signaling.messages import (
    MEDIA_SERVER,
    ErrorCode,
    MediaDescription,
    SendCandidate,
    SendDescription,
)
from relay.emulator.signaling.state import Line, LineSpec, Refusal
from relay.tasks import Tasks

log = structlog.get_logger()

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
    ssrc: int


@dataclass
class _Room:
    """A hoot, its call, and the ends of those who have offered."""

    hoot: Hoot
    call_id: str
    ends: dict[str, End] = field(default_factory=dict)


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
        self._hub.observe(self.on_line)

    async def stop(self) -> None:
        """End all hoots."""
        await self._tasks.cancel()
        while self._rooms:
            self._rooms.popitem()[1].hoot.close()

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
        room = self._room(number, message.call_id)
        try:
            room.hoot.subscribe(user_id, end.address)
            room.ends[user_id] = end
            if line.parties[user_id].talking:
                room.hoot.allow(user_id, end.ssrc, end.address)
        except FloorFull as full:
            raise Refusal(ErrorCode.FLOOR_FULL, str(full)) from None
        except HootError as refused:
            raise Refusal(ErrorCode.BAD_MESSAGE, str(refused), _EXPECTED) from None
        await self._describe(user_id, room, "answer")

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
        talkers = set(line.talkers)
        for user_id in set(room.hoot.talkers) - talkers:
            room.hoot.revoke(user_id)
        for user_id in (talkers & room.ends.keys()) - set(room.hoot.talkers):
            self._allow(room, user_id)

    def _allow(self, room: _Room, user_id: str) -> None:
        end = room.ends[user_id]
        try:
            room.hoot.allow(user_id, end.ssrc, end.address)
        except HootError as refused:
            # They hear nothing of it here: their next offer does.
            log.warning("hoot talker refused", line=room.hoot.line, user=user_id, why=str(refused))

    def _room(self, number: str, call_id: str) -> _Room:
        room = self._rooms.get(number)
        if room is not None and room.call_id != call_id:
            self._rooms.pop(number).hoot.close()
            room = None
        if room is None:
            try:
                room = self._rooms[number] = _Room(self._sfu.open(number), call_id)
            except HootError as refused:
                raise Refusal(ErrorCode.UNAVAILABLE, str(refused), "a later try") from None
        return room

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
