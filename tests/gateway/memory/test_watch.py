"""When memory is short: newcomers wait, new calls are refused, running ones go on; until there is enough again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.config import HealthSettings, UpstreamServer
from relay.emulator.turn.hosts import TurnHosts
from relay.gateway.memory import watch as module
from relay.gateway.memory.readings import MemoryFiles, Usage
from relay.gateway.memory.watch import MemoryWatch
from relay.gateway.routing.flows import FlowRefused, Flows, UpgradeOutcome, Wanted
from relay.gateway.routing.upstreams import Upstreams
from relay.gateway.signaling.refusals import RefusalReason
from relay.gateway.web_proxy.http import ProxyOutcome
from relay.plane.api import Carrier, CloseReason, ConnectionId, PauseCause, Upstream
from tests.support.benches.gateway import LIMITS, Relay, relay_with_hosts, running_relay, write_config
from tests.support.peers.connect import ask, connect_request, open_socket
from tests.support.peers.raw_http import receive_head, recording_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually

PLANES = pytest.mark.parametrize("plane", ["compiled", "reference"])
WATCHING = {"limits": {**LIMITS, "watch_memory": True}}
LIMIT = 1000


class Files:
    """What a machine says, as the test likes it."""

    def __init__(self) -> None:
        self.used: int | None = 0
        self.stalled: float | None = 0.0
        self.events: int | None = 0
        self.resident: int | None = 500

    def cgroup_usages(self) -> list[Usage]:
        return [] if self.used is None else [Usage("cgroup", self.used, LIMIT)]

    def stalled_percent(self) -> float | None:
        return self.stalled

    def out_of_memory_events(self) -> int | None:
        return self.events

    def resident_bytes(self) -> int | None:
        return self.resident


class Shed:
    memory_is_short = False


class Bench:
    def __init__(self) -> None:
        self.files, self.held, self.shed = Files(), list[bool](), Shed()
        self.watch = MemoryWatch(self.held.append, (self.shed,), cast("MemoryFiles", self.files))

    def look(self) -> bool:
        self.watch.look()
        assert self.shed.memory_is_short is self.watch.short
        assert self.watch.short is (self.held[-1] if self.held else False)
        return self.watch.short


async def test_it_is_short_until_there_is_enough() -> None:
    bench, found = Bench(), []
    for used in (100, 899, 900, 890, 801, 800, 799, 850, 899, 1200, 799):
        bench.files.used = used
        found.append(bench.look())
    assert found == [False, False, True, True, True, True, False, False, False, True, False]
    assert bench.held == [True, False, True, False]


async def test_stalls() -> None:
    bench, found = Bench(), []
    for stalled in (0.0, 9.99, 10.0, 5.0, 1.0, 0.99, 9.0, None):
        bench.files.stalled = stalled
        found.append(bench.look())
    assert found == [False, False, True, True, True, False, False, False]


async def test_a_control_group_that_finds_no_memory() -> None:
    bench, found = Bench(), []
    for events in (0, 1, 1, 2, None, 3, 3):
        bench.files.events = events
        found.append(bench.look())
    # After None nobody knows how many were new.
    assert found == [False, True, False, True, False, False, False]


async def test_a_limit_for_the_process() -> None:
    bench = Bench()
    bench.watch.configure(550)
    assert bench.look()
    assert bench.watch.fullest == Usage("process", 500, 550)
    bench.files.resident = None
    assert not bench.look()
    bench.files.resident = 500
    bench.watch.configure(0)
    assert not bench.look()
    assert bench.watch.fullest == Usage("cgroup", 0, LIMIT)


async def test_when_nothing_can_be_read_any_longer_memory_counts_as_enough() -> None:
    bench = Bench()
    bench.files.used = 950
    with capture_logs() as lines:
        assert bench.look()
        bench.files.used = bench.files.stalled = bench.files.events = bench.files.resident = None
        assert not bench.look()
        assert not bench.look()
    assert bench.watch.fullest is None
    assert [line["event"] for line in lines if line["log_level"] != "debug"] == [
        "memory is short: newcomers wait, and calls go on",
        "memory is not watched",
        "memory is enough again",
    ]


async def test_a_watch_that_is_turned_off() -> None:
    bench = Bench()
    bench.files.used = 950
    assert bench.look()
    bench.watch.configure(0, watches=False)
    assert not bench.look()
    bench.watch.configure(0)
    assert bench.look()


async def test_each_change_is_told_once_with_its_figures() -> None:
    bench = Bench()
    with capture_logs() as lines:
        for used in (100, 950, 951, 952, 100, 101):
            bench.files.used = used
            bench.look()
    short, enough = [line for line in lines if line["log_level"] != "debug"]
    assert (short["log_level"], short["of"], short["used_bytes"], short["limit_bytes"]) == (
        "warning",
        "cgroup",
        950,
        1000,
    )
    assert (enough["log_level"], enough["used_bytes"]) == ("info", 100)
    assert enough["seconds"] >= 0


async def test_a_mistake_of_ours_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0)
    bench = Bench()
    bench.files.used = cast("Any", "broken")
    with capture_logs() as lines:
        running = asyncio.ensure_future(bench.watch.run())
        await eventually(lambda: lines)
        bench.files.used = 950
        await eventually(lambda: bench.watch.short)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert lines[0]["event"] == "memory not read"


# A whole relay


@contextlib.asynccontextmanager
async def relay_of_a_machine(
    folder: Path, plane: str, monkeypatch: pytest.MonkeyPatch, **sections: Any
) -> AsyncIterator[tuple[Relay, TurnHosts, Files]]:
    files = Files()
    monkeypatch.setattr(module, "MemoryFiles", lambda: files)
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    async with relay_with_hosts(folder, plane, 1, **WATCHING, **sections) as (relay, hosts):
        yield relay, hosts, files


async def readyz(relay: Relay) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as http, http.get(f"http://{relay.admin}/readyz") as answer:
        return answer.status, await answer.json()


async def metrics(relay: Relay) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"http://{relay.admin}/metrics") as answer:
        return await answer.text()


@PLANES
async def test_calls_go_on_and_newcomers_wait(tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with relay_of_a_machine(tmp_path, plane, monkeypatch) as (relay, _, files):
        assert (await readyz(relay))[0] == 200
        turn = await relay.open_turn("trader", "secret")
        await turn.allocate()
        files.used = 900
        await eventually(lambda: relay.gateway.memory.short)
        assert not relay.gateway.ready
        newcomer = asyncio.ensure_future(relay.open_turn("trader", "secret"))
        await eventually(lambda: relay.gateway.pauses.counts[PauseCause.MEMORY])
        assert not newcomer.done()
        assert await readyz(relay) == (
            503,
            {"ready": False, "upstream": True, "draining": False, "memory_short": True},
        )
        text = await metrics(relay)
        assert "relay_memory_pressure 1.0" in text
        assert "relay_memory_used_bytes 900.0" in text
        assert "relay_memory_limit_bytes 1000.0" in text
        # A call that runs goes on.
        await turn.refresh()
        assert len(relay.gateway.flows) == 1
        files.used = 100
        waited = await newcomer
        await waited.allocate()
        assert (await readyz(relay))[0] == 200
        assert "relay_memory_pressure 0.0" in await metrics(relay)
        for one in (turn, waited):
            await one.close()


POLLING = "GET /socket.io/?EIO=4&transport=polling{} HTTP/1.1\r\nHost: relay.test\r\nConnection: close\r\n\r\n"
UPGRADE = (
    b"GET /turn HTTP/1.1\r\nHost: relay.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: turn\r\n\r\n"
)


@PLANES
async def test_who_is_inside_already_begins_nothing_new(
    tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recording_upstream() as upstream:
        signaling = {"upstreams": [upstream.url], "allowed_networks": ["127.0.0.1/32"]}
        async with relay_of_a_machine(tmp_path, plane, monkeypatch, signaling=signaling) as (relay, _, files):
            clients = [await TlsClient.open(relay.tls, relay.trust, "relay.test") for _ in range(4)]
            turn, websocket, newcomer, signed_in = clients
            files.used = 900
            await eventually(lambda: relay.gateway.memory.short)
            await turn.send(bytes.fromhex("000300002112a442") + bytes(12))
            await becomes(lambda: relay.gateway.plane.snapshot().closed.get(CloseReason.NO_MEMORY), 1)
            await websocket.send(UPGRADE)
            assert (await receive_head(websocket)).startswith(b"HTTP/1.1 503 ")
            assert relay.gateway.flows.tally.upgrades == {(Carrier.WEBSOCKET, UpgradeOutcome.NO_MEMORY): 1}
            await newcomer.send(POLLING.format("").encode())
            assert (await receive_head(newcomer)).startswith(b"HTTP/1.1 503 ")
            assert relay.gateway.signaling.refusals == {RefusalReason.NO_MEMORY: 1}
            # A session of socket.io that runs goes on.
            await signed_in.send(POLLING.format("&sid=a").encode())
            assert (await receive_head(signed_in)).startswith(b"HTTP/1.1 200 ")
            for client in clients:
                client.abort()


def test_a_session_that_comes_back_is_a_call_that_runs() -> None:
    upstreams, started = Upstreams(), list[Upstream]()
    upstreams.configure([UpstreamServer(name="stun1", address=Address("192.0.2.7", 3478))], HealthSettings())
    flows, target = Flows(upstreams), Upstream("stun1", Address("192.0.2.7", 3478))
    flows.memory_is_short = True

    def begin(connection: int, carrier: Carrier, target: Upstream | None) -> None:
        flows.begin(Wanted(ConnectionId(connection), "relay.test", carrier, target=target), started.append)

    for carrier, wanted in ((Carrier.TURN, None), (Carrier.SESSION, None), (Carrier.CONNECT_UDP, target)):
        with pytest.raises(FlowRefused) as refused:
            begin(1, carrier, wanted)
        assert refused.value.reason is CloseReason.NO_MEMORY
    begin(2, Carrier.SESSION, target)
    # And it may move.
    begin(2, Carrier.SESSION, target)
    assert len(started) == 2


async def test_the_web_proxy_opens_no_tunnels(tmp_path: Path) -> None:
    listen = {"web_proxy": ["127.0.0.1:0"]}
    async with running_relay(tmp_path, Address("127.0.0.1", 9), listen=listen) as relay:
        proxy, loop = relay.gateway.web_proxy.addresses[0], asyncio.get_running_loop()
        with await open_socket(proxy) as connected:
            await eventually(lambda: relay.gateway.web_proxy.totals.connections == 1)
            relay.gateway.pauses.memory_is_short = True
            await loop.sock_sendall(connected, connect_request(f"relay.test:{relay.tls.port}"))
            assert (await loop.sock_recv(connected, 1000)).startswith(b"HTTP/1.1 503 ")
        assert relay.gateway.web_proxy.totals.outcomes == {ProxyOutcome.NO_MEMORY: 1}
        waiting = asyncio.ensure_future(ask(proxy, b"GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n"))
        await eventually(lambda: relay.gateway.pauses.counts[PauseCause.MEMORY])
        assert not waiting.done()
        relay.gateway.pauses.memory_is_short = False
        assert (await waiting).status == 200


async def test_a_reload_turns_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with relay_of_a_machine(tmp_path, "compiled", monkeypatch) as (relay, _, files):
        files.used = 900
        await eventually(lambda: relay.gateway.memory.short)
        write_config(relay.config_file, {**relay.tree, "limits": {**LIMITS, "watch_memory": False}})
        relay.gateway.reload(relay.config_file)
        await eventually(lambda: not relay.gateway.memory.short)
        await (await relay.open_turn("trader", "secret")).close()
