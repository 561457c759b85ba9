"""Files of media. Each call is one piece of work for a thread: a disk may be slow, and the loop must not wait for it.

A recording has one file from its first byte on. It becomes visible when the database says that it is whole, so nothing
has to be renamed, and nothing half-written is ever shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from relay.emulator.recordings.formats import MediaType, recognise


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a file: its length, its checksum, and what it is."""

    size: int
    sha256: str
    media_type: MediaType | None


class Disk:
    """The folder of all media: one folder for each firm, one file for each recording."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, firm_id: str, recording_id: str) -> Path:
        """Where a recording's media is. Both names are of plain characters, which their models have checked."""
        return self._folder / firm_id / recording_id

    def open_at(self, path: Path, offset: int) -> tuple[BinaryIO | None, int]:
        """Open a file to write on from ``offset``, and cut off what was not acknowledged.

        Returns None and the file's size if the file is shorter: what was acknowledged is gone. Raises OSError.
        """
        # The mode counts only for the last folder that is made.
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            if (size := file.seek(0, os.SEEK_END)) < offset:
                file.close()
                return None, size
            file.truncate(offset)
            file.seek(offset)
            if not offset:
                _sync_folder(path.parent)
        except BaseException:
            file.close()
            raise
        return file, offset

    @staticmethod
    def write(file: BinaryIO, parts: Iterable[bytes]) -> None:
        """Write all of it. Raises OSError."""
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[file.write(rest) :]

    @staticmethod
    def finish(file: BinaryIO, size: int) -> None:
        """Keep the first ``size`` bytes, and wait until they are on disk. Closes the file. Raises OSError."""
        with contextlib.closing(file):
            file.truncate(size)
            os.fsync(file.fileno())

    @staticmethod
    def content(path: Path) -> Content:
        """Read a whole file, for its checksum and its format. Raises OSError."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Content(size, digest, recognise(file, size))

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a file, if it is there. Raises OSError."""
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # Without this the file may survive a power failure, but not its name.
    for each in (folder, folder.parent):
        descriptor = os.open(each, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
