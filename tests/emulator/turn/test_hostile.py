"""Clients that mean harm, and a process that has run out of descriptors: voice goes on, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Iterator

import pytest

from relay.addresses import Address
from relay.emulator.turn import native, slow
from relay.emulator.turn._native import PacketPath, live_objects
from relay.emulator.turn.hosts import TurnHosts
from relay.errors import OperatorError
from relay.turn.credentials import StaticCredentials
from relay.turn.drops import Drop
from relay.turn.server import ServerSettings
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import AttributeType, MessageClass, Method, build_message, build_uint32, parse_message
from tests.support.descriptors import no_descriptors
from tests.support.peers.behind_turn import open_echo
from tests.support.peers.raw_turn import UDP, RawTurn, Refused
from tests.support.waiting import becomes

ANY_PORT = Address("127.0.0.1", 0)
CREDENTIALS = StaticCredentials({"trader": "secret"})
# As ``path.pxd`` has it: requests of one source that wait.
MAX_WAITING = 64
BLOCKING_S = 30.0
Make = type[slow.TurnHost] | type[native.TurnHost]


@pytest.fixture(params=[slow.TurnHost, native.TurnHost], ids=["slow", "native"])
def make(request: pytest.FixtureRequest) -> Make:
    kind: Make = request.param
    return kind


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """In a debug build all sockets and blocks of memory are counted."""
    yield
    gc.collect()
    assert set(live_objects().values()) <= {0}


def client_of(host: slow.TurnHost | native.TurnHost) -> RawTurn:
    return RawTurn(host.address, "trader", "secret")


async def test_voice_does_not_wait_for_python() -> None:
    """While the loop stands still, requests wait, and voice passes from client to client."""
    host = native.TurnHost(ANY_PORT, CREDENTIALS, allow_loopback_peers=True)
    async with host:
        with client_of(host) as one, client_of(host) as two, client_of(host) as flood:
            await one.allocate()
            await two.allocate()
            await one.bind(0x4000, two.relayed)
            await two.bind(0x4000, one.relayed)
            two.socket.settimeout(BLOCKING_S)
            # From here to the next await nothing of Python's runs but this.
            for number in range(200):
                for _ in range(5):
                    flood.send(flood.signed(Method.ALLOCATE, UDP))
                one.send(build_channel_data(0x4000, b"%d" % number))
                assert two.socket.recv(2048) == build_channel_data(0x4000, b"%d" % number)
            two.socket.setblocking(False)
            await becomes(lambda: host.counters.drops[Drop.REQUEST_FLOOD], 1000 - MAX_WAITING)
            # Those that waited are answered as far as the server answers them. Then everybody is heard again.
            assert await flood.binding() == flood.address


async def test_flood_of_one_does_not_take_the_place_of_others() -> None:
    host = native.TurnHost(ANY_PORT, CREDENTIALS)
    async with host:
        with client_of(host) as flood, client_of(host) as other:
            for _ in range(5000):
                flood.send(flood.signed(Method.ALLOCATE, UDP))
            assert await other.binding() == other.address


async def test_all_allocations_at_once(make: Make) -> None:
    """A flood of good Allocates up to the bound: those who are refused are told why."""
    settings = ServerSettings(max_allocations=100, unauthenticated_answers_per_s=0)
    async with make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True, settings=settings) as host:
        clients = [client_of(host) for _ in range(120)]
        try:
            codes: list[int] = []

            async def allocate(client: RawTurn) -> None:
                try:
                    await client.allocate()
                except Refused as refused:
                    codes.append(refused.code)

            await asyncio.gather(*map(allocate, clients))
            assert (host.allocations, codes) == (100, [508] * 20)
        finally:
            for client in clients:
                client.socket.close()


async def test_out_of_descriptors(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True) as host, open_echo() as peer:
        with client_of(host) as running, client_of(host) as newcomer:
            await running.allocate()
            await running.bind(0x4000, peer)
            await newcomer.binding()
            with no_descriptors():
                with pytest.raises(Refused, match="no file descriptors left in this process"):
                    await newcomer.allocate()
                running.send(build_channel_data(0x4000, b"goes on"))
                assert await running.receive() == build_channel_data(0x4000, b"goes on")
            await newcomer.allocate()
            assert host.allocations == 2


async def test_start_without_descriptors(make: Make) -> None:
    host = make(ANY_PORT, CREDENTIALS)
    hosts = TurnHosts({"use1": ("stun1",)}, CREDENTIALS, tcp=True)
    with no_descriptors():
        with pytest.raises(OperatorError):
            await host.start()
        with pytest.raises(OperatorError):
            await hosts.start()
    async with host, hosts:
        with client_of(host) as client:
            assert await client.binding() == client.address


async def test_the_path_alone_lacks_descriptors() -> None:
    host = native.TurnHost(ANY_PORT, CREDENTIALS)
    # One for the host's own socket, so that it is the path that has none.
    spare = os.dup(0)
    with no_descriptors():
        os.close(spare)
        with pytest.raises(OperatorError, match="no descriptors for the packet path"):
            await host.start()


async def test_strangers_get_nothing_through(make: Make) -> None:
    """Another client's channel, another source, a peer without permission, and an address that only looks permitted."""
    async with make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True) as host:
        with (
            client_of(host) as client,
            client_of(host) as thief,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        ):
            relayed = await client.allocate()
            await client.bind(0x4000, Address("127.0.0.5", 4000))
            await thief.allocate()
            thief.send(build_channel_data(0x4000, b"stolen"))
            await thief.binding()
            stranger.bind(("127.0.0.9", 4000))
            stranger.sendto(b"spoofed", relayed)
            await becomes(lambda: host.counters.drops, {Drop.NO_CHANNEL: 1, Drop.NOT_PERMITTED: 1})
            assert (host.counters.uplink_packets, host.counters.downlink_packets) == (0, 0)


