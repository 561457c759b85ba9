"""10,000 connections that send nothing are shown out after ten seconds, and a call beside them hears nothing of it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from relay.plane.api import CloseReason
from relay.plane.certificates import HandshakeFailure
from tests.support.benches.gateway import running_relay
from tests.support.descriptors import room_for
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.coturn import open_coturn
from tests.support.waiting import becomes, eventually

CROWD = 10_000
# What is in use besides: of the test itself, of the relay and of its upstream.
OTHER_DESCRIPTORS = 1000
HANDSHAKE_TIMEOUT_S = 10.0
DEADLINE_S = 120
# As voice is sent. As fast as it goes it would take the processor from the crowd, and from the tests beside this one.
PACKET_EACH_S = 0.02


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_10000_silent_connections(tmp_path: Path, plane: str) -> None:
    # The plane takes as many at once as there are descriptors for; the others wait.
    with room_for(CROWD + OTHER_DESCRIPTORS, whole=True):
        await show_out_a_crowd(tmp_path, plane)


async def show_out_a_crowd(folder: Path, plane: str) -> None:
    inbox, echoed = Inbox(), 0
    async with (
        asyncio.timeout(DEADLINE_S),
        open_coturn() as coturn,
        open_echo() as peer,
        running_relay(folder, coturn.address, listen={"plane": plane}, limits={"connections": 2 * CROWD}) as relay,
        await relay.open_turn(coturn.username, coturn.password, on_data=inbox.put) as turn,
    ):
        await turn.allocate()
        await turn.bind_channel(peer)
        crowd = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-W", "error", "-m", "tests.support.peers.silent_crowd"),
            *(str(relay.tls.port), str(CROWD)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert crowd.stdout is not None
        assert await crowd.stdout.readline() == b"connected\n"
        await eventually(lambda: relay.gateway.plane.snapshot().accepted == CROWD + 1)
        said = asyncio.ensure_future(crowd.stdout.read())
        while not said.done():
            turn.send(peer, b"packet %d" % echoed)
            assert await inbox.get() == (peer, b"packet %d" % echoed)
            echoed += 1
            await asyncio.sleep(PACKET_EACH_S)
        first_s, _ = json.loads(await said)
        assert await crowd.wait() == 0
        assert first_s >= HANDSHAKE_TIMEOUT_S
        crowded = relay.gateway.plane
        await becomes(lambda: (crowded.snapshot().connections, len(crowded.snapshot().flows)), (1, 1))
        await becomes(lambda: crowded.snapshot().closed, {CloseReason.HANDSHAKE_FAILED: CROWD})
        await becomes(lambda: crowded.snapshot().handshake_failures, {HandshakeFailure.TIMEOUT: CROWD})
    assert echoed > 0
