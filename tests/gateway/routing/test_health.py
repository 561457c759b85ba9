"""The health monitor against real UDP servers; probes follow each other at once, and tests wait for their results."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.client.turn import open_turn_udp
from relay.config import MediaSettings
from relay.emulator.turn.slow import TurnHost
from relay.errors import UpstreamError
from relay.gateway.routing import health
from relay.gateway.routing.health import credentials_for
from relay.gateway.routing.upstreams import Health, UpstreamState
from relay.turn.credentials import RestCredentials, StaticCredentials, rest_password
from relay.wire.stun import MAGIC_COOKIE_BYTES, Method
from tests.support.benches.health import AT_ONCE_S, Watched, server, settings, watching
from tests.support.descriptors import no_descriptors
from tests.support.network.ports import reserved_address
from tests.support.peers.behind_turn import open_echo
from tests.support.peers.responder import Answer, open_responder, refusal, refused_allocate, script, silence, success
from tests.support.ssrf_table import PROHIBITED_LITERALS, FakeDns
from tests.support.waiting import EVENTUALLY_S

UNKNOWN, UP, DOWN = Health.UNKNOWN, Health.UP, Health.DOWN
CREDENTIALS = StaticCredentials({"probe": "secret"})


# Binding


async def test_up_with_a_round_trip_time() -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host, watching(server(host.address)) as watched:
        assert watched.only.health is UNKNOWN
        assert await watched.probes(3) == [UP, UP, UP]
        assert watched.only.rtt_s is not None
        assert watched.only.rtt_s > 0


async def test_ipv6() -> None:
    async with TurnHost(Address("::1", 0), CREDENTIALS) as host, watching(server(host.address)) as watched:
        assert await watched.probes(1) == [UP]


async def test_rise_and_fall() -> None:
    answers = script(success, silence, silence, success, silence, silence, silence, success, silence, success, success)
    expected = [UP, UP, UP, UP, UP, UP, DOWN, DOWN, DOWN, DOWN, UP]
    keys: dict[str, Any] = {"rise": 2, "fall": 3, "probe": "binding", "timeout_s": 0.3}
    with capture_logs() as lines:
        async with open_responder(answers) as address, watching(server(address), **keys) as watched:
            assert await watched.probes(11) == expected
    assert [line["event"] for line in lines] == ["upstream up", "upstream down", "upstream up"]
    assert "no answer within 0.3 s" in lines[1]["cause"]


async def test_no_descriptor_to_ask_with_says_nothing_about_the_upstream() -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host, watching(server(host.address)) as watched:
        assert await watched.probes(1) == [UP]
        with no_descriptors():
            asked = len(watched.history)
            assert set(await watched.probes(asked + 10)) == {UP}


async def test_success_without_an_address_counts() -> None:
    async with open_responder(success) as address, watching(server(address)) as watched:
        assert await watched.probes(1) == [UP]


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: b"\x01\x01\x00\x00" + MAGIC_COOKIE_BYTES + bytes(12),
        lambda request: success(request)[:19],
        lambda request: b"\x01\x03" + success(request)[2:],
        lambda request: request,
        lambda request: b"",
    ],
    ids=["wrong transaction id", "cut short", "answer to Allocate", "echo", "empty"],
)
async def test_what_is_no_answer_does_not_count(answer: Answer) -> None:
    keys: dict[str, Any] = {"timeout_s": 0.05, "fall": 2, "probe": "binding"}
    async with open_responder(answer) as address, watching(server(address), **keys) as watched:
        assert await watched.probes(2) == [UNKNOWN, DOWN]


async def test_refused_is_down_at_once() -> None:
    with reserved_address() as nobody:
        async with watching(server(nobody), fall=100) as watched:
            assert await watched.probes(1) == [DOWN]


async def test_suspicion_does_not_wait_for_the_next_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DOWN_SHARE", 3600)
    answers = script(success, silence, refusal)
    keys: dict[str, Any] = {"interval_s": 3600, "fall": 1, "timeout_s": 0.3, "probe": "binding"}
    async with open_responder(answers) as address, watching(server(address), **keys) as watched:
        assert await watched.probes(1) == [UP]
        watched.monitor.suspect(watched.only)
        assert await watched.probes(2) == [UP, DOWN]
        # One suspicion is one probe: a runaway would be ahead of these round trips.
        async with await open_turn_udp(address) as other:
            for _ in range(20):
                with contextlib.suppress(UpstreamError):
                    await other.binding()
        assert len(watched.history) == 2


async def test_one_that_is_down_does_not_wait_for_the_next_round() -> None:
    """It is back within a second of its return, whatever the interval."""
    answers = script(silence, success)
    keys: dict[str, Any] = {"interval_s": 3600, "fall": 1, "timeout_s": 0.3, "probe": "binding"}
    async with (
        asyncio.timeout(EVENTUALLY_S),
        open_responder(answers) as address,
        watching(server(address), **keys) as watched,
    ):
        assert await watched.probes(3) == [DOWN, DOWN, UP]


async def test_suspicion_of_an_upstream_that_is_watched_no_more() -> None:
    stranger = UpstreamState(server(Address("127.0.0.1", 9)), settings())
    async with open_responder(success) as address, watching(server(address)) as watched:
        watched.monitor.suspect(stranger)
        assert await watched.probes(2) == [UP, UP]


async def test_each_upstream_is_judged_alone() -> None:
    with reserved_address() as nobody:
        async with open_responder(success) as good:
            servers = [server(good, "good"), server(nobody, "bad")]
            async with watching(*servers) as watched:
                await watched.until(lambda: {("good", UP), ("bad", DOWN)} <= set(watched.history))
                assert [state.health for state in watched.upstreams] == [UP, DOWN]


async def test_probe_comes_from_the_configured_source() -> None:
    senders: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as opened:
        opened.bind(("127.0.0.1", 0))
        loop, heard = asyncio.get_running_loop(), asyncio.Event()

        def on_readable() -> None:
            senders.append(opened.recvfrom(1500)[1][0])
            heard.set()

        loop.add_reader(opened.fileno(), on_readable)
        media = MediaSettings(source_addresses=("127.0.0.9",))
        async with watching(server(Address(*opened.getsockname())), media=media):
            await heard.wait()
        loop.remove_reader(opened.fileno())
    assert senders == ["127.0.0.9"]


# Allocate


def test_credentials_for_an_upstream() -> None:
    address = Address("192.0.2.7", 3478)
    assert credentials_for(server(address), "", 1000.0) == ("", "")
    assert credentials_for(server(address, username="probe", password="pw"), "", 1000.0) == ("probe", "pw")
    name = "87400:relay-health"
    assert credentials_for(server(address, secret="s"), "", 1000.5) == (name, rest_password("s", name))
    assert credentials_for(server(address, secret="s"), "9:alice", 1000.0) == ("9:alice", rest_password("s", "9:alice"))


@pytest.mark.parametrize("keys", [{"username": "probe", "password": "secret"}, {"secret": "shared"}])
async def test_allocate_probe_leaves_nothing_behind(keys: dict[str, str]) -> None:
    credentials = RestCredentials("shared") if "secret" in keys else CREDENTIALS
    async with (
        TurnHost(Address("127.0.0.1", 0), credentials) as host,
        watching(server(host.address, **keys)) as watched,
    ):
        assert await watched.probes(1) == [UP]
        assert watched.only.allocate is not None
        assert watched.only.allocate.health is UP
        assert host.allocations == 0


@pytest.mark.parametrize("keys", [{"username": "probe", "password": "wrong"}, {"secret": "wrong"}])
async def test_wrong_credentials_are_down_within_the_rounds_of_fall(keys: dict[str, str]) -> None:
    credentials = RestCredentials("shared") if "secret" in keys else CREDENTIALS
    async with (
        TurnHost(Address("127.0.0.1", 0), credentials) as host,
        # The next Allocate would be far away if the first had succeeded.
        watching(server(host.address, **keys), allocate_interval_s=3600, fall=3) as watched,
    ):
        assert await watched.probes(3) == [UP, UP, DOWN]
        assert watched.only.life.health is UP


async def test_allocate_is_not_repeated_in_each_round() -> None:
    methods: list[int] = []

    def answer(request: bytes) -> bytes:
        methods.append(request[1])
        return refused_allocate(request) if request[1] == Method.ALLOCATE else success(request)

    keys = {"username": "probe", "password": "secret"}
    async with (
        open_responder(answer) as address,
        watching(server(address, **keys), allocate_interval_s=3600, fall=1) as watched,
    ):
        assert await watched.probes(4) == [DOWN, DOWN, DOWN, DOWN]
    assert methods.count(Method.ALLOCATE) == 1
    assert methods.count(Method.BINDING) >= 4


# Names


async def test_name_of_a_private_address_is_refused_unless_allowed() -> None:
    async with open_responder(success) as address:
        named = server(Address("localhost", address.port))
        with capture_logs() as lines:
            async with watching(named) as watched:
                assert await watched.probes(2) == [DOWN, DOWN]
                assert watched.only.address is None
        assert lines[0]["event"] == "upstream address refused"
        assert "127.0.0.1" in lines[0]["addresses"]

        media = MediaSettings.model_validate({"allowed_networks": ["127.0.0.0/8"]})
        async with watching(named, media=media) as watched:
            assert await watched.probes(2) == [UP, UP]
            assert watched.only.address == address


async def test_name_that_moves_to_a_private_address_is_given_up() -> None:
    async with open_responder(success) as address:
        watched = Watched(server(Address("localhost", address.port)))
        watched.only.address = address
        watched.monitor.configure(settings(), MediaSettings())
        assert await watched.probes(1) == [DOWN]
        await watched.monitor.stop()
    assert watched.only.address is None


@pytest.mark.parametrize("answer", PROHIBITED_LITERALS.values(), ids=PROHIBITED_LITERALS)
async def test_name_of_what_is_never_relayed_to(answer: str) -> None:
    watched = Watched(server(Address("stun.test", 3478)), lookup=FakeDns({"stun.test": [[answer]]}))
    watched.monitor.configure(settings(), MediaSettings())
    assert await watched.probes(1) == [DOWN]
    await watched.monitor.stop()
    assert watched.only.address is None


async def test_name_whose_answer_changes_is_judged_again() -> None:
    # Permitted, then not; what was permitted is not kept for a name that now says otherwise.
    async with open_responder(success) as address:
        dns = FakeDns({"stun.test": [[address.host], ["127.9.9.9", address.host]]})
        watched = Watched(server(Address("stun.test", address.port)), lookup=dns)
        media = MediaSettings.model_validate({"allowed_networks": ["127.0.0.1/32"]})
        watched.monitor.configure(settings(resolve_interval_s=AT_ONCE_S), media)
        await watched.until(lambda: len(dns.asked) > 2)
        assert set(watched.history) == {("stun1", UP)}
        dns.answer("stun.test", "10.0.0.1")
        await watched.until(lambda: ("stun1", DOWN) in watched.history)
        await watched.monitor.stop()
    assert watched.only.address is None


async def test_address_is_kept_when_a_name_is_not_found_again() -> None:
    # A label of 64 characters cannot even be asked for.
    named = server(Address("a" * 64 + ".test", 3478))
    async with open_responder(success) as address:
        watched = Watched(named)
        watched.only.address = address
        with capture_logs() as lines:
            watched.monitor.configure(settings(), MediaSettings())
            assert await watched.probes(2) == [UP, UP]
            await watched.monitor.stop()
    assert [line["event"] for line in lines] == ["upstream name not resolved", "upstream up"]
    assert watched.only.address == address


async def test_name_that_was_not_found_is_asked_for_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "RESOLVE_AGAIN_S", 0.0)
    with capture_logs() as lines:
        async with watching(server(Address("a" * 64 + ".test", 3478)), resolve_interval_s=86_400) as watched:
            assert await watched.probes(3) == [DOWN, DOWN, DOWN]
    assert [line["event"] for line in lines[:3]] == ["upstream name not resolved"] * 3


# Life


async def test_new_settings_are_watched_from_now_on() -> None:
    async with (
        open_responder(success) as first,
        open_responder(success) as second,
        watching(server(first, "first")) as watched,
    ):
        await watched.probes(1)
        watched.upstreams.configure([server(second, "second")], settings())
        watched.monitor.configure(settings(), MediaSettings())
        watched.history.clear()
        await watched.probes(3)
        assert watched.history == [("second", UP)] * len(watched.history)


async def test_stop_in_the_middle_of_a_probe() -> None:
    # An echo never answers: the probe is under way when the monitor stops, and conftest finds what it leaves.
    async with open_echo() as silent, watching(server(silent, username="probe", password="secret")) as watched:
        watched.monitor.suspect(watched.only)
        await asyncio.sleep(0)
    assert watched.history == []
