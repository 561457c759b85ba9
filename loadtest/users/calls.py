"""CallUser: a call as people have it: it rings, it is answered, and then there is voice in the packet engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from loadtest.users.measuring import MEASURES
from loadtest.users.media import MediaCall, MediaUser
from loadtest.users.signaling import SIGNALING, SignalingUser


class CallUser(SignalingUser, MediaUser):
    """Two colleagues who call each other, with voice::

    class Trader(CallUser):
        @task
        def call_colleague(self):
            with self.answered_call() as call:
                call.talk(10)
    """

    abstract = True

    @contextmanager
    def answered_call(self) -> Iterator[MediaCall]:
        """A call that was answered, and has media. Raises SoftphoneError, LineFailed or LineMoved."""
        self.signed_in()
        begun = time.perf_counter()
        with self.line(), self.call() as call:
            MEASURES.done(self.environment, SIGNALING, "call set-up", time.perf_counter() - begun)
            yield call
