"""What proves that an upstream lives, what says nothing of it, and the addresses of a name that are tried."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.addresses import Address, RelayPolicy
from relay.client.turn import open_turn_udp
from relay.config import MediaSettings
from relay.demo.wan.netns import Namespace
from relay.demo.wan.netns import refusal as netns_refusal
from relay.emulator.turn.slow import TurnHost
from relay.errors import UpstreamError
from relay.gateway.routing import health
from relay.gateway.routing.lookups import Lookup
from relay.gateway.routing.probe import Asker, ProbeVerdict
from relay.gateway.routing.upstreams import Health
from relay.plane.uplink import Uplink
from relay.turn.credentials import StaticCredentials
from relay.wire.stun import Method
from tests.support.benches.health import AT_ONCE_S, Watched, server, settings, watching
from tests.support.benches.turn import PASSWORDS, AnsweringServer, is_no_allocate_success
from tests.support.network.ports import reserved_address
from tests.support.peers.coturn import open_coturn
from tests.support.peers.responder import Answer, open_responder, refusal, silence, success
from tests.support.ssrf_table import FakeDns
from tests.support.waiting import becomes

UNKNOWN, UP, DOWN = Health.UNKNOWN, Health.UP, Health.DOWN
CREDENTIALS = StaticCredentials({"probe": "secret"})
LOOPBACK = MediaSettings.model_validate({"allowed_networks": ["127.0.0.0/8"]})
# Where answers come from loopback within a millisecond, or not at all.
SOON_S = 0.2


def challenge(request: bytes) -> bytes:
    """401 Unauthorized, with whatever method it was asked, and neither REALM nor NONCE."""
    return bytes((request[0] | 1, request[1] | 0x10)) + b"\x00\x08" + request[4:20] + bytes.fromhex("00090004 00000401")


def without_code(request: bytes) -> bytes:
    """An error without ERROR-CODE."""
    return bytes((request[0] | 1, request[1] | 0x10)) + b"\x00\x00" + request[4:20]


class Server:
    """Answers each method as it is told, and remembers what it was asked."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, request: bytes) -> bytes | None:
        method = Method(request[1]).name.lower()
        self.asked.append(method)
        return self.answers.get(method, silence)(request)


# What proves life


@pytest.mark.parametrize("probe", ["auto", "binding"])
@pytest.mark.parametrize("answer", [success, refusal, challenge, without_code])
async def test_any_answer_to_a_binding(answer: Answer, probe: str) -> None:
    asked = Server(binding=answer)
    async with open_responder(asked) as address, watching(server(address), probe=probe) as watched:
        assert await watched.probes(3) == [UP] * 3
        assert watched.only.rtt_s is not None
    assert set(asked.asked) == {"binding"}


@pytest.mark.parametrize(
    ("probe", "expected"), [("auto", [UP, UP]), ("allocate", [UP, UP]), ("binding", [UNKNOWN, DOWN])]
)
async def test_a_server_that_leaves_a_binding_unanswered(probe: str, expected: list[Health]) -> None:
    asked = Server(allocate=challenge)
    keys: dict[str, Any] = {"probe": probe, "timeout_s": SOON_S, "fall": 2}
    async with open_responder(asked) as address, watching(server(address), **keys) as watched:
        assert await watched.probes(2) == expected
    assert ("binding" in asked.asked) is (probe != "allocate")
    assert ("allocate" in asked.asked) is (probe != "binding")


@pytest.mark.parametrize(("probe", "expected"), [("auto", [UP, UP]), ("allocate", [UNKNOWN, DOWN])])
async def test_a_server_that_leaves_an_allocate_unanswered(probe: str, expected: list[Health]) -> None:
    keys: dict[str, Any] = {"probe": probe, "timeout_s": SOON_S, "fall": 2}
    async with open_responder(Server(binding=success)) as address, watching(server(address), **keys) as watched:
        assert await watched.probes(2) == expected


async def test_what_is_answered_is_asked_first_from_then_on() -> None:
    asked = Server(allocate=challenge)
    async with open_responder(asked) as address, watching(server(address), timeout_s=SOON_S) as watched:
        await watched.probes(1)
        asked.asked.clear()
        await watched.probes(4)
        assert set(asked.asked) == {"allocate"}
        # And back, within one probe.
        asked.answers = {"binding": success}
        seen = len(watched.history)
        assert set(await watched.probes(seen + 5)) == {UP}
        assert asked.asked[-1] == "binding"


