"""Processes of this machine, as ``/proc`` shows them (proc(5)): they, and their threads, may end while one reads."""

from __future__ import annotations

from pathlib import Path

_GONE = (FileNotFoundError, ProcessLookupError)


def children_of(parent: int) -> dict[int, str]:
    """The processes that any thread of this process has started and that have not ended: names by number."""
    found: dict[int, str] = {}
    for number in _started_by_threads_of(parent):
        try:
            found[number] = Path(f"/proc/{number}/comm").read_text().strip()
        except _GONE:
            continue
    return found


def _started_by_threads_of(parent: int) -> list[int]:
    numbers: list[int] = []
    for thread in Path(f"/proc/{parent}/task").iterdir():
        try:
            numbers += map(int, (thread / "children").read_text().split())
        except _GONE:
            continue
    return numbers


def with_argument(argument: str) -> list[int]:
    """The processes that were started with this argument, such as the path of a test's own file."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and argument.encode() in (path / "cmdline").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except _GONE:
            continue
    return found


def priorities(number: int) -> list[int]:
    """How nice each thread of a process is."""
    stats = [(thread / "stat").read_text() for thread in Path(f"/proc/{number}/task").iterdir()]
    return [int(stat.rpartition(")")[2].split()[16]) for stat in stats]


def exists(number: int) -> bool:
    return Path(f"/proc/{number}").exists()
