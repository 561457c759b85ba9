"""Shapes: how many users there are at each second."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from loadtest.plan.shapes import MAX_SECONDS, Shape, ShapeKind


def counts(shape: Shape, users: int) -> list[int | None]:
    return [shape.users_at(float(second), users) for second in range(int(shape.seconds) + 1)]


def test_users_come_in_the_ramp_and_stay() -> None:
    found = counts(Shape(ramp_s=4, hold_s=3), 10)
    assert found == [2, 4, 6, 8, 10, 10, 10, None]


def test_without_a_ramp_all_come_at_once() -> None:
    assert counts(Shape(ramp_s=0, hold_s=2), 7) == [7, 7, None]


def test_a_spike_has_all_in_the_middle() -> None:
    shape = Shape(kind=ShapeKind.SPIKE, ramp_s=0, hold_s=6, base_percent=20, spike_s=2)
    assert counts(shape, 10) == [2, 2, 10, 10, 2, 2, None]


def test_there_is_always_somebody() -> None:
    assert counts(Shape(kind=ShapeKind.SPIKE, ramp_s=0, hold_s=2, base_percent=0, spike_s=0), 5) == [1, 1, None]


@pytest.mark.parametrize(("kind", "judged"), [("steady", 5), ("soak", 5), ("spike", 5), ("ramp", 0), ("storm", 0)])
def test_a_ramp_and_a_storm_are_judged_from_the_start(kind: str, judged: float) -> None:
    assert Shape.model_validate({"kind": kind}).judged_from_s == judged


@pytest.mark.parametrize("seconds", [1.0, 8.0, 1000.0])
def test_another_length(seconds: float) -> None:
    shape = Shape(kind=ShapeKind.SPIKE, ramp_s=10, hold_s=100, spike_s=50).lasting(seconds)
    assert shape.seconds == pytest.approx(seconds)
    assert shape.spike_s < shape.hold_s


def test_a_storm_comes_as_fast_as_it_says() -> None:
    assert Shape(kind=ShapeKind.STORM, ramp_s=10).rate_at(1000) == 100


def test_all_of_a_test_takes_a_week_at_most() -> None:
    """Not its ramp and what follows it, each for itself."""
    assert MAX_SECONDS == 7 * 24 * 3600
    assert Shape(ramp_s=MAX_SECONDS - 1, hold_s=1).seconds == MAX_SECONDS
    with pytest.raises(ValidationError, match="604801 s in all; expected at most 604800"):
        Shape(ramp_s=MAX_SECONDS, hold_s=1)
    for ramp_s in (0.1, 0.3, 5.7, 1000.1):
        assert Shape(ramp_s=ramp_s).lasting(MAX_SECONDS).seconds == pytest.approx(MAX_SECONDS)
