"""Profile and target together, as one process of a test hands them to another: in a file for its owner alone."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr

from loadtest.plan.profile import Profile
from loadtest.plan.target import Target
from relay import writing

# The environment variable with which Locust and its workers are told of the file.
VARIABLE = "RELAY_LOADTEST_WORK"
# Locust's exit status if the record cannot be written. Its own are 0, 1 and 2.
RECORD_LOST = 3


class Work(BaseModel):
    """A test: what is done, to whom, and where what was measured goes. ``record`` is empty for a worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile_name: str
    target_name: str
    profile: Profile
    target: Target
    record: str = ""

    def write(self, path: Path) -> None:
        """Write the file. Raises OperatorError."""
        writing.replace(path, self.text(), mode=0o600)

    def text(self) -> bytes:
        """As JSON, with its secrets."""
        return json.dumps(self.model_dump(), default=_plain).encode()


@functools.cache
def current() -> Work | None:
    """The work of this process; None if it was not started by ``relay loadtest``."""
    path = os.environ.get(VARIABLE)
    return Work.model_validate_json(Path(path).read_bytes()) if path else None


def _plain(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    raise TypeError(f"{type(value).__name__}: expected a value of a profile or of a target")
