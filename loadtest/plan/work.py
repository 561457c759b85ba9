"""Profile and target together, as one process of a test hands them to another: in memory, for there are secrets in it.

The other process inherits two descriptors, which environment variables name. One is a file without a name, which has
the work. The other is the end of a pipe, the lifeline: nothing is ever written to it, and it ends with the process that
holds its other end, however that process ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr

from loadtest.plan.profile import Profile
from loadtest.plan.target import Target
from relay.errors import OperatorError

# The environment variables that tell Locust and its workers of the descriptors.
VARIABLE = "RELAY_LOADTEST_WORK"
LIFELINE = "RELAY_LOADTEST_LIFELINE"
# And of the test's folder: for people, who see in /proc which test a process belongs to.
FOLDER = "RELAY_LOADTEST_FOLDER"
# Locust's exit statuses if the record cannot be written, and if nobody is left who wants it. Its own are 0, 1 and 2.
RECORD_LOST = 3
ORPHANED = 4


class Work(BaseModel):
    """A test: what is done, to whom, and where what was measured goes. ``record`` is empty for a worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile_name: str
    target_name: str
    profile: Profile
    target: Target
    record: str = ""

    def text(self) -> bytes:
        """As JSON, with its secrets."""
        return json.dumps(self.model_dump(), default=_plain).encode()

    @contextlib.contextmanager
    def handed(self) -> Iterator[int]:
        """The descriptor of a file without a name that has all of it, while the block runs. Raises OperatorError."""
        try:
            descriptor = os.memfd_create("relay-loadtest-work")
        except OSError as error:
            raise OperatorError(f"no memory for what a test is to do: {error.strerror}") from None
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(self.text())
            yield descriptor
        finally:
            os.close(descriptor)


def read_work(descriptor: int) -> Work:
    """The work of a descriptor. May be repeated, also by processes that share it."""
    return Work.model_validate_json(os.pread(descriptor, os.fstat(descriptor).st_size, 0))


@functools.cache
def current() -> Work | None:
    """The work of this process; None if it was not started by ``relay loadtest``."""
    descriptor = os.environ.get(VARIABLE)
    return read_work(int(descriptor)) if descriptor else None


def lifeline() -> int | None:
    """The descriptor that ends with ``relay loadtest``; None if this process was not started by it."""
    descriptor = os.environ.get(LIFELINE)
    return int(descriptor) if descriptor else None


def _plain(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    raise TypeError(f"{type(value).__name__}: expected a value of a profile or of a target")
