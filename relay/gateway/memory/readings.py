"""What the kernel says of memory: the limits of our control groups (cgroup v2), stalls (PSI), and the process itself.

None of these files needs to be there. A machine may have cgroup v1, no PSI, or neither; and a file may vanish, or hold
something else than it should. Whatever cannot be read is None, and nothing here raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
# The longest of these files, memory.stat, has some 2 KiB.
MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of a limit is used. ``of_whom`` is a word for the log: ``cgroup`` or ``process``."""

    of_whom: str
    used_bytes: int
    limit_bytes: int

    @property
    def share(self) -> float:
        """1 at the limit."""
        return self.used_bytes / self.limit_bytes


class MemoryFiles:
    """Reads them anew each time; another folder stands for the machine's in tests."""

    def __init__(self, cgroups: Path = CGROUPS, proc: Path = PROC) -> None:
        self._cgroups = cgroups
        self._proc = proc

    def cgroup_usages(self) -> list[Usage]:
        """Our control group and those around it that have a limit.

        The lower of ``memory.high``, where the kernel begins to slow us down, and ``memory.max``, where it ends us.
        What the kernel can take back at once, files that nobody uses, does not count.
        """
        usages = []
        for group in self._groups():
            limits = [_number(group / name) for name in ("memory.high", "memory.max")]
            finite = [limit for limit in limits if limit]
            current = _number(group / "memory.current")
            if finite and current is not None:
                inactive = _field(group / "memory.stat", "inactive_file") or 0
                usages.append(Usage("cgroup", max(0, current - inactive), min(finite)))
        return usages

    def _groups(self) -> Iterator[Path]:
        """Our own control group, and all that contain it, from the inside out."""
        # Of cgroup v2 there is one line, "0::" and the path.
        lines = (_read(self._proc / "self" / "cgroup") or "").splitlines()
        own = next((line.removeprefix("0::") for line in lines if line.startswith("0::/")), None)
        if own is None or ".." in Path(own).parts:
            return  # a group outside of what this container sees
        group = self._cgroups / own.lstrip("/")
        yield group
        while group != self._cgroups:
            group = group.parent
            yield group

    def out_of_memory_events(self) -> int | None:
        """How often our control group, with those inside it, found no memory at all. It only grows."""
        own = next(self._groups(), None)
        return None if own is None else _field(own / "memory.events", "oom")

    def stalled_percent(self) -> float | None:
        """How much of the last ten seconds nothing went on, because all waited for memory.

        In our control group if it says so, or else on the whole machine.
        """
        own = next(self._groups(), None)
        files = [] if own is None else [own / "memory.pressure"]
        for path in (*files, self._proc / "pressure" / "memory"):
            if (found := _stalled(path)) is not None:
                return found
        return None

    def resident_bytes(self) -> int | None:
        """What this process has in memory."""
        words = (_read(self._proc / "self" / "statm") or "").split()
        pages = _plain(words[1]) if len(words) > 1 else None
        return None if pages is None else pages * os.sysconf("SC_PAGE_SIZE")


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError):
        return None


def _plain(text: str) -> int | None:
    # Numbers of the kernel have at most 20 digits.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def _number(path: Path) -> int | None:
    """A file that is one number. None also for "max"."""
    return _plain((_read(path) or "").strip())


def _field(path: Path, name: str) -> int | None:
    """A number in a file with a name and a number in each line."""
    for line in (_read(path) or "").splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name:
            return _plain(words[1])
    return None


def _stalled(path: Path) -> float | None:
    """``avg10`` of the line ``full avg10=0.00 avg60=0.00 avg300=0.00 total=0``."""
    for line in (_read(path) or "").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "full" and words[1].startswith("avg10="):
            whole, point, rest = words[1].removeprefix("avg10=").partition(".")
            if _plain(whole) is not None and point and _plain(rest) is not None:
                return float(f"{whole}.{rest}")
    return None
