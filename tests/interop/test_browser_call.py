"""A browser's call beside simulated ones, for some seconds: both are heard, and what they say is compared.

The full run has 300 calls for a minute: ``loadtest/bench/README.md``.
"""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.bench.browser_call import browser_figures, complaints, measure, parse_options, table
from tests.support.peers.browser import CHROMIUM

Run = dict[str, Any]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("lossy", [False, True], ids=["TLS", "UDP with loss"])
async def test_both_are_heard(lossy: bool) -> None:
    """How late anything is depends on the machine, and is not judged here."""
    found = await measure(parse_options(["--calls", "2", "--seconds", "8", *(["--loss"] if lossy else [])]))
    browser, tester = found["browser"], found["load_tester"]
    assert browser["states"] == ["connected", "connected"], found
    assert browser["received"] > 0, found
    assert tester["received"] > 0, found
    assert browser["jitter_p50_ms"] >= 0, found
    if lossy:
        # The path drops the same share of each stream, whoever sends it.
        assert browser["lost"] > 0, found
        assert tester["lost"] > 0, found
    else:
        assert tester["lost"] == 0, found
    assert "| browser | " in table(found)


def look(*counts: tuple[int, int, float], state: str = "connected") -> Run:
    """What the page says of both ends: received, lost, and jitter in seconds."""
    ends = [
        {"state": state, "packetsReceived": received, "packetsLost": lost, "jitter": jitter}
        for received, lost, jitter in counts
    ]
    return {"failure": None, "ends": ends}


def found_with(browser: Run, **tester: float | None) -> Run:
    told = {"received": 980, "lost": 20, "loss_percent": 2.0, "jitter_p50_ms": 1.0, "void_percent": 0.0}
    return {"calls": 1, "lossy": True, "browser": browser, "load_tester": told | tester}


def test_what_the_browser_says_is_the_difference() -> None:
    looks = [look((100, 1, 0.002), (50, 9, 0.004)), look((200, 2, 0.003), (100, 9, 0.001))]
    figures = browser_figures([*looks, look((590, 11, 0.002), (540, 19, 0.002))])
    assert (figures["received"], figures["lost"], figures["loss_percent"]) == (980, 20, 2.0)
    assert figures["jitter_p50_ms"] == pytest.approx(2.0)
    assert complaints(found_with(figures)) == []


@pytest.mark.parametrize(
    ("tester", "words"),
    [
        ({"loss_percent": 2.15}, []),
        ({"loss_percent": 2.3}, ["the browser lost 2.000 % of its packets, the load tester 2.300 %"]),
        ({"loss_percent": 0.0}, ["the browser lost 2.000 % of its packets, the load tester 0.000 %"]),
        ({"jitter_p50_ms": 6.9}, []),
        ({"jitter_p50_ms": 7.1}, ["the browser's jitter is 2.00 ms, the load tester's 7.10 ms"]),
        ({"jitter_p50_ms": None}, ["the load tester was late all the time, so it has measured no jitter"]),
        ({"loss_percent": None}, ["nothing was measured"]),
    ],
)
def test_what_does_not_agree_is_told(tester: dict[str, float | None], words: list[str]) -> None:
    figures = browser_figures([look((0, 0, 0.002)), look((980, 20, 0.002))])
    assert complaints(found_with(figures, **tester)) == words


def test_a_browser_that_heard_nothing_does_not_agree() -> None:
    silent = browser_figures([look((5, 0, 0.0)), look((5, 0, 0.0), state="failed")])
    assert complaints(found_with(silent)) == ["the browser's call is failed", "nothing was measured"]
    assert complaints(found_with(browser_figures([]))) == ["nothing was measured"]
    assert "| browser | 0 | 0 | - |" in table(found_with(silent))


@pytest.mark.parametrize("arguments", [["--calls", "0"], ["--loss", "--calls", "300"], ["--seconds", "0"]])
def test_options_are_checked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(arguments)
    assert "expected" in capsys.readouterr().err
