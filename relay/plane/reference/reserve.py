"""Descriptors that are kept free for a newcomer, from before it is accepted.

They are for its UDP socket, or for the pair of sockets that takes it to control. Where they are not to be had,
newcomers wait in the kernel's queue, where nobody has shaken hands with them yet.
"""

from __future__ import annotations

import os

RESERVED_DESCRIPTORS = 2


class Reserve:
    """Those of one newcomer; none before ``fill``."""

    def __init__(self) -> None:
        self._kept: list[int] = []

    def fill(self, count: int = RESERVED_DESCRIPTORS) -> None:
        """Keep so many. Raises OSError where there are not so many."""
        while len(self._kept) < count:
            self._kept.append(os.open(os.devnull, os.O_RDONLY))

    def give_up(self) -> None:
        """Close them; may be repeated."""
        while self._kept:
            os.close(self._kept.pop())
