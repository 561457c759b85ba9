"""A record and thresholds to a verdict: what passes, what fails, and what was never measured."""

from __future__ import annotations

import re
from typing import Any

import pytest

from loadtest.engine.windows import Histogram
from loadtest.figures.interval import Interval
from loadtest.figures.record import Incident, Record, RelayFigures
from loadtest.plan.profile import parse
from loadtest.plan.target import Target
from loadtest.plan.work import Work
from loadtest.verdict.judging import Circumstances, judge
from loadtest.verdict.result import Check, Result

THRESHOLDS = {
    "loss_percent": 0.1,
    "missing_percent": 1,
    "added_delay_p99_ms": 20,
    "mos": 4,
    "setup_p95_ms": 500,
    "errors_percent": 1,
}


def work(**changes: Any) -> Work:
    tree = {
        "description": "x",
        "users": 2,
        "warm_up_s": 2,
        "shape": {"ramp_s": 1, "hold_s": 9},
        "thresholds": THRESHOLDS,
    }
    target = Target.model_validate({"server": "127.0.0.1:4443", "secret": "north"})
    return Work(profile_name="p", target_name="t", profile=parse(tree | changes, "t"), target=target)


def second(number: int, **counts: int) -> Interval:
    one = Interval(1000 + number, windows=1, users=2, streams=4)
    one.counters.update({"sent": 200, "received": 200} | counts)
    one.delay = Histogram({300: 198, 900: 2})
    one.lateness = Histogram({100: 200})
    one.timing("set-up").note(0.05)
    return one


def record(seconds: list[Interval] | None = None) -> Record:
    found = Record()
    for one in [second(number) for number in range(10)] if seconds is None else seconds:
        found.add(one)
    return found


def check_of(result: Result, name: str) -> Check:
    return next(check for check in result.checks if check.name == name)


def test_a_good_test_passes() -> None:
    result = judge(work(), record(), Circumstances())
    assert (result.passed, result.reasons) == (True, [])
    # The ramp of a second, and two of warm-up, are not judged.
    assert (result.judged_from_s, result.judged_seconds, result.packets.sent) == (3, 7, 1400)
    assert result.added_delay_p99_ms == pytest.approx(0.0)
    assert check_of(result, "MOS").measured == pytest.approx(4.41, abs=0.01)
    assert len(result.intervals) == 10


@pytest.mark.parametrize(
    ("counts", "name", "measured"),
    [
        ({"lost": 1}, "loss", 0.5),
        ({"late": 10}, "missing", 5),
        ({"lost": 2, "late": 8}, "missing", 5),
        ({"late": 60}, "MOS", 2.14),
    ],
)
def test_what_was_lost_or_late_fails(counts: dict[str, int], name: str, measured: float) -> None:
    result = judge(work(), record([second(number, **counts) for number in range(10)]), Circumstances())
    check = check_of(result, name)
    assert check.measured == pytest.approx(measured, abs=0.01)
    assert not check.passed
    assert not result.passed
    # The check tells it, once.
    assert result.reasons == []
    assert result.why == [f"{check.name}: {check.words}" for check in result.checks if not check.passed]


def test_losses_of_the_warm_up_do_not_count() -> None:
    seconds = [second(number, lost=50 if number < 3 else 0) for number in range(10)]
    assert judge(work(), record(seconds), Circumstances()).passed


def test_delays_of_void_seconds_do_not_count_but_losses_do() -> None:
    seconds = [second(number) for number in range(30)]
    seconds[5].delay, seconds[5].lateness = Histogram({900_000: 200}), Histogram({50_000: 200})
    seconds[5].judge_window()
    profile = {"shape": {"ramp_s": 1, "hold_s": 29}}
    result = judge(work(**profile), record(seconds), Circumstances())
    assert result.passed
    assert (result.generator.void_windows, result.delay.max_ms) == (1, 0.9)
    seconds[5].counters["lost"] = 100
    assert not check_of(judge(work(**profile), record(seconds), Circumstances()), "loss").passed


def test_a_generator_that_is_late_says_nothing_of_the_target() -> None:
    seconds = [second(number) for number in range(10)]
    for one in seconds:
        one.lateness = Histogram({50_000: 200})
        one.judge_window()
    result = judge(work(), record(seconds), Circumstances())
    assert not check_of(result, "void windows").passed
    assert any("generator was too late" in reason for reason in result.reasons)
    # Nothing is left to measure a delay by.
    assert check_of(result, "added delay p99").measured is None


