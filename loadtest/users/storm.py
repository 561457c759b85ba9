"""StormUser: a client that has just been restarted. It logs in, connects, and asks for a line, and then stays."""

from __future__ import annotations

import time

import gevent

from loadtest.engine.plans import PlanError
from loadtest.plan.target import Target
from loadtest.users.lines import Line, LineFailed, switchboard
from loadtest.users.measuring import MEASURES
from loadtest.users.media import MEDIA, PATIENCE_S, TURN, LineMoved, note_line
from loadtest.users.phones import opened_phone, phone_loop
from loadtest.users.signaling import SIGNALING
from loadtest.users.targeted import TargetUser
from relay.emulator.softphone import Softphone, SoftphoneError


class StormUser(TargetUser):
    """One client. ``come`` is all that it does when it starts; ``go`` lets everything go, as a blip does."""

    abstract = True
    transports: tuple[str, ...] = ("websocket",)
    _line: Line | None = None
    _phone: Softphone | None = None

    def on_stop(self) -> None:
        """Let all go."""
        self.go()

    def come(self) -> None:
        """Log in and connect, if the target has a cloud, and open a line. Raises SoftphoneError or LineFailed."""
        begun = time.perf_counter()
        if self.to.cloud is not None:
            with MEASURES.timed(self.environment, SIGNALING, "sign-in"):
                self._phone = self._sign_in(self.to)
        try:
            self._line = switchboard().open(self.to.client_plan(self.number, patience_s=PATIENCE_S))
        except (LineFailed, PlanError) as error:
            MEASURES.failed(self.environment, TURN, "set-up", time.perf_counter() - begun, error)
            raise
        note_line(self.environment, self._line)
        MEASURES.done(self.environment, TURN, "come back", time.perf_counter() - begun)

    def go(self) -> None:
        """Let the line and the login go."""
        line, self._line = self._line, None
        phone, self._phone = self._phone, None
        if line is not None:
            switchboard().close(line)
        if phone is not None:
            phone_loop().do(phone.close())

    def stay(self) -> None:
        """Until the line is cut, if it ever is. Raises LineFailed or LineMoved then, which are counted."""
        assert self._line is not None
        self._line.cut.wait()
        error = LineMoved() if self._line.ended is None else LineFailed(self._line.ended)
        MEASURES.failed(self.environment, MEDIA, "call", 0.0, error)
        raise error

    def _sign_in(self, target: Target) -> Softphone:
        try:
            return phone_loop().do(opened_phone(target, self.number, self.transports))
        except gevent.Timeout as late:
            raise SoftphoneError("sign-in: no answer in time") from late
