"""Figures add up across processes, and survive the way through JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine.windows import Histogram
from loadtest.figures.interval import Interval
from loadtest.figures.quality import score
from loadtest.figures.record import (
    Incident,
    Record,
    RelayFigures,
    line_of_incident,
    line_of_interval,
    line_of_relay,
    read,
    sum_of,
)
from loadtest.figures.timings import MAX_CAUSES, Timing

COUNTS = st.dictionaries(st.sampled_from(["sent", "received", "lost", "late"]), st.integers(0, 10_000))
HISTOGRAMS = st.dictionaries(st.integers(0, 1 << 32), st.integers(1, 1000), max_size=5).map(Histogram)


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    one = Interval(draw(st.integers(0, 3)), users=draw(st.integers(0, 9)), windows=1)
    one.counters.update(draw(COUNTS))
    one.delay, one.lateness = draw(HISTOGRAMS), draw(HISTOGRAMS)
    one.scores.update(draw(st.lists(st.integers(100, 450), max_size=3)))
    for seconds in draw(st.lists(st.floats(0, 60), max_size=3)):
        one.timing("set-up").note(seconds)
    for cause in draw(st.lists(st.sampled_from(["refused", "late"]), max_size=3)):
        one.timing("set-up").note_failure(cause)
    for words in draw(st.lists(st.sampled_from(["no answer to Allocate", "no answer to ring"]), max_size=3)):
        one.waits.setdefault(words, Histogram()).record(draw(st.floats(0, 60)))
    one.raised.update(draw(st.lists(st.sampled_from(["ValueError", "KeyError"]), max_size=3)))
    return one


@given(st.lists(intervals(), max_size=6))
def test_a_record_is_the_sum_of_its_lines(found: list[Interval]) -> None:
    record = read([line_of_interval(one) for one in found])
    whole, again = sum_of(found), sum_of(record.in_order)
    assert whole.plain() == again.plain()
    assert [one.second for one in record.in_order] == sorted({one.second for one in found})
    assert record.broken_lines == 0


def test_lines_that_are_not_whole_are_counted() -> None:
    good = line_of_interval(Interval(7))
    for bad in ("", "{", good[:-5], "[]", "null", '{"kind": "interval"}', '{"kind": "verse"}', '{"second": 1}'):
        record = read([good, bad])
        assert (len(record.intervals), record.broken_lines) == (1, 1), bad


def test_incidents_and_looks_at_the_relay() -> None:
    incident, look = Incident(5, "worker w is gone"), RelayFigures(6, 1.25, {"queue_full": 3.0})
    record = read([line_of_incident(incident), line_of_relay(look)])
    assert (record.incidents, record.relay) == ([incident], [look])
    assert read([line_of_relay(RelayFigures(7, None, {}, 5e6))]).relay == [RelayFigures(7, None, {}, 5e6)]
    assert read(['{"kind": "relay", "second": 8, "cpu_s": 1.5, "drops": {}}']).relay == [RelayFigures(8, 1.5, {})]


def test_what_a_worker_sends_twice_in_a_second_counts_twice() -> None:
    record = Record()
    for _ in range(2):
        one = Interval(1, users=4)
        one.counters["sent"] = 50
        record.add(Interval.read(json.loads(json.dumps(one.plain()))))
    assert (record.intervals[1].users, record.intervals[1].counters["sent"]) == (8, 100)


@pytest.mark.parametrize(("lateness_us", "void"), [(4900, False), (5100, True)])
def test_a_late_generator_voids_its_window(lateness_us: int, void: bool) -> None:
    one = Interval(0, lateness=Histogram({lateness_us: 100}))
    one.judge_window()
    assert one.void is void
    # And with it the second, whatever other processes say.
    whole = sum_of([one, Interval(0, windows=1)])
    assert (whole.windows, whole.void) == (2, void)


def test_timings_are_known_to_a_percent() -> None:
    timing = Timing()
    for milliseconds in range(1, 1001):
        timing.note(milliseconds / 1000)
    assert timing.milliseconds(50) == pytest.approx(500, rel=0.01)
    assert timing.milliseconds(99) == pytest.approx(990, rel=0.01)
    assert Timing().milliseconds(50) is None


def test_causes_of_a_hostile_server_are_bounded() -> None:
    timing, other = Timing(), Timing()
    for number in range(3 * MAX_CAUSES):
        timing.note_failure(f"{number} " + "x" * 10_000)
        other.note_failure(f"another {number}")
    timing.add(other)
    assert len(timing.failures) <= MAX_CAUSES + 1
    assert timing.failed == 6 * MAX_CAUSES
    assert max(map(len, timing.failures)) <= 200


@pytest.mark.parametrize(
    ("missing", "playout_ms", "mos"), [(0, 60, 4.41), (1, 60, 4.33), (5, 60, 3.92), (100, 60, 1.0), (0, 280, 3.96)]
)
def test_losses_and_delay_make_a_mos(missing: int, playout_ms: float, mos: float) -> None:
    assert score(100, missing, missing, playout_ms) == pytest.approx(mos, abs=0.02)


def test_without_packets_there_is_no_mos() -> None:
    assert score(0, 0, 0, 60) is None
    # The rest of what was sent before may be lost in a second in which little was sent.
    assert score(5, 50, 1, 60) == 1.0
