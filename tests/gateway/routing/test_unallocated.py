"""How many flows of one source may be without an allocation."""

from __future__ import annotations

from relay.gateway.routing.unallocated import ASKED_AT_ONCE, Unallocated
from relay.plane.api import ConnectionId

HERE, THERE, EXEMPT = "192.0.2.7", "192.0.2.8", "198.51.100.1"


def made(bound: int) -> tuple[Unallocated, set[ConnectionId], list[ConnectionId]]:
    """The flows, those of them that carry something, and about which the plane was asked."""
    carrying: set[ConnectionId] = set()
    asked: list[ConnectionId] = []

    def carries(connection: ConnectionId) -> bool:
        asked.append(connection)
        return connection in carrying

    flows = Unallocated(carries, lambda host: host == EXEMPT)
    flows.bound = bound
    return flows, carrying, asked


def enter(flows: Unallocated, host: str, *numbers: int) -> list[bool]:
    return [flows.enter(ConnectionId(number), host) for number in numbers]


def test_each_source_has_its_own() -> None:
    flows, _, asked = made(2)
    assert enter(flows, HERE, 1, 2) == [True, True]
    assert asked == []
    assert enter(flows, HERE, 3) == [False]
    assert enter(flows, THERE, 4, 5, 6) == [True, True, False]


def test_flows_that_end_make_room() -> None:
    flows, _, _ = made(1)
    assert enter(flows, HERE, 1, 2) == [True, False]
    for number in (1, 1, 2, 99):
        flows.leave(ConnectionId(number))
    assert len(flows) == 0
    assert enter(flows, HERE, 3) == [True]
    assert flows._flows.keys() == {HERE}


def test_flows_that_carry_something_do_not_count() -> None:
    flows, carrying, _ = made(3)
    for number in range(1, 100):
        assert enter(flows, HERE, number) == [True]
        carrying.add(ConnectionId(number))
    assert len(flows) <= 3


def test_the_plane_is_asked_about_few_at_once_and_about_each_in_turn() -> None:
    bound = 3 * ASKED_AT_ONCE
    flows, carrying, asked = made(bound)
    enter(flows, HERE, *range(bound))
    last = ConnectionId(bound - 1)
    carrying.add(last)
    tries = enter(flows, HERE, 1000, 1001, 1002)
    assert tries == [False, False, True]
    assert asked == list(range(bound))


def test_a_network_of_ipv6_is_one_source() -> None:
    flows, _, _ = made(1)
    assert enter(flows, "2001:db8::1", 1) == [True]
    assert enter(flows, "2001:db8::2", 2) == [False]
    assert enter(flows, "2001:db8:0:1::2", 3) == [True]


def test_no_bound_and_exempt_hosts() -> None:
    flows, _, _ = made(0)
    assert all(enter(flows, HERE, *range(100)))
    flows, _, asked = made(1)
    assert all(enter(flows, EXEMPT, *range(100)))
    assert (len(flows), asked) == (0, [])
