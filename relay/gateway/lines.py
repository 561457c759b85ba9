"""Log lines that clients cause: a few of each kind each second. The next line of a kind says how many were left out."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

import structlog

from relay.rate_limit import MAX_SOURCES, RateLimit

log = structlog.get_logger()


class Lines:
    """Writes lines. Those that are left out are counted by kind; few kinds are expected."""

    def __init__(self, per_second: float) -> None:
        """At most this many lines of each kind a second, and as many at once."""
        self._limit = RateLimit(per_second)
        self._left_out: OrderedDict[str, int] = OrderedDict()

    def info(self, event: str, kind: str = "", **fields: object) -> None:
        """Write a line, unless there were too many of its kind. Without a kind, the event is the kind."""
        self._write(log.info, event, kind, fields)

    def warning(self, event: str, kind: str = "", **fields: object) -> None:
        """The same for what the operator should see to."""
        self._write(log.warning, event, kind, fields)

    def _write(self, write: Callable[..., None], event: str, kind: str, fields: dict[str, object]) -> None:
        kind = kind or event
        if self._limit.allows(asyncio.get_running_loop().time(), kind):
            left_out = self._left_out.pop(kind, 0)
            write(event, **fields, **({"left_out": left_out} if left_out else {}))
            return
        self._left_out[kind] = self._left_out.pop(kind, 0) + 1
        if len(self._left_out) > MAX_SOURCES:
            self._left_out.popitem(last=False)
