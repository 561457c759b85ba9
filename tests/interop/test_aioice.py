"""aioice's TURN client over TLS through the relay to coturn: every size, byte-exact."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from aioice import turn

from tests.support.benches.gateway import running_relay
from tests.support.peers.aioice_client import Received, closed
from tests.support.peers.behind_turn import open_echo
from tests.support.peers.coturn import open_coturn

pytestmark = pytest.mark.parametrize("plane", ["compiled", "reference"])

DATAGRAMS = 500
LONGEST = 1400


async def test_500_datagrams_of_all_sizes_byte_exact(tmp_path: Path, plane: str) -> None:
    sizes = [round(number * LONGEST / (DATAGRAMS - 1)) for number in range(DATAGRAMS)]
    assert (sizes[0], sizes[-1]) == (0, LONGEST)
    async with (
        open_coturn() as coturn,
        open_echo() as peer,
        running_relay(tmp_path, coturn.address, listen={"plane": plane}) as relay,
    ):
        transport, protocol = await turn.create_turn_endpoint(
            Received,
            server_addr=relay.tls,
            username=coturn.username,
            password=coturn.password,
            ssl=relay.trust,
            transport="tcp",
        )
        received = protocol.data
        try:
            for size in sizes:
                data = secrets.token_bytes(size)
                transport.sendto(data, peer)
                assert await received.get() == data
        finally:
            transport.close()
            await closed(transport)
