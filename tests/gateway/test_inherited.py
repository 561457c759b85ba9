"""Sockets that are given: what is taken for whom, and what is refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.errors import OperatorError
from relay.gateway import inherited
from relay.gateway.inherited import take_inherited
from relay.gateway.listening import Listening


def listening_on(host: str = "127.0.0.1", **options: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, **options)


def address_of(listening: socket.socket) -> Address:
    return Address(*listening.getsockname()[:2])


def given(monkeypatch: pytest.MonkeyPatch, descriptor: int, **environment: str) -> dict[str, str]:
    """The environment of a process that is given one socket, whose number is not the usual one."""
    monkeypatch.setattr(inherited, "FIRST_DESCRIPTOR", descriptor)
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", **environment}


def test_a_socket_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening_on() as listening:
        environment = given(monkeypatch, os.dup(listening.fileno()), LISTEN_FDNAMES="relay.socket", OTHER="x")
        with take_inherited(environment) as taken:
            assert [address_of(one) for one in taken.sockets] == [address_of(listening)]
            assert taken.predecessor is None
            assert not taken.sockets[0].getblocking()
            assert not taken.sockets[0].get_inheritable()
    # Processes that are started later do not believe that they are meant.
    assert environment == {"OTHER": "x"}


@pytest.mark.parametrize("environment", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "1"}])
def test_those_of_another_process_are_left_alone(environment: dict[str, str]) -> None:
    with take_inherited(environment) as taken:
        assert taken.sockets == []


@pytest.fixture(params=["no socket", "udp", "silent", "both families"])
def unfit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A descriptor on which no client can be accepted as everywhere else."""
    if request.param == "no socket":
        yield os.open(tmp_path, os.O_RDONLY)
    elif request.param == "both families":
        yield listening_on("::", dualstack_ipv6=True).detach()
    else:
        kind = socket.SOCK_DGRAM if request.param == "udp" else socket.SOCK_STREAM
        yield socket.socket(socket.AF_INET, kind).detach()


def test_what_is_not_a_listening_socket_is_refused(unfit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OperatorError, match=f"^LISTEN_FDS: descriptor {unfit}: expected "):
        take_inherited(given(monkeypatch, unfit))


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(OperatorError, match="LISTEN_FDS: 'all': expected a number"):
        take_inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "all"})


def test_each_address_gets_its_own() -> None:
    with listening_on() as one, listening_on() as other, listening_on("::1") as third:
        listening = Listening([one, other, third])
        assert listening.open(address_of(third), "listen.admin").sockets == [third]
        assert listening.open(address_of(one), "listen.tls", 4).sockets == [one]
        fresh = listening.open(Address("127.0.0.1", 0), "listen.tls", 2)
        assert len(fresh.sockets) == 2
        copies = fresh.copies()
        assert [address_of(copy) for copy in copies] == [address_of(made) for made in fresh.sockets]
        with pytest.raises(OperatorError, match=f"^LISTEN_FDS: {address_of(other)}: expected only"):
            listening.settle()
        assert set(listening.sockets()) == {one, third, *fresh.sockets}
        listening.close()
        assert {made.fileno() for made in (one, other, third, *fresh.sockets)} == {-1}
        for copy in copies:
            copy.close()


def test_what_a_relay_hands_over_and_nobody_wants_is_closed() -> None:
    with listening_on() as unwanted:
        listening = Listening([unwanted], handed_over=True)
        listening.settle()
        assert unwanted.fileno() == -1
        assert listening.sockets() == []


def test_an_address_that_is_taken_names_its_setting() -> None:
    with listening_on() as taken:
        address = address_of(taken)
        with pytest.raises(OperatorError) as refused:
            Listening().open(address, "listen.web_proxy")
    assert str(refused.value) == f"cannot listen on {address} (listen.web_proxy): address already in use"
