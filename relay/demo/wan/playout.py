"""A jitter buffer of fixed length: what of a stream is there in time to be played, and what is missing.

It follows the rule of ``relay.quality.playout``, which gives the score: each packet is played when the fastest one
would have been, and ``deadline_ms`` later. So the holes that one hears are those that the table counts. The buffers of
real phones adapt: they turn some of the holes into more delay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from relay.quality.playout import DEFAULT_DEADLINE_MS


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet that came: its number in the stream, counted from 0, its one-way delay, and its sound."""

    number: int
    delay_ms: float
    payload: bytes


def play_out(arrivals: Iterable[Arrival], sent: int, deadline_ms: float = DEFAULT_DEADLINE_MS) -> list[bytes | None]:
    """The payload for each packet that was sent, in this order, or None where nothing was there in time.

    The order of arrival does not matter. Of copies the first counts. Raises ValueError for a number that was not sent.
    """
    first: dict[int, Arrival] = {}
    for arrival in arrivals:
        if not 0 <= arrival.number < sent:
            raise ValueError(f"packet {arrival.number} of {sent}")
        first.setdefault(arrival.number, arrival)
    # If nothing came, there is no least delay, and nothing is late.
    latest_ms = min((one.delay_ms for one in first.values()), default=0.0) + deadline_ms
    in_time = {number: one.payload for number, one in first.items() if one.delay_ms <= latest_ms}
    return [in_time.get(number) for number in range(sent)]


def delays_of(arrivals: Iterable[Arrival], sent: int) -> list[float | None]:
    """The delay of each packet that was sent, or None if it never came: what ``relay.quality.playout.play`` takes."""
    first: dict[int, float] = {}
    for arrival in arrivals:
        first.setdefault(arrival.number, arrival.delay_ms)
    return [first.get(number) for number in range(sent)]
