"""The path whose faults are known: it does what it says, and has written down what it did."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.demo.authority import Authority
from relay.wire.channeldata import build_channel_data
from relay.wire.stream import StreamCutter
from tests.support.network.known_path import Faults, TlsPath, UdpPath, Way, open_path, rtp_of

STUN = bytes.fromhex("000100002112a442") + bytes(12)
RTCP = build_channel_data(0x4000, bytes([0x81, 201, 0, 7]) + bytes(28))
PATIENCE_S = 30


def voice(number: int, ssrc: int = 7) -> bytes:
    """A packet of voice on a channel; its length is not a multiple of four."""
    head = bytes([0x80, 0]) + number.to_bytes(2) + (160 * number).to_bytes(4) + ssrc.to_bytes(4)
    return build_channel_data(0x4000, head + bytes([number % 251]) * 21)


@pytest.mark.parametrize(
    "unit", [STUN, RTCP, build_channel_data(0x4000, b"\x80"), build_channel_data(0x4000, STUN), b""]
)
def test_what_is_not_voice(unit: bytes) -> None:
    assert rtp_of(unit) is None
    assert rtp_of(voice(3, 9)) == (9, 480)


@pytest.fixture
def echo() -> Iterator[Address]:
    """Sends each datagram back."""
    with socket.socket(type=socket.SOCK_DGRAM) as end:
        end.bind(("127.0.0.1", 0))
        address = Address(*end.getsockname())

        def serve() -> None:
            while (got := end.recvfrom(2048))[0] != b"end":
                end.sendto(*got)

        serving = threading.Thread(target=serve)
        serving.start()
        yield address
        end.sendto(b"end", address)
        serving.join()


def asked(client: socket.socket, units: list[bytes]) -> list[bytes]:
    """What comes back of these, up to the last: that one is not voice, so it is never dropped."""
    found = []
    for unit in [*units, STUN]:
        client.send(unit)
    while (got := client.recv(2048)) != STUN:
        found.append(got)
    return found


def test_datagrams_are_dropped_by_their_number(echo: Address) -> None:
    with open_path(UdpPath(echo, Faults(period=10, run=2))) as path, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.connect(path.address)
        good = [voice(number) for number in range(15)]
        assert asked(client, [*good, RTCP]) == [*good, RTCP]
        path.misbehave(True)
        other = voice(0, ssrc=8)
        bad = [voice(number) for number in range(15, 40)]
        # Up 8 and 9 of each ten are gone, and down 8 and 9 of each ten that are left. Each stream has its own count.
        up = [unit for place, unit in enumerate(bad) if place % 10 < 8]
        down = [unit for place, unit in enumerate(up) if place % 10 < 8]
        assert asked(client, [*bad, other, RTCP]) == [*down, other, RTCP]
        path.misbehave(False)
        assert asked(client, good) == good
    passed = {way: [one.left_s is not None for one in path.ledger[way, 7].passages] for way in Way}
    assert (len(passed[Way.UP]), passed[Way.UP].count(False)) == (55, 4)
    assert (len(passed[Way.DOWN]), passed[Way.DOWN].count(False)) == (51, 4)
    assert [one.timestamp for one in path.ledger[Way.UP, 8].passages] == [0]


def test_a_stall_holds_all_and_nothing_overtakes(echo: Address) -> None:
    faults = Faults(stall_s=1.0, stall_every_s=60)
    with open_path(UdpPath(echo, faults)) as path, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.connect(path.address)
        assert asked(client, []) == []
        path.misbehave(True)
        units = [voice(number) for number in range(5)]
        assert asked(client, [*units, RTCP]) == [*units, RTCP]
    passages = path.ledger[Way.UP, 7].passages
    left = [one.left_s for one in passages if one.left_s is not None]
    assert len(left) == 5
    assert left == sorted(left)
    # The last had come before the first has left.
    assert left[0] > passages[-1].came_s


def test_a_tls_stream_is_opened_and_passed_on_whole(tmp_path: Path) -> None:
    """Padding included; the server behind it sees the path's own TLS."""
    authority = Authority(tmp_path)
    issued, context = authority.issue("far.test"), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.chain, issued.private_key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            near = listening.accept()[0]
            with context.wrap_socket(near, server_side=True) as end:
                while data := end.recv(4096):
                    end.sendall(data)

        serving = threading.Thread(target=serve)
        serving.start()
        server = Address(*listening.getsockname())
        own = authority.issue("near.test")
        with open_path(TlsPath(server, Faults(), own, authority.client_context(), "far.test")) as path:
            found, cutter = list[bytes](), StreamCutter()
            with (
                socket.create_connection(path.address, PATIENCE_S) as plain,
                authority.client_context().wrap_socket(plain, server_hostname="near.test") as client,
            ):
                units = [voice(number) for number in range(4)] + [STUN]
                for unit in units:
                    client.sendall(unit + bytes(-len(unit) % 4))
                while len(found) < len(units):
                    found += cutter.feed(client.recv(4096))
            assert found == units
        serving.join(PATIENCE_S)
        assert not serving.is_alive()
    assert [len(path.ledger[way, 7].passages) for way in Way] == [4, 4]