async def test_nothing_is_asked() -> None:
    asked = Server(binding=success)
    async with open_responder(asked) as address, open_responder(asked) as other:
        servers = [server(address, "a"), server(other, "b", probe="auto")]
        async with watching(*servers, probe="none") as watched:
            await watched.until(lambda: watched.history.count(("b", UP)) > 2)
            assert [state.health for state in watched.upstreams] == [UP, UP]
            watched.monitor.suspect(next(iter(watched.upstreams)))
            await watched.until(lambda: watched.history.count(("b", UP)) > 4)
        assert watched.history.count(("a", UP)) == 1


async def test_an_upstream_may_be_asked_otherwise() -> None:
    asked = Server(binding=success, allocate=challenge)
    async with open_responder(asked) as address, watching(server(address, probe="allocate")) as watched:
        assert await watched.probes(2) == [UP, UP]
    assert set(asked.asked) == {"allocate"}


@pytest.mark.parametrize("code", [437, 440, 486])
async def test_refusals_of_a_server_that_works(code: int) -> None:
    """A source port of before, a family that it does not relay, the quota of this one user."""

    def answer(request: bytes) -> bytes:
        number = bytes((code // 100, code % 100))
        return b"\x01\x13\x00\x08" + request[4:20] + bytes.fromhex("00090004 0000") + number

    asked = Server(binding=success, allocate=answer)
    keys = {"username": "probe", "password": "secret"}
    async with open_responder(asked) as address, watching(server(address, **keys), fall=1) as watched:
        assert await watched.probes(2) == [UP, UP]
        assert watched.only.allocate is not None
        assert watched.only.allocate.health is UP


COTURN = [(), ("no-stun",), ("secure-stun",)]


@pytest.mark.parametrize("options", COTURN, ids=lambda options: " ".join(options) or "as it is")
@pytest.mark.parametrize("known", [False, True], ids=["no credentials", "credentials"])
async def test_coturn(options: Sequence[str], known: bool) -> None:
    async with open_coturn(options=options) as coturn:
        keys = {"username": coturn.username, "password": coturn.password} if known else {}
        async with watching(server(coturn.address, **keys), timeout_s=2.0, fall=1) as watched:
            assert await watched.probes(3) == [UP] * 3
            if known:
                assert watched.only.allocate is not None
                assert watched.only.allocate.health is UP


@pytest.mark.parametrize(("options", "expected"), [(("no-stun",), DOWN), (("secure-stun",), UP)])
async def test_coturn_that_is_asked_with_a_binding_only(options: Sequence[str], expected: Health) -> None:
    async with open_coturn(options=options) as coturn:
        keys: dict[str, Any] = {"probe": "binding", "timeout_s": SOON_S if expected is DOWN else 2.0, "fall": 1}
        async with watching(server(coturn.address), **keys) as watched:
            assert await watched.probes(1) == [expected]


# What says nothing of the upstream


async def test_a_burst_of_suspicions_is_one_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of flows may suspect an upstream within milliseconds: a row of failures takes its time."""
    monkeypatch.setattr(health, "SUSPECT_SHARE", 3600)
    async with open_responder(success) as address, watching(server(address), interval_s=3600) as watched:
        assert await watched.probes(1) == [UP]
        async with await open_turn_udp(address) as other:
            for _ in range(50):
                watched.monitor.suspect(watched.only)
                await other.binding()
        assert len(watched.history) == 1


async def test_a_source_that_is_missing_says_nothing_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_responder(success) as address, watching(server(address), fall=1) as watched:
        assert await watched.probes(1) == [UP]
        watched.monitor.configure(settings(fall=1), MediaSettings(source_addresses=("192.0.2.77",)))
        seen = len(watched.history)
        assert set(await watched.probes(seen + 10)) == {UP}
        # Where nobody can be reached for long, it is better to say so.
        monkeypatch.setattr(health, "OURS_S", 0.0)
        with capture_logs() as lines:
            await watched.until(lambda: ("stun1", DOWN) in watched.history)
    assert "assign requested address" in lines[0]["cause"]


@pytest.mark.skipif(netns_refusal() is not None or shutil.which("ip") is None, reason=netns_refusal() or "no ip")
async def test_a_route_that_is_gone_for_a_moment_says_nothing() -> None:
    def route(change: str) -> None:
        subprocess.run(["ip", "addr", change, "198.18.0.1/30", "dev", "tun0"], check=True)

    async def inside() -> None:
        async with (
            open_responder(success, "198.18.0.1") as address,
            watching(server(address), fall=1) as watched,
        ):
            assert await watched.probes(1) == [UP]
            route("del")
            with pytest.raises(UpstreamError, match="unreachable"):
                await open_turn_udp(address)
            seen = len(watched.history)
            assert set(await watched.probes(seen + 10)) == {UP}
            route("add")
            seen = len(watched.history)
            assert set(await watched.probes(seen + 3)) == {UP}

    with Namespace() as namespace:
        device = namespace.open_tun("tun0", "198.18.0.1", "255.255.255.252")
        try:
            await namespace.run(inside)
        finally:
            os.close(device)


async def test_what_our_own_kernel_does_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet filter of ours: send says EPERM."""
    keys: dict[str, Any] = {"fall": 1, "timeout_s": 0.05}
    async with open_responder(success) as address, watching(server(address), **keys) as watched:
        assert await watched.probes(1) == [UP]
        with monkeypatch.context() as patched:
            patched.setattr(Uplink, "_try", lambda *_: errno.EPERM)
            seen = len(watched.history)
            assert set(await watched.probes(seen + 10)) == {UP}


@contextlib.contextmanager
def answering_thread() -> Iterator[tuple[Address, threading.Event]]:
    """A server that goes on while the test's loop stands still, and what is set once it has answered."""
    answered = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))

        def serve() -> None:
            request, sender = opened.recvfrom(1500)
            opened.sendto(success(request), sender)
            answered.set()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Address(*opened.getsockname()), answered
        finally:
            thread.join()


