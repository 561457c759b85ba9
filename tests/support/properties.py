"""What property tests share: the same examples every time, and input cut into pieces. ``conftest`` has the rest."""

from __future__ import annotations

import os

from hypothesis import settings

# Put above ``@given``. A random search finds more in the long run; here every run must end alike.
repeatable = settings(derandomize=True)

# Under sanitizers the compiled twin is watched, and the Python twin takes far longer: a part of the examples will do.
_SHARE = 3 if os.environ.get("RELAY_SANITIZE") == "1" else 1

# So many pieces have a chosen size: 100 KB one byte at a time take seconds, and prove no more.
MAX_PIECES = 300


def examples(count: int) -> int:
    """How many there are of so many. All of them run without sanitizers."""
    return count // _SHARE


def pieces(data: bytes, sizes: list[int], longest: int) -> list[bytes]:
    """Cut into pieces of these sizes, over and over; what is left of it in the longest ones."""
    cut: list[bytes] = []
    at = 0
    while at < len(data):
        turn = len(cut)
        cut.append(data[at : at + (sizes[turn % len(sizes)] if turn < MAX_PIECES else longest)])
        at += len(cut[-1])
    return cut
