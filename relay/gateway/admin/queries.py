"""Values in the queries of the API: numbers, times and addresses, checked, and said in words if they are wrong."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo

from relay.gateway.calls.database import Search

# Longer than any name or id that an operator looks for.
MAX_CHARACTERS = 200
# Lists of calls are pages of rows of some 700 bytes: this many if the request does not say, and at most MAX_CALLS.
CALLS_SHOWN = 100
MAX_CALLS = 1000
# The largest difference to UTC that there is, and some.
MAX_OFFSET_MINUTES = 24 * 60 - 1

_UNIX = re.compile(r"[0-9]{1,11}(\.[0-9]{1,9})?")
# A plus sign that nobody has encoded comes as a space.
_LOST_PLUS = re.compile(r" (?=\d\d:?\d\d$)")


class BadQuery(Exception):
    """A value that cannot be used; the text says which, and what was expected."""


def limit_of(query: Mapping[str, str], default: int, largest: int) -> int:
    """The number of rows: at most ``largest``, ``default`` unless given. Raises BadQuery."""
    given = query.get("limit", str(default))
    if not (given.isascii() and given.isdigit() and len(given) <= 9):
        raise BadQuery(f"limit: expected a number from 0 to {largest}")
    return min(int(given), largest)


def search_of(query: Mapping[str, str]) -> Search:
    """Which calls are wanted. Raises BadQuery."""
    since, until = _time_of(query, "from"), _time_of(query, "to")
    if since is not None and until is not None and since > until:
        raise BadQuery("from: expected a time that is not after to")
    return Search(
        query.get("user", "")[:MAX_CHARACTERS],
        _host_of(query.get("address", "")),
        since,
        until,
        limit_of(query, CALLS_SHOWN, MAX_CALLS),
        query.get("before", "")[:MAX_CHARACTERS],
    )


def _time_of(query: Mapping[str, str], key: str) -> float | None:
    given = query.get(key, "").strip()
    if not given:
        return None
    if _UNIX.fullmatch(given):
        return float(given)
    try:
        found = datetime.fromisoformat(_LOST_PLUS.sub("+", given) if "T" in given else given)
        if found.tzinfo is not None:
            return found.timestamp()
    except (ValueError, OverflowError):
        pass
    raise BadQuery(f"{key}: expected a time with its zone, such as 2026-11-28T10:32:00Z, or Unix seconds")


def _host_of(given: str) -> str:
    if not given.strip():
        return ""
    try:
        return str(ipaddress.ip_address(given.strip().strip("[]")))
    except ValueError:
        raise BadQuery("address: expected an IP address such as 10.1.2.3 or 2001:db8::7, without a port") from None


def zone_of(query: Mapping[str, str], at: float) -> tzinfo:
    """The time zone for sentences: the reader's, by its difference to UTC, or that of this machine at that time."""
    given = query.get("utc_offset_minutes", "").strip()
    if not given:
        return datetime.fromtimestamp(at, UTC).astimezone().tzinfo or UTC
    if not re.fullmatch(r"-?[0-9]{1,4}", given) or abs(int(given)) > MAX_OFFSET_MINUTES:
        raise BadQuery(f"utc_offset_minutes: expected a number from -{MAX_OFFSET_MINUTES} to {MAX_OFFSET_MINUTES}")
    return timezone(timedelta(minutes=int(given)))
