"""The model of TCP, with a clock that the test moves: what is lost comes later, and what comes after it waits."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.demo.wan.tcp_model import INITIAL_WINDOW, MAX_SEGMENT_BYTES, PATIENCE_S, TcpModel

DELAY_S = 0.04
ROUND_TRIP_S = 2 * DELAY_S
INTERVAL_S = 0.02


def never() -> bool:
    return False


def those(*numbers: int) -> Callable[[], bool]:
    """Loses the packets with these numbers, counted from 0 in the order of sending."""
    sent = iter(range(1_000_000))
    return lambda: next(sent) in numbers


def arrivals(model: TcpModel, writes: Iterable[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """Write what is due, and go on from deadline to deadline: what could be read, with the time."""
    left, came = list(writes), []
    while left or model.next_deadline() < math.inf:
        now = min(left[0][0] if left else math.inf, model.next_deadline())
        while left and left[0][0] <= now:
            model.write(left.pop(0)[1], now)
        if data := model.read(now):
            came.append((now, data))
    return came


def voice(packets: int) -> list[tuple[float, bytes]]:
    return [(number * INTERVAL_S, bytes([number])) for number in range(packets)]


def exactly(packets: list[tuple[float, bytes]]) -> list[tuple[object, bytes]]:
    """Packets that come one delay after they were written."""
    return [(pytest.approx(when + DELAY_S), data) for when, data in packets]


def times(came: list[tuple[float, bytes]]) -> dict[int, float]:
    """When each packet of voice came."""
    return {number: when for when, data in came for number in data}


def test_nothing_is_late_while_nothing_is_lost() -> None:
    model = TcpModel(DELAY_S, never, never)
    assert exactly(voice(50)) == arrivals(model, voice(50))
    assert model.waiting_bytes == 0


def test_what_was_lost_is_sent_again_when_something_later_is_acknowledged_and_all_after_it_waits() -> None:
    came = times(arrivals(TcpModel(DELAY_S, those(5), never), voice(20)))
    # The sixth has come a packet's interval and a round trip after the fifth was sent: a quarter of a round trip
    # more than it should take, so the fifth is lost.
    again = 5 * INTERVAL_S + INTERVAL_S + ROUND_TRIP_S
    stall_ends = again + DELAY_S
    expected = {number: number * INTERVAL_S + DELAY_S for number in range(20)}
    expected |= {number: stall_ends for number in range(5, 11) if expected[number] < stall_ends}
    assert came == pytest.approx(expected)
    assert stall_ends - 5 * INTERVAL_S == pytest.approx(0.14)


def test_one_that_is_lost_twice_takes_twice_as_long() -> None:
    once = times(arrivals(TcpModel(DELAY_S, those(5), never), voice(30)))
    # Packets 6 to 9 have left by the time at which the fifth is sent again, as the eleventh that is sent.
    twice = times(arrivals(TcpModel(DELAY_S, those(5, 10), never), voice(30)))
    assert once[5] - 5 * INTERVAL_S == pytest.approx(0.14)
    assert twice[5] - once[5] == pytest.approx(INTERVAL_S + ROUND_TRIP_S)


def test_the_last_one_is_sent_again_after_a_timeout_and_then_after_twice_as_long() -> None:
    timeout = ROUND_TRIP_S + PATIENCE_S
    for lost, waits in (((0,), timeout), ((0, 1), 3 * timeout), ((0, 1, 2), 7 * timeout)):
        [(when, data)] = arrivals(TcpModel(DELAY_S, those(*lost), never), [(1.0, b"alone")])
        assert data == b"alone"
        assert when == pytest.approx(1 + waits + DELAY_S)


def test_a_lost_acknowledgement_is_made_good_by_the_next() -> None:
    assert exactly(voice(30)) == arrivals(TcpModel(DELAY_S, never, those(3, 4, 9)), voice(30))


def test_the_last_acknowledgement_is_lost_and_a_copy_is_not_read_twice() -> None:
    sent = []

    def count() -> bool:
        sent.append(1)
        return False

    came = arrivals(TcpModel(DELAY_S, count, those(0)), [(0.0, b"once")])
    assert [data for _, data in came] == [b"once"]
    assert len(sent) == 2


def test_a_burst_goes_as_the_window_allows() -> None:
    """Ten segments at once, and each acknowledgement lets two go: the window grows until something is lost."""
    size = 30 * MAX_SEGMENT_BYTES
    came = arrivals(TcpModel(DELAY_S, never, never), [(0.0, bytes(size))])
    by_time = {round(when / DELAY_S): len(data) // MAX_SEGMENT_BYTES for when, data in came}
    assert by_time == {1: INITIAL_WINDOW, 3: 2 * INITIAL_WINDOW}


def test_the_window_is_smaller_after_a_loss() -> None:
    """A burst of ten is one too many after one loss: its window is seven."""
    model = TcpModel(DELAY_S, those(2), never)
    began = 10.0
    came = arrivals(model, [*voice(10), (began, bytes(10 * MAX_SEGMENT_BYTES))])
    burst = [len(data) // MAX_SEGMENT_BYTES for when, data in came if when > began]
    assert burst == [7, 3]


@given(
    st.lists(st.tuples(st.floats(0, 0.1), st.binary(min_size=1, max_size=3000)), max_size=60),
    st.floats(0, 0.5),
    st.integers(0, 1000),
)
def test_everything_comes_once_in_order_and_never_early(
    writes: list[tuple[float, bytes]], loss: float, seed: int
) -> None:
    luck = random.Random(seed)
    now, schedule = 0.0, []
    for pause, data in writes:
        now += pause
        schedule.append((now, data))
    model = TcpModel(DELAY_S, lambda: luck.random() < loss, lambda: luck.random() < loss)
    came = arrivals(model, schedule)
    assert b"".join(data for _, data in came) == b"".join(data for _, data in schedule)
    assert model.waiting_bytes == 0
    left = deque(schedule)
    for when, data in came:
        size = len(data)
        while size:
            written, first = left.popleft()
            assert when >= written + DELAY_S - 1e-9
            if len(first) > size:
                left.appendleft((written, first[size:]))
            size -= min(size, len(first))


def test_what_waits_is_counted() -> None:
    model = TcpModel(DELAY_S, never, never)
    model.write(bytes(50 * MAX_SEGMENT_BYTES), 0)
    assert model.waiting_bytes == 50 * MAX_SEGMENT_BYTES
    assert len(model.read(DELAY_S)) == INITIAL_WINDOW * MAX_SEGMENT_BYTES
    assert model.waiting_bytes == 40 * MAX_SEGMENT_BYTES
