"""Permissions and channels of one allocation, to the second and to the last place (RFC 8656 sections 9 and 12)."""

from __future__ import annotations

import pytest

from relay.addresses import Address
from relay.turn.allocation import (
    CHANNEL_LIFETIME_S,
    MAX_CHANNELS,
    MAX_PERMISSIONS,
    PERMISSION_LIFETIME_S,
    Allocation,
    Relayed,
)

RELAYED = Address("192.0.2.1", 50000)
PEER = Address("8.0.0.1", 4000)
SAME_HOST = Address("8.0.0.1", 4001)
OTHER = Address("8.0.0.2", 4000)


@pytest.fixture
def allocation() -> Allocation:
    return Allocation(Address("192.168.1.10", 50000), "ann", b"key", {1: Relayed(RELAYED, 600.0)}, deadline=600.0)


def test_it_lives_as_long_as_the_last_of_its_relayed_addresses(allocation: Allocation) -> None:
    allocation.relayed[2] = Relayed(Address("2001:db8::1", 50001), 900.0)
    assert allocation.first_expiry == 600.0
    assert [allocation.lives(now) for now in (599.9, 600.0, 899.9, 900.0)] == [True, True, True, False]


def test_a_peer_is_reached_from_the_address_of_its_family_while_that_lives(allocation: Allocation) -> None:
    assert allocation.source_for(599.9, PEER.host) == RELAYED
    assert allocation.source_for(600.0, PEER.host) is None
    assert allocation.source_for(0.0, "2a00::1") is None


def consistent(allocation: Allocation) -> bool:
    """The two tables of channels mirror each other."""
    by_number = {(channel.number, channel.peer) for channel in allocation.channels.values()}
    by_peer = {(channel.number, channel.peer) for channel in allocation.channels_by_peer.values()}
    keys = {(number, channel.peer) for number, channel in allocation.channels.items()}
    return by_number == by_peer == keys == {(c.number, peer) for peer, c in allocation.channels_by_peer.items()}


def test_the_lifetimes_are_those_of_the_rfc() -> None:
    assert (PERMISSION_LIFETIME_S, CHANNEL_LIFETIME_S) == (300, 600)


def test_section_9_a_permission_lives_300_s(allocation: Allocation) -> None:
    assert not allocation.permits(0.0, PEER.host)
    allocation.permit(0.0, PEER.host)
    assert allocation.permits(299.9, PEER.host)
    assert not allocation.permits(300.0, PEER.host)
    assert not allocation.permits(0.0, OTHER.host)


def test_section_9_a_permission_is_renewed(allocation: Allocation) -> None:
    allocation.permit(0.0, PEER.host)
    allocation.permit(200.0, PEER.host)
    assert allocation.permits(499.9, PEER.host)
    assert not allocation.permits(500.0, PEER.host)


def test_section_12_a_channel_lives_600_s_but_needs_a_permission(allocation: Allocation) -> None:
    assert allocation.bind_channel(0.0, 0x4000, PEER)
    bound = allocation.channel_to(299.9, 0x4000)
    assert bound is not None
    assert (bound.number, bound.peer) == (0x4000, PEER)
    assert allocation.channel_to(300.0, 0x4000) is None
    allocation.permit(300.0, PEER.host)
    assert allocation.channel_to(599.9, 0x4000) is bound
    assert allocation.channel_from(599.9, PEER) is bound
    assert allocation.channel_to(600.0, 0x4000) is None
    assert allocation.channel_from(600.0, PEER) is None


def test_section_12_1_a_bind_is_renewed_with_its_permission(allocation: Allocation) -> None:
    allocation.bind_channel(0.0, 0x4000, PEER)
    assert allocation.bind_channel(500.0, 0x4000, PEER)
    assert allocation.permits(799.9, PEER.host)
    assert allocation.channel_to(799.9, 0x4000) is not None
    assert allocation.channel_from(1099.9, PEER) is not None
    assert consistent(allocation)


def test_section_12_a_channel_is_bound_to_a_peer_with_its_port(allocation: Allocation) -> None:
    allocation.bind_channel(0.0, 0x4000, PEER)
    assert allocation.channel_from(0.0, SAME_HOST) is None
    assert not allocation.conflicts(0.0, 0x4001, SAME_HOST)


