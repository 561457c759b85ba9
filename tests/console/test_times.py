"""Times as people write them: what they mean here, on any day, also when clocks are set."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from relay.console.times import span_of
from relay.errors import OperatorError


@pytest.fixture(autouse=True)
def _in_zurich() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Zurich"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def span(given: str, now: str = "2026-11-28T12:00:00") -> tuple[str, float]:
    """The first moment, and how long it lasts."""
    first, last = span_of("--at", given, datetime.fromisoformat(now).astimezone())
    return datetime.fromtimestamp(first).astimezone().isoformat(), round(last - first + 0.001, 3)


@pytest.mark.parametrize(
    ("given", "start", "seconds"),
    [
        ("10:32", "2026-11-28T10:32:00+01:00", 60),
        (" 9:05 ", "2026-11-28T09:05:00+01:00", 60),
        ("10:32:05", "2026-11-28T10:32:05+01:00", 1),
        ("12:00", "2026-11-28T12:00:00+01:00", 60),
        # It is not yet that late, so it was yesterday.
        ("12:01", "2026-11-27T12:01:00+01:00", 60),
        ("23:50", "2026-11-27T23:50:00+01:00", 60),
        ("2026-11-20", "2026-11-20T00:00:00+01:00", 86_400),
        ("2026-07-20T10:32", "2026-07-20T10:32:00+02:00", 60),
        ("2026-07-20 10:32:07", "2026-07-20T10:32:07+02:00", 1),
        ("2026-11-28T09:32:00Z", "2026-11-28T10:32:00+01:00", 1),
        ("2026-11-28T04:32-05:00", "2026-11-28T10:32:00+01:00", 60),
    ],
)
def test_what_is_meant(given: str, start: str, seconds: float) -> None:
    assert span(given) == (start, seconds)


def test_when_clocks_are_set() -> None:
    # On 25 October 2026 at 3:00 it is 2:00 again.
    assert span("1:30", "2026-10-25T12:00:00") == ("2026-10-25T01:30:00+02:00", 60)
    assert span("10:32", "2026-10-25T12:00:00") == ("2026-10-25T10:32:00+01:00", 60)
    assert span("23:00", "2026-10-25T12:00:00") == ("2026-10-24T23:00:00+02:00", 60)


@pytest.mark.parametrize(
    "given", ["", "now", "25:00", "10:60", "10", "2026-13-01", "28.11.2026", "9999-12-31", "1795429800"]
)
def test_what_is_not_a_time(given: str) -> None:
    with pytest.raises(OperatorError) as refused:
        span(given)
    assert str(refused.value) == f"--at {given}: expected a time such as 10:32, 2026-11-28 or 2026-11-28T10:32:00+01:00"
