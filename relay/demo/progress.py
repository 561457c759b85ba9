"""The progress of calls, on a terminal as a bar, elsewhere as a line now and then."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Lines of progress between the first and the last, where the output cannot show a bar.
STEPS = 4


@contextlib.contextmanager
def progress(told: Console, total: int, what: str) -> Iterator[Callable[[], None]]:
    """What to call for each packet interval of each call, of ``total``, in any thread. ``what`` begins the lines."""
    if told.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=told, transient=True) as shown:
            bar = shown.add_task("calling", total=total)
            yield lambda: shown.advance(bar)
        return
    told.print(what, soft_wrap=True)
    marks = {total * step // STEPS: f"{100 * step // STEPS} % of the calls are over." for step in range(1, STEPS)}
    ticks = itertools.count(1)

    def on_tick() -> None:
        if (line := marks.get(next(ticks))) is not None:
            told.print(line)

    yield on_tick
