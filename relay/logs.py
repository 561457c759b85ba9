"""Sets up structlog: one line for each change of state, on stderr, as text or JSON. Nothing is logged per packet."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from typing import Literal

import structlog

from relay.output import Output

# A peer chooses server names and first bytes, so values in a log line are cut to this length.
MAX_VALUE_CHARACTERS = 200


def configure(level: str, style: Literal["text", "json"]) -> None:
    """Log from this level up, in this style."""
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if style == "text":
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=plain)
    common: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _printable,
    ]
    # Lines of asyncio and aiohttp look the same, so that a program that reads JSON meets nothing else.
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *common],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=number, handlers=[handler], force=True)
    if isinstance(sys.stderr, Output):
        sys.stderr.describe_lost = functools.partial(_describe_lost, [*common, renderer])
    structlog.configure(
        processors=[*common, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # Each line is written by one call, so lines of several threads are not mixed.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def lines_lost() -> int:
    """How many lines of the log were lost since the start: not read in time, or not writable."""
    return sys.stderr.lost if isinstance(sys.stderr, Output) else 0


def _describe_lost(processors: Sequence[structlog.typing.Processor], count: int) -> str:
    entry: structlog.typing.EventDict = {"event": "log lines lost: nobody has read them in time", "lines": count}
    for processor in processors:
        entry = processor(None, "warning", entry)  # type: ignore[assignment]
    return f"{entry}\n"


def printable(value: str) -> str:
    """A text without characters that could control a terminal or forge a line, cut if it is long."""
    text = value if value.isprintable() else value.encode("unicode_escape").decode()
    return text[:MAX_VALUE_CHARACTERS]


def _printable(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = printable(value)
    return event
