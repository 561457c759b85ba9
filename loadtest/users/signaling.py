"""SignalingUser: login, socket.io, and the events of a line, against the emulator or a cloud that speaks as it does."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from loadtest.plan.target import Target
from loadtest.users.measuring import MEASURES
from loadtest.users.phones import Pair, PhoneLoop, phone_loop
from loadtest.users.targeted import TargetUser
from relay.emulator.softphone import SoftphoneError

SIGNALING = "signaling"


class SignalingUser(TargetUser):
    """Two colleagues with a line between them. Subclasses say when it rings, with Locust's tasks::

        class Trader(SignalingUser):
            @task
            def call(self):
                with self.line():
                    gevent.sleep(10)

    ``transports`` is how socket.io begins: ``("websocket",)``, or ``("polling", "websocket")`` with an upgrade.
    """

    abstract = True
    needs_cloud = True
    transports: tuple[str, ...] = ("websocket",)
    _phones: Pair | None = None

    def on_stop(self) -> None:
        """Log out."""
        phones, self._phones = self._phones, None
        if phones is not None:
            phone_loop().do(phones.close())

    def signed_in(self) -> Pair:
        """Log both in, if they are not. Raises SoftphoneError."""
        if self._phones is None:
            pair = phone_loop().do(_make(self.to, self.number, self.transports))
            self._step("sign-in", pair.open)
            self._phones = pair
        return self._phones

    @contextmanager
    def line(self) -> Iterator[Pair]:
        """A call on the line: it has rung and was answered. At the end it is released. Raises SoftphoneError.

        What the block raises goes on, and both have logged out.
        """
        pair = self.signed_in()
        try:
            self._step("ring", pair.ring)
            self._step("answer", pair.answer)
            yield pair
            self._step("release", pair.release)
        except Exception:
            # What the server thinks of the line is not known any more.
            self.on_stop()
            raise

    def _step(self, name: str, step: Callable[[], Coroutine[Any, Any, float]]) -> None:
        loop: PhoneLoop = phone_loop()
        try:
            with MEASURES.waiting(name):
                seconds = loop.do(step())
        except SoftphoneError as error:
            MEASURES.failed(self.environment, SIGNALING, name, 0.0, error)
            raise
        except gevent.Timeout as late:
            silence = SoftphoneError(f"{name}: no answer in time")
            MEASURES.failed(self.environment, SIGNALING, name, 0.0, silence)
            raise silence from late
        MEASURES.done(self.environment, SIGNALING, name, seconds)


async def _make(target: Target, number: int, transports: tuple[str, ...]) -> Pair:
    """In the loop: a softphone has things of its loop from the beginning."""
    return Pair(target, number, transports)
