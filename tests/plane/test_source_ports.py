from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.plane import source_ports
from relay.plane.settings import PlaneSettings
from relay.plane.source_ports import IP_MTU_DISCOVER, IP_PMTUDISC_DO, MAX_PICKS, SourcePorts, target_of


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

    def _connect(self, upstream: Address, port: int = 0) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            opened.bind(("127.0.0.1", port or self.ports.pop(0)))
        except OSError:
            opened.close()
            raise
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


def the_range(monkeypatch: pytest.MonkeyPatch, folder: Path, first: int, last: int, reserved: str = "") -> None:
    """Linux is to pick from these ports, and to leave out what is reserved."""
    monkeypatch.setattr(source_ports, "PORT_RANGE", folder / "range")
    monkeypatch.setattr(source_ports, "RESERVED_PORTS", folder / "reserved")
    # Far off: a slow machine finds the port, too.
    monkeypatch.setattr(source_ports, "SEARCH_S", 600.0)
    (folder / "range").write_text(f"{first}\t{last}\n")
    (folder / "reserved").write_text(f"{reserved}\n")


def neighbours(count: int) -> range:
    """So many free ports in a row. Each process begins elsewhere: the same test may run in two at the same time."""
    offset = os.getpid() * count % 10_000
    for first in (20_000 + (offset + step) % 10_000 for step in range(0, 10_000, count)):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("127.0.0.1", port))
            return range(first, first + count)
    raise AssertionError("no free ports")


def test_where_picks_find_only_resting_ports_the_whole_range_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All ports rest but one; one that is in use by others, one that is reserved and one far beyond do not count."""
    numbers = neighbours(MAX_PICKS + 4)
    *rested, free, used, reserved, beyond = numbers
    the_range(monkeypatch, tmp_path, numbers[0], reserved, f"1-9,{reserved}")
    with upstream() as address, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", used))
        for _ in range(20):  # wherever the search begins
            ports = Picks(*rested)
            for number in rested:
                ports.rest(number, address, until=600)
            with ports.open_fresh_socket(0, address) as opened:
                assert opened.getsockname()[1] == free
            assert beyond not in {one.getsockname()[1] for one in ports.opened if one.fileno() >= 0}
            ports.rest(free, address, until=600)
            ports.ports = list(rested)
            with pytest.raises(OSError, match="all source ports rest"):
                ports.open_fresh_socket(0, address)
            assert [one.fileno() for one in ports.opened] == [-1] * len(ports.opened)


def test_when_all_rest_the_last_pick_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    numbers = free_ports(MAX_PICKS)
    the_range(monkeypatch, tmp_path, numbers[0], numbers[0])
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


def test_a_source_address_that_is_not_ours_now_waits_unconnected_on_a_port_of_its_own() -> None:
    with upstream() as address, SourcePorts(PlaneSettings(source_ipv4="192.0.2.1")).open_socket(0, address) as opened:
        host, port = opened.getsockname()
        assert host == "192.0.2.1"
        assert port > 0
        target = target_of(opened, address)
        assert target == struct.pack("=H2s4s8x", socket.AF_INET, address.port.to_bytes(2), bytes([127, 0, 0, 1]))
        assert not opened.getblocking()


def test_a_connected_socket_needs_no_target() -> None:
    with upstream() as address, SourcePorts(PlaneSettings()).open_socket(0, address) as opened:
        assert target_of(opened, address) == b""


@pytest.mark.parametrize(
    ("host", "index"), [("2001:db8::1", 0), ("fe80::1%7", 7), ("fe80::1%lo", 1), ("fe80::1%gone", 0)]
)
def test_the_target_of_ipv6(host: str, index: int) -> None:
    packed = ipaddress.IPv6Address(host.partition("%")[0]).packed
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as opened:
        target = target_of(opened, Address(host, 3478))
    assert target == struct.pack("=H2sI16sI", socket.AF_INET6, (3478).to_bytes(2), 0, packed, index)
