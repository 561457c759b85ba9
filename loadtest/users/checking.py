"""Whether a locustfile can be used, before anything else starts: in a process of its own.

    python -m loadtest.users.checking FILE

The file is imported as Locust does it, so what it does then is done once more. The work is on standard input, with a
stand-in for the target. The answer is one JSON object: ``{"needs_cloud": [...]}``, or ``{"error": "..."}``.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import traceback
from typing import Any

from locust import User
from locust.util.load_locustfile import load_locustfile
from pydantic import ValidationError

from loadtest.plan.hosts import TargetError
from loadtest.plan.target import Target
from loadtest.plan.work import current
from loadtest.users.targeted import TargetUser

MAX_WORDS = 300


def check(path: str) -> dict[str, Any]:
    """What there is to say of a locustfile."""
    # Before the file can read what is on standard input.
    current()
    try:
        users, _ = load_locustfile(path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a program may raise anything, also SystemExit
        return {"error": _told(path, error)}
    if not users:
        return {"error": f"{path}: has no users; expected a class such as `class Trader(MediaUser)`"}
    try:
        return {"needs_cloud": [name for name, user in users.items() if _needs_cloud(user)]}
    except TargetError as error:
        return {"error": f"{path}: {error}"}


def _needs_cloud(user: type[User]) -> bool:
    """Whether it needs the cloud of the command line's target. Raises TargetError for a target of its own."""
    if not issubclass(user, TargetUser):
        return False
    own: object = user.target
    if own is None:
        return user.needs_cloud
    name = f"line {_line_of(user)}: target of {user.__name__}"
    if not isinstance(own, Target):
        raise TargetError(f"{name}: {type(own).__name__}; expected a Target")
    work = current()
    assert work is not None
    try:
        own.admitted(work.profile.targets)
    except TargetError as error:
        raise TargetError(f"{name}: {error}") from None
    user.require_cloud(own)
    return False


def _line_of(user: type[User]) -> int:
    try:
        return inspect.getsourcelines(user)[1]
    except (OSError, TypeError):
        # A class that was made by a call.
        return 1


def _told(path: str, error: BaseException) -> str:
    """Where and what, in one line."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) and error.filename == path else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == path:
            line = frame.lineno
    if isinstance(error, SyntaxError):
        words = error.msg if error.filename == path else f"{error.msg} ({error.filename}, line {error.lineno})"
    elif isinstance(error, ValidationError):
        words = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors(include_url=False))
    else:
        words = str(error)
    first = next(iter(words.splitlines()), "")[:MAX_WORDS]
    return f"{path}: line {line or 1}: {type(error).__name__}: {first}; expected a locustfile that can be imported"


def main() -> None:
    """The program."""
    # What the file prints must not get into the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    found = check(sys.argv[1])
    with os.fdopen(answer, "w") as out:
        out.write(json.dumps(found) + "\n")
    # Threads that the file may have started do not keep it.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