async def test_every_truncation_of_every_message(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True) as host, open_echo() as peer:
        with client_of(host) as client:
            await client.allocate()
            await client.bind(0x4000, peer)
            messages = [
                build_channel_data(0x4000, b"twelve bytes"),
                build_message(Method.SEND, MessageClass.INDICATION, bytes(12), [(0x12, bytes(8)), (0x13, b"data")]),
                client.signed(Method.REFRESH, (AttributeType.LIFETIME, build_uint32(600))),
            ]
            for message in messages:
                for size in range(len(message)):
                    client.send(message[:size])
            await client.binding()
            sent = sum(map(len, messages))
            await becomes(lambda: host.counters.drops, {Drop.MALFORMED: sent})
            client.send(messages[0])
            assert await client.receive() == messages[0]


async def test_longest_datagrams_pass(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True) as host:
        with client_of(host) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            relayed = await client.allocate()
            await client.permit(Address(*peer.getsockname()))
            longest = 65507 - 51
            peer.sendto(bytes(65507), relayed)
            peer.sendto(b"x" * longest, relayed)
            message = parse_message(await client.receive())
            assert message.get(AttributeType.DATA) == b"x" * longest
            assert host.counters.drops == {Drop.OVERSIZE: 1}


async def test_burst_for_one_client_arrives_whole_and_in_order(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True) as host:
        with client_of(host) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            relayed = await client.allocate()
            await client.bind(0x4000, Address(*peer.getsockname()))
            for number in range(170):
                peer.sendto(number.to_bytes(2) * 600, relayed)
            for number in range(170):
                assert await client.receive() == build_channel_data(0x4000, number.to_bytes(2) * 600)


async def test_path_refuses_what_is_out_of_range() -> None:
    path = PacketPath()
    for call in (
        lambda: path.counters(1024),
        lambda: path.close_host(1024),
        lambda: path.pause(1024, True),
        lambda: path.install(1 << 20, 0, 0, bytes(4), 0, 0.0),
        lambda: path.install(0, 1024, 0, bytes(4), 0, 0.0),
        lambda: path.permit(0, bytes(16), 0.0),
        lambda: path.send_to_client(1024, bytes(4), 0, b""),
    ):
        with pytest.raises(ValueError, match="out of range"):
            call()
    assert path.take_requests(1) == []


async def test_path_that_never_ran_closes_what_it_was_given() -> None:
    """Commands that nobody carries out own sockets."""
    path = PacketPath()
    given = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    path.open_host(0, given[0].detach())
    path.install(0, 0, given[1].detach(), bytes(4), 1, 0.0)
    path.permit(0, bytes(4), 1e9)
    path.bind(0, 0x4000, bytes(4), 1, 1e9)
    path.permit(7, bytes(4), 1e9)
    path.send_to_peer(7, bytes(4), 1, b"of no allocation")
    del path
