"""Times as people say them, in the time zone of this machine: "10:32" is a minute of today."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from relay.errors import OperatorError

_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_WITH_SECONDS = re.compile(r"[T ]\d\d:\d\d:\d\d")
_DAY, _MINUTE, _SECOND = timedelta(days=1), timedelta(minutes=1), timedelta(seconds=1)


def span_of(option: str, given: str, now: datetime) -> tuple[float, float]:
    """The first and the last moment that somebody means, in Unix seconds: of a second, a minute or a day.

    ``now`` has a zone. A time of day without a date is today's, or yesterday's if it is not yet that late. Raises
    OperatorError that names ``option``.
    """
    try:
        start, length = _read(given.strip(), now)
        return start.timestamp(), (start + length).timestamp() - 0.001
    except (ValueError, OverflowError):
        expected = "expected a time such as 10:32, 2026-11-28 or 2026-11-28T10:32:00+01:00"
        raise OperatorError(f"{option} {given}: {expected}") from None


def _read(given: str, now: datetime) -> tuple[datetime, timedelta]:
    if (clock := _CLOCK.fullmatch(given)) is not None:
        hour, minute, second = (int(part or 0) for part in clock.groups())
        # Without its zone, and with the zone of that moment: they differ on the two days when clocks are set.
        there = now.replace(hour=hour, minute=minute, second=second, microsecond=0, tzinfo=None)
        if there.astimezone() > now:
            there -= _DAY
        return there.astimezone(), _SECOND if clock[3] else _MINUTE
    found = datetime.fromisoformat(given)
    length = _DAY if _DATE.fullmatch(given) else _SECOND if _WITH_SECONDS.search(given) else _MINUTE
    return (found.astimezone() if found.tzinfo is None else found), length
