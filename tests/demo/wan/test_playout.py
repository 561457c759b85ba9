"""The jitter buffer: what is there in time is played in the order of sending; holes are those that the score counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.demo.wan.playout import Arrival, delays_of, play_out
from relay.quality.playout import play


def arrival(number: int, delay_ms: float = 40.0) -> Arrival:
    return Arrival(number, delay_ms, bytes([number]))


def test_all_that_came_in_time() -> None:
    assert play_out([arrival(0), arrival(1), arrival(2)], 3) == [b"\x00", b"\x01", b"\x02"]


def test_reordered_packets_are_played_in_their_order() -> None:
    assert play_out([arrival(2), arrival(0, 60), arrival(1, 80)], 3) == [b"\x00", b"\x01", b"\x02"]


def test_nothing_is_there_for_a_lost_packet() -> None:
    assert play_out([arrival(0), arrival(2)], 4) == [b"\x00", None, b"\x02", None]


def test_a_packet_that_is_later_than_the_buffer_is_long_comes_for_nothing() -> None:
    arrivals = [arrival(0, 40), arrival(1, 100), arrival(2, 100.1)]
    assert play_out(arrivals, 3) == [b"\x00", b"\x01", None]
    assert play_out(arrivals, 3, deadline_ms=60.2) == [b"\x00", b"\x01", b"\x02"]
    assert play_out(arrivals, 3, deadline_ms=0) == [b"\x00", None, None]


def test_the_fastest_packet_sets_the_time_even_if_it_is_not_the_first() -> None:
    assert play_out([arrival(0, 101), arrival(1, 40)], 2) == [None, b"\x01"]


def test_of_copies_the_first_counts() -> None:
    copies = [Arrival(0, 500, b"late"), Arrival(0, 40, b"copy"), arrival(1)]
    assert play_out(copies, 2) == [None, b"\x01"]
    assert delays_of(copies, 2) == [500, 40]


def test_an_empty_stream() -> None:
    assert play_out([], 0) == []
    assert play_out([], 2) == [None, None]
    assert delays_of([], 2) == [None, None]


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_that_was_not_sent(number: int) -> None:
    with pytest.raises(ValueError, match=f"packet {number} of 2"):
        play_out([Arrival(number, 40, b"")], 2)


@given(
    st.lists(st.none() | st.floats(0, 500), max_size=40),
    st.randoms(use_true_random=False),
)
def test_holes_are_what_the_score_counts_as_missing(delays: list[float | None], order: object) -> None:
    arrivals = [arrival(number, delay) for number, delay in enumerate(delays) if delay is not None]
    order.shuffle(arrivals)  # type: ignore[attr-defined]
    assert delays_of(arrivals, len(delays)) == delays
    heard = play_out(arrivals, len(delays))
    score = play(delays)
    assert (heard.count(None), len(heard)) == (score.missing, score.sent)
