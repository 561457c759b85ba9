"""Ports of relayed addresses: random, even, reserved (RFC 8656 section 7.2)."""

from __future__ import annotations

import random

from relay.addresses import Address
from relay.turn.relayed_ports import FIRST_PORT, LAST_PORT, RESERVATION_LIFETIME_S, RelayedPorts, sibling_of
from tests.support.benches.turn import FixedPorts

HOST = "192.0.2.1"
USER = "ann"


def test_section_7_2_ports_are_the_dynamic_ones_and_differ() -> None:
    ports = RelayedPorts(random.Random(1))
    taken = [ports.take(HOST) for _ in range(500)]
    assert None not in taken
    assert len(set(taken)) == 500
    assert all(address is not None and FIRST_PORT <= address.port <= LAST_PORT for address in taken)
    assert (FIRST_PORT, LAST_PORT) == (49152, 65535)


def test_the_choice_is_the_generators() -> None:
    first, second, third = (RelayedPorts(random.Random(seed)).take(HOST) for seed in (1, 1, 2))
    assert first == second != third


def test_a_port_that_is_taken_is_not_given_again_until_it_is_released() -> None:
    ports = RelayedPorts(FixedPorts(50000))
    assert ports.take(HOST) == Address(HOST, 50000)
    assert ports.take(HOST) is None
    assert ports.take("192.0.2.2") == Address("192.0.2.2", 50000)
    ports.release(Address(HOST, 50000))
    assert ports.take(HOST) == Address(HOST, 50000)


def test_another_pick_follows_a_taken_one() -> None:
    ports = RelayedPorts(FixedPorts(50000, 50000, 50000, 50001))
    assert ports.take(HOST) == Address(HOST, 50000)
    assert ports.take(HOST) == Address(HOST, 50001)


def test_section_7_2_even_ports() -> None:
    ports = RelayedPorts(random.Random(1))
    taken = [ports.take(HOST, even=True) for _ in range(200)]
    assert all(address is not None and address.port % 2 == 0 for address in taken)


def test_section_7_2_the_highest_even_port_has_a_sibling() -> None:
    ports = RelayedPorts(FixedPorts(65535))
    assert ports.take(HOST, even=True, with_sibling=True) == Address(HOST, 65534)
    ports.reserve(0.0, sibling_of(Address(HOST, 65534)), USER)


def test_section_7_2_even_without_reservation_leaves_the_sibling_free() -> None:
    ports = RelayedPorts(FixedPorts(50000, 50001))
    assert ports.take(HOST, even=True) == Address(HOST, 50000)
    assert ports.take(HOST) == Address(HOST, 50001)


def test_section_7_2_a_sibling_that_is_taken_spoils_the_pair_but_not_the_port() -> None:
    ports = RelayedPorts(FixedPorts(50001, 50000))
    assert ports.take(HOST) == Address(HOST, 50001)
    assert ports.take(HOST, even=True, with_sibling=True) is None
    assert ports.take(HOST, even=True) == Address(HOST, 50000)


def test_section_7_2_a_pair_is_taken_as_a_whole_at_once() -> None:
    """Between taking the port and reserving its sibling nobody else gets the sibling."""
    ports = RelayedPorts(FixedPorts(50000, 50001))
    address = ports.take(HOST, even=True, with_sibling=True)
    assert address == Address(HOST, 50000)
    assert ports.take(HOST) is None
    token = ports.reserve(0.0, Address(HOST, 50001), USER)
    assert ports.take(HOST) is None
    assert ports.redeem(0.0, token) == Address(HOST, 50001)


def test_a_pair_that_could_not_be_opened_is_released_as_a_whole() -> None:
    ports = RelayedPorts(FixedPorts(50000, 50001, 50000))
    ports.take(HOST, even=True, with_sibling=True)
    ports.release(Address(HOST, 50000), Address(HOST, 50001))
    assert ports.take(HOST) == Address(HOST, 50001)
    assert ports.take(HOST) == Address(HOST, 50000)


def test_section_7_2_a_reservation_is_redeemed_once() -> None:
    ports = RelayedPorts(random.Random(1))
    address = ports.take(HOST, even=True, with_sibling=True)
    assert address is not None
    token = ports.reserve(0.0, sibling_of(address), USER)
    assert len(token) == 8
    assert ports.redeem(29.9, token) == Address(HOST, address.port + 1)
    assert ports.redeem(29.9, token) is None
    assert (ports.first_expiry(), ports.expire(30.0)) == (None, [])


def test_section_7_2_a_reservation_lasts_thirty_seconds_and_frees_the_port() -> None:
    assert RESERVATION_LIFETIME_S == 30
    ports = RelayedPorts(FixedPorts(50000, 50001))
    address = ports.take(HOST, even=True, with_sibling=True)
    assert address is not None
    token = ports.reserve(0.0, sibling_of(address), USER)
    assert ports.first_expiry() == 30.0
    assert ports.expire(29.9) == []
    assert ports.take(HOST) is None
    assert ports.redeem(30.0, token) is None
    assert ports.expire(30.0) == [Address(HOST, 50001)]
    assert ports.take(HOST) == Address(HOST, 50001)


def test_reservations_end_one_by_one() -> None:
    ports = RelayedPorts(random.Random(1))
    pairs = [ports.take(HOST, even=True, with_sibling=True) for _ in range(2)]
    tokens = [
        ports.reserve(when, sibling_of(pair), USER) for when, pair in zip((0.0, 10.0), pairs, strict=True) if pair
    ]
    assert len(set(tokens)) == 2
    assert (ports.reservations(), ports.reservations(USER), ports.reservations("bob")) == (2, 2, 0)
    assert pairs[0] is not None
    assert ports.expire(35.0) == [sibling_of(pairs[0])]
    assert ports.redeem(35.0, tokens[0]) is None
    assert ports.redeem(35.0, tokens[1]) is not None


def test_an_unknown_token_has_no_port() -> None:
    assert RelayedPorts(random.Random(1)).redeem(0.0, bytes(8)) is None


def test_a_free_port_is_found_when_nine_in_ten_are_taken() -> None:
    most = [port for port in range(FIRST_PORT, LAST_PORT + 1) if port % 10]
    ports = RelayedPorts(FixedPorts(*most, then_random=True))
    for port in most:
        assert ports.take(HOST) == Address(HOST, port)
    address = ports.take(HOST)
    assert address is not None
    assert address.port % 10 == 0


def test_none_is_found_when_all_are_taken() -> None:
    ports = RelayedPorts(FixedPorts(*range(FIRST_PORT, LAST_PORT + 1), then_random=True))
    for _ in range(FIRST_PORT, LAST_PORT + 1):
        assert ports.take(HOST) is not None
    assert ports.take(HOST) is None
