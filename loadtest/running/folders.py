"""Folders of results. Each belongs to one run: two never write into one, and what an earlier one has left stays.

Who runs holds a lock on the folder (flock(2)), which its processes share: it ends with the last of them.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from relay.errors import OperatorError

# What a run leaves: the result of a test, that of a search, and the first try of a search that did not come to an end.
LEFT = ("result.json", "capacity.json", "001-*")
# Runs of one profile that begin in one second. More is a mistake in a script.
MAX_OF_A_NAME = 1000


def new_folder(base: Path, profile_name: str) -> Path:
    """A folder that nobody has yet: named after the profile and the time. Raises OperatorError."""
    now = datetime.datetime.now(datetime.UTC)
    name = f"{Path(profile_name).stem}-{now:%Y%m%d-%H%M%S}"
    make_folder(base)
    for number in range(1, MAX_OF_A_NAME + 1):
        folder = base / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise _unusable(folder, error) from None
        return folder
    raise OperatorError(f"{base / name}: exists, and so do {MAX_OF_A_NAME - 1} more; expected a new name with --output")


def make_folder(folder: Path) -> Path:
    """A folder that exists. Raises OperatorError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from None
    return folder


def require_free(folder: Path) -> None:
    """Raises OperatorError if another run has left its result there, or still writes into it."""
    if folder.is_dir():
        with claimed(folder):
            pass


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[int]:
    """The folder belongs to this process while the block runs, and to those that inherit the descriptor.

    Raises OperatorError if it belongs to another run, or has what one has left.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unusable(folder, error) from None
    try:
        _lock(folder, descriptor)
        for pattern in LEFT:
            for found in folder.glob(pattern):
                raise OperatorError(f"{found}: an earlier run has left it; expected a folder without a result")
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OperatorError(f"{folder}: another run writes into it; expected a folder of its own") from None
    except OSError:
        # Some file systems of networks have no locks. Then only the results there can tell.
        pass


def _unusable(folder: Path, error: OSError) -> OperatorError:
    return OperatorError(f"{folder}: {error.strerror}; expected a folder for the report")
