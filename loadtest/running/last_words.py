"""Why Locust has ended early, for a reason that is in no figure: what its log says at last, in our words if we can."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from loadtest.plan.work import RECORD_LOST

MAX_WORDS = 600
MAX_LINES = 3
# What it writes before a message: the time, the host, the level, and who says it.
_HEAD = re.compile(r"^\[[^\]]*\] \S+?/[A-Z]+/\S+?: ")
_KNOWN = (
    (re.compile(r"No User class found"), "the locustfile has no users; expected a class that is not abstract"),
    (
        re.compile(r"Gave up waiting for workers"),
        "not all workers have come in time; expected as many as --expect-workers says",
    ),
    (
        re.compile(r"Address already in use \(addr='tcp://([^']*)'\)"),
        r"\1 is in use; expected a free port for --master-port",
    ),
)


def why_it_ended(status: int, folder: Path) -> str:
    """A reason, with what Locust has written into this folder."""
    return f"Locust ended with status {status}: {_record_lost(folder) if status == RECORD_LOST else ''}{_said(folder)}"


def _record_lost(folder: Path) -> str:
    """A full disk has no room for Locust's last words either."""
    return f"the record cannot be written; {shutil.disk_usage(folder).free:,} bytes are free in {folder}. "


def _said(folder: Path) -> str:
    try:
        text = (folder / "locust.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "its log cannot be read"
    for pattern, words in _KNOWN:
        if (found := pattern.search(text)) is not None:
            return found.expand(words)
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "Error" in line or "CRITICAL" in line]
    told = [_HEAD.sub("", line) for line in (errors or lines)[-MAX_LINES:]]
    return " | ".join(told)[-MAX_WORDS:] or "it wrote nothing"
