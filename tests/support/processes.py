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


def exists(number: int) -> bool:
    return Path(f"/proc/{number}").exists()
