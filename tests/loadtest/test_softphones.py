"""50 softphones with calls that come and go over all carriers. The full run has 200 calls in two minutes."""

from __future__ import annotations

import asyncio
import json
import sys


async def test_calls_come_and_go_and_nothing_is_left() -> None:
    # In a process of its own: asyncio's debug mode makes it so slow that it could not keep its pace.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.bench.softphones", "--phones", "50", "--calls", "36", "--seconds", "20"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    outcome = json.loads(stdout)
    assert (process.returncode, outcome["faults"]) == (0, []), stderr.decode()
    assert outcome["calls"] == 36
    assert outcome["answered"] + outcome["declined"] + outcome["given_up"] == 36
    assert outcome["by_carriers"] == dict.fromkeys(
        ("UDP direct", "TURN/TLS relay", "WebSocket relay", "session relay", "CONNECT-UDP", "TURN/TLS direct"), 6
    )
    # Both ends of each answered call have heard, and recorded, the other; signaling has told of each step.
    assert outcome["legs"] >= 2 * outcome["answered"] > 0
    # Two talkers, and twelve who hear the other or both.
    assert outcome["hoot_voices"] == 2 * 11
    assert outcome["recordings"] >= 2 * outcome["answered"]
    assert outcome["packets"] > 10 * outcome["legs"]
    assert outcome["transitions"] >= 2 * outcome["calls"]
