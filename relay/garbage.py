"""Garbage collection in a process that serves clients: while it runs, the event loop stands still."""

from __future__ import annotations

import gc

# New objects until the youngest are looked at. With Python's own 700, most of what it looks at is not garbage, but the
# tasks and messages of this second. Measured with 1,000 users and 50 line events a second: 5 short stops a minute
# instead of 49, and a fifth of the time in all. Rubbish of some megabytes may wait meanwhile.
YOUNG_OBJECTS = 5000


def settle() -> None:
    """Say that the process has started: what exists now stays, and is never looked at again.

    That is 150,000 objects of modules and tables. A collection of all of them took more than 100 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
