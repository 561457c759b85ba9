"""TURN over TCP and TLS on a host: what passes, and clients that are slow, silent, broken or too many."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aioice import turn

from relay.addresses import Address
from relay.client.turn import open_turn_tls
from relay.demo.authority import Authority
from relay.emulator import handshakes
from relay.emulator.turn import slow, streams
from relay.emulator.turn.host import Streams
from relay.turn.credentials import (
    CredentialStore,
    RestCredentials,
    StaticCredentials,
    rest_password,
    rest_username,
)
from relay.turn.drops import Drop
from relay.turn.server import ServerSettings
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import AttributeType, MessageClass, Method, build_message, build_xor_address, parse_message
from tests.support.descriptors import no_descriptors
from tests.support.peers.aioice_client import Received, closed
from tests.support.peers.behind_turn import SIZES, Inbox, echo_all_sizes, open_echo, open_echo_pair
from tests.support.peers.raw_turn import RawTcpTurn, RawTurn, Refused
from tests.support.peers.uclient import UclientReport, run_uclient
from tests.support.waiting import becomes, eventually

CREDENTIALS = StaticCredentials({"trader": "secret"})
NAME = "turn.test"


@dataclass(frozen=True)
class Served:
    """A host over UDP, TCP and TLS, and whom its clients trust."""

    host: slow.TurnHost
    authority: Authority

    @property
    def tls(self) -> Address:
        assert self.host.tls_address is not None
        return self.host.tls_address

    def client(self, receive_bytes: int = 0) -> RawTcpTurn:
        return RawTcpTurn(self.host.address, "trader", "secret", receive_bytes=receive_bytes)


@asynccontextmanager
async def serving(folder: Path, credentials: CredentialStore = CREDENTIALS) -> AsyncIterator[Served]:
    authority = Authority(folder)
    certificate = authority.issue(NAME, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.private_key)
    host = slow.TurnHost(
        Address("127.0.0.1", 0),
        credentials,
        allow_loopback_peers=True,
        settings=ServerSettings(accepts_rfc5766_channels=True),  # as turnutils_uclient binds them
        streams=Streams(tcp=True, tls=context),
    )
    async with host:
        yield Served(host, authority)


# What passes


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_aioice_over_each_transport(tmp_path: Path, transport: str) -> None:
    async with serving(tmp_path) as served, open_echo() as peer:
        endpoint, protocol = await turn.create_turn_endpoint(
            Received,
            server_addr=served.tls if transport == "tls" else served.host.address,
            username="trader",
            password="secret",
            ssl=served.authority.client_context() if transport == "tls" else False,
            transport="udp" if transport == "udp" else "tcp",
        )
        received = protocol.data
        try:
            for size in SIZES:
                data = secrets.token_bytes(size)
                endpoint.sendto(data, peer)
                assert await received.get() == data
            assert served.host.allocations == 1
        finally:
            endpoint.close()
            await closed(endpoint)


async def test_own_client_over_tls_with_rest_credentials(tmp_path: Path) -> None:
    user = rest_username("anna", 1 << 40)
    async with serving(tmp_path, RestCredentials("shared")) as served, open_echo() as peer:
        inbox = Inbox()
        async with await open_turn_tls(
            served.tls,
            user,
            rest_password("shared", user),
            ssl_context=served.authority.client_context(),
            on_data=inbox.put,
        ) as client:
            await client.allocate()
            await client.bind_channel(peer)
            await echo_all_sizes(client, inbox, peer)
            counters = served.host.counters
            assert counters.uplink_packets == counters.downlink_packets == len(SIZES)
        await eventually(lambda: not served.host.connections and not served.host.allocations)


@pytest.mark.parametrize("flags", [("-t",), ("-t", "-S")], ids=["tcp", "tls"])
async def test_uclient_loses_nothing(tmp_path: Path, flags: tuple[str, ...]) -> None:
    async with serving(tmp_path) as served, open_echo_pair() as peer:

        async def excuses(_: UclientReport) -> bool:
            return not served.host.counters.drops

        report = await run_uclient(
            served.tls if "-S" in flags else served.host.address,
            "trader",
            "secret",
            peer=peer,
            clients=10,
            messages=50,
            rtcp=True,
            options=flags,
            excuses=excuses,
        )
        assert report.sent == report.received == 500


async def test_units_may_be_split_anywhere_and_come_together(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, open_echo() as peer:
        with served.client() as client:
            await client.allocate()
            await client.bind(0x4000, peer)
            unit = build_channel_data(0x4000, b"five!", padded=True)
            stream = unit + client.signed(Method.BINDING) + unit
            for byte in stream:
                client.send(bytes([byte]))
                await asyncio.sleep(0)
            client.send(stream)
            kinds = [(await client.receive())[:2] for _ in range(6)]
            assert sorted(kinds) == sorted([b"\x40\0", b"\x01\x01", b"\x40\0"] * 2)


async def test_transports_have_allocations_of_their_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with served.client() as client, RawTurn(served.host.address, "trader", "secret") as datagrams:
            await client.allocate()
            await datagrams.allocate()
            assert served.host.allocations == 2
            with pytest.raises(Refused, match="437"):
                await client.allocate()


async def test_paused_host_reads_on_but_passes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with served.client() as client:
            await client.allocate()
            served.host.paused = True
            client.send(client.signed(Method.BINDING))
            await becomes(lambda: served.host.counters.drops, {Drop.PAUSED: 1})
            served.host.paused = False
            assert await client.binding() == client.address


async def test_counters_outlive_a_stop(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, open_echo() as peer:
        for number in (1, 2):
            with served.client() as client:
                await client.allocate()
                await client.bind(0x4000, peer)
                client.send(build_channel_data(0x4000, b"four"))
                await client.receive()
                await served.host.stop()
                await client.ended()
            assert served.host.counters.downlink_bytes == 4 * number
            await served.host.start()


# Clients that do harm


async def test_slow_client_holds_up_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, open_echo() as peer:
        with served.client(4096) as sleeper, served.client() as other, open_udp() as source:
            relayed = await sleeper.allocate()
            await sleeper.bind(0x4000, Address(*source.getsockname()))
            await other.allocate()
            await other.bind(0x4000, peer)

            def flood() -> int:
                for _ in range(100):
                    source.sendto(bytes(1200), relayed)
                return served.host.counters.drops[Drop.SLOW_CLIENT]

            await eventually(flood)
            other.send(build_channel_data(0x4000, b"four"))
            assert await other.receive() == build_channel_data(0x4000, b"four")
            assert served.host.connections == 2


async def test_client_that_asks_and_never_reads_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "REQUESTS_AT_ONCE", math.inf)
    async with serving(tmp_path) as served:
        with served.client(4096) as client:
            # Nobody else may ask so much.
            await client.allocate()
            stream = memoryview(client.signed(Method.REFRESH) * 1000)
            sent = 0

            def ask() -> bool:
                nonlocal sent
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    sent += client.socket.send(stream[sent % len(stream) :])
                return not served.host.connections

            await eventually(ask)
            assert served.host.counters.drops[Drop.SLOW_CLIENT] > 0
            await becomes(lambda: (served.host.connections, served.host.allocations), (0, 0))


@pytest.mark.parametrize("garbage", [b"\xff", b"\0\1\0\1", b"\0\1\0\4junk"])
async def test_broken_stream_is_cut_off(tmp_path: Path, garbage: bytes) -> None:
    async with serving(tmp_path) as served:
        with served.client() as client, served.client() as other:
            await client.allocate()
            client.send(garbage)
            await client.ended()
            await eventually(lambda: not served.host.allocations)
            assert await other.binding() == other.address


def send_indication(peer: Address = Address("127.0.0.1", 9)) -> bytes:  # noqa: B008 - a constant
    to_peer = (AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, bytes(12)))
    return build_message(Method.SEND, MessageClass.INDICATION, bytes(12), [to_peer, (AttributeType.DATA, b"voice")])


FLOODS = {
    "requests": build_message(Method.BINDING, MessageClass.REQUEST, bytes(12), []),
    "indications": build_message(Method.BINDING, MessageClass.INDICATION, bytes(12), []),
    "malformed-sends": build_message(Method.SEND, MessageClass.INDICATION, bytes(12), []),
    "sends-without-allocation": send_indication(),
    "channel-without-allocation": build_channel_data(0x4000, b""),
}


@pytest.mark.parametrize("unit", FLOODS.values(), ids=FLOODS)
async def test_a_flood_ends_its_connection_and_no_other(
    tmp_path: Path, unit: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slow machine reads the flood in parts, and time between them would allow more.
    monkeypatch.setattr(streams, "REQUESTS_PER_SECOND", 0)
    async with serving(tmp_path) as served:
        with served.client() as flooding, served.client() as other:
            await other.allocate()
            flooding.send(unit * int(streams.REQUESTS_AT_ONCE + 1))
            await flooding.ended()
            assert await other.binding() == other.address
            await becomes(lambda: (served.host.connections, served.host.allocations), (1, 1))
            assert served.host.counters.drops[Drop.REQUEST_FLOOD] == 1


async def test_a_flood_over_tls_ends_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "REQUESTS_PER_SECOND", 0)
    async with serving(tmp_path) as served:
        reader, writer = await asyncio.open_connection(*served.tls, ssl=served.authority.client_context())
        writer.write(FLOODS["channel-without-allocation"] * int(10 * streams.REQUESTS_AT_ONCE))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.transport.abort()
        await eventually(lambda: not served.host.connections)
        # After the cut nothing more was looked at.
        drops = {Drop.NO_ALLOCATION: streams.REQUESTS_AT_ONCE + 1, Drop.REQUEST_FLOOD: 1}
        assert served.host.counters.drops == drops


@pytest.mark.parametrize("unit", [build_channel_data(0x4001, b""), send_indication()], ids=["channel", "send"])
async def test_data_for_nobody_is_counted_as_a_flood(
    tmp_path: Path, unit: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "REQUESTS_PER_SECOND", 0)
    async with serving(tmp_path) as served:
        with served.client() as client:
            await client.allocate()
            client.send(unit * int(streams.REQUESTS_AT_ONCE + 1))
            await client.ended()
            assert served.host.counters.drops[Drop.REQUEST_FLOOD] == 1


async def test_what_a_client_has_sent_before_it_reset_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "REQUESTS_AT_ONCE", math.inf)
    async with serving(tmp_path) as served:
        with served.client() as client:
            await client.binding()
            client.send(build_channel_data(0x4000, b"") * 5000)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: not served.host.connections)
        assert not served.host.counters.drops


async def test_data_is_not_counted_as_a_flood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "REQUESTS_AT_ONCE", 8)
    monkeypatch.setattr(streams, "REQUESTS_PER_SECOND", 0)
    async with serving(tmp_path) as served, open_echo() as peer:
        with served.client() as client:
            await client.allocate()
            await client.permit(peer)
            for _ in range(20):
                client.send(send_indication(peer))
                assert parse_message(await client.receive()).get(AttributeType.DATA) == b"voice"
            await client.bind(0x4000, peer)
            for _ in range(20):
                client.send(build_channel_data(0x4000, b"four"))
                assert await client.receive() == build_channel_data(0x4000, b"four")


async def test_host_stops_while_somebody_has_an_allocation_after_others_have_gone(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with served.client() as client:
            await client.allocate()
        await eventually(lambda: not served.host.connections)
        with served.client() as client:
            await client.allocate()
            await served.host.stop()
            await client.ended()
            assert (served.host.connections, served.host.allocations) == (0, 0)


async def test_half_a_unit_and_gone(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with served.client() as client:
            await client.allocate()
            client.send(b"\x40\0\xff\xffhalf")
        await eventually(lambda: not served.host.connections and not served.host.allocations)


async def test_a_unit_that_is_never_complete_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "UNIT_TIMEOUT_S", 0.05)
    async with serving(tmp_path) as served:
        with served.client() as client, served.client() as other:
            await client.allocate()
            await other.allocate()
            client.send(b"\x40\0\xff\xf0")

            def trickle() -> bool:
                with contextlib.suppress(ConnectionError):
                    client.socket.send(b"x")
                return served.host.connections == 1

            await eventually(trickle)
            assert await other.binding() == other.address


async def test_silent_client_is_cut_off_unless_it_has_an_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for the one that allocates, also on a busy machine.
    monkeypatch.setattr(streams, "IDLE_TIMEOUT_S", 2.0)
    async with serving(tmp_path) as served:
        with served.client() as talker, served.client() as silent:
            await talker.allocate()
            await silent.ended()
            assert await talker.binding() == talker.address


async def test_client_without_tls_and_silent_one_do_not_reach_the_tls_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakes, "HANDSHAKE_TIMEOUT_S", 0.2)
    async with serving(tmp_path) as served:
        with RawTcpTurn(served.tls, "trader", "secret") as plain, RawTcpTurn(served.tls, "", "") as silent:
            plain.send(plain.signed(Method.BINDING))
            await plain.ended()
            await silent.ended()
        assert served.host.connections == 0


async def test_host_stops_during_handshakes(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with RawTcpTurn(served.tls, "", "") as silent, served.client() as other:
            await other.binding()
            await served.host.stop()
            await silent.ended()
            await other.ended()


async def test_too_many_connections_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_CONNECTIONS", 1)
    async with serving(tmp_path) as served:
        with served.client() as first:
            await first.allocate()
            with served.client() as second:
                await second.ended()
            assert await first.binding() == first.address


async def test_client_without_an_allocation_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_CONNECTIONS", 2)
    async with serving(tmp_path) as served:
        with served.client() as first, served.client() as idle:
            await first.allocate()
            await idle.binding()
            with served.client() as newcomer:
                await newcomer.allocate()
                await idle.ended()
                assert await first.binding() == first.address
                assert served.host.connections == 2


async def test_newcomer_waits_for_descriptors(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with served.client() as client:
            await client.allocate()
            newcomer = socket.socket()
            with newcomer:
                with no_descriptors():
                    newcomer.connect(served.host.address)
                    assert await client.binding() == client.address
                    assert served.host.connections == 1
                await eventually(lambda: served.host.connections == 2)


def open_udp() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("127.0.0.1", 0))
    return opened
