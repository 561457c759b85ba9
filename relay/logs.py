"""Sets up structlog: one line for each change of state, on stderr, as text or JSON. Nothing is logged per packet."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from typing import Literal

import structlog
from pydantic import SecretBytes, SecretStr

from relay.output import Output

# A peer chooses server names and first bytes, so values in a log line are cut to this length.
MAX_VALUE_CHARACTERS = 200
# The last lines of a traceback, and where each of them is cut: a line of code, or a message with a peer's text.
MAX_TRACEBACK_LINES = 100
MAX_TRACEBACK_CHARACTERS = 500
# The values of these fields are never written, whatever they are. What is of a secret type is not written anywhere.
SECRET_FIELDS = frozenset({"authorization", "cookie", "password", "secret", "token", "token_hash"})
HIDDEN = "**********"


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
        _clean_event,
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
    text = value if value.isprintable() else _escape(value)
    return text[:MAX_VALUE_CHARACTERS]


def _escape(value: str) -> str:
    return value.encode("unicode_escape").decode()


def _clean_event(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The same event for both styles: without secrets, and all that a peer may have chosen escaped and cut."""
    for key, value in event.items():
        event[key] = _clean_traceback(value) if key == "exception" else _clean(key, value)
    return event


def _clean(key: str, value: object) -> object:
    match value:
        case SecretStr() | SecretBytes():
            return HIDDEN
        case _ if key.lower().replace("-", "_") in SECRET_FIELDS:
            return HIDDEN
        case str():
            return printable(value)
        case bytes() | bytearray():
            # Each byte is a character or its escape, so the cut leaves no more bytes than these.
            return printable(_escape(value[:MAX_VALUE_CHARACTERS].decode("latin-1")))
        case dict():
            return {printable(str(name)): _clean(str(name), one) for name, one in value.items()}
        case list() | tuple():
            return [_clean(key, one) for one in value]
    return value


def _clean_traceback(value: object) -> object:
    """Its last lines may have a peer's text in them. Indented, none of them looks like a line of the log."""
    if not isinstance(value, str):
        return value
    lines = value.split("\n")[-MAX_TRACEBACK_LINES:]
    return "\n".join(f"  {line if line.isprintable() else _escape(line)}"[:MAX_TRACEBACK_CHARACTERS] for line in lines)
