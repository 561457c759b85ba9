"""Chromium's data channel beside its voice, on a line of 10 Mbit/s and 40 ms, through the relay to coturn and back."""

from __future__ import annotations

import shutil

import pytest

from loadtest.bench.datachannel import measure, parse_options
from relay.demo.wan.netns import refusal
from tests.support.peers.browser import CHROMIUM

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(shutil.which("turnserver") is None, reason="coturn is not installed"),
    pytest.mark.skipif(refusal() is not None, reason=str(refusal())),
]


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_all_of_it_comes_and_the_call_goes_on(plane: str) -> None:
    """More than waits anywhere: what was dropped SCTP has sent again, and nothing has ended."""
    run = await measure("relay", parse_options(["--plane", plane, "--megabytes", "1"]), 1.0)
    assert run["whole"], run
    assert run["open"], run
    # On a busy machine Chromium may miss its own checks for 2.5 s: "disconnected". Then it is connected again.
    assert all({"connecting", "connected"} <= set(states) for states in run["states"]), run
    assert not any({"failed", "closed"} & set(states) for states in run["states"]), run
    assert run["closed"] == [], run
    assert run["voice"]["packetsReceived"] > 0, run
