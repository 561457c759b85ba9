"""When TCP is behind, by the acknowledgements that come and do not come."""

from __future__ import annotations

import pytest

from relay.plane.pace import BEHIND_US, MARKS, UNACKNOWLEDGED_WRITES, WINDOW_LEAST, WINDOW_MOST, Pace

VOICE = 240
RTT_US = 40_000


def written(pace: Pace, count: int, size: int = VOICE, start_us: int = 0, end: int = 0) -> int:
    """So many writes, ten milliseconds apart; how many bytes they are."""
    for number in range(count):
        end += size
        pace.note_write(end, start_us + number * 10_000)
    return end


def test_a_stream_that_is_acknowledged_is_never_held() -> None:
    pace = Pace()
    for number in range(1000):
        pace.note_write(VOICE * (number + 1), number * 10_000)
        # A round trip and a delayed acknowledgement behind.
        assert not pace.is_behind(max(0, VOICE * (number - 5)), RTT_US, number * 10_000)


def test_silence_is_behind_after_the_round_trip_and_a_little() -> None:
    pace = Pace()
    written(pace, 10)
    assert not pace.is_behind(0, RTT_US, RTT_US + BEHIND_US)
    assert pace.is_behind(0, RTT_US, RTT_US + BEHIND_US + 1)


def test_few_small_writes_may_be_on_their_way_for_long() -> None:
    pace = Pace()
    written(pace, UNACKNOWLEDGED_WRITES - 1)
    assert not pace.is_much
    assert not pace.is_behind(0, RTT_US, 10**9)


def test_one_large_write_may_wait_for_a_delayed_acknowledgement_and_two_may_not() -> None:
    pace = Pace()
    end = written(pace, 1, size=WINDOW_LEAST)
    assert not pace.is_behind(0, RTT_US, 10**6)
    written(pace, 1, size=WINDOW_LEAST, start_us=1, end=end)
    assert pace.is_behind(0, RTT_US, 10**6)


def test_it_catches_up() -> None:
    pace = Pace()
    end = written(pace, 10)
    assert pace.is_behind(0, RTT_US, 10**6)
    assert not pace.is_behind(end, RTT_US, 10**6)
    assert not pace.is_much


def test_more_writes_than_are_remembered_count_as_the_last_one() -> None:
    pace = Pace()
    end = written(pace, 10 * MARKS)
    assert pace.is_behind((MARKS - 2) * VOICE, RTT_US, (MARKS - 2) * 10_000 + RTT_US + BEHIND_US + 1)
    assert not pace.is_behind(end, RTT_US, 10**9)


def test_behind_a_slow_link_no_more_is_given_than_it_delivers() -> None:
    """As soon as it has caught up a record may go, and not all that has waited."""
    pace = Pace()
    end = written(pace, 10)
    assert pace.is_behind(0, RTT_US, 10**6)
    assert not pace.is_behind(end, RTT_US, 10**6)
    before = end
    end = written(pace, 2, size=WINDOW_LEAST, start_us=10**6, end=end)
    assert not pace.is_behind(end, RTT_US, 10**6 + 1)
    end = written(pace, 5, size=WINDOW_LEAST, start_us=10**6, end=before)
    assert pace.is_behind(before, RTT_US, 10**6 + 10_001)


def test_the_window_opens_with_each_acknowledgement() -> None:
    pace = Pace()
    end = written(pace, 10)
    now = 10**6
    assert pace.is_behind(0, RTT_US, now)
    sizes = []
    for _ in range(12):
        assert not pace.is_behind(end, RTT_US, now)
        before = end
        while not pace.is_behind(before, RTT_US, now) and end - before < 2 * WINDOW_MOST:
            end += WINDOW_LEAST
            pace.note_write(end, now)
        sizes.append(end - before)
        now += RTT_US
    assert sizes[0] <= 4 * WINDOW_LEAST
    assert sizes == sorted(sizes)
    assert sizes[-1] == 2 * WINDOW_MOST


@pytest.mark.parametrize("acknowledged", [0, 1, VOICE, 10 * VOICE])
def test_no_marks_is_never_behind(acknowledged: int) -> None:
    assert not Pace().is_behind(acknowledged, 0, 10**9)