async def test_an_answer_that_came_while_our_own_loop_stood_still_counts() -> None:
    with answering_thread() as (address, answered):
        asker = Asker(0.05, None, None, RelayPolicy())
        asking = asyncio.ensure_future(asker.ask_life(address, (Method.BINDING,)))
        while not answered.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        # Once more, so that the deadline has certainly passed.
        time.sleep(0.1)  # noqa: ASYNC251
        assert (await asking).verdict is ProbeVerdict.GOOD


async def test_an_allocation_that_is_granted_too_late_is_released() -> None:
    """Otherwise each probe of a busy upstream would leave it an allocation for ten minutes."""
    upstream = AnsweringServer(is_no_allocate_success)
    async with open_responder(upstream) as address:
        asker = Asker(SOON_S, None, None, RelayPolicy())
        while not upstream.granted:
            found = await asker.ask_service(address, "ann", PASSWORDS["ann"])
            assert found.verdict is ProbeVerdict.BAD
        await becomes(lambda: upstream.allocations, 0)


async def test_a_watch_survives_whatever_happens_in_it() -> None:
    async with open_responder(success) as address:
        watched = Watched(server(address))
        told = watched.monitor._on_probe
        failures = iter([RuntimeError("a mistake of ours")])

        def on_probe(state: Any) -> None:
            if (failure := next(failures, None)) is not None:
                raise failure
            told(state)

        watched.monitor._on_probe = on_probe
        with capture_logs() as lines:
            watched.monitor.configure(settings(), MediaSettings())
            assert await watched.probes(2) == [UP, UP]
            await watched.monitor.stop()
    assert [line["event"] for line in lines] == ["upstream up", "probe failed"]


# The addresses of a name


@contextlib.asynccontextmanager
async def named(dns: Lookup, port: int, **keys: Any) -> AsyncIterator[Watched]:
    watched = Watched(server(Address("stun.test", port)), lookup=dns)
    keys = {"timeout_s": SOON_S, **keys}
    watched.upstreams.configure([server(Address("stun.test", port))], settings(**keys))
    watched.monitor.configure(settings(**keys), LOOPBACK)
    try:
        yield watched
    finally:
        await watched.monitor.stop()


