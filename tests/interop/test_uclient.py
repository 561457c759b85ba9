"""Coturn's own load client over TURN/TLS through the relay, to coturn and to the embedded upstream."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from relay.plane.api import DropReason
from relay.turn.credentials import StaticCredentials
from relay.turn.server import ServerSettings
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.behind_turn import open_echo_pair
from tests.support.peers.coturn import open_coturn
from tests.support.peers.uclient import UclientReport, Witness, run_uclient
from tests.support.waiting import becomes

pytestmark = pytest.mark.parametrize("plane", ["compiled", "reference"])

CLIENTS = 100
# The program loses some of what comes at once when it has stood still itself: it is to be over soon.
MESSAGES = 5
# A socket of coturn holds 64 KiB, some 85 datagrams: 200 allocations fill one within 9 ms where they speak
# every 20 ms.
INTERVAL_MS = 200
# Nor is anything dropped for its age then.
PATIENT = {"max_media_age_ms": 10_000}


async def call_clients(relay: Relay, username: str, password: str, peer: Address, witness: Witness) -> UclientReport:
    return await run_uclient(
        relay.tls,
        username,
        password,
        peer=peer,
        clients=CLIENTS,
        messages=MESSAGES,
        interval_ms=INTERVAL_MS,
        rtcp=True,
        options=["-t", "-S"],
        excuses=lambda report: witness.excuses(relay, report),
    )


def assert_nothing_lost(report: UclientReport) -> None:
    assert report.sent == report.received == CLIENTS * MESSAGES
    assert (report.lost, report.dropped) == (0, 0)


def drops(relay: Relay) -> dict[DropReason, int]:
    """What the relay has dropped, except second answers: on a slow machine it asks again before the first one comes."""
    totals = relay.gateway.plane.snapshot().totals
    return {reason: count for reason, count in totals.drops.items() if reason is not DropReason.DOWNLINK_DUPLICATE}


async def test_clients_through_the_relay_to_coturn(tmp_path: Path, plane: str) -> None:
    witness = Witness()
    async with (
        open_coturn() as coturn,
        open_echo_pair(on_datagram=witness.on_datagram) as peer,
        running_relay(tmp_path, coturn.address, listen={"plane": plane}, media=PATIENT) as relay,
    ):
        report = await call_clients(relay, coturn.username, coturn.password, peer, witness)
        await becomes(lambda: drops(relay), {})
        assert_nothing_lost(report)


async def test_clients_through_the_relay_to_the_embedded_upstream(tmp_path: Path, plane: str) -> None:
    settings = ServerSettings(accepts_rfc5766_channels=True)  # as turnutils_uclient binds them
    credentials = StaticCredentials({"trader": "secret"})
    host = TurnHost(Address("127.0.1.1", 0), credentials, allow_loopback_peers=True, settings=settings)
    witness = Witness()
    async with (
        host,
        open_echo_pair(on_datagram=witness.on_datagram) as peer,
        running_relay(tmp_path, host.address, listen={"plane": plane}, media=PATIENT) as relay,
    ):
        report = await call_clients(relay, "trader", "secret", peer, witness)
        await becomes(lambda: drops(relay), {})
        assert_nothing_lost(report)
