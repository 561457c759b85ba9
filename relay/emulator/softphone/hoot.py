"""The media of a hoot: one way to a TURN host, and the SFU as its only peer.

The softphone offers its relayed address and its SSRC to ``@sfu``. The answer has the address of the hoot and the group
key; later keys come as offers. The first sign of life makes the SFU send. One task does all that waits, and the tick of
the pacer all that does not: voice, and signs of life.
"""

from __future__ import annotations

import asyncio
import secrets

import structlog

from relay import deadlines
from relay.addresses import Address
from relay.emulator.sfu import GroupCipher, keepalive
from relay.emulator.sfu.group_key import KEEPALIVE_S
from relay.emulator.signaling.messages import MEDIA_SERVER
from relay.emulator.softphone import sdp
from relay.emulator.softphone.carriers import MediaLine, close_line
from relay.emulator.softphone.errors import MediaFailed, SignalingRefused, SoftphoneError
from relay.emulator.softphone.group import GroupListener, GroupListeners, GroupSpeaker
from relay.emulator.softphone.media import (
    MAX_REOPENINGS,
    OFFER_AGAIN_S,
    REOPEN_PAUSE_S,
    DescriptionType,
    OpenLine,
    Teller,
)
from relay.emulator.softphone.pacer import Pacer
from relay.emulator.softphone.recorder import Recorder
from relay.emulator.softphone.voice import Saying
from relay.errors import UpstreamError
from relay.tasks import Tasks

log = structlog.get_logger()

# How often the task looks whether there is something to do, if nothing wakes it.
WATCH_S = 1.0
# Someone has the floor, and nothing is heard for this long: ask the TURN host whether it is there, and the SFU whether
# it still has us. Someone who has the floor may also be silent, so each time the next question comes later.
SILENCE_S = 3.0
MAX_SILENCE_S = 30.0
# Nothing tells a talker that the TURN host or the SFU is gone. So they ask both this often: 12 talkers make four offers
# a second.
TALKER_ASKS_S = 3.0


