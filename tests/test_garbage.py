"""What a process that has started puts aside. It is for the whole process, so another one tries it."""

from __future__ import annotations

import subprocess
import sys

SETTLED = """
import gc
from relay import garbage

known = [[]]
garbage.settle()
assert gc.get_freeze_count() > 1000
assert not any(one is known for one in gc.get_objects())
assert gc.get_threshold()[0] == garbage.YOUNG_OBJECTS

class Rubbish:
    made = 0

    def __init__(self):
        self.own = self
        Rubbish.made += 1

    def __del__(self):
        Rubbish.made -= 1

# What is made later is still collected, without being asked.
for _ in range(4 * garbage.YOUNG_OBJECTS):
    Rubbish()
assert Rubbish.made < 2 * garbage.YOUNG_OBJECTS, Rubbish.made
"""


def test_what_has_started_is_not_looked_at_again() -> None:
    done = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
