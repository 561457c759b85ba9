"""TURN hosts on real sockets, both twins: lifetime, what they let pass, and coturn's load client against them."""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass

import pytest
from aioice import turn

from relay.addresses import Address
from relay.client.requests import TurnRequestError
from relay.client.turn import TurnConnection, open_turn_udp
from relay.emulator.turn import native, slow
from relay.emulator.turn.host import Host
from relay.emulator.turn.hosts import Plane, TurnHosts
from relay.errors import OperatorError
from relay.turn.credentials import StaticCredentials
from relay.turn.server import ServerSettings
from relay.wire.stun import AttributeType, MessageClass, Method, build_message, build_xor_address
from tests.support.peers.aioice_client import Received, closed
from tests.support.peers.behind_turn import SIZES, Inbox, open_echo
from tests.support.peers.raw_turn import RawTcpTurn, RawTurn, Refused
from tests.support.peers.uclient import UclientReport, run_uclient

CREDENTIALS = StaticCredentials({"trader": "secret"})
ANY_PORT = Address("127.0.0.1", 0)
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


async def _open(host: Host, inbox: Inbox | None = None) -> TurnConnection:
    return await open_turn_udp(host.address, "trader", "secret", on_data=(inbox or Inbox()).put)


@dataclass
class _Pair:
    """A relayed address whose permissions let everybody on loopback in, and what came through it."""

    turn: TurnConnection
    relayed: Address
    inbox: Inbox


async def _allocate(host: Host) -> _Pair:
    inbox = Inbox()
    turn = await _open(host, inbox)
    return _Pair(turn, await turn.allocate(), inbox)


def send_indication(peer: Address, data: bytes) -> bytes:
    transaction_id = bytes(12)
    attributes = [(AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, transaction_id)), (AttributeType.DATA, data)]
    return build_message(Method.SEND, MessageClass.INDICATION, transaction_id, attributes)


# Lifetime


async def test_port_0_binds_a_free_port(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS) as host:
        assert host.address.host == "127.0.0.1"
        assert host.address.port != 0