class HootMedia:
    """``start`` begins it, ``close`` ends it. ``failed`` is why there is no voice, if so.

    ``talking``: this user has the floor. ``others_talk``: somebody else has.
    """

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
        self.speaker = GroupSpeaker()
        self.listeners = GroupListeners()
        self.failed: SoftphoneError | None = None
        self.reopenings = 0
        self.strangers = 0
        self.talking = False
        self.others_talk = False
        self._own = own
        self._open_line = open_line
        self._tell = tell
        self._pacer = pacer
        self._recorder = recorder
        self._saying = Saying(speaks=speaks)
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._line: MediaLine | None = None
        self._cipher: GroupCipher | None = None
        self._hoot: Address | None = None
        self._session_id = secrets.randbits(62)
        self._version = 0
        self._heard = 0
        # Ways in a row on which the hoot was not reached.
        self._failures = 0
        # Where the hoot is: as the SFU has told since this way was opened, and with a channel on it.
        self._told: Address | None = None
        self._bound: Address | None = None
        # When to offer, None while the SFU has answered; when to show life.
        self._offer_at: float | None = None
        self._answered_at = 0.0
        self._keepalive_at = 0.0
        # When the task looked: packets so far, since when they are this many, and how long that may be so.
        self._seen, self._seen_at, self._silence_s = 0, 0.0, SILENCE_S

    @property
    def voices(self) -> dict[int, GroupListener]:
        """Who is heard, by SSRC."""
        return self.listeners.voices

    # What the call does

    def start(self) -> None:
        """Begin."""
        self._pacer.add(self.tick)
        self._tasks.start(self._run(), "media of a hoot")

    def on_description(self, user_id: str, kind: DescriptionType, text: str) -> None:
        """Somebody has described themselves. Only the SFU matters: browsers send each other offers, on hoots too."""
        if user_id != MEDIA_SERVER:
            return
        try:
            told = sdp.parse_hoot(text)
        except sdp.SdpError as error:
            log.warning("description of a hoot is not used", user=self._own, error=str(error))
            return
        now = self._loop.time()
        if self._cipher is None or told.address != self._hoot:
            # Another address is another hoot, and its keys are others.
            self._cipher, self._hoot = GroupCipher(told.key), told.address
        self._cipher.use(told.key, now)
        self.listeners.on_key(self._cipher, now)
        if kind == "answer":
            self._told, self._answered_at = told.address, now
            self._offer_at = None
            # The SFU may have forgotten us.
            self._keepalive_at = now
            self._wake.set()

    def on_ready(self, user_id: str) -> None:
        """Another party can hear us: the SFU does not say that."""

    async def wait_ready(self) -> None:
        """Wait until the hoot can be heard. Raises SoftphoneError. The caller has a deadline."""
        await self._ready.wait()
        if self.failed is not None:
            raise self.failed

    async def say(self, packets: int) -> None:
        """Say this many packets, and then be silent. It waits while there is no floor."""
        await self._saying.say(packets)

    async def close(self) -> None:
        """End everything. May be repeated."""
        self._pacer.discard(self.tick)
        self.failed = self.failed or MediaFailed("The call has ended.")
        self._ready.set()
        try:
            await self._tasks.cancel()
        finally:
            await self._close_line()

    # Every 20 ms

    def tick(self) -> None:
        """Speak, show life, and note who spoke."""
        now, before = self._loop.time(), self._heard
        self.listeners.expire(now)
        self._show_life(now)
        said = self._speak(now) if self.talking and self._saying.left != 0 else False
        self._heard = self.listeners.received
        if self._recorder is not None:
            self._recorder.tick(said=said, heard=self._heard > before)

    def _show_life(self, now: float) -> None:
        if self._line is not None and self._bound is not None and now >= self._keepalive_at:
            self._line.send(self._bound, keepalive())
            self._keepalive_at = now + KEEPALIVE_S

    def _speak(self, now: float) -> bool:
        if self._line is None or self._bound is None or self._cipher is None:
            return False
        self._line.send(self._bound, self.speaker.next_packet(self._cipher, now))
        self._saying.said()
        return True

    def _on_data(self, peer: Address, packet: bytes) -> None:
        if self._cipher is None or peer != self._told:
            self.strangers += 1
            return
        self.listeners.hear(self._cipher, packet, self._loop.time())

    # The task

    async def _run(self) -> None:
        try:
            while True:
                line = await self._open()
                await self._serve(line)
                await self._close_line()
        except SoftphoneError as error:
            self.failed = error
            log.warning("hoot without voice", user=self._own, error=str(error))
            self._ready.set()
            await self._close_line()

    async def _open(self) -> MediaLine:
        """Open a way: the first, or another one maybe to another TURN host. Raises SoftphoneError if there is none."""
        while True:
            try:
                self._line = await self._open_line(self.reopenings, self._on_data, self._on_moved)
            except MediaFailed as error:
                if not self.reopenings:
                    raise
                await self._fail_way(error)
            else:
                self._offer_at = self._loop.time()
                return self._line

    async def _fail_way(self, error: Exception) -> None:
        """A way was of no use. Raises MediaFailed after too many."""
        self.reopenings += 1
        self._failures += 1
        if self._failures > MAX_REOPENINGS:
            raise error if isinstance(error, MediaFailed) else MediaFailed(f"the hoot is not reached: {error}")
        log.info("the way to the hoot has failed", user=self._own, error=str(error))
        await asyncio.sleep(REOPEN_PAUSE_S)

    async def _serve(self, line: MediaLine) -> None:
        """Do what is to be done, until the way has failed. Raises SoftphoneError if there will be no voice."""
        try:
            while not line.closed.done():
                now = self._loop.time()
                if self._told is not None and self._told != self._bound:
                    await self._bind(line, self._told)
                elif self._offer_at is not None and now >= self._offer_at:
                    await self._offer(line)
                elif self._is_silent(now) or self._talks_unasked(now):
                    await line.check()
                    self._offer_at = now
                else:
                    await self._rest()
            await self._fail_way(UpstreamError("the way was closed"))
        except UpstreamError as error:
            await self._fail_way(error)

    async def _rest(self) -> None:
        try:
            async with deadlines.timeout(WATCH_S):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _bind(self, line: MediaLine, hoot: Address) -> None:
        await line.bind(hoot)
        self._bound = hoot
        self._failures = 0
        self._show_life(self._loop.time())
        self._ready.set()

    async def _offer(self, line: MediaLine) -> None:
        self._offer_at = self._loop.time() + OFFER_AGAIN_S
        if line.relayed_address is None:
            return
        self._version += 1
        # The key is the hoot's, so the one in the offer is never used.
        key = secrets.token_bytes(sdp.MASTER_KEY_BYTES)
        description = sdp.Description(
            line.relayed_address, self.speaker.ssrc, key, self._own, self._session_id, self._version
        )
        try:
            await self._tell.describe(MEDIA_SERVER, "offer", sdp.build(description))
        except SignalingRefused as error:
            raise MediaFailed(f"This hoot has no voice for {self._own}: {error}") from error
        except SoftphoneError as error:
            # We are away from signaling for a moment.
            log.info("offer to the SFU not delivered", user=self._own, error=str(error))

    def _is_silent(self, now: float) -> bool:
        """True if somebody has the floor, and has not been heard for a while."""
        received = self.listeners.received
        if received != self._seen:
            self._silence_s = SILENCE_S
        if received != self._seen or not self.others_talk or self._bound is None:
            self._seen, self._seen_at = received, now
        elif now - self._seen_at >= self._silence_s:
            self._seen_at, self._silence_s = now, min(2 * self._silence_s, MAX_SILENCE_S)
            return True
        return False

    def _talks_unasked(self, now: float) -> bool:
        """True if this user talks, and it is a while since the SFU has answered."""
        return self.talking and self._offer_at is None and now - self._answered_at >= TALKER_ASKS_S

    def _on_moved(self, relayed: Address) -> None:
        self._offer_at = self._loop.time()
        self._wake.set()

    async def _close_line(self) -> None:
        line, self._line = self._line, None
        self._told = self._bound = None
        if line is not None:
            await close_line(line)