def test_section_12_2_conflicts_either_way(allocation: Allocation) -> None:
    allocation.bind_channel(0.0, 0x4000, PEER)
    assert not allocation.conflicts(0.0, 0x4000, PEER)
    assert allocation.conflicts(0.0, 0x4000, OTHER)
    assert allocation.conflicts(0.0, 0x4001, PEER)
    assert not allocation.conflicts(0.0, 0x4001, OTHER)


def test_section_12_2_an_expired_channel_is_in_nobodys_way(allocation: Allocation) -> None:
    allocation.bind_channel(0.0, 0x4000, PEER)
    assert allocation.conflicts(599.9, 0x4000, OTHER)
    assert not allocation.conflicts(600.0, 0x4000, OTHER)
    assert not allocation.conflicts(600.0, 0x4001, PEER)


def test_an_expired_number_goes_to_another_peer(allocation: Allocation) -> None:
    allocation.bind_channel(0.0, 0x4000, PEER)
    assert allocation.bind_channel(600.0, 0x4000, OTHER)
    assert allocation.channel_from(600.0, PEER) is None
    assert set(allocation.channels_by_peer) == {OTHER}
    assert consistent(allocation)


def test_an_expired_peer_goes_to_another_number(allocation: Allocation) -> None:
    allocation.bind_channel(0.0, 0x4000, PEER)
    assert allocation.bind_channel(600.0, 0x4001, PEER)
    assert set(allocation.channels) == {0x4001}
    assert consistent(allocation)


def test_two_expired_channels_are_crossed(allocation: Allocation) -> None:
    allocation.bind_channel(0.0, 0x4000, PEER)
    allocation.bind_channel(0.0, 0x4001, OTHER)
    assert allocation.bind_channel(600.0, 0x4000, OTHER)
    assert allocation.bind_channel(600.0, 0x4001, PEER)
    assert {number: channel.peer for number, channel in allocation.channels.items()} == {0x4000: OTHER, 0x4001: PEER}
    assert consistent(allocation)


def hosts(count: int, network: int = 8) -> list[str]:
    return [f"{network}.0.{number >> 8}.{number & 255}" for number in range(count)]


def test_1024_permissions_and_no_more(allocation: Allocation) -> None:
    assert MAX_PERMISSIONS == 1024
    assert allocation.has_room_for(0.0, set(hosts(1024)))
    assert not allocation.has_room_for(0.0, set(hosts(1025)))
    for host in hosts(1024):
        allocation.permit(0.0, host)
    assert not allocation.has_room_for(0.0, {"9.0.0.1"})
    assert allocation.has_room_for(0.0, set(hosts(1024)))  # Renewals need no room.


def test_expired_permissions_make_room(allocation: Allocation) -> None:
    for host in hosts(1000):
        allocation.permit(0.0, host)
    for host in hosts(24, network=9):
        allocation.permit(100.0, host)
    assert not allocation.has_room_for(299.9, {"10.0.0.1"})
    assert allocation.has_room_for(300.0, {"10.0.0.1"})
    assert set(allocation.permissions) == set(hosts(24, network=9))


def test_1024_channels_and_no_more(allocation: Allocation) -> None:
    assert MAX_CHANNELS == 1024
    for number in range(1024):
        assert allocation.bind_channel(float(number) / 1024, 0x4000 + number, Address("8.0.0.1", number))
    assert not allocation.bind_channel(1.0, 0x4400, OTHER)
    assert allocation.bind_channel(1.0, 0x4000, Address("8.0.0.1", 0))  # A renewal needs no room.
    assert len(allocation.channels) == 1024
    assert consistent(allocation)


def test_expired_channels_make_room(allocation: Allocation) -> None:
    for number in range(1024):
        allocation.bind_channel(0.0 if number else 100.0, 0x4000 + number, Address("8.0.0.1", number))
    assert not allocation.bind_channel(599.9, 0x4400, OTHER)
    assert allocation.bind_channel(600.0, 0x4400, OTHER)
    assert set(allocation.channels) == {0x4000, 0x4400}
    assert consistent(allocation)
