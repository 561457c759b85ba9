"""How a file is now: whoever watches one compares this with what it was."""

from __future__ import annotations

from pathlib import Path

FileState = tuple[int, ...] | None


def state_of(path: Path) -> FileState:
    """Figures that change when the file changes; None if there is no file. Links are followed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
