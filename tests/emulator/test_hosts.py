"""Every host of the catalog answers in its role, and those that do not exist yet do not, until they are switched on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from relay import catalog
from relay.addresses import Address
from relay.catalog import Service, Status
from relay.emulator.hoots import HootMedia
from relay.emulator.http.site import Names, name_in, roles_of
from relay.emulator.names import HostRole
from relay.emulator.settings import media_hosts
from relay.errors import OperatorError
from relay.wire.stun import MessageClass, Method, parse_message
from tests.support.benches.cloud import CloudClient, cloud_settings, running_cloud
from tests.support.peers.behind_turn import open_echo
from tests.support.peers.raw_turn import RawTurn, Refused

CATALOG = catalog.load()
BINDING = bytes.fromhex("000100002112a442") + bytes(12)


async def binding(address: Address) -> bool:
    """True if a STUN server answers there; False if the port is closed."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bool] = loop.create_future()

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            message = parse_message(data)
            good = (message.method, message.message_class) == (Method.BINDING, MessageClass.SUCCESS)
            if not answered.done():
                answered.set_result(good)

        def error_received(self, exc: Exception) -> None:
            if not answered.done():
                answered.set_result(False)

    transport, _ = await loop.create_datagram_endpoint(Client, remote_addr=(address.host, address.port))
    try:
        transport.sendto(BINDING)
        return await answered
    finally:
        transport.close()


def test_the_seed_has_84_hosts() -> None:
    assert len(CATALOG.hosts) == 84
    assert len({host.host for host in media_hosts(CATALOG)}) == 65


async def test_each_of_the_84_hosts_answers_in_its_role_or_not_at_all(tmp_path: Path) -> None:
    walked = []
    async with running_cloud(tmp_path, runs_turn=True) as client:
        running = {host.name: host for host in client.cloud.running_hosts()}
        for host in CATALOG.hosts:
            walked.append(host.name)
            if host.service is Service.MEDIA:
                assert (host.name in running) is (host.status is Status.ACTIVE)
                if host.name in running:
                    assert await binding(running[host.name].address)
            if host.status is Status.ACTIVE:
                await answers_in_its_role(client, host.name, roles_of(host))
            else:
                await does_not_exist(client, host.name)
    assert len(set(walked)) == 84


async def answers_in_its_role(client: CloudClient, name: str, roles: frozenset[HostRole]) -> None:
    wanted = {"Accept": "application/json"}
    for secure in (True, False):
        status, body, _ = await client.ask("GET", "/", host=name, secure=secure, headers=wanted)
        assert status == 200
        assert {HostRole(role) for role in body["roles"]} == roles
    status, body, _ = await client.ask("GET", "/rest/v1/settings", host=name)
    assert status == (401 if HostRole.LOGIN in roles else 404), body


async def does_not_exist(client: CloudClient, name: str) -> None:
    status, body, _ = await client.ask("GET", "/", host=name)
    assert (status, body["error"]["code"]) == (421, "no_such_host")
    # uvloop does not always send the alert before it closes.
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.ask("GET", "/", host=name, secure=True)


async def test_a_host_that_does_not_exist_yet_is_switched_on_and_off(tmp_path: Path) -> None:
    name = "use1-stun10.xhoot.com"
    async with running_cloud(tmp_path, runs_turn=True) as client:
        await does_not_exist(client, name)
        await client.cloud.switch_host(name, on=True)
        host = next(host for host in client.cloud.running_hosts() if host.name == name)
        assert await binding(host.address)
        await answers_in_its_role(client, name, frozenset({HostRole.MEDIA}))
        await client.cloud.switch_host(name, on=False)
        assert not await binding(host.address)
        await does_not_exist(client, name)
        with pytest.raises(KeyError):
            await client.cloud.switch_host("www.example.com", on=True)


