"""The gateway as a whole: it starts whole or not at all, routes, drains, reloads, and lets go of a dead upstream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from relay import config
from relay.addresses import Address
from relay.client.turn import TurnConnection
from relay.config import LimitsSettings
from relay.demo.authority import Authority
from relay.emulator.turn.slow import TurnHost
from relay.errors import OperatorError, UpstreamError
from relay.gateway import app
from relay.gateway.app import UNSERVED_KEPT_PER_S, UNSERVED_RECORDS_PER_S, Gateway
from relay.gateway.calls.database import Search
from relay.gateway.plane_bounds import plane_settings
from relay.gateway.routing.upstreams import Health
from relay.plane.api import CloseReason, ConnectionId, TextReceived
from relay.plane.settings import PlaneSettings
from relay.quality.stream import Direction
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay, settings_tree, write_config
from tests.support.benches.made_up import MadeUpCall
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually

CREDENTIALS = StaticCredentials({"trader": "secret"})
NO_UPSTREAM = Address("127.0.0.1", 9)
QUICK = {"interval_s": 0.01, "jitter": 0}
PATIENT = {"interval_s": 3600, "jitter": 0}


def open_host(host: str = "127.0.0.1") -> TurnHost:
    return TurnHost(Address(host, 0), CREDENTIALS, allow_loopback_peers=True)


@dataclass
class Call:
    """A running flow, and a peer that sends everything back."""

    turn: TurnConnection
    inbox: Inbox
    peer: Address

    async def is_heard(self) -> bool:
        self.turn.send(self.peer, bytes(182))
        return await self.inbox.get() == (self.peer, bytes(182))


@contextlib.asynccontextmanager
async def calling(relay: Relay, server_name: str = "relay.test") -> AsyncIterator[Call]:
    inbox = Inbox()
    turn = await relay.open_turn("trader", "secret", server_name=server_name, on_data=inbox.put)
    async with open_echo() as peer, turn:
        await turn.allocate()
        await turn.bind_channel(peer)
        yield Call(turn, inbox, peer)


def closed(relay: Relay, reason: CloseReason) -> int:
    return relay.gateway.plane.snapshot().closed.get(reason, 0)


def health(relay: Relay, name: str = "stun1") -> Health | None:
    state = relay.gateway.upstreams.get(name)
    return None if state is None else state.health


def listens(address: Address) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(address):
        return True
    return False


async def readyz(relay: Relay) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://{relay.admin}/readyz") as response:
        return response.status


def gateway_of(folder: Path, **sections: Any) -> Gateway:
    tree = settings_tree(Authority(folder), NO_UPSTREAM, **sections)
    return Gateway(config.parse(tree, folder=folder, source="test"))


# Start and stop: what they leave behind, conftest finds


async def test_start_and_stop(tmp_path: Path) -> None:
    gateway = gateway_of(tmp_path, listen={"tls": ["127.0.0.1:0", "[::1]:0"], "admin": "[::1]:0"})
    await gateway.start()
    assert isinstance(gateway.admin, Address)
    bound = [*gateway.tls, gateway.admin]
    assert [address.host for address in bound] == ["127.0.0.1", "::1", "::1"]
    assert all(listens(address) for address in bound)
    await gateway.stop()
    await gateway.stop()
    assert not any(listens(address) for address in bound)


async def test_an_event_that_fails_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours is logged; the events of other clients, which came in the same batch, are heard."""
    gateway = gateway_of(tmp_path)
    heard: list[str] = []

    def on_text(event: TextReceived) -> None:
        heard.append(event.text)
        if event.text == "two":
            raise KeyError("a mistake")

    monkeypatch.setattr(gateway._sessions, "on_text", on_text)
    with capture_logs() as lines:
        gateway._on_events([TextReceived(ConnectionId(n), text) for n, text in enumerate(("one", "two", "three"))])
    await gateway.stop()
    assert heard == ["one", "two", "three"]
    assert [(line["event"], line["kind"], line["connection"]) for line in lines] == [
        ("event failed", "TextReceived", gateway.ids.id_of(ConnectionId(1)))
    ]


async def test_stop_without_a_start(tmp_path: Path) -> None:
    await gateway_of(tmp_path).stop()


