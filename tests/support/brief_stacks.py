"""Makes asyncio's debug mode cheap.

It notes where each future, task and callback was made: the whole stack with its lines of code, and a look at each file
on the disk. With pytest below them stacks are 60 frames deep, and this took a third of the suite's time. Four frames
tell as much. Stacks of exceptions stay whole, because only ``traceback.extract_stack`` comes here.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterable
from types import FrameType

FRAMES = 4


def _brief(frames: Iterable[tuple[FrameType, int]], **_: object) -> traceback.StackSummary:
    return traceback.StackSummary.from_list(
        traceback.FrameSummary(frame.f_code.co_filename, number, frame.f_code.co_name, lookup_line=False)
        for frame, number in itertools.islice(frames, FRAMES)
    )


def shorten() -> None:
    """From now on, in this process."""
    traceback.StackSummary.extract = _brief  # type: ignore[method-assign, assignment]
