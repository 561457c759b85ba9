"""When TCP is behind, by the acknowledgements that come and do not come."""

from __future__ import annotations

import pytest

from relay.plane.reference.pace import (
    BEHIND_BESIDE_DATA_US,
    BEHIND_US,
    DATA_BEHIND_US,
    MARKS,
    MAX_WINDOW,
    MIN_DATA_WINDOW,
    MIN_WINDOW,
    UNACKNOWLEDGED_WRITES,
    VOICE_BESIDE_DATA_BYTES,
    Pace,
)

VOICE = 240
RTT_US = 40_000


def written(pace: Pace, count: int, size: int = VOICE, start_us: int = 0, end: int = 0) -> int:
    """So many writes, ten milliseconds apart; how many bytes they are."""
    for number in range(count):
        end += size
        pace.note_write(end, start_us + number * 10_000, RTT_US)
    return end


def test_a_stream_that_is_acknowledged_is_never_held() -> None:
    pace = Pace()
    for number in range(1000):
        pace.note_write(VOICE * (number + 1), number * 10_000, RTT_US)
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
    end = written(pace, 1, size=MIN_WINDOW)
    assert not pace.is_behind(0, RTT_US, 10**6)
    written(pace, 1, size=MIN_WINDOW, start_us=1, end=end)
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
    end = written(pace, 2, size=MIN_WINDOW, start_us=10**6, end=end)
    assert not pace.is_behind(end, RTT_US, 10**6 + 1)
    end = written(pace, 5, size=MIN_WINDOW, start_us=10**6, end=before)
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
        while not pace.is_behind(before, RTT_US, now) and end - before < 2 * MAX_WINDOW:
            end += MIN_WINDOW
            pace.note_write(end, now, RTT_US)
        sizes.append(end - before)
        now += RTT_US
    assert sizes[0] <= 4 * MIN_WINDOW
    assert sizes == sorted(sizes)
    assert sizes[-1] == 2 * MAX_WINDOW


@pytest.mark.parametrize("acknowledged", [0, 1, VOICE, 10 * VOICE])
def test_no_marks_is_never_behind(acknowledged: int) -> None:
    assert not Pace().is_behind(acknowledged, 0, 10**9)


# ---- Data


def holds_data(pace: Pace) -> bool:
    """It changes with each question."""
    return pace.holds_data


def test_data_is_held_before_voice_and_goes_on_as_what_is_on_its_way_is_delivered() -> None:
    pace = Pace()
    end = written(pace, 20, size=1000)
    late = RTT_US + DATA_BEHIND_US + 1
    assert not pace.is_behind(0, RTT_US, late - 1)
    assert not holds_data(pace)
    assert not pace.is_behind(0, RTT_US, late)
    assert holds_data(pace)
    # Still late, with less on its way than when it became so.
    assert not pace.is_behind(1000, RTT_US, late + 10_000)
    assert not holds_data(pace)
    pace.note_write(end + 1000, late + 10_000, RTT_US)
    pace.is_behind(1000, RTT_US, late + 10_001)
    assert holds_data(pace)
    # No longer late.
    pace.is_behind(end - 5000, RTT_US, late + 20_000)
    assert not holds_data(pace)


def test_little_that_is_late_does_not_hold_data() -> None:
    pace = Pace()
    written(pace, 10)
    assert 10 * VOICE < MIN_DATA_WINDOW
    pace.is_behind(0, RTT_US, RTT_US + DATA_BEHIND_US + 1)
    assert not holds_data(pace)


def test_beside_data_voice_goes_on_for_longer_and_not_without_end() -> None:
    pace = Pace()
    end = written(pace, 20, size=1000)
    now = RTT_US + BEHIND_BESIDE_DATA_US + 1
    assert not pace.is_behind(0, RTT_US, now, beside_data=True)
    for _ in range(VOICE_BESIDE_DATA_BYTES // 1024):
        assert not pace.is_behind(0, RTT_US, now, beside_data=True)
        end += 1024
        pace.note_write(end, now, RTT_US)
    assert pace.is_behind(0, RTT_US, now, beside_data=True)
    assert holds_data(pace)
    assert not pace.is_behind(2000, RTT_US, now, beside_data=True)


@pytest.mark.parametrize("spacing_us", [10, 1000, 5000])
def test_many_writes_on_a_long_way_are_told_apart_in_time(spacing_us: int) -> None:
    """A stream that is acknowledged after the round trip is not late, however many writes that is."""
    pace, rtt_us = Pace(), 200_000
    for number in range(3 * rtt_us // spacing_us):
        now = number * spacing_us
        pace.note_write(1000 * (number + 1), now, rtt_us)
        behind = pace.is_behind(1000 * max(0, number + 1 - rtt_us // spacing_us), rtt_us, now)
        assert not behind
        assert not holds_data(pace)
