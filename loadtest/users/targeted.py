"""TargetUser: what all users of load tests have: a target, and a number of their own."""

from __future__ import annotations

import itertools
from typing import ClassVar

from locust import User
from locust.env import Environment

from loadtest.plan.profile import Media
from loadtest.plan.target import Target, TargetError
from loadtest.plan.work import current

# Users of one worker: numbers of another begin after them.
USERS_OF_A_WORKER = 10_000
_numbers = itertools.count()


class TargetUser(User):
    """A user with a target: a ``Target``, or by default that of ``relay loadtest run``."""

    abstract = True
    target: Target | None = None
    media: Media = Media()
    needs_cloud: ClassVar[bool] = False

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        # Different for each user of all workers.
        index = max(0, getattr(environment.runner, "worker_index", 0))
        self.number = index * USERS_OF_A_WORKER + next(_numbers)
        if self.target is None:
            work = current()
            if work is None:
                raise TargetError(
                    f"{type(self).__name__}: has no target; expected `target = Target(...)`, or to be started by "
                    "`relay loadtest run`"
                )
            self.target, self.media = work.target, work.profile.media
        if self.needs_cloud and self.target.cloud is None:
            raise TargetError(
                f"{type(self).__name__}: the target names no cloud; expected the URL of login and signaling"
            )

    @property
    def to(self) -> Target:
        """The target."""
        assert self.target is not None
        return self.target