async def test_why_a_host_does_not_answer(tmp_path: Path) -> None:
    later = "use1-stun10.xhoot.com"
    async with running_cloud(tmp_path) as client:
        for name in (later, f"{later}.localhost"):
            _, body, _ = await client.ask("GET", "/", host=name)
            assert body["error"]["message"] == f"The vendor's host {later} does not exist yet."
            assert f"--host-on {later}" in body["error"]["expected"]
        _, body, _ = await client.ask("GET", "/", host="nobody.xhoot.com")
        assert body["error"]["message"] == "The vendor has no host 'nobody.xhoot.com'."
        assert "--host-on" not in body["error"]["expected"]
        client.cloud.names.missing = lambda name: name == "c9rest.xhoot.com"
        _, body, _ = await client.ask("GET", "/", host="c9rest.xhoot.com")
        assert "fault on demand hides" in body["error"]["message"]


async def test_the_welcome_page_has_the_path_of_each_role(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        _, page, _ = await client.ask("GET", "/")
        for path in ("/api", "/external/apis", "/v2/calls", "/audit/v1", "/rest/v1", "/recordings/v1", "/socket.io/"):
            assert f": <code>{path}</code></li>" in page
        assert '<a href="/openapi.json">' in page


async def test_a_host_is_switched_on_from_the_start(tmp_path: Path) -> None:
    name = "stun1.use1.prod1.xhoot.com"
    async with running_cloud(tmp_path, hosts_on=(name,)) as client:
        await answers_in_its_role(client, name, frozenset({HostRole.MEDIA}))


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("c9rest.xhoot.com", {HostRole.LOGIN}),
        ("C9REST.xhoot.com.", {HostRole.LOGIN}),
        ("c9rest.xhoot.com.localhost", {HostRole.LOGIN}),
        ("ctiapi.prod1.xhoot.com", {HostRole.CTI}),
        ("c9apiproxy.xhoot.com", {HostRole.CTI, HostRole.MANAGEMENT, HostRole.CALL_DATA, HostRole.AUDIT}),
        ("localhost", set(HostRole)),
        ("127.0.0.1", set(HostRole)),
        ("relay.firm.example", set(HostRole)),
        ("nobody.xhoot.com", None),
        ("xhoot.com", None),
        ("use1-stun10.xhoot.com", None),
    ],
)
def test_roles_of_names(name: str, roles: set[HostRole] | None) -> None:
    assert Names(CATALOG).roles(name) == roles


@pytest.mark.parametrize(
    ("header", "name"),
    [("a.example", "a.example"), ("a.example:80", "a.example"), ("[::1]:80", "::1"), ("127.0.0.1:8080", "127.0.0.1")],
)
def test_a_host_header_without_its_port(header: str, name: str) -> None:
    assert name_in(header) == name


async def test_a_host_that_is_not_ascii_is_told_so(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        reader, writer = await asyncio.open_connection(*client.cloud.http)
        writer.write(b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"bad_host" in answer


@pytest.mark.parametrize("option", ["tls", "http"])
async def test_only_loopback_unless_exposed(tmp_path: Path, option: str) -> None:
    outside = Address("0.0.0.0", 0)
    settings = cloud_settings(tmp_path, **{option: outside})
    with pytest.raises(OperatorError, match=rf"--{option} 0\.0\.0\.0:0: not a loopback address.*--expose"):
        settings.check()
    async with running_cloud(tmp_path, **{option: outside}, exposed=True) as client:
        assert client.cloud.tls.port


@pytest.mark.parametrize("exposed", [False, True])
async def test_exposed_turn_hosts_reach_nothing_else_on_this_machine(
    tmp_path: Path, exposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hoots: list[Address] = []
    monkeypatch.setattr(HootMedia, "serves", lambda media, address: address in hoots)
    async with running_cloud(tmp_path, runs_turn=True, exposed=exposed) as client, open_echo() as service:
        media = (await client.login())["settings"]["media"]
        host, credentials = media["hosts"][0], media["credentials"]
        turn = RawTurn(Address(host["address"], host["udp_port"]), credentials["username"], credentials["password"])
        with turn:
            relayed = await turn.allocate()
            if not exposed:
                await turn.bind(0x4000, service)
                return
            with pytest.raises(Refused, match="403"):
                await turn.bind(0x4000, service)
            await turn.bind(0x4001, relayed)
            hoots.append(service)
            await turn.bind(0x4000, service)


async def test_an_unknown_host_cannot_be_switched_on(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"--host-on www\.example\.com: not a host of the catalog"):
        cloud_settings(tmp_path, hosts_on=("www.example.com",)).check()