@contextlib.contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """It takes everything, and answers nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind((host, port))
        yield


@pytest.mark.parametrize("dead", ["silent", "refusing"])
async def test_the_first_address_of_a_name_is_dead(dead: str) -> None:
    async with open_responder(success) as address:
        dns = FakeDns({"stun.test": [["127.0.0.2", "127.0.0.3", "127.0.0.1"]]})
        with contextlib.ExitStack() as stack:
            if dead == "silent":
                stack.enter_context(silent("127.0.0.2", address.port))
            with capture_logs() as lines:
                async with named(dns, address.port, fall=100) as watched:
                    assert await watched.probes(2) == [UP, UP]
                    assert watched.only.address == address
                    assert watched.only.is_down(Address("127.0.0.2", address.port))
    assert [line["event"] for line in lines] == ["upstream address left", "upstream up"]


async def test_an_address_that_dies_is_left_for_one_that_lives() -> None:
    alive = [True]

    def first(request: bytes) -> bytes | None:
        return success(request) if alive[0] else None

    async with open_responder(first) as address, open_responder(success, "127.0.0.2", address.port) as other:
        async with named(FakeDns({"stun.test": [[address.host, other.host]]}), address.port, fall=2) as watched:
            await watched.probes(1)
            assert watched.only.address == address
            alive[0] = False
            await watched.until(lambda: watched.only.address == other)
            assert {known for _, known in watched.history} == {UP}
            # The one that was left lives again, and now the other dies: back.
            alive[0] = True
            assert watched.only.is_down(address)
        assert watched.only.others() == [address]


async def test_an_address_that_does_not_allocate_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers, but it does not serve: the other one does."""
    monkeypatch.setattr(health, "RESOLVE_AGAIN_S", 0.0)
    async with TurnHost(Address("127.0.0.2", 0), CREDENTIALS) as host:
        full = Server(binding=success, allocate=refusal_of_allocate)
        async with open_responder(full, "127.0.0.1", host.address.port):
            keys = {"username": "probe", "password": "secret"}
            given = server(Address("stun.test", host.address.port), **keys)
            watched = Watched(given, lookup=FakeDns({"stun.test": [["127.0.0.1", "127.0.0.2"]]}))
            watched.upstreams.configure([given], settings(fall=1))
            watched.monitor.configure(settings(fall=1), LOOPBACK)
            await watched.until(lambda: watched.only.address == host.address)
            assert watched.only.health is UP
            await watched.monitor.stop()
        assert host.allocations == 0


def refusal_of_allocate(request: bytes) -> bytes:
    """508 Insufficient Capacity."""
    return b"\x01\x13\x00\x08" + request[4:20] + bytes.fromhex("00090004 00000508")


async def test_no_address_lives() -> None:
    dns = FakeDns({"stun.test": [["127.0.0.1", "127.0.0.2"]]})
    with reserved_address() as nobody:
        async with named(dns, nobody.port) as watched:
            assert await watched.probes(3) == [DOWN] * 3


async def test_a_name_that_moves_is_judged_anew() -> None:
    async with open_responder(success) as address, open_responder(success, "127.0.0.2", address.port) as other:
        dns = FakeDns({"stun.test": [[address.host]]})
        with capture_logs() as lines:
            async with named(dns, address.port, resolve_interval_s=AT_ONCE_S) as watched:
                await watched.probes(1)
                dns.answer("stun.test", other.host)
                await watched.until(lambda: watched.only.address == other)
                seen = len(watched.history)
                assert set(await watched.probes(seen + 3)) == {UP}
    assert [line["event"] for line in lines] == ["upstream up", "upstream moved"]


async def test_a_name_is_looked_up_again_when_its_address_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before its time: the server may have moved."""
    monkeypatch.setattr(health, "RESOLVE_AGAIN_S", 0.0)
    async with open_responder(success, "127.0.0.2") as moved:
        dns = FakeDns({"stun.test": [["127.0.0.1"], [moved.host]]})
        async with named(dns, moved.port, resolve_interval_s=86_400) as watched:
            await watched.until(lambda: watched.only.address == moved and watched.only.health is UP)


async def test_a_suspected_upstream_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "RESOLVE_AGAIN_S", 0.0)
    async with open_responder(success) as address, open_responder(success, "127.0.0.2", address.port) as other:
        dns = FakeDns({"stun.test": [[address.host], [other.host]]})
        async with named(dns, address.port, resolve_interval_s=86_400, interval_s=3600) as watched:
            await watched.probes(1)
            watched.monitor.suspect(watched.only)
            await watched.until(lambda: watched.only.address == other)


async def test_a_resolver_that_hangs_delays_no_probe() -> None:
    """The resolver is gone, and then the upstream falls silent: it is down after as many probes as ever."""
    alive, asked = [True], asyncio.Event()

    async def lookup(_: str) -> list[str]:
        if asked.is_set():
            await asyncio.Event().wait()
        asked.set()
        return ["127.0.0.1"]

    def answer(request: bytes) -> bytes | None:
        return success(request) if alive[0] else None

    async with (
        open_responder(answer) as address,
        named(lookup, address.port, resolve_interval_s=AT_ONCE_S, fall=3) as watched,
    ):
        await watched.probes(5)
        alive[0] = False
        seen = len(watched.history)
        await watched.until(lambda: watched.only.health is DOWN)
        # One of them may have been under way.
        assert len(watched.history) - seen <= 4
