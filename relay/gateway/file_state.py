"""How a file is now: whoever watches one compares this with what it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

FileState = tuple[int, ...] | None

# A file that changes at every look is read all the same, after this many.
MAX_LOOKS = 5

_State = TypeVar("_State")


def state_of(path: Path) -> FileState:
    """Figures that change when the file changes; None if there is no file. Links are followed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@dataclass(kw_only=True)
class Watched(Generic[_State]):
    """A file, or several that belong together: how they were when they were last read and last seen.

    They are read when they were the same in two looks. Whoever renews them may write one after the other.
    """

    read: _State | None = None
    seen: _State | None = None
    looks: int = 0

    def is_due(self, state: _State) -> bool:
        """Whether to read now; ``state`` is how they are."""
        settled = state == self.seen
        self.seen = state
        self.looks = 0 if state == self.read else self.looks + 1
        return state != self.read and (settled or self.looks >= MAX_LOOKS)

    def note_read(self, state: _State) -> None:
        """They have been read; ``state`` is how they were before that."""
        self.read, self.looks = state, 0
