"""STUN and TURN: the emulator's host and coturn; and where nothing passes, or not to relayed ports."""

from __future__ import annotations

from relay.addresses import Address
from relay.doctor.plan import Credentials, Limits
from relay.doctor.probes import udp
from relay.emulator.turn.slow import TurnHost
from relay.turn.credentials import StaticCredentials
from tests.support.benches.doctor import CREDENTIALS, LIMITS, context_of, udp_plan
from tests.support.network.ports import reserved_address
from tests.support.peers.coturn import PASSWORD, USERNAME, open_coturn
from tests.support.peers.responder import open_responder, silence


def host() -> TurnHost:
    return TurnHost(Address("127.0.0.1", 0), StaticCredentials({USERNAME: PASSWORD}), allow_loopback_peers=True)


async def test_a_host_answers() -> None:
    async with host() as turn:
        plan = udp_plan(turn.address)
        seen = await udp.binding(context_of(plan), plan.turn[0])
        assert seen.round_trip_ms is not None
        assert seen.mapped is not None
        assert (seen.fault, seen.mapped.host) == ("", "127.0.0.1")
        allocated = await udp.allocation(context_of(plan), plan.turn[0], CREDENTIALS)
        assert (allocated.up, allocated.down, allocated.fault) == (udp.PACKETS, udp.PACKETS, "")
        assert turn.allocations == 0


async def test_coturn_answers() -> None:
    async with open_coturn() as coturn:
        plan = udp_plan(coturn.address)
        allocated = await udp.allocation(context_of(plan), plan.turn[0], CREDENTIALS)
    assert (allocated.up, allocated.down, allocated.fault) == (udp.PACKETS, udp.PACKETS, "")
    assert allocated.relayed is not None


async def test_nobody_answers() -> None:
    with reserved_address() as address:
        plan = udp_plan(address, limits=Limits(probe_s=0.3))
        seen = await udp.binding(context_of(plan), plan.turn[0])
        allocated = await udp.allocation(context_of(plan), plan.turn[0], CREDENTIALS)
    assert (seen.round_trip_ms, seen.mapped) == (None, None)
    assert seen.fault
    assert allocated.relayed is None


async def test_packets_are_dropped_in_silence() -> None:
    """As a firewall does it: nobody says so."""
    async with open_responder(silence) as address:
        plan = udp_plan(address, limits=Limits(probe_s=0.3))
        seen = await udp.binding(context_of(plan), plan.turn[0])
    assert seen.round_trip_ms is None
    assert "no answer within 0.3 s" in seen.fault


async def test_wrong_credentials_are_told_from_a_blocked_port() -> None:
    async with host() as turn:
        plan = udp_plan(turn.address)
        allocated = await udp.allocation(context_of(plan), plan.turn[0], Credentials(USERNAME, "wrong"))
    assert (allocated.relayed, allocated.code) == (None, 401)
    assert "wrong" not in allocated.fault


def test_credentials_are_in_no_text() -> None:
    assert PASSWORD not in repr(udp_plan(credentials=CREDENTIALS, limits=LIMITS))
