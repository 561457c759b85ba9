"""Makes asyncio's debug mode cheap.

It notes where each future, task and callback was made: the whole stack with its lines of code, and a look at each file
on the disk. With pytest below them stacks are 60 frames deep, and this took a third of the suite's time. Four frames
tell as much. Stacks of exceptions stay whole, because only ``traceback.extract_stack`` comes here.
"""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Iterable
from types import FrameType

FRAMES = 4


def _brief(frames: Iterable[tuple[FrameType, int]], **_: object) -> traceback.StackSummary:
    # Tuples are what became a FrameSummary in older versions. Whoever prints them looks up the lines of code.
    brief = traceback.StackSummary()
    for frame, number in itertools.islice(frames, FRAMES):
        code = frame.f_code
        brief.append((code.co_filename, number, code.co_name, None))  # type: ignore[arg-type]
    return brief


def shorten() -> None:
    """From now on, in this process."""
    traceback.StackSummary.extract = _brief  # type: ignore[method-assign, assignment]


def shorten_in_this_loop() -> None:
    """While the running loop runs: note of each coroutine where it was made, but not the ten calls that led there."""
    if sys.get_coroutine_origin_tracking_depth():
        sys.set_coroutine_origin_tracking_depth(1)
