"""Locustfiles of one's own, checked before anything starts: by ``loadtest.users.checking``, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from loadtest.plan.profile import Profile
from loadtest.plan.target import Target
from loadtest.plan.work import VARIABLE, Work
from relay.addresses import Address
from relay.errors import OperatorError

# Locust itself takes some seconds on a busy machine. A file that has not been imported by then reads or waits for ever.
CHECKED_WITHIN_S = 120.0
MAX_WORDS = 300
# The target is not known yet, and a file has no use for it when it is imported.
_STAND_IN = Target(server=Address("127.0.0.1", 9))


def check_locustfile(path: Path, profile: Profile) -> bool:
    """Whether its users need the target's cloud. Raises OperatorError if it cannot be used: which line, and why."""
    if not path.is_file():
        raise OperatorError(f"--locustfile {path}: expected a file")
    work = Work(profile_name="check", target_name="stand-in", profile=profile, target=_STAND_IN)
    try:
        with work.handed() as handed:
            done = subprocess.run(  # noqa: S603 - ourselves
                [sys.executable, "-m", "loadtest.users.checking", str(path.absolute())],
                env={**os.environ, VARIABLE: str(handed)},
                stdin=subprocess.DEVNULL,
                pass_fds=(handed,),
                capture_output=True,
                timeout=CHECKED_WITHIN_S,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise OperatorError(
            f"--locustfile {path}: was not imported within {CHECKED_WITHIN_S:g} s; expected one that does little then"
        ) from None
    try:
        found = json.loads(done.stdout)
    except ValueError:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise OperatorError(
            f"--locustfile {path}: ended with status {done.returncode} when it was imported: "
            f"{' '.join(words)[:MAX_WORDS] or 'no words'}"
        ) from None
    if "error" in found:
        raise OperatorError(f"--locustfile {found['error']}")
    return bool(found["needs_cloud"])
