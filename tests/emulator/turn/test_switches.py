"""What the emulator does with hosts while they run: it counts, pauses, stops and starts them again."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from relay.addresses import Address
from relay.emulator.turn import native, slow
from relay.emulator.turn.counters import Counters
from relay.emulator.turn.hosts import Plane, TurnHosts
from relay.errors import OperatorError
from relay.turn.commands import Command
from relay.turn.credentials import StaticCredentials
from relay.turn.drops import Drop
from relay.turn.server import ServerSettings, TurnServer
from relay.wire.channeldata import build_channel_data
from tests.support.peers.behind_turn import open_echo
from tests.support.peers.raw_turn import UDP, RawTurn
from tests.support.waiting import becomes, eventually

CREDENTIALS = StaticCredentials({"trader": "secret"})
REGIONS = {"use1": ("use1-stun1", "use1-stun2"), "euw1": ("euw1-stun1",)}
Make = type[slow.TurnHost] | type[native.TurnHost]


@pytest.fixture(params=[slow.TurnHost, native.TurnHost], ids=["slow", "native"])
def make(request: pytest.FixtureRequest) -> Make:
    kind: Make = request.param
    return kind


@pytest.fixture(params=["slow", "native"])
def plane(request: pytest.FixtureRequest) -> Plane:
    chosen: Plane = request.param
    return chosen


def client_of(host: Any, source: str = "127.0.0.1") -> RawTurn:
    return RawTurn(host.address, "trader", "secret", source)


async def test_counters_count_data_and_drops_by_reason(make: Make) -> None:
    async with make(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host, open_echo() as peer:
        with client_of(host) as client, client_of(host) as stranger:
            await client.allocate()
            await client.bind(0x4000, peer)
            for size in (0, 1, 182):
                client.send(build_channel_data(0x4000, bytes(size)))
                assert await client.receive() == build_channel_data(0x4000, bytes(size))
            client.send(build_channel_data(0x4001, b"not bound"))
            client.send(build_channel_data(0x4000, b"cut off")[:-1])
            client.send(b"\xff" * 20)
            await client.binding()
            stranger.send(build_channel_data(0x4000, b"not mine"))
            await stranger.binding()
            drops = {Drop.NO_CHANNEL: 1, Drop.MALFORMED: 2, Drop.NO_ALLOCATION: 1}
            await becomes(lambda: (host.counters.uplink_packets, host.counters.uplink_bytes), (3, 183))
            await becomes(lambda: (host.counters.downlink_packets, host.counters.downlink_bytes), (3, 183))
            assert host.counters.drops == drops
        await host.stop()
        assert host.counters == Counters(3, 183, 3, 183, host.counters.drops)
        assert host.counters.drops == drops


async def test_paused_host_drops_everything_and_goes_on_afterwards(make: Make) -> None:
    async with make(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host, open_echo() as peer:
        with client_of(host) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            relayed = await client.allocate()
            await client.bind(0x4000, peer)
            host.paused = True
            client.send(build_channel_data(0x4000, b"up"))
            client.send(client.signed(1))
            sender.sendto(b"down", relayed)
            await becomes(lambda: host.counters.drops[Drop.PAUSED], 3)
            host.paused = False
            client.send(build_channel_data(0x4000, b"again"))
            assert await client.receive() == build_channel_data(0x4000, b"again")
            assert host.allocations == 1


async def test_host_that_was_paused_before_its_start_is_silent(make: Make) -> None:
    host = make(Address("127.0.0.1", 0), CREDENTIALS)
    host.paused = True
    async with host:
        with client_of(host) as client:
            client.send(client.signed(1))
            await becomes(lambda: host.counters.drops[Drop.PAUSED], 1)


async def test_one_host_stops_and_starts_again_while_others_serve(plane: Plane) -> None:
    async with TurnHosts(REGIONS, CREDENTIALS, allow_loopback_peers=True, plane=plane) as hosts, open_echo() as peer:
        first, second = hosts["use1-stun1"], hosts["use1-stun2"]
        with client_of(first) as before, client_of(second) as other:
            relayed = await before.allocate()
            await before.bind(0x4000, peer)
            await other.allocate()
            await other.bind(0x4000, peer)
            await first.stop()
            await first.stop()
            assert (first.running, first.allocations) == (False, 0)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
                again.bind(relayed)
            other.send(build_channel_data(0x4000, b"still there"))
            assert await other.receive() == build_channel_data(0x4000, b"still there")
            await first.start()
            await first.start()
            with client_of(first) as after:
                await after.allocate()
                await after.bind(0x4000, peer)
                after.send(build_channel_data(0x4000, b"anew"))
                assert await after.receive() == build_channel_data(0x4000, b"anew")
                assert [host.allocations for host in hosts] == [1, 1, 0]


async def test_only_the_chosen_hosts_start(plane: Plane) -> None:
    hosts = TurnHosts(REGIONS, CREDENTIALS, plane=plane)
    await hosts.start({"euw1-stun1"})
    try:
        assert [host.running for host in hosts] == [False, False, True]
        assert [host.allocations for host in hosts] == [0, 0, 0]
        await hosts["use1-stun1"].start()
        with client_of(hosts["use1-stun1"]) as client:
            assert await client.binding() == client.address
    finally:
        await hosts.stop()
    assert not any(host.running for host in hosts)


async def test_cloud_starts_again(plane: Plane) -> None:
    hosts = TurnHosts(REGIONS, CREDENTIALS, plane=plane)
    for _ in range(2):
        async with hosts:
            with client_of(hosts["use1-stun2"]) as client:
                await client.allocate()
                assert hosts["use1-stun2"].allocations == 1


async def test_relayed_ports_are_those_of_the_vendor(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def lowest(_: object, start: int, stop: int) -> int:
        asked.append((start, stop))
        return start + len(asked) - 1

    monkeypatch.setattr("random.SystemRandom.randrange", lowest)
    async with TurnHosts(REGIONS, CREDENTIALS, plane=plane) as hosts:
        with client_of(hosts["use1-stun1"]) as client:
            assert 16384 <= (await client.allocate()).port < 16384 + len(asked)
    assert set(asked) == {(16384, 65536)}


async def test_traffic_during_a_stop_harms_nobody(make: Make) -> None:
    """Clients and peers send on while host after host ends under them."""
    async with open_echo() as peer:
        for _ in range(5):
            async with make(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host:
                with client_of(host) as client:
                    relayed = await client.allocate()
                    await client.bind(0x4000, peer)
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                        for _ in range(200):
                            client.send(build_channel_data(0x4000, b"up"))
                            sender.sendto(b"down", relayed)
                        # These are still to be decided when the host has let go of the allocation.
                        client.send(client.signed(4, (0x000D, bytes(4))))
                        client.send(client.signed(3, UDP))
                        await host.stop()
                        assert host.allocations == 0


async def test_a_request_that_fails_inside_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of our own is told to the loop, and the next request is decided."""
    told: list[dict[str, Any]] = []
    receive = TurnServer.receive

    def faulty(self: TurnServer, now: float, client: Address, data: bytes) -> list[Command]:
        if data[1] == 3:
            raise RuntimeError("a bug")
        return receive(self, now, client, data)

    async with native.TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host:
        with client_of(host) as client:
            monkeypatch.setattr(TurnServer, "receive", faulty)
            asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
            client.send(client.signed(3, UDP))
            client.send(request := client.signed(1))
            assert (await client.receive())[8:20] == request[8:20]
            assert [str(context["exception"]) for context in told] == ["a bug"]