@pytest.mark.parametrize("client", [RawTurn, RawTcpTurn], ids=["udp", "tcp"])
async def test_only_peers_of_this_cloud(plane: Plane, client: type[RawTurn]) -> None:
    """What a permission opens is a whole address. The settings may know which of its ports are nobody's business."""
    settings = ServerSettings(may_reach=lambda peer: hosts.relays(peer))  # noqa: PLW0108
    hosts = TurnHosts(REGIONS, CREDENTIALS, tcp=True, allow_loopback_peers=True, settings=settings, plane=plane)
    async with hosts:
        first, second = (hosts[name] for name in REGIONS["use1"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
            service.bind((second.address.host, 0))
            service.setblocking(False)
            with client(first.address, "trader", "secret") as ann, client(second.address, "trader", "secret") as bob:
                await ann.allocate()
                await bob.allocate()
                await ann.permit(bob.relayed)
                await bob.bind(0x4001, ann.relayed)
                with pytest.raises(Refused, match="403"):
                    await ann.bind(0x4000, Address(*service.getsockname()))
                ann.send(send_indication(Address(*service.getsockname()), b"to a service"))
                ann.send(send_indication(bob.relayed, b"to bob"))
                assert (await bob.receive())[4:10] == b"to bob"
                with pytest.raises(BlockingIOError):
                    service.recv(100)
            assert not hosts.relays(Address(*service.getsockname()))
            assert not hosts.relays(Address("127.0.0.1", bob.relayed.port))


async def test_taken_port_is_an_operator_error(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS) as host:
        with pytest.raises(OperatorError, match=str(host.address)):
            await make(host.address, CREDENTIALS).start()


async def test_stop_closes_relayed_sockets_and_the_timer(make: Make) -> None:
    # That no descriptor and no task is left is asserted for every test; here both existed before.
    loop = asyncio.get_running_loop()
    host = make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True)
    await host.start()
    turn = await _open(host)
    relayed = await turn.allocate()
    assert host.allocations == 1
    await host.stop()
    await host.stop()
    assert host.allocations == 0
    await turn.close(release=False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(relayed)
    assert loop.is_running()


async def test_allocation_ends_with_refresh_0(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS) as host, await _open(host) as turn:
        await turn.allocate()
        assert host.allocations == 1
        assert await turn.refresh(0) == 0
        assert host.allocations == 0


async def test_expired_allocation_is_let_go(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # The least lifetime is ten minutes: here it is none at all, so that the timer is due at once.
    monkeypatch.setattr("relay.turn.allocate.DEFAULT_LIFETIME_S", 0)
    monkeypatch.setattr("relay.turn.allocate.MAX_LIFETIME_S", 0)
    async with make(ANY_PORT, CREDENTIALS) as host:
        turn = await _open(host)
        relayed = await turn.allocate()
        while host.allocations:
            # The mapped address is asked for as an excuse to let the loop turn.
            await turn.binding()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(relayed)
        await turn.close(release=False)


async def test_relayed_port_that_another_program_holds_is_passed_over(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free,
    ):
        other.bind(("127.0.0.1", 0))
        free.bind(("127.0.0.1", 0))
        ports = iter([other.getsockname()[1], other.getsockname()[1], free.getsockname()[1]])
        free.close()
        monkeypatch.setattr("random.SystemRandom.randrange", lambda *_: next(ports))
        async with make(ANY_PORT, CREDENTIALS) as host, await _open(host) as turn:
            relayed = await turn.allocate()
            assert relayed.port != other.getsockname()[1]
            assert host.allocations == 1


# Several hosts


async def test_several_hosts_are_numbered_by_region_and_host(plane: Plane) -> None:
    async with TurnHosts(REGIONS, CREDENTIALS, plane=plane, allow_loopback_peers=True) as hosts:
        assert len(hosts) == 3
        addresses = {host.name: (host.region, host.address.host) for host in hosts}
        assert addresses == {
            "use1-stun1": ("use1", "127.0.1.1"),
            "use1-stun2": ("use1", "127.0.1.2"),
            "euw1-stun1": ("euw1", "127.0.2.1"),
        }


async def test_data_passes_from_host_to_host(plane: Plane) -> None:
    async with TurnHosts(REGIONS, CREDENTIALS, plane=plane, allow_loopback_peers=True) as hosts:
        ends = [await _allocate(host) for host in hosts]
        for sender, receiver in zip(ends, [*ends[1:], ends[0]], strict=True):
            await sender.turn.bind_channel(receiver.relayed)
            await receiver.turn.create_permission(sender.relayed)
            sender.turn.send(receiver.relayed, b"to the next host")
            assert await receiver.inbox.get() == (sender.relayed, b"to the next host")
        for end in ends:
            await end.turn.close()
        assert [host.allocations for host in hosts] == [0, 0, 0]


async def test_all_hosts_start_or_none(plane: Plane) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.1.2", 0))
        hosts = TurnHosts(REGIONS, CREDENTIALS, plane=plane, port=other.getsockname()[1])
        with pytest.raises(OperatorError, match=r"127\.0\.1\.2"):
            await hosts.start()
        await hosts.stop()


def test_a_name_belongs_to_one_host() -> None:
    with pytest.raises(ValueError, match="stun1"):
        TurnHosts({"use1": ("stun1",), "euw1": ("stun1",)}, CREDENTIALS)


# What passes


async def test_loopback_peers_need_the_switch(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS) as host, await _open(host) as turn, open_echo() as peer:
        await turn.allocate()
        for request in (turn.create_permission, turn.bind_channel):
            with pytest.raises(TurnRequestError) as refused:
                await request(peer)
            assert refused.value.code == 403


async def test_data_passes_only_from_permitted_peers(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True) as host:
        end = await _allocate(host)
        async with open_echo() as peer, open_echo("127.0.0.9") as stranger:
            await end.turn.create_permission(peer)
            end.turn.send(stranger, b"not permitted")
            end.turn.send(peer, b"permitted")
            assert await end.inbox.get() == (peer, b"permitted")
            assert end.inbox.empty
        await end.turn.close()


async def test_what_has_run_out_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with make(ANY_PORT, CREDENTIALS) as host, await _open(host) as turn:

        def none_left(*_: object) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr("relay.emulator.turn.sockets.open_udp_socket", none_left)
        with pytest.raises(TurnRequestError) as refused:
            await turn.allocate()
        assert (refused.value.code, refused.value.reason) == (508, "no file descriptors left in this process")
        monkeypatch.undo()
        await turn.allocate()


async def test_unreachable_peer_disturbs_nobody(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True) as host, open_echo() as peer:
        end = await _allocate(host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            nobody = Address(*gone.getsockname())
        await end.turn.create_permission(peer)
        for _ in range(3):
            end.turn.send(nobody, b"answered by ICMP")
            end.turn.send(Address("127.0.0.1", 0), b"no such port")
            end.turn.send(peer, b"echoed")
            assert await end.inbox.get() == (peer, b"echoed")
        assert host.dropped == 3
        await end.turn.close()


async def test_garbage_is_ignored(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS) as host, await _open(host) as turn:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for garbage in (b"", b"\x40", b"\x40\x00\xff\xff", bytes(20), b"\x80" * 1400, bytes(60000)):
                sender.sendto(garbage, host.address)
        assert await turn.binding() == turn.local_address


async def test_quota_of_the_settings_holds(make: Make) -> None:
    settings = ServerSettings(max_allocations_per_user=1)
    host = make(ANY_PORT, CREDENTIALS, settings=settings)
    async with host, await _open(host) as first, await _open(host) as second:
        await first.allocate()
        with pytest.raises(TurnRequestError) as refused:
            await second.allocate()
        assert refused.value.code == 486


async def test_ipv6() -> None:
    async with (
        slow.TurnHost(Address("::1", 0), CREDENTIALS, allow_loopback_peers=True) as host,
        open_echo("::1") as peer,
    ):
        inbox = Inbox()
        async with await _open(host, inbox) as turn:
            family = (AttributeType.REQUESTED_ADDRESS_FAMILY, bytes([2, 0, 0, 0]))
            relayed = await turn.allocate((family,))
            assert relayed.host == "::1"
            await turn.bind_channel(peer)
            turn.send(peer, b"over IPv6")
            assert await inbox.get() == (peer, b"over IPv6")


async def test_other_family_only_if_relayed() -> None:
    family = (AttributeType.REQUESTED_ADDRESS_FAMILY, bytes([2, 0, 0, 0]))
    async with slow.TurnHost(ANY_PORT, CREDENTIALS) as host, await _open(host) as turn:
        with pytest.raises(TurnRequestError) as refused:
            await turn.allocate((family,))
        assert refused.value.code == 440
    async with (
        slow.TurnHost(ANY_PORT, CREDENTIALS, relayed_hosts=("127.0.0.1", "::1")) as host,
        await _open(host) as turn,
    ):
        assert (await turn.allocate((family,))).host == "::1"


# Other people's clients


async def test_aioice_echoes_all_sizes(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True) as host, open_echo() as peer:
        transport, protocol = await turn.create_turn_endpoint(
            Received, server_addr=host.address, username="trader", password="secret", transport="udp"
        )
        received = protocol.data
        try:
            for size in SIZES:
                data = bytes(index & 0xFF for index in range(size))
                transport.sendto(data, peer)
                assert await received.get() == data
        finally:
            transport.close()
            await closed(transport)


async def test_uclient_loses_nothing_through_an_echo(make: Make) -> None:
    heard: list[bytes] = []
    async with (
        make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True) as host,
        open_echo(on_datagram=heard.append) as peer,
    ):

        async def excuses(report: UclientReport) -> bool:
            came = len(heard)
            heard.clear()
            return came == report.sent and host.dropped == 0

        report = await run_uclient(
            host.address,
            "trader",
            "secret",
            peer=peer,
            clients=10,
            messages=50,
            by_send_indication=True,
            excuses=excuses,
        )
        assert (report.sent, report.received, report.lost, report.dropped) == (500, 500, 0, 0)


async def test_uclient_loses_nothing_from_client_to_client_with_rtcp(make: Make) -> None:
    async with make(ANY_PORT, CREDENTIALS, allow_loopback_peers=True) as host:

        async def excuses(_: UclientReport) -> bool:
            return host.dropped == 0

        report = await run_uclient(
            host.address,
            "trader",
            "secret",
            peer=None,
            clients=2,
            messages=50,
            rtcp=True,
            by_send_indication=True,
            excuses=excuses,
        )
        assert report.sent == report.received == 200
        assert report.lost == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "2001:db8::1"])
def test_an_address_for_others_must_be_asked_for(make: Make, host: str) -> None:
    with pytest.raises(OperatorError, match="not a loopback address"):
        make(Address(host, 0), CREDENTIALS)
    if ":" not in host or make is slow.TurnHost:
        make(Address(host, 0), CREDENTIALS, exposed=True)


def test_the_native_path_serves_ipv4_only() -> None:
    with pytest.raises(OperatorError, match="IPv4 only"):
        native.TurnHost(Address("::1", 0), CREDENTIALS)
    with pytest.raises(OperatorError, match="IPv4 only"):
        native.TurnHost(ANY_PORT, CREDENTIALS, relayed_hosts=("127.0.0.1", "::1"))
