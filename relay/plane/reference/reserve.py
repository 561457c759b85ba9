"""Descriptors that are kept free for a newcomer, from before it is accepted.

They are for its UDP socket, or for the pair of sockets that takes it to control. When there are none left, newcomers
wait in the kernel's queue, before anybody has shaken hands with them.
"""

from __future__ import annotations

import os

RESERVED_DESCRIPTORS = 2


class Reserve:
    """The descriptors of one newcomer. There are none before ``fill``."""

    def __init__(self) -> None:
        self._kept: list[int] = []

    def fill(self, count: int = RESERVED_DESCRIPTORS) -> None:
        """Keep this many. Raises OSError if there are not enough."""
        while len(self._kept) < count:
            self._kept.append(os.open(os.devnull, os.O_RDONLY))

    def give_up(self) -> None:
        """Close them; may be repeated."""
        while self._kept:
            os.close(self._kept.pop())
