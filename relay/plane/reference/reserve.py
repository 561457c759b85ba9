"""Descriptors that are kept free for a newcomer, from before it is accepted.

They are for its UDP socket, or for the pair of sockets that takes it to control. When there are none left, newcomers
wait in the kernel's queue, before anybody has shaken hands with them.
"""

from __future__ import annotations

import errno
import os

RESERVED_DESCRIPTORS = 2


class Reserve:
    """The descriptors of one newcomer. There are none before ``fill``."""

    def __init__(self) -> None:
        self._kept: list[int] = []

    def fill(self, count: int = RESERVED_DESCRIPTORS, bound: int = 0) -> None:
        """Keep this many. Raises OSError if there are not enough, or if ``bound`` of them (0: all) are in use.

        The kernel gives the lowest number that is free.
        """
        while len(self._kept) < count:
            self._kept.append(os.open(os.devnull, os.O_RDONLY))
            if 0 < bound <= self._kept[-1]:
                os.close(self._kept.pop())
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def give_up(self) -> None:
        """Close them; may be repeated."""
        while self._kept:
            os.close(self._kept.pop())
