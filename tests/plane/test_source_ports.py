from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from relay.addresses import Address
from relay.plane.api import PlaneSettings
from relay.plane.source_ports import IP_MTU_DISCOVER, IP_PMTUDISC_DO, MAX_PICKS, SourcePorts


@contextlib.contextmanager
def upstream() -> Iterator[Address]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        yield Address(*listening.getsockname())


class Picks(SourcePorts):
    """Ports that the kernel "picks" in the order that the test says."""

    def __init__(self, *ports: int) -> None:
        super().__init__(PlaneSettings())
        self.ports = list(ports)
        self.opened: list[socket.socket] = []

    def _connect(self, upstream: Address) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(("127.0.0.1", self.ports.pop(0)))
        opened.connect(upstream)
        self.opened.append(opened)
        return opened


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def test_a_socket_is_connected_non_blocking_and_never_fragments() -> None:
    with upstream() as address, SourcePorts(PlaneSettings()).open_socket(0, address) as opened:
        assert opened.getpeername() == address
        assert not opened.getblocking()
        assert opened.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER) == IP_PMTUDISC_DO


def test_a_used_port_rests_for_its_upstream_until_the_time_comes() -> None:
    used, other = free_ports(2)
    with upstream() as one, upstream() as two:
        ports = Picks(used, other, used, used)
        ports.rest(used, one, until=600)
        with ports.open_socket(599, one) as opened:
            assert opened.getsockname()[1] == other
        assert ports.opened[0].fileno() == -1, "the refused socket stays open"
        with ports.open_socket(599, two) as opened:
            assert opened.getsockname()[1] == used
        with ports.open_socket(600, one) as opened:
            assert opened.getsockname()[1] == used


def test_when_all_rest_the_last_pick_is_taken() -> None:
    numbers = free_ports(MAX_PICKS)
    with upstream() as address:
        ports = Picks(*numbers)
        for number in numbers:
            ports.rest(number, address, until=600)
        with ports.open_socket(0, address) as opened:
            assert opened.getsockname()[1] == numbers[-1]
        assert [one.fileno() for one in ports.opened] == [-1] * MAX_PICKS


def test_the_source_address_is_bound_and_can_change() -> None:
    with upstream() as address:
        ports = SourcePorts(PlaneSettings(source_ipv4="127.0.0.2"))
        with ports.open_socket(0, address) as opened:
            assert opened.getsockname()[0] == "127.0.0.2"
        ports.configure(PlaneSettings(source_ipv4="127.0.0.3"))
        with ports.open_socket(0, address) as opened:
            assert opened.getsockname()[0] == "127.0.0.3"


def test_a_source_address_that_is_not_ours_is_an_error() -> None:
    with upstream() as address, pytest.raises(OSError, match="assign"):
        SourcePorts(PlaneSettings(source_ipv4="192.0.2.1")).open_socket(0, address)