async def test_stop_ends_everything_that_runs(tmp_path: Path) -> None:
    async with open_host() as host, running_relay(tmp_path, host.address) as relay:
        silent = await TlsClient.open(relay.tls, relay.trust)
        with socket.create_connection(relay.tls) as no_handshake:
            async with calling(relay) as call:
                await relay.gateway.stop()
                with pytest.raises(UpstreamError):
                    await call.turn.closed
            assert await silent.receive() == b""
            silent.abort()
            assert no_handshake.recv(1) == b""
        assert relay.connections == 0


@pytest.mark.parametrize("taken_section", ["admin", "tls", "second tls"])
async def test_port_in_use_leaves_nothing_half_started(tmp_path: Path, taken_section: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        in_use, unused = Address(*taken.getsockname()), Address(*free.getsockname())
        free.close()
        listen = {
            "admin": {"admin": str(in_use), "tls": [str(unused)]},
            "tls": {"admin": str(unused), "tls": [str(in_use)]},
            "second tls": {"tls": [str(unused), str(in_use)]},
        }[taken_section]
        gateway = gateway_of(tmp_path, listen=listen)
        with pytest.raises(OperatorError) as refused:
            await gateway.start()
        assert str(refused.value).startswith(f"cannot listen on {in_use}")
        assert str(refused.value).endswith(": address already in use")
        assert "\n" not in str(refused.value)
        assert not listens(unused)
        await gateway.stop()


async def test_address_of_another_machine(tmp_path: Path) -> None:
    gateway = gateway_of(tmp_path, listen={"tls": ["192.0.2.7:0"]})
    with pytest.raises(OperatorError, match=r"^cannot listen on 192\.0\.2\.7:0 \(listen\.tls\): cannot assign "):
        await gateway.start()


async def test_bad_certificate_is_refused_before_anything_starts(tmp_path: Path) -> None:
    tree = settings_tree(Authority(tmp_path), NO_UPSTREAM)
    (tmp_path / "relay.test.pem").write_text("no certificate")
    with pytest.raises(OperatorError, match=r"relay\.test\.pem: no PEM certificate in it$"):
        Gateway(config.parse(tree, folder=tmp_path, source="test"))


@pytest.mark.parametrize(
    "sections",
    [
        {"catalog": {"path": "missing.toml"}},
        {"entitlement": {"policy": "http", "url": "https://a.test/", "ca": "missing.pem"}},
        {"signaling": {"upstreams": ["https://a.test"], "ca_file": "missing.pem"}},
    ],
    ids=["catalog", "authority of the service", "authority of signaling"],
)
async def test_a_missing_file_is_refused_before_anything_starts(tmp_path: Path, sections: dict[str, Any]) -> None:
    tree = settings_tree(Authority(tmp_path), NO_UPSTREAM, **sections)
    before = set(threading.enumerate())
    with pytest.raises(OperatorError, match=r"missing\.(toml|pem)( \((entitlement\.ca|catalog\.path)\))?: "):
        Gateway(config.parse(tree, folder=tmp_path, source="test"))
    assert set(threading.enumerate()) == before


# Where a flow goes


async def test_server_name_decides_the_region(tmp_path: Path) -> None:
    async with open_host("127.0.1.1") as use1, open_host("127.0.2.1") as euc1:
        upstreams = [
            {"name": host.address.host, "region": region, "address": host.address}
            for host, region in ((use1, "use1"), (euc1, "euc1"))
        ]
        routes = [{"server_name": f"{region}.relay.test", "region": region} for region in ("use1", "euc1")]
        async with running_relay(tmp_path, *upstreams, routes=routes) as relay:
            async with calling(relay, "euc1.relay.test") as call:
                assert await call.is_heard()
                await becomes(lambda: (use1.allocations, euc1.allocations), (0, 1))
            async with calling(relay, "use1.relay.test"):
                await becomes(lambda: (use1.allocations, euc1.allocations), (1, 0))


async def test_a_route_decides_how_old_media_may_be(tmp_path: Path) -> None:
    routes = [{"server_name": "desk.relay.test", "region": "default", "max_media_age_ms": 80}]
    async with open_host() as host, running_relay(tmp_path, host.address, routes=routes) as relay:
        async with calling(relay, "desk.relay.test"):
            [flow] = relay.gateway.plane.snapshot().flows
            assert flow.upstream.max_media_age_s == 0.08
        async with calling(relay):
            ages = {flow.server_name: flow.upstream.max_media_age_s for flow in relay.gateway.plane.snapshot().flows}
            assert ages["relay.test"] is None


def test_the_plane_is_told_of_media(tmp_path: Path) -> None:
    quality = {"playout_deadline_ms": 40, "payload_types": {"111": 48000}}
    tree = settings_tree(Authority(tmp_path), NO_UPSTREAM, media={"max_media_age_ms": 150}, quality=quality)
    told = plane_settings(config.parse(tree, folder=tmp_path, source="test"))
    assert (told.max_media_age_s, told.playout_deadline_s, told.payload_clocks) == (0.15, 0.04, {111: 48000})


def test_the_plane_is_told_of_limits(tmp_path: Path) -> None:
    """By their names, where it calls them the same."""
    limits = {"connections": 7, "connections_per_source": 3, "handshake_timeout_s": 4, "upstream_silence_s": 2.5}
    networks = {"exempt_networks": ["10.1.0.0/16"], "handshakes_per_second": 9}
    access = {"allow": ["10.0.0.0/8"], "deny": ["10.9.0.0/16"]}
    tree = settings_tree(Authority(tmp_path), NO_UPSTREAM, limits={**limits, **networks}, access=access)
    told = plane_settings(config.parse(tree, folder=tmp_path, source="test"))
    assert (told.max_connections, told.max_connections_per_source) == (7, 3)
    assert (told.handshake_timeout_s, told.upstream_silence_s) == (4, 2.5)
    lists = (told.allowed_clients, told.denied_clients, told.exempt_clients)
    assert [str(one) for (one,) in lists] == ["10.0.0.0/8", "10.9.0.0/16", "10.1.0.0/16"]
    assert told.handshakes_per_second == 9
    assert told.control_timeout_s == PlaneSettings().control_timeout_s


async def test_the_file_of_records_is_there_from_the_start_on(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    async with running_relay(tmp_path, NO_UPSTREAM, quality={"records": str(first)}) as relay:
        assert (first.read_text(), second.exists()) == ("", False)
        tree = settings_tree(Authority(tmp_path), NO_UPSTREAM, quality={"records": str(second)})
        write_config(tmp_path / "relay.toml", tree)
        relay.gateway.reload(tmp_path / "relay.toml")
        assert second.read_text() == ""


def test_each_limit_reaches_the_plane_or_is_the_gateways_own() -> None:
    """A limit that the plane should have is passed by its name, so a name with a slip in it would reach nobody."""
    own = {"connections", "connections_per_source", "sessions_per_source", "sessions_per_user"}
    own |= {"lame_duck_s", "drain_timeout_s", "handover_timeout_s"}
    own |= {"exempt_networks", "unallocated_flows_per_source", "session_opens_per_second_per_source"}
    own |= {"watch_memory", "memory_bytes"}
    bounds = {bound.name for bound in fields(PlaneSettings)}
    assert set(LimitsSettings.model_fields) - own <= bounds


async def test_region_without_a_living_upstream_takes_nobody(tmp_path: Path) -> None:
    async with open_host() as host:
        upstreams = [{"region": "use1", "address": NO_UPSTREAM}, {"region": "euc1", "address": host.address}]
        routes = [{"server_name": "use1.relay.test", "region": "use1"}]
        async with running_relay(tmp_path, *upstreams, routes=routes) as relay:
            await eventually(lambda: health(relay, "stun1") is Health.DOWN)
            turn = await relay.open_turn("trader", "secret", server_name="use1.relay.test")
            with pytest.raises(UpstreamError):
                await turn.allocate()
            await turn.close()
            await becomes(lambda: closed(relay, CloseReason.NO_UPSTREAM), 1)
            async with calling(relay, "relay.test") as call:
                assert await call.is_heard()


# An upstream that dies


async def test_flow_that_finds_its_upstream_gone_has_it_probed_at_once(tmp_path: Path) -> None:
    first, second = open_host(), open_host()
    async with first, second, running_relay(tmp_path, first.address, second.address, health=PATIENT) as relay:
        await eventually(lambda: health(relay, "stun1") is health(relay, "stun2") is Health.UP)
        async with calling(relay) as call:
            name, dead, alive = ("stun1", first, second) if first.allocations else ("stun2", second, first)
            await dead.stop()
            call.turn.send(call.peer, bytes(182))
            with pytest.raises(UpstreamError):
                await call.turn.closed
        await eventually(lambda: closed(relay, CloseReason.UPSTREAM_UNREACHABLE) == 1)
        # The next round would be an hour away.
        await eventually(lambda: health(relay, name) is Health.DOWN)
        async with calling(relay) as call:
            assert await call.is_heard()
            await becomes(lambda: alive.allocations, 1)


async def test_silent_flows_of_a_dead_upstream_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SILENT_FLOW_S", 0.0)
    host = open_host()
    await host.start()
    async with running_relay(tmp_path, host.address, health=QUICK) as relay, calling(relay) as call:
        await eventually(lambda: health(relay) is Health.UP)
        # The client sends nothing by which it could find out.
        await host.stop()
        with pytest.raises(UpstreamError):
            await call.turn.closed
        await becomes(lambda: closed(relay, CloseReason.UPSTREAM_SILENT), 1)


async def test_flow_that_hears_something_outlives_a_lost_probe(tmp_path: Path) -> None:
    async with open_host() as host, running_relay(tmp_path, host.address, health=PATIENT) as relay:
        await eventually(lambda: health(relay) is Health.UP)
        async with calling(relay) as call:
            [state] = relay.gateway.upstreams
            state.life.on_failure(certain=True)
            relay.gateway._on_probe(state)
            assert await call.is_heard()


# Drain


async def test_drain_without_flows_is_done_at_once(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, limits={"drain_timeout_s": 3600}) as relay:
        await relay.gateway.drain()
        # Its threads do as they are told a moment later.
        await eventually(lambda: not listens(relay.tls))


async def test_drain_takes_no_new_flows_and_waits_for_the_running_ones(tmp_path: Path) -> None:
    async with (
        open_host() as host,
        running_relay(tmp_path, host.address, limits={"drain_timeout_s": 3600}) as relay,
    ):
        await eventually(lambda: health(relay) is Health.UP)
        undecided = await TlsClient.open(relay.tls, relay.trust)
        async with calling(relay) as call:
            assert await readyz(relay) == 200
            draining = asyncio.create_task(relay.gateway.drain())
            await eventually(lambda: relay.gateway.draining)

            assert await readyz(relay) == 503
            with pytest.raises(UpstreamError, match="refused"):
                await relay.open_turn()
            # Connected before, but no flow yet.
            await undecided.send(bytes.fromhex("000100002112a442") + bytes(12))
            assert await undecided.closed_by_server()
            undecided.abort()
            await becomes(lambda: closed(relay, CloseReason.DRAINING), 1)

            assert await call.is_heard()
            assert not draining.done()
        await draining


async def test_drain_waits_no_longer_than_it_is_told(tmp_path: Path) -> None:
    async with (
        open_host() as host,
        running_relay(tmp_path, host.address, limits={"drain_timeout_s": 0.05}) as relay,
        calling(relay) as call,
    ):
        await relay.gateway.drain()
        assert await call.is_heard()
        await relay.gateway.stop()
        with pytest.raises(UpstreamError):
            await call.turn.closed
        await becomes(lambda: closed(relay, CloseReason.STOPPED), 1)


# Records of calls


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_flow_leaves_a_record(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    sections = {"quality": {"records": str(path)}, "listen": {"plane": "reference"}}
    async with open_host() as host, running_relay(tmp_path, host.address, **sections) as relay:
        async with calling(relay) as call:
            assert await call.is_heard()
            client = str(call.turn.local_address)
        await eventually(lambda: relay.gateway.records.written == 1)
        [told] = records(path)
        assert (told["client"], told["upstream"], told["region"]) == (client, "stun1", "default")
        assert (told["reason"], told["carrier"], told["server_name"]) == ("client_closed", "turn", "relay.test")
        assert told["duration_s"] > 0
        assert told["uplink"]["packets"] >= 1
        # A connection that never was a flow has none.
        await (await TlsClient.open(relay.tls, relay.trust)).close()
        moved = tmp_path / "moved.jsonl"
        reload(relay, quality={"records": str(moved)})
        async with calling(relay):
            pass
        await eventually(lambda: relay.gateway.records.written == 2)
        # What the end of the relay ends is written too.
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(calling(relay))
            await relay.gateway.stop()
            with contextlib.suppress(UpstreamError):
                await stack.aclose()
        assert [told["reason"] for told in records(moved)] == ["client_closed", "stopped"]
        assert len(records(path)) == 1


async def test_flows_that_nobody_served_do_not_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    async with running_relay(tmp_path, NO_UPSTREAM, quality={"records": str(path)}) as relay:
        strangers, callers = ([MadeUpCall(ConnectionId(first + n)) for n in range(100)] for first in (0, 1000))
        for one in strangers:
            one.talk(directions=[Direction.UPLINK])
        for one in callers:
            one.talk()
        relay.gateway._on_events([one.closed(CloseReason.CLIENT_CLOSED) for one in (*strangers, *callers)])
        written = relay.gateway.records
        await eventually(lambda: written.written + written.lost == 200)
        served = {relay.gateway.ids.id_of(one.connection) for one in callers}
        told = [one["id"] in served for one in records(path)]
        assert told.count(True) == 100
        assert UNSERVED_RECORDS_PER_S <= told.count(False) < 100
        assert written.lost == 100 - told.count(False)


async def test_a_call_ends_with_one_line_in_the_log(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        made = MadeUpCall(ConnectionId(77), username="a.keller")
        made.talk(lost=5)
        silent = MadeUpCall(ConnectionId(78))
        with capture_logs() as lines:
            relay.gateway._on_events([made.closed(CloseReason.CLIENT_LOST), silent.closed(CloseReason.CLIENT_LOST)])
        started, call, flow = [line for line in lines if line["log_level"] == "info"]
        assert (started["event"], started["username"], started["id"]) == ("call_started", "a.keller", call["id"])
        assert (call["event"], call["username"], call["reason"]) == ("call_ended", "a.keller", "client_lost")
        assert call["downlink"]["lost_percent"] == 2.0
        assert (flow["event"], flow["connection"]) == ("connection closed", relay.gateway.ids.id_of(silent.connection))
        assert [one.connection for one in relay.gateway.calls.ended] == [77]


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_a_call_begins_with_one_line_in_the_log(
    tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says enough to find the call if nothing more is ever said, because the relay was killed."""
    monkeypatch.setattr("relay.gateway.calls.calls.WINDOW_S", 0.01)
    with capture_logs() as lines:
        async with open_host() as host, running_relay(tmp_path, host.address, listen={"plane": plane}) as relay:
            async with calling(relay) as call:
                for number in range(10):
                    call.turn.send(call.peer, bytes.fromhex(f"8000{number:04x}{160 * number:08x}00000007") + bytes(160))
                    await call.inbox.get()
                await eventually(lambda: any(line["event"] == "call_started" for line in lines))
                [started] = [line for line in lines if line["event"] == "call_started"]
                [flow] = relay.gateway.plane.snapshot().flows
                assert started["id"] == relay.gateway.ids.id_of(flow.connection)
                client = str(call.turn.local_address)
            await eventually(lambda: any(line["event"] == "call_ended" for line in lines))
    told = (started["username"], started["client"], started["server_name"], started["upstream"], started["region"])
    assert told == ("trader", client, "relay.test", "stun1", "default")
    assert (started["carrier"], started["log_level"]) == ("turn", "info")
    [ended] = [line for line in lines if line["event"] == "call_ended"]
    assert [line["event"] for line in lines].count("call_started") == 1
    assert (ended["id"], ended["started_at"][:16]) == (started["id"], started["started_at"][:16])


async def test_ended_calls_are_kept_and_those_that_nobody_served_do_not_push_them_out(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, quality={"calls": "kept.sqlite3"}) as relay:
        strangers, callers = ([MadeUpCall(ConnectionId(first + n)) for n in range(100)] for first in (0, 1000))
        for one in strangers:
            one.talk(directions=[Direction.UPLINK])
        for one in callers:
            one.talk()
        relay.gateway._on_events([one.closed(CloseReason.CLIENT_CLOSED) for one in (*strangers, *callers)])
        store = relay.gateway.store
        await eventually(lambda: store.written + store.lost == 200)
        kept = {call["id"] for call in await store.find(Search(limit=1000))}
        served = {relay.gateway.ids.id_of(one.connection) for one in callers}
        assert served <= kept
        assert UNSERVED_KEPT_PER_S <= len(kept - served) < 50
        assert store.lost == 200 - len(kept)


async def test_no_id_is_given_twice(tmp_path: Path) -> None:
    """Also not after a restart, and not in another relay: the planes count anew."""
    ids = set()
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with open_host() as host, running_relay(folder, host.address) as relay, calling(relay):
            [flow] = relay.gateway.plane.snapshot().flows
            ids.add(relay.gateway.ids.id_of(flow.connection))
    assert len(ids) == 3


async def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"cannot write .* \(quality\.records\): no such file or directory"):
        async with running_relay(tmp_path, NO_UPSTREAM, quality={"records": "none/calls.jsonl"}):
            pass
    with pytest.raises(OperatorError, match=r"cannot write .* \(quality\.calls\): no such file or directory"):
        async with running_relay(tmp_path, NO_UPSTREAM, quality={"calls": "none/calls.sqlite3"}):
            pass


async def test_calls_are_looked_at_while_the_relay_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.gateway.calls.calls.WINDOW_S", 0.01)
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        await eventually(lambda: len(relay.gateway.calls.history) >= 2)


# Reload


def reload(relay: Relay, **changes: Any) -> None:
    write_config(relay.config_file, {**relay.tree, **changes})
    relay.gateway.reload(relay.config_file)


def upstream_entry(name: str, address: Address, **keys: str) -> dict[str, str]:
    return {"name": name, "address": str(address), **keys}


async def serial_number(relay: Relay) -> str:
    """Of the certificate that a new client is shown."""
    client = await TlsClient.open(relay.tls, relay.trust)
    shown = client.tls.getpeercert()
    assert shown is not None
    await client.close()
    return str(shown["serialNumber"])


async def test_reload_takes_lists_of_networks_for_new_connections(tmp_path: Path) -> None:
    async with open_host() as host, running_relay(tmp_path, host.address) as relay, calling(relay) as call:
        for access, refused in (({"deny": ["127.0.0.0/8"]}, 1), ({"allow": ["192.0.2.0/24"]}, 2)):
            reload(relay, access=access)
            with pytest.raises((ConnectionError, OSError)):
                await TlsClient.open(relay.tls, relay.trust)
            await becomes(lambda: closed(relay, CloseReason.NETWORK_REFUSED), refused)
        with pytest.raises(OperatorError, match=r"access\.deny\.0"):
            reload(relay, access={"deny": ["127.0.0.1/8"]})
        assert await call.is_heard()
        reload(relay)
        async with calling(relay):
            pass


async def test_reload_takes_certificates_for_new_connections(tmp_path: Path) -> None:
    async with open_host() as host, running_relay(tmp_path, host.address) as relay, calling(relay) as call:
        before = await serial_number(relay)
        # A renewed certificate usually has the old one's file name.
        relay.authority.issue("relay.test", "127.0.0.1")
        assert await serial_number(relay) == before
        reload(relay)
        renewed = await serial_number(relay)
        assert renewed != before

        moved = relay.authority.issue("moved.relay.test", "relay.test")
        reload(relay, certificates=[{"certificate": str(moved.chain), "private_key": str(moved.private_key)}])
        assert await serial_number(relay) not in {before, renewed}
        assert await call.is_heard()


async def test_reload_takes_upstreams_and_routes_for_new_flows(tmp_path: Path) -> None:
    async with (
        open_host() as old,
        open_host() as new,
        running_relay(tmp_path, old.address) as relay,
        calling(relay) as before,
    ):
        reload(
            relay,
            upstreams=[
                upstream_entry("stun1", old.address, region="euc1"),
                upstream_entry("stun2", new.address, region="use1"),
            ],
            routes=[{"server_name": f"{region}.relay.test", "region": region} for region in ("use1", "euc1")],
        )
        assert await before.is_heard()
        async with calling(relay, "use1.relay.test") as after:
            assert await after.is_heard()
            await becomes(lambda: (old.allocations, new.allocations), (1, 1))
        async with calling(relay, "euc1.relay.test") as after:
            assert await after.is_heard()
            await becomes(lambda: (old.allocations, new.allocations), (2, 0))


async def test_flow_of_an_upstream_that_is_removed_goes_on_and_ends_like_any_other(tmp_path: Path) -> None:
    async with open_host() as old, open_host() as new, running_relay(tmp_path, old.address) as relay:
        async with calling(relay) as before:
            reload(relay, upstreams=[upstream_entry("stun2", new.address)])
            assert [state.name for state in relay.gateway.upstreams] == ["stun2"]
            async with calling(relay) as after:
                await becomes(lambda: (old.allocations, new.allocations), (1, 1))
                assert await before.is_heard()
                assert await after.is_heard()
        await eventually(lambda: not relay.connections)
        await becomes(lambda: closed(relay, CloseReason.CLIENT_CLOSED), 2)
        await becomes(lambda: (old.allocations, new.allocations), (0, 0))
        await becomes(lambda: [state.flows for state in relay.gateway.upstreams], [0])


async def test_reload_watches_the_new_upstreams(tmp_path: Path) -> None:
    async with open_host() as host, running_relay(tmp_path, NO_UPSTREAM, health=QUICK) as relay:
        await eventually(lambda: health(relay) is Health.DOWN)
        assert await readyz(relay) == 503
        reload(relay, upstreams=[upstream_entry("stun2", host.address)])
        await eventually(lambda: health(relay, "stun2") is Health.UP)
        assert await readyz(relay) == 200
        assert health(relay, "stun1") is None


async def test_reload_keeps_what_is_known_of_upstreams_that_stay(tmp_path: Path) -> None:
    async with open_host() as host, running_relay(tmp_path, host.address, health=PATIENT) as relay:
        await eventually(lambda: health(relay) is Health.UP)
        async with calling(relay):
            reload(relay, upstreams=[upstream_entry("stun1", host.address, region="use1")])
            # Ready all the time, also before the next probe is back.
            assert await readyz(relay) == 200
            [state] = relay.gateway.upstreams
            assert (state.health, state.flows, state.settings.region) == (Health.UP, 1, "use1")


async def test_reload_takes_limits(tmp_path: Path) -> None:
    async with open_host() as host, running_relay(tmp_path, host.address) as relay, calling(relay) as call:
        reload(relay, limits={"connections": 1, "drain_timeout_s": 0})
        with pytest.raises(UpstreamError):
            await relay.open_turn()
        await becomes(lambda: closed(relay, CloseReason.TOO_MANY_CONNECTIONS), 1)
        assert await call.is_heard()
        await relay.gateway.drain()


async def test_reload_says_what_it_cannot_change(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        with capture_logs() as lines:
            reload(relay, listen={**relay.tree["listen"], "tls": ["127.0.0.1:443"]})
        events = [line["event"] for line in lines]
        assert events == ["listen: a change takes effect with the next start", "configuration reloaded"]
        assert listens(relay.tls)


async def test_reload_says_nothing_of_a_change_that_was_taken_back(tmp_path: Path) -> None:
    """It compares with what runs, not with what the file said the last time."""
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        listen = relay.tree["listen"]
        for changes, warned in (
            ({"listen": {**listen, "tls": ["127.0.0.1:443"]}}, ["listen"]),
            ({"listen": {**listen, "tls": ["127.0.0.1:443"]}, "log": {"format": "json"}}, ["listen", "log"]),
            ({"listen": listen, "log": {"format": "json"}}, ["log"]),
            ({"log": {}, "cluster": {"redis": "redis://127.0.0.1:9"}}, ["cluster"]),
            ({"cluster": {}}, []),
        ):
            with capture_logs() as lines:
                reload(relay, **changes)
            told = [f"{section}: a change takes effect with the next start" for section in warned]
            assert [line["event"] for line in lines] == [*told, "configuration reloaded"]


@pytest.mark.parametrize(
    "broken",
    [
        {"upstreams": []},
        {"routes": [{"server_name": "relay.test", "region": "nowhere"}]},
        {"certificates": [{"certificate": "gone.pem", "private_key": "gone.key"}]},
        {"quality": {"records": "none/calls.jsonl"}},
        {"quality": {"calls": "none/calls.sqlite3"}},
        {"lissten": {}},
    ],
    ids=["no upstream", "unknown region", "no such certificate", "no such folder", "no folder of calls", "unknown key"],
)
async def test_broken_file_changes_nothing(tmp_path: Path, broken: dict[str, Any]) -> None:
    async with open_host() as host, running_relay(tmp_path, host.address) as relay, calling(relay) as call:
        serial, upstreams = await serial_number(relay), list(relay.gateway.upstreams)
        relay.authority.issue("relay.test", "127.0.0.1")
        with pytest.raises(OperatorError):
            reload(relay, **{"limits": {"connections": 1}, **broken})
        assert await serial_number(relay) == serial
        assert list(relay.gateway.upstreams) == upstreams
        assert await call.is_heard()
        async with calling(relay) as another:
            assert await another.is_heard()
