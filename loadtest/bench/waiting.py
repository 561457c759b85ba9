"""Wait for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

from loadtest.bench.servers import BenchError

# Nobody waits longer for what a log or a metric is to say.
TOLD_TIMEOUT_S = 15.0
LOOK_S = 0.02


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = TOLD_TIMEOUT_S) -> None:
    """Raises BenchError if it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} within {timeout_s:g} s")
        time.sleep(LOOK_S)
