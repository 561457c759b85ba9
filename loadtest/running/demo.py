"""The target ``demo``: ``loadtest.demo_target`` in a process of its own, while a block runs."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from loadtest.plan.target import Target
from relay.errors import RelayError

# It logs its users in, a few tens of milliseconds each.
STARTS_WITHIN_S = 120.0
ENDS_WITHIN_S = 20.0
# This much is shown of what a failed process has said.
MAX_WORDS = 2000


@contextlib.contextmanager
def demo_target(users: int, *, through_web_proxy: bool = False) -> Iterator[Target]:
    """A relay on this machine with this many users. Raises RelayError if it does not start."""
    arguments = ["--users", str(users), *(["--web-proxy"] if through_web_proxy else [])]
    with tempfile.TemporaryFile("w+") as told, _process(arguments, told) as process:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], STARTS_WITHIN_S)
        line = process.stdout.readline() if ready else ""
        try:
            target = Target.model_validate(json.loads(line))
        except ValueError:
            process.kill()
            told.seek(0)
            raise RelayError(f"the demo's relay did not start: {told.read(MAX_WORDS) or 'no answer'}") from None
        yield target


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