def test_what_was_not_measured_has_not_passed() -> None:
    result = judge(work(), Record(), Circumstances())
    assert not result.passed
    assert {check.name for check in result.checks if check.measured is None} == {check.name for check in result.checks}
    assert "No packet was sent in the judged part of the test." in result.reasons
    assert "loss: not measured; expected at most 0.1 %" in result.why


def test_users_who_are_not_let_in_fail_it_with_the_cause() -> None:
    seconds = [second(number) for number in range(10)]
    # Before the judged part: they count all the same.
    seconds[0].timing("set-up").note_failure("allocate: the TURN server refuses (403)")
    result = judge(work(), record(seconds), Circumstances())
    assert check_of(result, "errors").measured == pytest.approx(100 / 11)
    assert "set-up failed 1 times: allocate: the TURN server refuses (403)" in result.reasons
    assert result.timings["set-up"].failed == 1


def test_how_streams_sound_is_not_an_error_of_users() -> None:
    seconds = [second(number) for number in range(10)]
    for one in seconds:
        one.timing("stall").note_failure("a packet took 200 ms longer than the one before")
        one.timing("stream-second").note(0.001)
    result = judge(work(), record(seconds), Circumstances())
    assert result.passed
    assert (check_of(result, "errors").measured, result.timings["stall"].failed) == (0, 10)


def test_what_users_waited_for_in_vain_is_the_reason() -> None:
    """They had not given up by the end, so nothing has failed, and nothing was done."""
    found = Record()
    for number in range(10):
        found.add(Interval(1000 + number, windows=1, users=2))
    waited = found.intervals[1009].waits["no TLS handshake ended"] = Histogram()
    for seconds in (9.5, 8.0, 0.5):
        waited.record(seconds)
    result = judge(work(kind="signaling", thresholds={}), found, Circumstances())
    (reason,) = [one for one in result.reasons if "TLS" in one]
    assert re.fullmatch(r"no TLS handshake ended within 9\.[45] s; 3 users still waited when they were stopped", reason)
    assert result.waits["no TLS handshake ended"].count == 3


def test_who_still_waits_at_the_end_of_a_good_test_has_just_begun() -> None:
    found = record()
    waited = found.intervals[1009].waits["no answer to Allocate"] = Histogram()
    waited.record(0.01)
    assert judge(work(), found, Circumstances()).passed
    # If it has failed otherwise, those who have waited for long are told; and so is the failure.
    waited.record(9.0)
    assert judge(work(), found, Circumstances()).passed
    found.incidents.append(Incident(1, "worker w is gone"))
    reasons = judge(work(), found, Circumstances()).reasons
    assert reasons[0] == "worker w is gone"
    assert reasons[1].endswith("; 1 users still waited when they were stopped")


def raising(count: int, **thresholds: Any) -> Result:
    """Ten set-ups, and users whose code raises this often."""
    found = record()
    found.intervals[1000].raised["Trader (trader.py:9): ValueError: nobody"] = count
    return judge(work(thresholds=thresholds), found, Circumstances())


def test_what_users_raise_is_an_error_and_a_reason() -> None:
    result = raising(2, errors_percent=10)
    assert check_of(result, "errors").measured == pytest.approx(100 * 2 / 12)
    assert "Code of users raised 2 times: Trader (trader.py:9): ValueError: nobody" in result.reasons
    assert result.user_errors == {"Trader (trader.py:9): ValueError: nobody": 2}
    assert result.intervals[0].errors == 2
    # No threshold of errors: what nobody has caught is a mistake in the locustfile all the same.
    assert raising(1).reasons == ["Code of users raised 1 times: Trader (trader.py:9): ValueError: nobody"]
    assert raising(1, errors_percent=10).passed


def test_a_test_in_which_users_only_raise_fails_whatever_is_allowed() -> None:
    found = Record()
    found.add(Interval(1000, windows=1, users=2))
    found.intervals[1000].raised["Trader: KeyError: 'x'"] = 5
    result = judge(work(kind="signaling", thresholds={"errors_percent": 100}), found, Circumstances())
    assert not result.passed
    assert "Code of users raised 5 times: Trader: KeyError: 'x'" in result.reasons


