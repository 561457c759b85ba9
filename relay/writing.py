"""Files that are written whole or not at all: a reader sees the whole new file, or the old one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from relay.errors import OperatorError


def write_new(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file that does not exist yet. Raises OperatorError if it exists, or cannot be written."""
    _write(path, content, mode, replace=False)


def replace(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file, and replace the old one if there is one. Follows a symbolic link. Raises OperatorError."""
    target = path.resolve()
    # Devices are refused: they must not be replaced by a file.
    if target.exists() and not target.is_file():
        raise OperatorError(f"{path}: expected a file, or a name that does not exist yet")
    _write(target, content, mode, replace=True)


def _write(path: Path, content: bytes, mode: int, *, replace: bool) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        try:
            _write_part(part, content, mode)
            if replace:
                part.replace(path)
            else:
                # Unlike rename, link fails if the name is taken.
                os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except FileExistsError:
        raise OperatorError(f"{path}: exists already, and is not overwritten") from None
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror or error}") from None


def _write_part(part: Path, content: bytes, mode: int) -> None:
    # The file has its mode from the beginning, so that others can never read a key.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # Without this the file may survive a power failure, but not its name. Some file systems cannot do it.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
