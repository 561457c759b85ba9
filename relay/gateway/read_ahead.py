"""Reads the files of a configuration before a reload does: in a thread, where a disk that hangs holds up nothing else.

The reload itself reads on the control plane's loop, so that it changes everything or nothing. By then the files are in
the system's memory.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from relay import config, deadlines
from relay.errors import OperatorError
from relay.gateway.calls.records import check_path
from relay.gateway.certificates.files import pairs_of
from relay.tasks import in_daemon_thread

# A network file system that does not answer within this time will not answer soon.
READ_TIMEOUT_S = 10.0
# More than any of the files has: certificates, lists of users and authorities.
READ_BYTES = 16 * 1024 * 1024


async def read_ahead(path: Path) -> None:
    """Read the configuration and the files that it names. Raises OperatorError if that takes too long."""
    try:
        async with deadlines.timeout(READ_TIMEOUT_S):
            await in_daemon_thread(functools.partial(_read, path), "read ahead")
    except TimeoutError:
        raise OperatorError(f"{path}: it, or a file that it names, was not read within {READ_TIMEOUT_S:g} s") from None


def _read(path: Path) -> None:
    settings = config.load(path)
    check_path(settings.quality.records)
    certificates = {file for pair in pairs_of(settings.certificates) for file in (pair.chain, pair.private_key)}
    for file in {*_files(settings), *certificates} - {settings.quality.records}:
        # The reload will say what is wrong with the file.
        with contextlib.suppress(OSError), file.open("rb") as opened:
            opened.read(READ_BYTES)


def _files(value: object) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _files(getattr(value, name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _files(one)