def test_the_report_names_the_most_frequent_errors_of_users() -> None:
    found = record()
    found.intervals[1000].raised.update({f"Trader: E{number}": number for number in range(1, 30)})
    result = judge(work(), found, Circumstances())
    assert list(result.user_errors.items())[:2] == [("Trader: E29", 29), ("Trader: E28", 28)]
    assert len(result.user_errors) == 10


def test_a_long_set_up_fails() -> None:
    seconds = [second(number) for number in range(10)]
    for one in seconds:
        one.timing("set-up").note(2.0)
    assert not check_of(judge(work(), record(seconds), Circumstances()), "set-up p95").passed


@pytest.mark.parametrize("counter", ["corrupt", "misrouted"])
def test_what_may_never_happen(counter: str) -> None:
    result = judge(work(), record([second(number, **{counter: 1}) for number in range(10)]), Circumstances())
    assert f"7 packets were {counter}; expected none, ever" in result.reasons


def test_trouble_beside_figures_fails_it() -> None:
    found = record()
    found.incidents.append(Incident(1, "worker w is gone"))
    found.broken_lines = 2
    result = judge(work(), found, Circumstances(interrupted=True, troubles=["Locust ended with status 9"]))
    assert result.reasons == [
        "Locust ended with status 9",
        "worker w is gone",
        "The test was interrupted.",
        "2 lines of the record could not be read.",
    ]
    assert (result.passed, result.interrupted) == (False, True)


def test_the_relays_own_figures() -> None:
    found = record()
    found.relay = [RelayFigures(1000 + at, 10 + 0.1 * at, {"queue_full": 5.0 + at}) for at in range(0, 10, 2)]
    relay = judge(work(), found, Circumstances()).relay
    assert relay is not None
    assert relay.cores == pytest.approx(0.1)
    # Seven seconds of 200 packets, in and out.
    assert relay.microseconds_per_packet == pytest.approx(0.1 * 7 / 2800 * 1e6)
    assert relay.drops == {"queue_full": 8}


def test_a_relay_that_did_not_answer_has_no_figures() -> None:
    found = record()
    found.relay = [RelayFigures(1000 + at, None, {}) for at in range(3)]
    relay = judge(work(), found, Circumstances()).relay
    assert relay is not None
    assert (relay.cores, relay.microseconds_per_packet, relay.drops) == (None, None, {})


def growing(*mebibytes: float | None) -> Record:
    """A record whose relay has this much memory, a look a second, from the end of the warm-up on."""
    found = record([second(number) for number in range(3 + len(mebibytes))])
    sizes = [None if one is None else one * 2**20 for one in mebibytes]
    found.relay = [RelayFigures(1003 + at, None, {}, size) for at, size in enumerate(sizes)]
    return found


@pytest.mark.parametrize(
    ("mebibytes", "percent"),
    [
        # What fills up in the first quarter does not count, nor a look that meets a peak.
        ([50, 80, 99, 100, 100, 100, 150, 100, 100, 100, 100, 100, 100, 100, 101, 101], 1.5),
        ([100, 100, 100, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112], 11.5),
        ([100] * 4 + [90] * 12, -10),
        # A relay that did not answer now and then.
        ([100, None, 100, None, 100, 100, None, 100, 100, 103, 103], 3),
        ([100] * 7, None),
        ([None] * 16, None),
    ],
)
def test_memory_that_grows(mebibytes: list[float | None], percent: float | None) -> None:
    shape = {"ramp_s": 1, "hold_s": 2 + len(mebibytes)}
    result = judge(work(shape=shape, thresholds={"memory_growth_percent": 2}), growing(*mebibytes), Circumstances())
    check = check_of(result, "memory growth")
    assert check.measured == (None if percent is None else pytest.approx(percent, abs=0.1))
    assert (check.limit, check.passed) == (2, percent is not None and percent <= 2)
    assert result.relay is not None
    assert result.relay.memory_growth_percent == check.measured
    assert result.relay.resident_bytes == (None if mebibytes[-1] is None else mebibytes[-1] * 2**20)


def test_streams_are_counted_by_their_mos() -> None:
    found = record()
    found.intervals[1005].scores.update([441, 441, 399, 100])
    steps = judge(work(), found, Circumstances()).mos_of_stream_seconds
    assert {step: count for step, count in steps.items() if count} == {"4.3": 2, "3.5": 1, "1": 1}


def test_no_secret_is_in_the_result() -> None:
    assert "north" not in judge(work(), record(), Circumstances()).text()
