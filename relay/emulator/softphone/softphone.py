"""The softphone: one user who is logged in, with their lines and calls."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import aiohttp
import structlog

from relay import deadlines
from relay.addresses import Address
from relay.emulator.login.models import LoginAnswer, TurnCredentials
from relay.emulator.signaling.messages import (
    Accepted,
    EndReason,
    Event,
    FloorState,
    LineAccepted,
    LineJoin,
    LineLeave,
    LineRelease,
    LineRing,
    LineState,
    MediaCandidate,
    MediaDescription,
    PartyRole,
    PresenceSet,
    PresenceState,
    PresenceStatus,
    StateAccepted,
    StateGet,
    Welcome,
)
from relay.emulator.softphone.calls import Call
from relay.emulator.softphone.carriers import (
    Carrier,
    MediaAccess,
    MediaLine,
    NoMedia,
    OnData,
    OnMoved,
    Trust,
    TurnTls,
    UdpTurn,
)
from relay.emulator.softphone.errors import SoftphoneError, Unreachable
from relay.emulator.softphone.pacer import Pacer
from relay.emulator.softphone.recorder import Recording
from relay.emulator.softphone.rest import Rest, open_http
from relay.emulator.softphone.signaling import Signaling
from relay.emulator.softphone.uploading import upload
from relay.tasks import Tasks

log = structlog.get_logger()

# Calls that ring and nobody takes from ``incoming``; a desk has far fewer lines that ring at once.
MAX_INCOMING = 256
# States of a line that a slow watcher has not taken. Each is complete, so the oldest are dropped.
MAX_UNSEEN_STATES = 256
# TURN credentials that end sooner are renewed before they are used.
RENEW_BEFORE_S = 60.0
# How long ``close`` waits for what is still uploaded.
UPLOADS_AT_CLOSE_S = 30.0


class Softphone:
    """Use it as a context manager: it logs in and connects, and at the end releases, uploads and logs out.

    ``url`` is the REST host, which is also the signaling host unless ``signaling_url`` says otherwise. ``carrier`` is
    how voice travels; by default as the login says: over UDP, or with Voice via Web Proxy over TLS to the relay.
    ``on_incoming`` is called with each call that somebody else begins; ``incoming`` iterates over them otherwise.
    ``pacer`` may be shared by many softphones. With ``records`` each call is recorded and uploaded. With
    ``speaks=False`` it is silent until ``call.say``. Nothing is global: thousands can live in one process.
    """

    def __init__(
        self,
        url: str,
        user: str,
        password: str,
        *,
        carrier: Carrier | None = None,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        signaling_url: str | None = None,
        transports: tuple[str, ...] = ("websocket",),
        pacer: Pacer | None = None,
        on_incoming: Callable[[Call], None] | None = None,
        records: bool = False,
        speaks: bool = True,
    ) -> None:
        self.url = url
        self.user_id = user
        self.records = records
        self.speaks = speaks
        # One that nobody uses yet is empty, and so false.
        self.pacer = Pacer() if pacer is None else pacer
        self.lines: dict[str, LineState] = {}
        self.presence: dict[str, PresenceStatus] = {}
        self.talkers: dict[str, tuple[str, ...]] = {}
        self.calls: dict[str, Call] = {}
        self.login: LoginAnswer
        self._password = password
        self._carrier = carrier
        self._ssl_context = ssl_context
        self._proxy = proxy
        self._signaling_url = signaling_url or url
        self._transports = transports
        self._owns_pacer = pacer is None
        self._on_incoming = on_incoming
        self._incoming: asyncio.Queue[Call] = asyncio.Queue(MAX_INCOMING)
        self._watchers: dict[str, set[asyncio.Queue[LineState]]] = {}
        self._joined: set[str] = set()
        self._credentials: TurnCredentials
        self._http: aiohttp.ClientSession
        self._rest: Rest
        self._signaling: Signaling | None = None
        self._endings = Tasks()
        # Those that have ended, and whose end is not finished.
        self._unfinished: set[Call] = set()

    # Coming and going

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Log in and connect. Raises LoginRefused and Unreachable."""
        self._http = open_http(self._ssl_context, self._proxy)
        self._rest = Rest(self.url, self._http)
        try:
            self.login = await self._rest.login(self.user_id, self._password)
            self.user_id = self.login.user.user_id
            self._credentials = self.login.settings.media.credentials
            self._signaling = Signaling(
                self._signaling_url, self.login.token, self._http, self._on_event, transports=self._transports
            )
            await self._signaling.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Release all calls, finish uploads, log out, and end every task. May be repeated, and may be cancelled."""
        async with contextlib.AsyncExitStack() as ending:
            # These happen even if what follows is cancelled.
            ending.push_async_callback(self._http.close)
            if self._owns_pacer:
                ending.push_async_callback(self.pacer.close)
            ending.push_async_callback(self._break_off_endings)
            ending.callback(self._end_calls)
            if self._signaling is not None:
                ending.push_async_callback(self._signaling.close)
                await self._release_all()
                await self._signaling.close()
            self._end_calls()
            with contextlib.suppress(TimeoutError):
                async with deadlines.timeout(UPLOADS_AT_CLOSE_S):
                    await self._endings.finish()
            await self._log_out()

    async def _log_out(self) -> None:
        # An earlier close that was cancelled has closed the connections, and the login ends by itself.
        if self._rest.token and not self._http.closed:
            with contextlib.suppress(SoftphoneError):
                await self._rest.logout()
            self._rest.token = ""

    def _end_calls(self) -> None:
        for call in list(self.calls.values()):
            self._end_call(call, None)

    async def _release_all(self) -> None:
        assert self._signaling is not None
        if self._signaling.is_connected:
            releasing = [call.release() for call in self.calls.values()]
            await asyncio.gather(*releasing, return_exceptions=True)

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done when signaling has ended for good: with None after ``close``, otherwise with the SoftphoneError."""
        assert self._signaling is not None
        return self._signaling.closed

    @property
    def signaling(self) -> Signaling:
        """The connection: whether it is there, and how often it came back."""
        assert self._signaling is not None
        return self._signaling

    # What a user does. Each raises SignalingRefused or Unreachable.

    async def ring(self, line: str, number: str | None = None) -> Call:
        """Begin a call on a line; on dial tone to a number."""
        return await self._begin(LineRing(line=line, number=number), line)

    async def join(self, line: str) -> Call:
        """Begin to listen on a hoot or a broadcast."""
        self._joined.add(line)
        return await self._begin(LineJoin(line=line), line)

    async def _begin(self, message: Event, line: str) -> Call:
        try:
            accepted = await self.tell(message)
        except SoftphoneError:
            self._joined.discard(line)
            raise
        call = self.calls.get(line)
        if call is None or not isinstance(accepted, LineAccepted) or call.call_id != accepted.line_state.call_id:
            raise Unreachable(f"{line}: the call ended before the server had answered")
        return call

    async def set_presence(self, state: PresenceStatus) -> None:
        """Set one's presence; lines do not ring for ``do_not_disturb``."""
        await self.tell(PresenceSet.model_validate({"state": state}))

    async def refresh(self) -> None:
        """Ask the server for everything again."""
        await self.tell(StateGet())

    async def incoming(self, timeout_s: float | None = None) -> AsyncIterator[Call]:
        """The calls that others begin, as they come. Ends with the softphone, or after ``timeout_s`` without one."""
        while (call := await self._take_incoming(timeout_s)) is not None:
            if call.is_open:
                yield call

    async def next_incoming(self, timeout_s: float) -> Call:
        """The next call that somebody else begins, and that has not ended. Raises Unreachable if there is none."""
        async for call in self.incoming(timeout_s):
            return call
        raise Unreachable(f"{self.user_id}: no call came within {timeout_s:g} s")

    async def _take_incoming(self, timeout_s: float | None) -> Call | None:
        waiting: asyncio.Future[Call] = asyncio.ensure_future(self._incoming.get())
        futures: set[asyncio.Future[Any]] = {waiting, self.closed}
        try:
            await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            waiting.cancel()

    async def watch(self, line: str, timeout_s: float | None = None) -> AsyncIterator[LineState]:
        """The states of a line: the present one, and each as it comes. Ends after ``timeout_s`` without one."""
        unseen: asyncio.Queue[LineState] = asyncio.Queue(MAX_UNSEEN_STATES)
        if line in self.lines:
            unseen.put_nowait(self.lines[line])
        self._watchers.setdefault(line, set()).add(unseen)
        try:
            while True:
                async with deadlines.timeout(timeout_s):
                    state = await unseen.get()
                yield state
        except TimeoutError:
            return
        finally:
            self._watchers[line].discard(unseen)

    async def tell(self, message: Event) -> Accepted:
        """Send a message of signaling, and take what its acknowledgement says."""
        accepted = await self.signaling.ask(message)
        if isinstance(accepted, LineAccepted):
            self._take_state(accepted.line_state)
            if isinstance(message, LineLeave | LineRelease):
                # A crowded line lists its talkers only: its state does not tell that this user has left.
                self._joined.discard(message.line)
                self._take_call(self.lines[accepted.line_state.line])
        elif isinstance(accepted, StateAccepted):
            self._take_all(accepted)
        return accepted

    async def upload(self, recording: Recording) -> None:
        """Upload a recording that was made elsewhere: for load tests. Raises UploadFailed."""
        await upload(self._rest, recording)

    async def fetch_recording(self, recording_id: str) -> bytes:
        """The media of a recording, from the recorder. Raises SoftphoneError."""
        return await self._rest.request("GET", f"/recordings/v1/{recording_id}/media")

    # Media

    @property
    def carrier(self) -> Carrier:
        """How voice travels."""
        if self._carrier is not None:
            return self._carrier
        media = self.login.settings.media
        if media.transport == "udp":
            return UdpTurn()
        host, _, port = media.relay.tls.rpartition(":")
        return TurnTls(Address(host, int(port)), Trust(self._ssl_context), self._proxy)

    @property
    def has_media(self) -> bool:
        """False with ``NoMedia``."""
        return not isinstance(self._carrier, NoMedia)

    async def open_line(self, attempt: int, on_data: OnData, on_moved: OnMoved) -> MediaLine:
        """Open a way for one call. Raises MediaFailed, NotEntitled, Unreachable."""
        if self._credentials.expires_at - time.time() < RENEW_BEFORE_S:
            self._credentials = await self._rest.credentials()
        access = MediaAccess(
            self.user_id,
            self._credentials.username,
            self._credentials.password,
            tuple(self.login.settings.media.hosts),
            attempt,
        )
        return await self.carrier.open(access, on_data, on_moved)

    # What the server tells

    def _on_event(self, message: Event) -> None:
        match message:
            case LineState():
                self._take_state(message)
            case Welcome():
                self._take_all(message)
            case PresenceState():
                self.presence[message.user_id] = message.state
            case FloorState():
                self.talkers[message.line] = message.talkers
            case MediaDescription():
                if (call := self._call_of(message.call_id)) is not None and call.media is not None:
                    call.media.on_description(message.from_user, message.type, message.sdp)
            case MediaCandidate(candidate=""):
                if (call := self._call_of(message.call_id)) is not None and call.media is not None:
                    call.media.on_ready(message.from_user)
            case _:
                log.info("the server says", softphone_event=message.event)

    def _call_of(self, call_id: str) -> Call | None:
        return next((call for call in self.calls.values() if call.call_id == call_id), None)

    def _take_all(self, message: Welcome) -> None:
        """Everything again: what it does not have is over."""
        self.user_id = message.user_id
        self.presence = dict(message.presence)
        self._joined = set(message.joined)
        lines = {state.line: state for state in message.lines}
        for call in [call for line, call in self.calls.items() if line not in lines]:
            self._end_call(call, None)
        self.lines = {}
        for state in message.lines:
            self._take_state(state)

    def _take_state(self, state: LineState) -> None:
        known = self.lines.get(state.line)
        if known is not None and state.seq <= known.seq:
            return
        self.lines[state.line] = state
        self._take_call(state)
        for unseen in self._watchers.get(state.line, ()):
            if unseen.full():
                unseen.get_nowait()
            unseen.put_nowait(state)

    def _is_in(self, state: LineState) -> bool:
        listed = any(one.user_id == self.user_id for one in state.participants)
        # On a large hoot only the talkers are listed.
        return listed or (state.line in self._joined and state.subscribers > len(state.participants))

    def _take_call(self, state: LineState) -> None:
        call = self.calls.get(state.line)
        goes_on = state.call_id is not None and self._is_in(state)
        if call is not None and not (goes_on and call.call_id == state.call_id):
            self._end_call(call, state.reason if state.call_id is None else EndReason.RELEASED)
            call = None
        if not goes_on:
            self._joined.discard(state.line)
        elif call is not None:
            call.update(state)
        else:
            self._add_call(state)

    def _add_call(self, state: LineState) -> None:
        mine = [one.role for one in state.participants if one.user_id == self.user_id]
        incoming = bool(mine) and mine[0] is not PartyRole.CALLER and state.line not in self._joined
        call = self.calls[state.line] = Call(self, state, incoming=incoming)
        if not incoming:
            return
        if self._on_incoming is not None:
            try:
                self._on_incoming(call)
            except Exception as error:
                log.error("callback of the application failed", callback="on_incoming", exc_info=error)
        elif self._incoming.full():
            log.warning("incoming calls are not taken", user=self.user_id, limit=MAX_INCOMING)
        else:
            self._incoming.put_nowait(call)

    def _end_call(self, call: Call, reason: EndReason | None) -> None:
        if self.calls.get(call.line) is call:
            del self.calls[call.line]
        call.end(reason)
        self._unfinished.add(call)
        self._endings.start(self._finish(call), f"end of call {call.call_id}")

    async def _break_off_endings(self) -> None:
        """Finish no more uploads. A task that is cancelled before its first step does nothing, so its call is left."""
        await self._endings.cancel()
        while self._unfinished:
            call = self._unfinished.pop()
            call.settle_recording(Unreachable("the softphone was closed before the recording was uploaded"))
            await call.close_media()

    async def _finish(self, call: Call) -> None:
        await call.close_media()
        await self._keep_recording(call)
        self._unfinished.discard(call)

    async def _keep_recording(self, call: Call) -> None:
        recorder = call.recorder
        if recorder is None or not recorder.seconds:
            call.settle_recording(None)
            return
        try:
            recording = await asyncio.to_thread(
                recorder.finish, call.call_id, self.user_id, call.line, tuple(sorted(call.met))
            )
            call.settle_recording(await upload(self._rest, recording))
        except SoftphoneError as error:
            log.warning("recording not uploaded", user=self.user_id, call_id=call.call_id, error=str(error))
            call.settle_recording(error)
