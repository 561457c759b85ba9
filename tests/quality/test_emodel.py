"""The E-model against values of ITU-T G.107 that were worked out apart from this code."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.quality.emodel import (
    G711,
    G711_CONCEALED,
    OPUS,
    OPUS_FEC,
    Codec,
    delay_impairment,
    effective_equipment_impairment,
    mos,
    mouth_to_ear_ms,
    r_factor,
)

percents = st.floats(0, 100)
delays_ms = st.floats(0, 10_000)
burst_ratios = st.floats(1, 1_000)
codecs = st.sampled_from([G711, G711_CONCEALED, OPUS, OPUS_FEC])


@pytest.mark.parametrize("delay_ms", [0, 20, 99.9, 100])
def test_delay_costs_nothing_up_to_100_ms(delay_ms: float) -> None:
    assert delay_impairment(delay_ms) == 0


@pytest.mark.parametrize(
    ("delay_ms", "impairment"), [(150, 0.164), (200, 3.044), (250, 8.917), (300, 14.761), (400, 24.070)]
)
def test_delay_impairment(delay_ms: float, impairment: float) -> None:
    assert delay_impairment(delay_ms) == pytest.approx(impairment, abs=5e-4)


@pytest.mark.parametrize(
    ("codec", "missing_percent", "r"),
    [(G711, 1, 75.28), (G711_CONCEALED, 1, 89.56), (G711, 5, 42.12), (G711_CONCEALED, 5, 77.42)],
)
def test_r_factor_under_random_loss(codec: Codec, missing_percent: float, r: float) -> None:
    assert r_factor(codec, 100, missing_percent) == pytest.approx(r, abs=5e-3)


@pytest.mark.parametrize(("codec", "score"), [(G711, 3.834), (G711_CONCEALED, 4.328)])
def test_mos_at_one_percent(codec: Codec, score: float) -> None:
    assert mos(r_factor(codec, 100, 1)) == pytest.approx(score, abs=5e-4)


@pytest.mark.parametrize(("r", "score"), [(90, 4.34), (80, 4.03), (70, 3.60), (60, 3.10)])
def test_bands_of_user_satisfaction(r: float, score: float) -> None:
    # G.107 Table B.1 prints 4.03 for R 80, where the formula of the same annex gives 4.024.
    assert mos(r) == pytest.approx(score, abs=0.01)


@pytest.mark.parametrize(("r", "score"), [(-50, 1), (0, 1), (3, 1), (100, 4.5), (129, 4.5)])
def test_mos_is_clamped(r: float, score: float) -> None:
    assert mos(r) == score


def test_a_perfect_path_has_the_default_r() -> None:
    assert r_factor(G711, 0, 0) == 93.2
    assert mos(r_factor(G711, 0, 0)) == pytest.approx(4.41, abs=5e-3)


def test_bursts_cost_more_than_random_loss() -> None:
    assert effective_equipment_impairment(G711, 10, 1) == pytest.approx(95 * 10 / (10 + 4.3))
    assert effective_equipment_impairment(G711, 10, 2) == pytest.approx(95 * 10 / (5 + 4.3))


def test_the_codec_counts_without_loss() -> None:
    codec = Codec("low bit rate", ie=11, bpl=19)
    assert effective_equipment_impairment(codec, 0) == 11
    assert effective_equipment_impairment(codec, 19) == 11 + 84 / 2


def test_mouth_to_ear_delay_is_the_sum_of_its_parts() -> None:
    assert mouth_to_ear_ms(network_ms=80, jitter_buffer_ms=60) == 160
    assert mouth_to_ear_ms(network_ms=80, jitter_buffer_ms=60, packetisation_ms=10) == 150


def test_only_values_of_our_own_are_provisional() -> None:
    assert [codec.provisional for codec in (G711, G711_CONCEALED, OPUS, OPUS_FEC)] == [False, False, True, True]


@pytest.mark.parametrize("delay_ms", [-1, math.nan, math.inf])
def test_refuses_what_is_no_delay(delay_ms: float) -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        delay_impairment(delay_ms)


@pytest.mark.parametrize("missing_percent", [-0.1, 100.1, math.nan])
def test_refuses_what_is_no_percentage(missing_percent: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to 100"):
        effective_equipment_impairment(G711, missing_percent)


@pytest.mark.parametrize("burst_ratio", [0.9, math.nan, math.inf])
def test_refuses_what_is_no_burst_ratio(burst_ratio: float) -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        effective_equipment_impairment(G711, 1, burst_ratio)


@pytest.mark.parametrize("bpl", [0, -1, math.nan])
def test_refuses_a_codec_without_robustness(bpl: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Codec("broken", ie=0, bpl=bpl)


@given(codecs, delays_ms, percents, burst_ratios)
def test_mos_stays_on_its_scale(codec: Codec, delay_ms: float, missing_percent: float, burst_ratio: float) -> None:
    assert 1 <= mos(r_factor(codec, delay_ms, missing_percent, burst_ratio)) <= 4.5


@given(codecs, delays_ms, delays_ms, percents, percents)
def test_worse_is_never_rated_better(
    codec: Codec, delay_ms: float, more_delay_ms: float, missing_percent: float, more_missing_percent: float
) -> None:
    better = r_factor(codec, min(delay_ms, more_delay_ms), min(missing_percent, more_missing_percent))
    worse = r_factor(codec, max(delay_ms, more_delay_ms), max(missing_percent, more_missing_percent))
    assert worse <= better + 1e-9


@given(st.floats(6.6, 100), st.floats(6.6, 100))
def test_mos_grows_with_r(one: float, other: float) -> None:
    assert mos(min(one, other)) <= mos(max(one, other)) + 1e-9
