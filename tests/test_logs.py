"""The log: one printable line for each change of state, whatever a peer put into it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog
from pydantic import SecretBytes, SecretStr

from relay import logs
from relay.tasks import Tasks


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # What stays would be closed by the new configuration.
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    structlog.get_logger().info("upstream up", upstream="stun1")
    [line] = lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[info +\] upstream up +upstream=stun1", line)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    structlog.get_logger().warning("upstream down", upstream="stun1", flows=3)
    [line] = lines(capsys)
    entry = json.loads(line)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "upstream down", "level": "warning", "upstream": "stun1", "flows": 3}


def test_level(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "json")
    log = structlog.get_logger()
    log.debug("no")
    log.info("no")
    log.warning("yes")
    log.error("yes")
    assert [json.loads(line)["event"] for line in lines(capsys)] == ["yes", "yes"]


def test_what_libraries_log_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    library = logging.getLogger("asyncio")
    library.info("Executing %s took %.3f seconds", "a\nb", 0.1)
    try:
        raise ZeroDivisionError("on purpose")
    except ZeroDivisionError:
        library.exception("failed")
    library.debug("no")
    slow, failed = (json.loads(line) for line in lines(capsys))
    assert slow.pop("timestamp").endswith("Z")
    assert slow == {"event": "Executing a\\nb took 0.100 seconds", "level": "info", "logger": "asyncio"}
    assert failed["level"] == "error"
    assert failed["exception"].endswith("ZeroDivisionError: on purpose")


def test_what_libraries_log_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    logging.getLogger("asyncio").warning("slow")
    [line] = lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[warning +\] slow +\[asyncio\]", line)


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_a_peer_chooses_cannot_forge_a_line(
    capsys: pytest.CaptureFixture[str], style: Literal["text", "json"]
) -> None:
    logs.configure("info", style)
    structlog.get_logger().info("closed", server_name="a\n2026-01-01 forged\x1b[2J\u2028", detail="x" * 10_000)
    [line] = lines(capsys)
    assert line.isprintable()
    assert len(line) < 500


@pytest.mark.parametrize("style", ["text", "json"])
def test_secrets_are_not_written(capsys: pytest.CaptureFixture[str], style: Literal["text", "json"]) -> None:
    logs.configure("info", style)
    structlog.get_logger().info(
        "asked",
        upstream=SecretStr("hunter2"),
        password="hunter2",
        headers={"Authorization": "hunter2", "X-Name": SecretStr("hunter2"), "Cookie": ["hunter2"]},
        found=[SecretBytes(b"hunter2"), ("hunter", SecretStr("hunter2"))],
        username="trader",
    )
    [line] = lines(capsys)
    assert "hunter2" not in line
    assert "trader" in line
    assert line.count("**********") == 7


@pytest.mark.parametrize("style", ["text", "json"])
def test_bytes_and_what_is_inside_of_values_is_escaped_and_cut(
    capsys: pytest.CaptureFixture[str], style: Literal["text", "json"]
) -> None:
    logs.configure("info", style)
    structlog.get_logger().info(
        "closed", first=b"\x16\x03\x1b[2J\xff\n", body=b"b" * 10_000, told={"a\nb": ["\x1b[2J", "x" * 10_000]}
    )
    [line] = lines(capsys)
    assert line.isprintable()
    assert len(line) < 900
    if style == "json":
        entry = json.loads(line)
        assert entry["first"] == "\\x16\\x03\\x1b[2J\\xff\\n"
        assert (entry["body"], entry["told"]) == (200 * "b", {"a\\nb": ["\\x1b[2J", 200 * "x"]})


def test_a_traceback_keeps_its_lines_and_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    try:
        raise ValueError("\x1b[2Jon purpose")
    except ValueError:
        structlog.get_logger().exception("failed")
    written = lines(capsys)
    assert len(written) > 2
    assert all(line.isprintable() for line in written)
    assert written[-1].endswith("ValueError: \\x1b[2Jon purpose")


def test_a_traceback_is_bounded_and_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    try:
        raise ValueError("long" * 1000 + 300 * "\n2026-01-01T00:00:00Z [info] forged")
    except ValueError:
        structlog.get_logger().exception("failed")
    first, *others = lines(capsys)
    assert "failed" in first
    assert len(others) == logs.MAX_TRACEBACK_LINES
    assert all(line.startswith("  ") and len(line) <= logs.MAX_TRACEBACK_CHARACTERS for line in others)


@pytest.mark.parametrize("style", ["text", "json"])
async def test_failure_of_a_task_is_logged_with_its_traceback(
    capsys: pytest.CaptureFixture[str], style: Literal["text", "json"]
) -> None:
    logs.configure("info", style)
    tasks = Tasks()

    async def fail() -> None:
        raise ZeroDivisionError("on purpose")

    tasks.start(fail(), "failing")
    await tasks.finish()
    await asyncio.sleep(0)
    assert len(tasks) == 0
    first, *others = lines(capsys)
    assert "task failed" in first
    assert "ZeroDivisionError: on purpose" in (others[-1] if style == "text" else json.loads(first)["exception"])
    assert "Warning" not in "".join(others)
