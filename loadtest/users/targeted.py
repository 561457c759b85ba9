"""TargetUser: what all users of load tests have: a target, and a number of their own."""

from __future__ import annotations

import functools
import itertools
from typing import ClassVar

from gevent import Greenlet
from gevent.pool import Group
from locust import User
from locust.env import Environment

from loadtest.plan.hosts import TargetError
from loadtest.plan.profile import Media
from loadtest.plan.target import Target
from loadtest.plan.work import current

# Users of one worker: numbers of another begin after them.
USERS_OF_A_WORKER = 10_000
# A target for each class of users; programs have a few.
MAX_TARGETS = 256
_numbers = itertools.count()


class TargetUser(User):
    """A user with a target: a ``Target``, or by default that of ``relay loadtest run``.

    Under ``relay loadtest run`` a target of its own must be on this machine, unless the profile lists it.
    """

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
        self.require_cloud(self.target)

    @classmethod
    def require_cloud(cls, target: Target) -> None:
        """Raises TargetError if such users log in, and the target names no cloud."""
        if cls.needs_cloud and target.cloud is None:
            raise TargetError(f"{cls.__name__}: the target names no cloud; expected the URL of login and signaling")

    def start(self, group: Group) -> Greenlet:
        """Begin. Locust tells of exceptions of users; of what else can end one, such as gevent.Timeout, this does."""
        running: Greenlet = super().start(group)
        running.link_exception(self._on_ended)
        return running

    def _on_ended(self, running: Greenlet) -> None:
        error = running.exception
        if not isinstance(error, Exception):
            self.environment.events.user_error.fire(user_instance=self, exception=error, tb=error.__traceback__)

    @property
    def to(self) -> Target:
        """The target, with addresses in place of names. Raises TargetError if load must not go there."""
        assert self.target is not None
        return admitted(self.target)


@functools.lru_cache(maxsize=MAX_TARGETS)
def admitted(target: Target) -> Target:
    """A target that load may go to. Raises TargetError.

    That of ``relay loadtest run`` was checked there. Another one is checked here, when it is first used: a program can
    change the target of its users at any time. Locust alone has no profile that could list it, and starts what it is
    told to; the vendor is refused even then.
    """
    work = current()
    if work is None:
        return target.resolved()
    return target if target == work.target else target.admitted(work.profile.targets)