async def test_expired_permission_and_channel_carry_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.turn.allocation.PERMISSION_LIFETIME_S", 0.2)
    async with make(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host, open_echo() as peer:
        with client_of(host) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            relayed = await client.allocate()
            await client.bind(0x4000, peer)

            def try_both() -> bool:
                client.send(build_channel_data(0x4000, b"up"))
                sender.sendto(b"down", relayed)
                return host.counters.drops[Drop.NO_CHANNEL] > 0 and host.counters.drops[Drop.NOT_PERMITTED] > 0

            await eventually(try_both)
            # A permission that is renewed brings the channel back, which lives on.
            monkeypatch.setattr("relay.turn.allocation.PERMISSION_LIFETIME_S", 300)
            await client.permit(peer)
            before = host.counters.uplink_packets
            client.send(build_channel_data(0x4000, b"up"))
            await becomes(lambda: host.counters.uplink_packets, before + 1)


async def test_expired_channel_leaves_the_permission(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.turn.allocation.CHANNEL_LIFETIME_S", 0)
    async with make(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host, open_echo() as peer:
        with client_of(host) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            relayed = await client.allocate()
            await client.bind(0x4000, peer)
            client.send(build_channel_data(0x4000, b"up"))
            await becomes(lambda: host.counters.drops, {Drop.NO_CHANNEL: 1})
            sender.bind((peer.host, 0))
            sender.sendto(b"down", relayed)
            assert (await client.receive())[:2] == b"\x00\x17"


async def test_long_request_is_dropped(make: Make) -> None:
    async with make(Address("127.0.0.1", 0), CREDENTIALS) as host:
        with client_of(host) as client:
            client.send(client.signed(1, (0x8022, bytes(2048))))
            await becomes(lambda: host.counters.drops, {Drop.OVERSIZE: 1})
            answer = await client.ask(client.signed(1, (0x8022, bytes(1024))))
            assert answer.error is None


async def test_a_taken_tcp_port_is_an_operator_error(plane: Plane) -> None:
    with socket.create_server(("127.0.1.1", 0)) as other:
        hosts = TurnHosts(REGIONS, CREDENTIALS, port=other.getsockname()[1], tcp=True, plane=plane)
        with pytest.raises(OperatorError, match=r"127\.0\.1\.1"):
            await hosts.start()
        assert not any(host.running for host in hosts)


async def test_a_host_may_relay_for_many(make: Make) -> None:
    """More clients, permissions and channels than the first tables hold; a released client's place serves the next."""
    settings = ServerSettings(unauthenticated_answers_per_s=0)
    host = make(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True, settings=settings)
    async with host, open_echo() as peer:
        with client_of(host) as client:
            await client.allocate()
            for number in range(40):
                await client.bind(0x4000 + number, Address(f"127.0.7.{number}", 4000))
            await client.bind(0x4FFF, peer)
            client.send(build_channel_data(0x4FFF, b"last of many"))
            assert await client.receive() == build_channel_data(0x4FFF, b"last of many")
            # One of the others may get its port from the kernel.
            await client.request(4, (0x000D, bytes(4)))
        clients: list[RawTurn] = []
        try:
            for _ in range(300):
                clients.append(client_of(host))
                await clients[-1].allocate()
            for one in clients[::2]:
                await one.request(4, (0x000D, bytes(4)))
            assert host.allocations == 150
            for one in clients[1::2]:
                await one.bind(0x4000, peer)
                one.send(build_channel_data(0x4000, str(one.address).encode()))
                assert await one.receive() == build_channel_data(0x4000, str(one.address).encode())
        finally:
            for one in clients:
                one.socket.close()
