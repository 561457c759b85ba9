"""MediaUser: voice alone, over any carrier, in the packet engine.

A call of a user has two lines: the user's own, through the target, and that of a colleague, who is on the TURN server
past the target if that is known, and otherwise on the target as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
from locust.env import Environment

from loadtest.engine.engine import Phase, Silenced
from loadtest.engine.plans import PlanError, StreamPlan
from loadtest.plan.profile import Media
from loadtest.users.lines import Line, LineFailed, Stream, Switchboard, switchboard
from loadtest.users.measuring import MEASURES, is_counted
from loadtest.users.targeted import TargetUser

TURN = "TURN"
MEDIA = "media"
# How long a set-up may take. A user has given up by then.
PATIENCE_S = 15.0
# A colleague on a TURN server binds a channel to the user. Nothing tells when that is done; it takes a round trip.
BINDS_WITHIN_S = 1.0


class LineMoved(Exception):
    """The relay has found a session another upstream: its address is another one."""

    cause_text = "moved to another upstream"


class MediaCall:
    """An open call: streams go up and down in it. Without a far end (``None``) a sink sends back what comes."""

    def __init__(self, board: Switchboard, near: Line, far: Line | None, media: Media, ready_s: float) -> None:
        self.near = near
        self.far = far
        self.media = media
        self._board = board
        self._ready_s = ready_s
        self._streams: list[Stream] = []

    def begin(self, *, up: int = 0, down: int = 0, spurts: bool = True) -> list[Stream]:
        """Begin streams. With ``spurts`` they talk now and then, if the media does."""
        if self.far is None:
            begun = [self._begin(self.near, self.near, spurts) for _ in range(max(up, down))]
        else:
            begun = [self._begin(self.near, self.far, spurts) for _ in range(up)]
            begun += [self._begin(self.far, self.near, spurts) for _ in range(down)]
        self._streams += begun
        return begun

    def _begin(self, sender: Line, receiver: Line, spurts: bool) -> Stream:
        media = self.media
        talk_s, pause_s = (media.talk_s, media.pause_s) if spurts else (0.0, 0.0)
        plan = StreamPlan(
            sender.number,
            receiver=receiver.number,
            payload_bytes=media.payload_bytes,
            interval_s=media.interval_ms / 1000,
            talk_s=talk_s,
            pause_s=pause_s,
            late_s=media.playout_ms / 1000,
            start_s=self._ready_s if self._ready_s > time.monotonic() else None,
        )
        return self._board.talk(plan)

    def end(self, streams: list[Stream]) -> list[Silenced]:
        """Let streams end: their totals, when all of them is heard or lost."""
        for stream in streams:
            self._board.silence(stream)
        self._streams = [stream for stream in self._streams if stream not in streams]
        return self._board.wait_silent(streams)

    def talk(self, seconds: float, *, up: int = 1, down: int = 1) -> None:
        """Talk for a while. Raises LineFailed if the call is cut meanwhile."""
        streams = self.begin(up=up, down=down)
        try:
            self.wait(seconds)
        finally:
            self.end(streams)

    def wait(self, seconds: float) -> None:
        """Stay on the line. Raises LineFailed or LineMoved if the call is cut meanwhile."""
        lines = [line for line in (self.near, self.far) if line is not None]
        if not gevent.wait([line.cut for line in lines], timeout=seconds, count=1):
            return
        for line in lines:
            if line.ended is not None:
                raise LineFailed(line.ended)
        raise LineMoved

    def close(self) -> None:
        """Let all go, without waiting."""
        for stream in self._streams:
            self._board.silence(stream)
        self._streams.clear()
        for line in (self.near, self.far):
            if line is not None:
                self._board.close(line)


class MediaUser(TargetUser):
    """A user with voice. Subclasses say what it does, with Locust's tasks::

        class Trader(MediaUser):
            @task
            def talk(self):
                with self.call() as call:
                    call.talk(10)

    ``target`` is where its voice goes: a ``Target``, or by default that of ``relay loadtest run``.
    """

    abstract = True

    @contextmanager
    def call(self) -> Iterator[MediaCall]:
        """A call: set up, and let go at the end. Raises LineFailed or LineMoved, which are counted."""
        call = self.open_call()
        try:
            yield call
        except (LineFailed, LineMoved) as error:
            # Another call within this one may have failed, and was counted.
            if not is_counted(error):
                self.on_cut(error)
            raise
        finally:
            call.close()

    def open_call(self) -> MediaCall:
        """Set up a call: both lines, and their channels to each other. Raises LineFailed or PlanError."""
        board, begun = switchboard(), time.perf_counter()
        opened: list[Line] = []
        try:
            call = self._open(board, opened)
        except BaseException as error:
            for line in opened:
                board.close(line)
            if isinstance(error, LineFailed | PlanError):
                MEASURES.failed(self.environment, TURN, "set-up", time.perf_counter() - begun, error)
            raise
        note_line(self.environment, call.near)
        return call

    def _open(self, board: Switchboard, opened: list[Line]) -> MediaCall:
        target, far = self.to, None
        if target.sink is None:
            far = board.open(target.far_plan(self.number, patience_s=PATIENCE_S))
            opened.append(far)
        peer = target.sink if far is None else far.relayed
        peers = () if peer is None else (peer,)
        near = board.open(target.client_plan(self.number, peers=peers, patience_s=PATIENCE_S))
        opened.append(near)
        if far is not None and near.relayed is not None:
            board.bind(far, near.relayed)
        waits = far is not None and target.peer is None
        return MediaCall(board, near, far, self.media, time.monotonic() + (BINDS_WITHIN_S if waits else 0.0))

    def on_cut(self, error: Exception) -> None:
        """A call was cut: one event."""
        MEASURES.failed(self.environment, MEDIA, "call", 0.0, error)


def note_line(environment: Environment, line: Line) -> None:
    """A line is ready: how long its phases took."""
    for phase, name in ((Phase.TLS, "TLS"), (Phase.ALLOCATE, "Allocate")):
        if phase in line.seconds:
            MEASURES.done(environment, TURN, name, line.seconds[phase])
    MEASURES.done(environment, TURN, "set-up", sum(line.seconds.values()))
