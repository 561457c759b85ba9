"""The admin listener, as an operator's tools see it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from relay.errors import OperatorError
from relay.gateway.admin.listener import Admin
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay
from tests.support.benches.made_up import NO_CAPTURES, MadeUpRelay
from tests.support.waiting import eventually

CREDENTIALS = StaticCredentials({"trader": "secret"})


async def get(admin: Address, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{admin}{path}") as response:
        assert response.headers["Server"] == "cloud9-relay"
        return response.status, await response.text()


async def get_json(admin: Address, path: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{admin}{path}") as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def ready(relay: Relay) -> int:
    return (await get_json(relay.admin, "/readyz"))[0]


def all_up(relay: Relay) -> bool:
    return all(state.health == "up" for state in relay.gateway.upstreams)


async def test_healthz_says_that_the_process_answers(tmp_path: Path) -> None:
    async with running_relay(tmp_path, Address("127.0.0.1", 9)) as relay:
        assert await get(relay.admin, "/healthz") == (200, "ok\n")


async def test_ready_while_an_upstream_is_up_and_nobody_drains(tmp_path: Path) -> None:
    host = TurnHost(Address("127.0.0.1", 0), CREDENTIALS)
    await host.start()
    health = {"interval_s": 0.01, "fall": 1, "jitter": 0}
    async with running_relay(tmp_path, host.address, health=health) as relay:
        await eventually(lambda: all_up(relay))
        assert await get_json(relay.admin, "/readyz") == (
            200,
            {"ready": True, "upstream": True, "draining": False, "memory_short": False},
        )

        await host.stop()
        await eventually(lambda: not all_up(relay))
        assert await get_json(relay.admin, "/readyz") == (
            503,
            {"ready": False, "upstream": False, "draining": False, "memory_short": False},
        )

        again = TurnHost(host.address, CREDENTIALS)
        async with again:
            await eventually(lambda: all_up(relay))
            assert await ready(relay) == 200
            await relay.gateway.drain()
            assert await get_json(relay.admin, "/readyz") == (
                503,
                {"ready": False, "upstream": True, "draining": True, "memory_short": False},
            )
            # Draining does not mean unhealthy.
            assert (await get(relay.admin, "/healthz"))[0] == 200


async def test_not_ready_before_the_first_probe_is_back(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with running_relay(tmp_path, Address(*silent.getsockname())) as relay:
            assert await ready(relay) == 503


async def test_metrics_in_the_format_of_prometheus(tmp_path: Path) -> None:
    async with running_relay(tmp_path, Address("127.0.0.1", 9)) as relay:
        status, text = await get(relay.admin, "/metrics")
    assert status == 200
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert families["relay_packets"] == "counter"
    assert families["relay_flows"] == "gauge"


async def test_flows_and_upstreams(tmp_path: Path) -> None:
    async with (
        TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host,
        running_relay(tmp_path, {"name": "use1-stun1", "region": "use1", "address": host.address}) as relay,
    ):
        await eventually(lambda: all_up(relay))
        assert await get_json(relay.admin, "/api/flows") == (200, {"total": 0, "flows": []})
        async with await relay.open_turn("trader", "secret", server_name="desk.relay.test") as turn:
            await turn.allocate()
            _, found = await get_json(relay.admin, "/api/flows")
            [flow] = found["flows"]
            assert flow["client"] == str(turn.local_address)
            assert (flow["server_name"], flow["carrier"], flow["upstream"]) == ("desk.relay.test", "turn", "use1-stun1")
            assert flow["age_s"] >= flow["heard_s"] >= 0
            assert flow["downlink"]["packets"] == 2
            assert flow["downlink"]["bytes"] > 40
            assert flow["uplink"]["packets"] == 2 + flow["retransmissions"]
            assert flow["drops"] == {}

            _, found = await get_json(relay.admin, "/api/upstreams")
            [upstream] = found["upstreams"]
            assert upstream.pop("rtt_ms") > 0
            assert upstream == {
                "name": "use1-stun1",
                "region": "use1",
                "address": str(host.address),
                "health": "up",
                "flows": 1,
                "mos": None,
            }
        await eventually(lambda: not relay.connections)
        assert await get_json(relay.admin, "/api/flows") == (200, {"total": 0, "flows": []})


async def test_upstream_without_an_address(tmp_path: Path) -> None:
    # localhost is private, so it is not taken.
    async with running_relay(tmp_path, {"address": "localhost:3478"}) as relay:
        _, found = await get_json(relay.admin, "/api/upstreams")
    assert found["upstreams"] == [
        {
            "name": "stun1",
            "region": "default",
            "address": None,
            "health": "down",
            "rtt_ms": None,
            "flows": 0,
            "mos": None,
        }
    ]


async def test_what_a_client_chooses_is_escaped() -> None:
    # A server name is what the client says it is, and so is a user name.
    name = 'a"b\\<script>\n\u2028.test'
    relay = MadeUpRelay()
    relay.call(server_name=name, username=name, client=Address("2001:db8::1", 4711)).talk()
    await relay.calls.look()
    async with relay.served() as address:
        _, found = await get_json(address, "/api/flows")
        [shown] = found["flows"]
        assert (shown["server_name"], shown["username"], shown["client"]) == (name, name, "[2001:db8::1]:4711")
        for path in ("/api/flows", "/api/flows/test-1", "/api/summary"):
            _, text = await get(address, path)
            assert "\n" not in text
        assert name not in (await get(address, "/metrics"))[1]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("HEAD", "/healthz", 200), ("GET", "/", 200), ("GET", "/api/", 404), ("POST", "/readyz", 405)],
)
async def test_other_requests(tmp_path: Path, method: str, path: str, status: int) -> None:
    async with (
        running_relay(tmp_path, Address("127.0.0.1", 9)) as relay,
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{relay.admin}{path}") as response,
    ):
        assert response.status == status
        assert response.headers["Server"] == "cloud9-relay"


async def test_ipv6(tmp_path: Path) -> None:
    listen = {"admin": "[::1]:0"}
    async with running_relay(tmp_path, Address("127.0.0.1", 9), listen=listen) as relay:
        assert relay.admin.host == "::1"
        assert (await get(relay.admin, "/healthz"))[0] == 200


async def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address(*taken.getsockname())
        with pytest.raises(OperatorError) as refused:
            await Admin(MadeUpRelay().view, NO_CAPTURES).listen(address)
    assert str(refused.value) == f"cannot listen on {address} (listen.admin): address already in use"


# DNS rebinding


async def ask_as(admin: Address, path: str, *hosts: str) -> int:
    """The status of a request with these Host fields."""
    reader, writer = await asyncio.open_connection(*admin)
    version = "1.1" if hosts else "1.0"
    fields = "".join(f"Host: {host}\r\n" for host in hosts)
    writer.write(f"GET {path} HTTP/{version}\r\n{fields}Connection: close\r\n\r\n".encode())
    line = await reader.readline()
    await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])


KNOWN = [
    "127.0.0.1",
    "127.0.0.1:9443",
    "10.1.2.3:9443",
    "[::1]:9443",
    "[::1]",
    "localhost:9443",
    "LocalHost.",
    socket.gethostname(),
    "relay.firm.example:9443",
    "RELAY.firm.example",
    "a.b.desk.example",
]
REBOUND = [
    "attacker.example",
    "attacker.example:9443",
    "127.0.0.1.attacker.example",
    "localhost.attacker.example",
    "attacker.example@127.0.0.1",
    "xrelay.firm.example",
    "desk.example",
    "[::1].attacker.example",
    "127.1",
    "2130706433",
    "",
]


async def test_it_answers_addresses_and_names_that_are_its_own(tmp_path: Path) -> None:
    listen = {"admin_hosts": ["relay.firm.example", "*.desk.example"]}
    async with running_relay(tmp_path, Address("127.0.0.1", 9), listen=listen) as relay:
        for path in ("/", "/metrics", "/api/summary"):
            assert {host: await ask_as(relay.admin, path, host) for host in KNOWN} == dict.fromkeys(KNOWN, 200)
            assert {host: await ask_as(relay.admin, path, host) for host in REBOUND} == dict.fromkeys(REBOUND, 421)
        # A tool that speaks HTTP/1.0, and balancers.
        assert await ask_as(relay.admin, "/metrics") == 200
        assert await ask_as(relay.admin, "/healthz", "attacker.example") == 200
        assert await ask_as(relay.admin, "/readyz", "attacker.example") in {200, 503}
        assert await ask_as(relay.admin, "/api/nothing", "attacker.example") == 421
        async with aiohttp.ClientSession(headers={"Host": "attacker.example"}) as session:
            url = f"http://{relay.admin}"
            async with session.get(f"{url}/api/events") as response:
                assert response.status == 421
                assert "listen.admin_hosts" in await response.text()
            async with session.post(f"{url}/api/flows/1/capture?seconds=1") as response:
                assert response.status == 421


async def test_every_name_where_the_operator_says_so(tmp_path: Path) -> None:
    async with running_relay(tmp_path, Address("127.0.0.1", 9), listen={"admin_hosts": ["*"]}) as relay:
        assert await ask_as(relay.admin, "/metrics", "whatever.example") == 200
