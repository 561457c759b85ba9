"""The ids of calls as people and programs see them: text, the same everywhere, and unique across relays and restarts.

``07pwk3m9x-c-5-1`` is one. The part before the first hyphen belongs to one run of one relay: four characters for the
hour of its start, which sort by time, and five that are random. The rest is the plane's own number of the connection.
So nothing has to be remembered to go from one to the other.
"""

from __future__ import annotations

import re
import secrets
import time

from relay.plane.api import ConnectionId

# Crockford's base 32, in lower case. Letters that look or sound like others are left out: i, l, o and u.
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_MEANT = str.maketrans("oil", "011")
_FORM = re.compile(rf"([{_DIGITS}]{{1,16}})-([{_DIGITS}-]{{1,20}})")
# 1 January 2026. Four characters hold the hours of 119 years.
_EPOCH_S = 1_767_225_600
_HOUR_CHARACTERS = 4
# Of a hundred relays that start in the same hour, two begin their ids alike in one of 6,700 such hours.
_RANDOM_CHARACTERS = 5
# Index, generation and worker, as the compiled plane numbers connections. Any other number of 64 bits fits as well.
_PARTS = (32, 24, 8)


class CallIds:
    """The ids of one run of a relay."""

    def __init__(self, prefix: str = "") -> None:
        """``prefix`` is what all its ids begin with; a new one unless given."""
        self.prefix = prefix or _new_prefix(time.time())

    def id_of(self, connection: ConnectionId) -> str:
        """The id of a connection, and so of its flow and its call."""
        parts, rest = [], int(connection)
        for bits in _PARTS:
            parts.append(_text(rest & ((1 << bits) - 1)))
            rest >>= bits
        while len(parts) > 1 and parts[-1] == "0":
            del parts[-1]
        return "-".join((self.prefix, *parts))

    def connection_of(self, given: str) -> ConnectionId | None:
        """The connection that has this id; None if it is not an id of this run."""
        wanted = normal(given)
        found = _FORM.fullmatch(wanted)
        if found is None or found[1] != self.prefix:
            return None
        parts = found[2].split("-")
        if len(parts) > len(_PARTS) or not all(parts):
            return None
        number = shift = 0
        for bits, part in zip(_PARTS, parts, strict=False):
            number |= _number(part) << shift
            shift += bits
        connection = ConnectionId(number)
        # One connection has one id: no leading zeros, and no part that is too large.
        return connection if self.id_of(connection) == wanted else None


def normal(given: str) -> str:
    """An id as the relay writes it: in lower case, with 0 and 1 where somebody has heard or read o, i or l."""
    return given.strip().lower().translate(_MEANT)


def _new_prefix(now: float) -> str:
    hours = max(0, int(now - _EPOCH_S)) // 3600 % (1 << 5 * _HOUR_CHARACTERS)
    chosen = secrets.randbits(5 * _RANDOM_CHARACTERS)
    return _text(hours).rjust(_HOUR_CHARACTERS, "0") + _text(chosen).rjust(_RANDOM_CHARACTERS, "0")


def _text(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 32)
        digits = _DIGITS[digit] + digits
        if not number:
            return digits


def _number(text: str) -> int:
    number = 0
    for digit in text:
        number = number * 32 + _DIGITS.index(digit)
    return number
