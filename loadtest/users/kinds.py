"""What the users of a profile do, for each kind."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
from locust import User, constant, task

from loadtest.engine.plans import PlanError
from loadtest.plan.profile import News, Profile, UserKind
from loadtest.plan.work import current
from loadtest.users.calls import CallUser
from loadtest.users.lines import LineFailed
from loadtest.users.measuring import is_counted
from loadtest.users.media import LineMoved, MediaCall, MediaUser
from loadtest.users.recording import Altered, RecordingUser
from loadtest.users.signaling import SignalingUser
from loadtest.users.storm import StormUser
from relay.emulator.softphone import SoftphoneError

# A real client comes back after a moment, and not all at once.
RETRY_S = (1.0, 3.0)
# How much of its length a call of a churn has.
SPREAD = (0.5, 1.5)
# A news event spreads within a second.
NEWS_WITHIN_S = 1.0


class StayingUser(MediaUser):
    """Stays on its lines until the test ends, and comes back if it was cut. This is the user of media profiles."""

    abstract = True
    wait_time = constant(0)

    @task
    def stay(self) -> None:
        """One call, until it is cut or the test ends."""
        try:
            call = self.open_call()
        except (LineFailed, PlanError):
            gevent.sleep(random.uniform(*RETRY_S))  # noqa: S311
            return
        try:
            self._live(call)
        except (LineFailed, LineMoved) as error:
            self.on_cut(error)
            gevent.sleep(random.uniform(*RETRY_S))  # noqa: S311
        finally:
            call.close()

    def _live(self, call: MediaCall) -> None:
        media = profile().media
        down = call.begin(down=media.lines_of(self.number, self._down()))
        # What a sink sends back down has gone up.
        up = media.lines_of(self.number, media.up) - (len(down) if call.far is None else 0)
        call.begin(up=max(0, up))
        while True:
            news = profile().news
            if news is not None and news.at_s <= self._second() < news.at_s + news.for_s:
                self._hear_news(call, news)
            else:
                call.wait(1.0)
            wanted = media.lines_of(self.number, self._down())
            if wanted > len(down):
                down += call.begin(down=wanted - len(down))
            elif wanted < len(down):
                call.end(down[wanted:])
                del down[wanted:]

    def _hear_news(self, call: MediaCall, news: News) -> None:
        """Lines on which nobody talked have somebody who does: these streams come on top."""
        media = profile().media
        call.wait(random.uniform(0, NEWS_WITHIN_S))  # noqa: S311
        share = news.share_percent / 100
        more = call.begin(down=media.lines_of(self.number, max(1.0, media.down / media.share) * share), spurts=False)
        call.wait(max(0.0, news.at_s + news.for_s - self._second()))
        call.end(more)

    def _down(self) -> float:
        passed = [stage.down for stage in profile().stages if stage.at_s <= self._second()]
        return passed[-1] if passed else profile().media.down

    def _second(self) -> float:
        return time.time() - float(self.environment.stats.start_time)


class SignalingProfileUser(SignalingUser):
    """Calls come and go, without voice."""

    abstract = True

    def wait_time(self) -> float:
        """Between two calls."""
        return profile().pause_between_calls_s

    @task
    def call_colleague(self) -> None:
        """A call of the profile's length."""
        with retrying(), self.line():
            gevent.sleep(profile().call_s)


class CallProfileUser(CallUser):
    """Calls come and go, with voice in both directions."""

    abstract = True

    def wait_time(self) -> float:
        """Between two calls."""
        return profile().pause_between_calls_s

    @task
    def call_colleague(self) -> None:
        """A call of the profile's length."""
        media = profile().media
        with retrying(), self.answered_call() as call:
            up, down = media.lines_of(self.number, media.up), media.lines_of(self.number, media.down)
            call.talk(profile().call_s, up=up, down=down)


class ChurnProfileUser(MediaUser):
    """Calls come and go, with voice alone: there is no signaling, so that a machine carries many of them."""

    abstract = True

    def wait_time(self) -> float:
        """Between two calls."""
        return profile().pause_between_calls_s

    @task
    def place_call(self) -> None:
        """A call of about the profile's length: those who have begun together do not end together."""
        media = profile().media
        with retrying(), self.call() as call:
            up, down = media.lines_of(self.number, media.up), media.lines_of(self.number, media.down)
            call.talk(profile().call_s * random.uniform(*SPREAD), up=up, down=down)  # noqa: S311


class StormProfileUser(StormUser):
    """Comes, and stays; comes again if it was cut."""

    abstract = True
    wait_time = constant(0)

    @task
    def come_and_stay(self) -> None:
        """Until the test ends."""
        with retrying():
            try:
                self.come()
                self.stay()
            finally:
                self.go()


class RecordingProfileUser(RecordingUser):
    """A recording of each call, one after another."""

    abstract = True

    def wait_time(self) -> float:
        """Between two recordings."""
        return profile().pause_between_calls_s

    @task
    def record_call(self) -> None:
        """A recording of the profile's length."""
        with retrying():
            self.record(profile().call_s)


def profile() -> Profile:
    """The profile of this process."""
    work = current()
    assert work is not None
    return work.profile


@contextmanager
def retrying() -> Iterator[None]:
    """A real client comes back after a moment. What was counted as a failure is told; Locust hears of anything else."""
    try:
        yield
    except (LineFailed, LineMoved, PlanError, SoftphoneError, Altered) as error:
        gevent.sleep(random.uniform(*RETRY_S))  # noqa: S311
        if not is_counted(error):
            raise


KINDS: dict[UserKind, type[User]] = {
    UserKind.MEDIA: StayingUser,
    UserKind.SIGNALING: SignalingProfileUser,
    UserKind.CALL: CallProfileUser,
    UserKind.STORM: StormProfileUser,
    UserKind.RECORDING: RecordingProfileUser,
    UserKind.CHURN: ChurnProfileUser,
}


def user_class(kind: UserKind) -> type[User]:
    """The class of a kind, for Locust to find."""
    return type("ProfileUser", (KINDS[kind],), {"abstract": False})
