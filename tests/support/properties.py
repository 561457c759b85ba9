"""What property tests share: the same examples every time, and input cut into pieces. ``conftest`` has the rest."""

from __future__ import annotations

from hypothesis import settings

# Put above ``@given``. A random search finds more in the long run; here every run must end alike.
repeatable = settings(derandomize=True)

# So many pieces have a chosen size: 100 KB one byte at a time take seconds, and prove no more.
MAX_PIECES = 300


def pieces(data: bytes, sizes: list[int], longest: int) -> list[bytes]:
    """Cut into pieces of these sizes, over and over; what is left of it in the longest ones."""
    cut: list[bytes] = []
    at = 0
    while at < len(data):
        turn = len(cut)
        cut.append(data[at : at + (sizes[turn % len(sizes)] if turn < MAX_PIECES else longest)])
        at += len(cut[-1])
    return cut
