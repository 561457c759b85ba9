"""The engine against real servers: the emulator's TURN host over UDP, and a relay on each carrier."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from loadtest.engine.engine import Cause, Phase
from loadtest.engine.plans import Carrier, ClientPlan, PlanError, StreamPlan
from relay.addresses import Address
from relay.emulator.turn import native
from relay.turn.credentials import StaticCredentials
from tests.loadtest.engine.driver import running_engine
from tests.support.benches.gateway import relay_with_hosts
from tests.support.peers.behind_turn import open_echo

CREDENTIALS = StaticCredentials({"trader": "secret"})
ANY_PORT = Address("127.0.0.1", 0)
FAST = 0.002
PATIENCE = 10.0


def turn_host() -> native.TurnHost:
    return native.TurnHost(ANY_PORT, CREDENTIALS, allow_loopback_peers=True)


def udp(host: native.TurnHost, *peers: Address, password: str = "secret") -> ClientPlan:
    return ClientPlan(host.address, username="trader", password=password, peers=peers, patience_s=10)


async def test_a_stream_comes_back_over_udp() -> None:
    async with turn_host() as host, open_echo() as echo, running_engine() as driver:
        opened = await driver.opened(udp(host, echo))
        assert opened.relayed is not None
        assert opened.relayed.host == "127.0.0.1"
        assert set(opened.seconds) == {Phase.CONNECTING, Phase.ALLOCATE, Phase.BIND}
        silenced = await driver.spoken(StreamPlan(opened.client, interval_s=FAST, patience_s=PATIENCE), 100)
        assert (silenced.received, silenced.lost, silenced.unsent) == (100, 0, 0)
        assert (silenced.duplicate, silenced.reordered) == (0, 0)
        assert 0 < silenced.mean_delay_s <= silenced.max_delay_s
        ended = await driver.closed(opened.client)
        assert (ended.cause, ended.phase) == (Cause.ASKED, Phase.ENDING)
        assert host.allocations == 0


async def test_two_clients_call_each_other() -> None:
    """Each hears what the other sends, from its relayed address."""
    async with turn_host() as host, running_engine() as driver:
        one, other = await driver.opened(udp(host)), await driver.opened(udp(host))
        assert one.relayed is not None
        assert other.relayed is not None
        driver.engine.bind(one.client, other.relayed)
        driver.engine.bind(other.client, one.relayed)
        plan = StreamPlan(one.client, receiver=other.client, interval_s=FAST)
        # What is sent before the other's channel is there is refused by the server.
        while (await driver.spoken(plan, 20)).received != 20:
            pass
        await driver.closed(one.client)
        await driver.closed(other.client)


async def test_a_window_counts() -> None:
    async with turn_host() as host, open_echo() as echo, running_engine() as driver:
        opened = await driver.opened(udp(host, echo))
        stream = driver.engine.talk(StreamPlan(opened.client, interval_s=FAST))
        sent = received = 0
        delays = lateness = 0
        while received < 50:
            window = await driver.window()
            sent += window.counters["sent"]
            received += window.counters["received"]
            delays += window.delay.total()
            lateness += window.lateness.total()
        assert delays == received <= sent == lateness
        assert window.seconds > 0
        driver.engine.silence(stream)


async def test_what_nobody_reflects_is_lost() -> None:
    async with turn_host() as host, running_engine() as driver:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind(("127.0.0.1", 0))
            opened = await driver.opened(udp(host, Address(*deaf.getsockname())))
            silenced = await driver.spoken(StreamPlan(opened.client, interval_s=FAST, patience_s=0.01), 10)
        assert (silenced.lost, silenced.received) == (10, 0)


async def test_another_key_is_corrupt() -> None:
    async with turn_host() as host, open_echo() as echo, running_engine() as driver:
        opened = await driver.opened(udp(host, echo))
        driver.engine.talk(StreamPlan(opened.client, interval_s=FAST, receive_key=bytes(30)))
        corrupt = 0
        while corrupt < 20:
            counted = (await driver.window()).counters
            corrupt += counted["corrupt"]
            assert counted["received"] == 0


async def test_another_receiver_is_misrouted() -> None:
    async with turn_host() as host, open_echo() as echo, running_engine() as driver:
        opened = await driver.opened(udp(host, echo))
        driver.engine.talk(StreamPlan(opened.client, receiver=opened.client + 1, interval_s=FAST))
        misrouted = 0
        while misrouted < 20:
            misrouted += (await driver.window()).counters["misrouted"]


# What fails


async def test_a_wrong_password_is_an_error_of_stun() -> None:
    async with turn_host() as host, running_engine() as driver:
        ended = await driver.ended(udp(host, password="wrong"))
        assert (ended.cause, ended.code, ended.phase) == (Cause.STUN, 401, Phase.ALLOCATE)


async def test_a_peer_that_is_not_allowed_is_an_error_of_stun() -> None:
    async with native.TurnHost(ANY_PORT, CREDENTIALS) as host, running_engine() as driver:
        ended = await driver.ended(udp(host, Address("127.0.0.1", 9)))
        assert (ended.cause, ended.code, ended.phase) == (Cause.STUN, 403, Phase.BIND)


async def test_nobody_listens() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = Address(*taken.getsockname())
        async with running_engine() as driver:
            for carrier in (Carrier.UDP, Carrier.TLS):
                ended = await driver.ended(ClientPlan(nobody, carrier, patience_s=10))
                assert (ended.cause, ended.code) == (Cause.CONNECTION, errno.ECONNREFUSED), carrier


async def test_nobody_answers() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with running_engine() as driver:
            ended = await driver.ended(ClientPlan(Address(*silent.getsockname()), patience_s=0.7))
        assert (ended.cause, ended.phase) == (Cause.TIMEOUT, Phase.ALLOCATE)
        first, again = silent.recv(2048), silent.recv(2048)
        assert first == again


@pytest.mark.parametrize("plane", ["compiled", "reference"])
@pytest.mark.parametrize("carrier", [Carrier.TLS, Carrier.WEBSOCKET, Carrier.SESSION, Carrier.CONNECT_UDP])
async def test_a_stream_comes_back_through_a_relay(tmp_path: Path, carrier: Carrier, plane: str) -> None:
    async with (
        relay_with_hosts(tmp_path, plane, 1) as (relay, hosts),
        open_echo() as echo,
        running_engine() as driver,
    ):
        plan = ClientPlan(
            relay.tls,
            carrier,
            "trader",
            "secret",
            (echo,),
            server_name="relay.test",
            authorities=str(relay.authority.ca_certificate),
            upstream=hosts["stun1"].address if carrier is Carrier.CONNECT_UDP else None,
        )
        opened = await driver.opened(plan)
        assert opened.relayed is not None
        silenced = await driver.spoken(StreamPlan(opened.client, patience_s=PATIENCE), 25)
        assert silenced.received == 25
        ended = await driver.closed(opened.client)
        assert ended.cause is Cause.ASKED


async def test_a_certificate_that_does_not_verify(tmp_path: Path) -> None:
    async with relay_with_hosts(tmp_path, count=1) as (relay, _), running_engine() as driver:
        trusted = str(relay.authority.ca_certificate)
        plan = ClientPlan(relay.tls, Carrier.TLS, "trader", "secret", server_name="other.test", authorities=trusted)
        ended = await driver.ended(plan)
        assert (ended.cause, ended.phase) == (Cause.VERIFY, Phase.TLS)
        assert "mismatch" in ended.words


async def test_an_upgrade_that_is_refused(tmp_path: Path) -> None:
    async with relay_with_hosts(tmp_path, count=1) as (relay, _), running_engine() as driver:
        plan = ClientPlan(relay.tls, Carrier.CONNECT_UDP, server_name="relay.test", upstream=Address("127.0.0.1", 9))
        ended = await driver.ended(plan)
        assert (ended.cause, ended.phase) == (Cause.UPGRADE, Phase.UPGRADE)
        assert str(ended.code) in ended.words


async def test_plans_that_cannot_be_carried_out() -> None:
    async with running_engine() as driver:
        with pytest.raises(PlanError, match=r"server: 'relay.test'; expected an address"):
            driver.engine.open(ClientPlan(Address("relay.test", 443), Carrier.TLS))
        with pytest.raises(PlanError, match=r"authorities: /dev/null: .*; expected a PEM file"):
            driver.engine.open(ClientPlan(ANY_PORT, Carrier.TLS, authorities="/dev/null"))
    with pytest.raises(PlanError, match="upstream"):
        ClientPlan(ANY_PORT, Carrier.CONNECT_UDP)
    with pytest.raises(PlanError, match="interval_s"):
        StreamPlan(0, interval_s=0)
