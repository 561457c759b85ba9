"""The packet engine under gevent: its thread is a native one, and greenlets wait for what it tells.

Locust replaces ``threading`` with greenlets, so the engine's thread comes from a pool of gevent's, which are native.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import gevent
from gevent.event import AsyncResult, Event
from gevent.threadpool import ThreadPool

from loadtest.engine.engine import Cause, Ended, Engine, Happening, Moved, Opened, Phase, Silenced
from loadtest.engine.plans import ClientPlan, StreamPlan
from loadtest.engine.windows import Window
from loadtest.users.measuring import MEASURES
from relay.addresses import Address

MAX_CLIENTS = 20_000
MAX_STREAMS = 100_000
# The engine gives a client up after its plan's patience. This is for an engine that does not.
GRACE_S = 5.0
# What is lost is known after two seconds; then the stream is told of.
SILENCED_WITHIN_S = 10.0
# The engine tells of what has happened every 50 ms.
SETTLE_LOOKS_S = 0.02
_IO_READ = 1

WORDS = {
    Cause.ASKED: "closed by us",
    Cause.RESOURCES: "this machine has no more sockets or memory",
    Cause.CONNECTION: "no connection",
    Cause.PROXY: "the web proxy refuses",
    Cause.VERIFY: "the certificate does not verify",
    Cause.TLS: "TLS failed",
    Cause.UPGRADE: "the upgrade of HTTP was refused",
    Cause.STUN: "the TURN server refuses",
    Cause.SESSION: "the session was refused",
    Cause.TIMEOUT: "no answer in time",
    Cause.CLOSED: "closed by the server",
    Cause.BROKEN: "the server sent what its protocol does not allow",
}

# What a client has waited for in vain, by its phase.
SILENCE = {
    Phase.CONNECTING: "no TCP connection came about",
    Phase.PROXY: "the web proxy did not answer CONNECT",
    Phase.TLS: "no TLS handshake ended",
    Phase.UPGRADE: "no answer to the upgrade of HTTP",
    Phase.ALLOCATE: "no answer to Allocate",
    Phase.BIND: "no answer to ChannelBind",
}
# The engine's words for the same.
_SILENT = {"not ready in time", "no answer to a request", "no answer to bind"}
# Their code is an errno.
ERRNO = {Cause.CONNECTION, Cause.RESOURCES}


class LineFailed(Exception):
    """A line was not opened, or was cut. ``cause_text`` is the same for all that failed alike."""

    def __init__(self, ended: Ended, patience_s: float | None = None) -> None:
        code = os.strerror(ended.code) if ended.cause in ERRNO and ended.code else ended.code
        told, words = WORDS[ended.cause], ended.words
        if ended.cause is Cause.TIMEOUT and ended.phase in SILENCE and words in _SILENT:
            told, words = SILENCE[ended.phase] + (f" within {patience_s:g} s" if patience_s else ""), ""
        details = " ".join(dict.fromkeys(str(one) for one in (code, words) if one))
        self.ended = ended
        self.cause_text = f"{ended.phase.name.lower()}: {told}" + (f" ({details})" if details else "")
        super().__init__(self.cause_text)


class GeventEngine(Engine):
    """An engine whose thread is a native one under gevent."""

    def __enter__(self) -> Self:
        self._pool = ThreadPool(1)
        self._running = self._pool.spawn(self._native.run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._native.stop()
        self._running.get()
        self._pool.kill()


@dataclass
class Line:
    """A TURN client that is ready, or a peer. ``cut`` is set when it has ended, or has moved to another upstream."""

    number: int
    relayed: Address | None
    seconds: dict[Phase, float]
    cut: Event = field(default_factory=Event)
    ended: Ended | None = None


@dataclass
class _Opening:
    """A user waits for a line. ``given_up_s`` is how long, if it was stopped meanwhile."""

    patience_s: float
    begun: float = field(default_factory=time.monotonic)
    result: AsyncResult = field(default_factory=AsyncResult)
    given_up_s: float | None = None


@dataclass
class Stream:
    """A stream of voice that goes on, or has ended with ``totals``."""

    number: int
    plan: StreamPlan
    totals: AsyncResult = field(default_factory=AsyncResult)


class Switchboard:
    """All lines and streams of this process."""

    def __init__(self, *, max_clients: int = MAX_CLIENTS, max_streams: int = MAX_STREAMS) -> None:
        self._engine = GeventEngine(max_clients=max_clients, max_streams=max_streams)
        self._opening: dict[int, _Opening] = {}
        self._lines: dict[int, Line] = {}
        self._streams: dict[int, Stream] = {}
        self._closing: set[int] = set()

    def __enter__(self) -> Self:
        self._engine.__enter__()
        self._watcher = gevent.get_hub().loop.io(self._engine.event_fd, _IO_READ)
        self._watcher.start(self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._engine.__exit__(kind, error, trace)

    @property
    def streams(self) -> int:
        """How many streams go on."""
        return len(self._streams)

    def window(self) -> Window:
        """What was counted since the last one, with the totals of streams that go on."""
        return self._engine.window(streams=True)

    # Lines

    def open(self, plan: ClientPlan) -> Line:
        """Open a line, and wait until it is ready. Raises LineFailed, or PlanError."""
        number = self._engine.open(plan)
        opening = self._opening[number] = _Opening(plan.patience_s)
        try:
            line: Line = opening.result.get(timeout=plan.patience_s + GRACE_S)
        except BaseException:
            # A user that is stopped while it waits leaves nothing open.
            if self._opening.get(number) is opening:
                opening.given_up_s = time.monotonic() - opening.begun
                self._close(number)
            elif number in self._lines:
                self._close(number)
            raise
        return line

    def settle(self, seconds: float) -> None:
        """Wait until lines are gone that users have given up, but not longer than this."""
        deadline = time.monotonic() + seconds
        while any(one.given_up_s is not None for one in self._opening.values()) and time.monotonic() < deadline:
            gevent.sleep(SETTLE_LOOKS_S)

    def bind(self, line: Line, peer: Address) -> None:
        """Bind one more peer of a line."""
        if line.ended is None:
            self._engine.bind(line.number, peer)

    def close(self, line: Line) -> None:
        """Let a line go. Does not wait; may be repeated."""
        if line.ended is None:
            self._close(line.number)

    def _close(self, number: int) -> None:
        if number not in self._closing:
            self._closing.add(number)
            self._engine.close(number)

    # Streams

    def talk(self, plan: StreamPlan) -> Stream:
        """Begin a stream. Raises PlanError."""
        stream = Stream(self._engine.talk(plan), plan)
        self._streams[stream.number] = stream
        return stream

    def silence(self, stream: Stream) -> None:
        """Let a stream end; its ``totals`` follow when all of it is heard, or lost."""
        if stream.number in self._streams and self._streams[stream.number] is stream:
            self._engine.silence(stream.number)

    def wait_silent(self, streams: list[Stream]) -> list[Silenced]:
        """The totals of streams that were silenced. Raises gevent.Timeout if the engine does not tell."""
        deadline = time.monotonic() + SILENCED_WITHIN_S
        return [stream.totals.get(timeout=max(0.1, deadline - time.monotonic())) for stream in streams]

    # What the engine tells, in gevent's hub: nothing here waits

    def _take(self) -> None:
        for one in self._engine.happenings():
            self._on(one)

    def _on(self, one: Happening) -> None:
        match one:
            case Opened():
                self._on_opened(one)
            case Ended():
                self._on_ended(one)
            case Moved():
                # Voice to its old address goes nowhere: the call has to be set up again.
                if one.client in self._lines:
                    self._lines[one.client].cut.set()
            case Silenced():
                self._streams.pop(one.stream).totals.set(one)

    def _on_opened(self, one: Opened) -> None:
        line = self._lines[one.client] = Line(one.client, one.relayed, one.seconds)
        opening = self._opening.pop(one.client, None)
        if opening is not None:
            opening.result.set(line)

    def _on_ended(self, one: Ended) -> None:
        self._closing.discard(one.client)
        if (opening := self._opening.pop(one.client, None)) is not None:
            self._on_not_opened(one, opening)
        if line := self._lines.pop(one.client, None):
            line.ended = one
            line.cut.set()

    def _on_not_opened(self, one: Ended, opening: _Opening) -> None:
        if opening.given_up_s is None:
            opening.result.set_exception(LineFailed(one, opening.patience_s))
        elif one.cause is Cause.ASKED:
            # One that is bound says that it goes; until then it waited for its bindings.
            phase = Phase.BIND if one.phase is Phase.ENDING else one.phase
            MEASURES.waited(SILENCE.get(phase, "no line was ready"), opening.given_up_s)


_switchboards: dict[str, Any] = {}


def switchboard() -> Switchboard:
    """The one of this process: it starts when it is first asked for, after Locust has forked its workers."""
    if "own" not in _switchboards:
        _switchboards["own"] = Switchboard().__enter__()
    own: Switchboard = _switchboards["own"]
    return own


def close_switchboard() -> None:
    """End the engine of this process, if there is one."""
    if own := _switchboards.pop("own", None):
        own.__exit__(None, None, None)


def present_switchboard() -> Switchboard | None:
    """The one of this process, if it was asked for."""
    return _switchboards.get("own")
