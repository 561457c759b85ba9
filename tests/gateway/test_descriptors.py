"""File descriptors: raised to what the limits need, and some kept for operators while clients hold all the others."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from relay import config
from relay.addresses import Address
from relay.config import Config
from relay.demo.authority import Authority
from relay.emulator.turn.slow import TurnHost
from relay.gateway import accepting, descriptors
from relay.gateway.signaling.refusals import RefusalReason
from relay.gateway.web_proxy.http import ProxyOutcome
from relay.plane.api import PauseCause
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import running_relay, settings_tree
from tests.support.benches.serving import Served, serving
from tests.support.descriptors import no_descriptors
from tests.support.peers.connect import Listener, ask, connect_request, open_socket, parse, receive_all
from tests.support.peers.raw_http import ask as ask_site
from tests.support.peers.raw_http import recording_upstream
from tests.support.ssrf_table import FakeDns
from tests.support.waiting import eventually

NO_UPSTREAM = Address("127.0.0.1", 9)
FAR_OFF_S = 3600
PAC = b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n"


def settings(folder: Path, **sections: Any) -> Config:
    return config.parse(settings_tree(Authority(folder), NO_UPSTREAM, **sections), folder=folder, source="test")


@contextlib.contextmanager
def soft_limit(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# What the limits need


def test_limits_are_counted_in_descriptors(tmp_path: Path) -> None:
    own = descriptors.OF_THE_PROCESS + descriptors.RESERVED
    assert descriptors.needed(settings(tmp_path, limits={"connections": 1000})) == 4000 + own
    web_proxy: dict[str, Any] = {"listen": {"web_proxy": ["127.0.0.1:0"]}, "limits": {"connections": 1000}}
    assert descriptors.needed(settings(tmp_path, web_proxy={"connections": 10}, **web_proxy)) == 4020 + own
    # Without a limit nobody knows.
    assert descriptors.needed(settings(tmp_path, limits={"connections": 0})) is None
    assert descriptors.needed(settings(tmp_path, web_proxy={"connections": 0}, **web_proxy)) is None


def test_defaults_fit_into_what_the_unit_file_allows(tmp_path: Path) -> None:
    unit = (Path(__file__).parents[2] / "deploy" / "relay.service").read_text()
    [allowed] = [int(line.partition("=")[2]) for line in unit.splitlines() if line.startswith("LimitNOFILE=")]
    wanted = descriptors.needed(settings(tmp_path, listen={"web_proxy": ["127.0.0.1:0"]}))
    assert wanted is not None
    assert wanted <= allowed


def test_the_soft_limit_is_raised(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with soft_limit(400), capture_logs() as logged:
        few = settings(tmp_path, limits={"connections": 200})
        descriptors.raise_limit(few)
        assert descriptors.limit() == 800 + descriptors.OF_THE_PROCESS + descriptors.RESERVED
        # It is never lowered.
        descriptors.raise_limit(settings(tmp_path, limits={"connections": 1}))
        assert descriptors.limit() == 800 + descriptors.OF_THE_PROCESS + descriptors.RESERVED
        descriptors.tell(few)
        assert (descriptors.find(few), logged) == ([], [])
        descriptors.raise_limit(settings(tmp_path, limits={"connections": 0}))
        assert descriptors.limit() == hard


def test_a_hard_limit_that_is_too_low_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    wanted = settings(tmp_path, limits={"connections": 20_000})
    with capture_logs() as logged:
        descriptors.raise_limit(wanted)
        descriptors.tell(wanted)
    assert raised == [(4096, 4096)]
    [line] = logged
    assert (line["log_level"], line["event"]) == ("warning", "too few file descriptors")
    assert line["cause"].startswith("limits: at most 80128 file descriptors are needed, and this process may have 4096")


def test_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert descriptors.has_room()
    with no_descriptors():
        assert not descriptors.has_room()
    for limit, bound in ((100, 75), (256, 192), (1024, 960), (20_000, 19_936)):
        monkeypatch.setattr(descriptors, "limit", lambda limit=limit: limit)
        assert descriptors.bound() == bound
    monkeypatch.setattr(descriptors, "bound", lambda: 0)
    assert not descriptors.has_room()


# Nobody takes those that are kept


async def test_who_comes_to_a_listener_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "ACCEPT_PAUSE_S", 0.001)
    answers = itertools.chain([False] * 3, itertools.repeat(True))
    async with running_relay(tmp_path, NO_UPSTREAM, listen={"web_proxy": ["127.0.0.1:0"]}) as relay:
        with capture_logs() as logged, monkeypatch.context() as patched:
            patched.setattr(descriptors, "has_room", lambda: next(answers))
            assert (await ask(relay.gateway.web_proxy.addresses[0], PAC)).status == 200
    assert relay.gateway.pauses.counts == {PauseCause.DESCRIPTORS: 3}
    [line] = [one for one in logged if one["event"] == "clients wait to be accepted"]
    assert (line["log_level"], line["listener"], line["cause"]) == ("warning", "web proxy", "descriptors")
    assert line["detail"] == "too many open files"


async def test_who_waits_for_room_is_let_go_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, listen={"web_proxy": ["127.0.0.1:0"]}) as relay:
        monkeypatch.setattr(descriptors, "has_room", lambda: False)
        with await open_socket(relay.gateway.web_proxy.addresses[0]) as waiting:
            await eventually(lambda: relay.gateway.pauses.counts)
            await relay.gateway.drain()
            # It is in the queue of a listener that closes, which is a reset.
            with contextlib.suppress(ConnectionError):
                assert await receive_all(waiting) == b""


async def test_no_tunnel_takes_those_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Listener() as server:
        target = f"server.test:{server.address.port}"
        rules = {"allow": [target], "allowed_networks": ["127.0.0.1/32"]}
        listen, dns = {"web_proxy": ["127.0.0.1:0"]}, FakeDns({"server.test": [["127.0.0.1"]]})
        async with running_relay(tmp_path, NO_UPSTREAM, listen=listen, web_proxy=rules, lookup=dns) as relay:
            proxy = relay.gateway.web_proxy.addresses[0]
            with await open_socket(proxy) as client:
                await eventually(lambda: relay.gateway.web_proxy.totals.connections == 1)
                monkeypatch.setattr(descriptors, "has_room", lambda: False)
                await asyncio.get_running_loop().sock_sendall(client, connect_request(target))
                assert parse(await receive_all(client)).status == 503
            assert relay.gateway.web_proxy.totals.outcomes == {ProxyOutcome.TOO_MANY_CONNECTIONS: 1}


async def test_no_signaling_takes_those_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = b"GET / HTTP/1.1\r\nHost: relay.test\r\nConnection: close\r\n\r\n"
    async with (
        recording_upstream() as upstream,
        running_relay(
            tmp_path,
            NO_UPSTREAM,
            signaling={"upstreams": [upstream.url], "allowed_networks": ["127.0.0.1/32"], "health_interval_s": 3600.0},
        ) as relay,
    ):
        with monkeypatch.context() as patched:
            patched.setattr(descriptors, "has_room", lambda: False)
            answer = await ask_site(relay, request)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert answer.endswith(b"503: the relay has no file descriptor left for this request\n")
        assert relay.gateway.signaling.refusals == {RefusalReason.NO_DESCRIPTORS: 1}
        # The upstream is not to blame.
        assert (await ask_site(relay, request)).startswith(b"HTTP/1.1 200 ")


# A whole relay


async def admin(relay: Served, path: str) -> str:
    """The answer of the admin listener, on a connection of its own."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{relay.admin}{path}") as answer:
        assert answer.status == 200
        return await answer.text()


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_operators_are_answered_while_clients_hold_all_the_others(tmp_path: Path, plane: str) -> None:
    """Probes must not end a relay that carries calls: it is full, and it lives."""
    listen = {"plane": plane, "workers": 1, "web_proxy": ["127.0.0.1:0"]}
    limits = {"handshake_timeout_s": FAR_OFF_S, "first_bytes_timeout_s": FAR_OFF_S}
    async with (
        TurnHost(Address("127.0.0.1", 0), StaticCredentials({"trader": "secret"})) as host,
        serving(tmp_path, host.address, descriptors=256, listen=listen, limits=limits) as relay,
    ):
        turn = await relay.open_turn()
        with contextlib.ExitStack() as crowd:
            for server in (relay.tls, relay.web_proxies[0]):
                for _ in range(150):
                    one = crowd.enter_context(socket.socket())
                    one.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(one, server)
            told = await relay.logged("clients wait to be accepted")
            assert (told["level"], told["cause"], told["detail"]) == ("warning", "descriptors", "too many open files")
            assert (told["limit"], told["kept_for_operators"]) == ("256", "64")
            for _ in range(3):
                assert await admin(relay, "/healthz") == "ok\n"
                await turn.refresh()
            metrics = await admin(relay, "/metrics")
            assert 'relay_accept_pauses_total{cause="descriptors"} 0.0' not in metrics
            assert "relay_descriptors_for_clients 192.0" in metrics
        # Once they are gone, others get in.
        await (await relay.open_turn()).close()
        await turn.close()
    [few] = [line for line in relay.log if line["event"] == "too few file descriptors"]
    assert few["level"] == "warning"
