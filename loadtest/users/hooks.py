"""What happens at the events of Locust, with any locustfile that has our users: the collector comes and goes.

Importing this registers it, once for each process.
"""

from __future__ import annotations

import atexit
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import gevent
from gevent.socket import wait_read
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from locust.web import WebUI

from loadtest.plan.profile import Profile
from loadtest.plan.shapes import Shape
from loadtest.plan.work import ORPHANED, Work, current, lifeline
from loadtest.users.collector import Collector
from loadtest.users.lines import close_switchboard, present_switchboard
from loadtest.users.measuring import MEASURES, words_of
from loadtest.users.phones import close_phone_loop
from loadtest.users.targeted import TargetUser
from loadtest.users.webpage import show_voice

log = logging.getLogger("loadtest")

# Users log out. Nobody is left who waits for it.
LEAVES_WITHIN_S = 20.0
# The engine tells of a line that is gone within 50 ms. A master waits half a second for the last reports of workers.
SETTLES_WITHIN_S = 0.3

_collectors: list[Collector] = []
_environments: list[Environment] = []


def _follow(descriptor: int) -> None:
    """End with ``relay loadtest``, however it has ended."""
    wait_read(descriptor)
    log.error("relay loadtest has ended: so does this process")
    # A process that has no environment yet has no users.
    for environment in _environments:
        gevent.spawn(_leave, environment)
        gevent.sleep(LEAVES_WITHIN_S)
    os._exit(ORPHANED)


def _leave(environment: Environment) -> None:
    environment.process_exit_code = ORPHANED
    if environment.runner is not None:
        environment.runner.quit()
    if environment.web_ui is not None:
        environment.web_ui.stop()


# Now, because a worker may wait for its master for minutes before anything else happens. A process that Locust forks
# has this greenlet as well.
if (_lifeline := lifeline()) is not None:
    gevent.spawn(_follow, _lifeline)


@events.init.add_listener
def _on_init(environment: Environment, web_ui: WebUI | None, **_: Any) -> None:
    _environments.append(environment)
    if isinstance(environment.runner, MasterRunner):
        # Locust lets its workers go when a test ends, but not if it is interrupted before one has begun.
        atexit.register(environment.runner.quit)
    work = work_of(environment)
    if web_ui is not None and work is not None:
        show_voice(web_ui, work, lambda: _collectors[-1].sheet.record if _collectors else None)


@events.test_start.add_listener
def _on_test_start(environment: Environment, **_: Any) -> None:
    work = work_of(environment)
    # Locust's web page can start a test again.
    while _collectors:
        _collectors.pop().stop()
    if work is not None:
        _collectors.append(Collector(environment, work))


@events.user_error.add_listener
def _on_user_error(user_instance: Any, exception: BaseException, tb: TracebackType | None, **_: Any) -> None:
    # Locust tells of the set of tasks, which knows its user, or of the user.
    user = getattr(user_instance, "user", user_instance)
    files = {Path(one).resolve() for one in user.environment.parsed_locustfiles or ()}
    MEASURES.raised(exception, words_of(user, exception, tb, files))


@events.report_to_master.add_listener
def _on_report(data: dict[str, Any], **_: Any) -> None:
    for collector in _collectors:
        collector.report(data)


@events.worker_report.add_listener
def _on_worker_report(client_id: str, data: dict[str, Any], **_: Any) -> None:
    for collector in _collectors:
        collector.take_report(client_id, data)


@events.test_stop.add_listener
def _on_test_stop(environment: Environment, **_: Any) -> None:
    # Users have let their lines go. The engine tells what each of those had waited for that was not ready yet.
    if (board := present_switchboard()) is not None:
        board.settle(SETTLES_WITHIN_S)
    # A worker's last seconds go to the master with its last report, which comes after this.
    if isinstance(environment.runner, WorkerRunner):
        for collector in _collectors:
            collector.tick()


@events.quit.add_listener
def _on_quit(**_: Any) -> None:
    while _collectors:
        _collectors.pop().stop()
    for environment in _environments:
        if environment.runner is not None:
            atexit.unregister(environment.runner.quit)
    close_phone_loop()
    close_switchboard()


def work_of(environment: Environment) -> Work | None:
    """What this process was told to do; without ``relay loadtest``, what the users of the locustfile say themselves."""
    if (work := current()) is not None:
        return work
    for user in environment.user_classes:
        if issubclass(user, TargetUser) and user.target is not None:
            # Locust's own options say how long and how many. Nothing is judged.
            shape = Shape(ramp_s=0, hold_s=86_400)
            profile = Profile(description="A locustfile of your own.", users=1, shape=shape, media=user.media)
            return Work(
                profile_name=user.__name__, target_name=str(user.target.server), profile=profile, target=user.target
            )
    return None
