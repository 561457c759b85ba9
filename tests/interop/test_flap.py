"""The relay's own machine does not send for a while, with a real coturn: no call ends, and newcomers are served.

A shorter form of ``loadtest.bench.flap``, whose figures stand in its README.
"""

from __future__ import annotations

import asyncio

import pytest

from loadtest.bench import flap


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_no_call_ends(plane: str) -> None:
    if (reason := await asyncio.to_thread(flap.refusal)) is not None:
        pytest.skip(reason)
    result = await flap.measure(flap.Plan(plane=plane, calls=4, sessions=2, one_in=3, refused_s=1.0, link_down_s=1.0))
    assert [phase.name for phase in result.phases] == list(flap.DISTURBANCES)
    assert [phase.ended for phase in result.phases] == [0, 0, 0]
    assert [phase.marked_down for phase in result.phases[:2]] == [0, 0]
    # It did happen.
    assert all(phase.refused for phase in result.phases)
