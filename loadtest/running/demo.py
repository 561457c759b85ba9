"""The target ``demo``: ``loadtest.demo_target`` in a process of its own, while a block runs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO

from loadtest.plan.target import Target
from relay.errors import OperatorError, RelayError

# It logs its users in, a few tens of milliseconds each.
STARTS_WITHIN_S = 120.0
ENDS_WITHIN_S = 20.0
DIES_WITHIN_S = 2.0
OPERATOR_MUST_ACT = 2
LOOKS_EVERY_S = 0.1
# This much is shown of what a failed process has said.
MAX_WORDS = 2000


class NotBegun(RelayError):
    """The user has not waited until there was a target."""

    def __init__(self) -> None:
        super().__init__("interrupted before the test had begun: nothing was measured")


@contextlib.contextmanager
def demo_target(
    users: int, *, through_web_proxy: bool = False, interrupted: Callable[[], int] = lambda: 0
) -> Iterator[Target]:
    """A relay on this machine with this many users. Raises RelayError if it does not start.

    That is an OperatorError if the process says so, such as for a disk without room, and NotBegun if the user does not
    want it any more before it has started.
    """
    arguments = ["--users", str(users), *(["--web-proxy"] if through_web_proxy else [])]
    # In memory: what it says of a full disk must have room.
    with os.fdopen(os.memfd_create("told"), "w+", errors="replace") as told, _process(arguments, told) as process:
        line = _first_line(process, interrupted)
        try:
            target = Target.model_validate(json.loads(line))
        except ValueError:
            raise _failure(process, told) from None
        yield target


def _failure(process: subprocess.Popen[str], told: IO[str]) -> RelayError:
    """Why it did not start. Its exit status says who must act, as that of ``relay`` does."""
    status = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        # One that has closed its output is about to end.
        status = process.wait(DIES_WITHIN_S)
    told.seek(0)
    words = f"the demo's relay did not start: {told.read(MAX_WORDS).strip() or 'no answer'}"
    return OperatorError(words) if status == OPERATOR_MUST_ACT else RelayError(words)


def _first_line(process: subprocess.Popen[str], interrupted: Callable[[], int]) -> str:
    """What it prints when it is ready; empty if it does not. Raises NotBegun."""
    assert process.stdout is not None
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        ready, _, _ = select.select([process.stdout], [], [], LOOKS_EVERY_S)
        if interrupted():
            raise NotBegun
        if ready:
            return process.stdout.readline()
    return ""


@contextlib.contextmanager
def _process(arguments: list[str], told: IO[str]) -> Iterator[subprocess.Popen[str]]:
    # Its own group: Ctrl-C is for us, and we let it go at the end.
    process = subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "loadtest.demo_target", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=told,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
