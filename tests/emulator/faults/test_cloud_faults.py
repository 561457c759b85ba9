"""Faults of the vendor's hosts, on a whole cloud: a region, a name, credentials, the recorder; and the desk's line."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from relay import catalog
from relay.addresses import Address
from relay.client.requests import TurnRequestError
from relay.client.turn import TurnConnection, open_turn_tls, open_turn_udp
from relay.emulator.faults.board import FaultBoard
from relay.emulator.faults.cloud_hop import CloudHop
from relay.emulator.faults.kinds import FaultSetting, Hop, Kind
from relay.emulator.faults.service import PATH
from relay.emulator.http.site import Names, Site
from relay.emulator.names import HostRole
from relay.errors import UpstreamError
from tests.support.benches.cloud import CloudClient, running_cloud
from tests.support.benches.floor import running_floor
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.waiting import eventually

SIGNALING = "c9so-euc1.xhoot.com"


async def put(client: CloudClient, path: str, **setting: Any) -> None:
    status, body, _ = await client.ask("PUT", f"{PATH}/{path}", json=setting)
    assert status == 200, body


async def login(client: CloudClient) -> tuple[dict[str, Any], dict[str, Any]]:
    """A login of someone who uses UDP: the first TURN host, and the credentials."""
    media = (await client.login("gus"))["settings"]["media"]
    return media["hosts"][0], media["credentials"]


@contextlib.asynccontextmanager
async def allocation(
    host: dict[str, Any], credentials: dict[str, Any], inbox: Inbox | None = None, timeout_s: float = 60.0
) -> AsyncIterator[TurnConnection]:
    address = Address(host["address"], host["udp_port"])
    name, password = credentials["username"], credentials["password"]
    on_data = (inbox or Inbox()).put
    async with await open_turn_udp(address, name, password, on_data=on_data, timeout_s=timeout_s) as turn:
        await turn.allocate()
        yield turn
        await turn.close()


async def test_desks_are_given_the_line_that_can_be_made_bad(tmp_path: Path) -> None:
    async with running_cloud(tmp_path, runs_turn=True, udp_hop_port=0) as client:
        host, credentials = await login(client)
        line = client.cloud.faults.lines[host["name"]]
        assert host["udp_port"] == line.address.port != host["tcp_port"]
        inbox = Inbox()
        async with allocation(host, credentials, inbox) as turn, open_echo() as peer:
            await turn.bind_channel(peer)
            turn.send(peer, b"voice")
            assert await inbox.get() == (peer, b"voice")
            await put(client, "desk_udp/udp_blocked", target=host["region"])
            before = line.counts["blocked"]
            turn.send(peer, b"nobody hears this")
            await eventually(lambda: line.counts["blocked"] > before)
            # TLS goes another way.
            async with await open_turn_tls(
                Address(host["address"], host["tls_port"]),
                credentials["username"],
                credentials["password"],
                ssl_context=client.trust,
                server_hostname=host["name"],
            ) as tls:
                await tls.allocate()
                await tls.close()
            await client.ask("DELETE", PATH)
            turn.send(peer, b"again")
            assert await inbox.get() == (peer, b"again")


async def test_lines_follow_the_hosts(tmp_path: Path) -> None:
    async with running_cloud(tmp_path, runs_turn=True, udp_hop_port=0) as client:
        cloud, name = client.cloud, "use1-stun1.xhoot.com"
        assert set(cloud.faults.lines) == {host.name for host in cloud.running_hosts()}
        await cloud.switch_host(name, on=False)
        assert name not in cloud.faults.lines
        await cloud.switch_host(name, on=True)
        assert name in cloud.faults.lines


async def test_a_region_that_is_down(tmp_path: Path) -> None:
    async with running_cloud(tmp_path, runs_turn=True) as client:
        host, credentials = await login(client)
        region = host["region"]
        await put(client, "cloud/region_down", target=region)
        with pytest.raises(UpstreamError, match="no answer within"):
            async with allocation(host, credentials, timeout_s=0.3):
                pass
        status, body, headers = await client.ask("GET", "/socket.io/", host=f"c9so-{region}.xhoot.com")
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "region_down", "30")
        # Hosts without a region, and other regions, go on.
        media = (await client.login("gus", host="c9rest.xhoot.com"))["settings"]["media"]
        other = next(each for each in media["hosts"] if each["region"] != region)
        async with allocation(other, media["credentials"]):
            pass
        await client.ask("DELETE", f"{PATH}/cloud/region_down")
        async with allocation(host, credentials):
            pass


async def test_a_region_comes_back_by_itself(tmp_path: Path) -> None:
    async with running_cloud(tmp_path, runs_turn=True) as client:
        host, credentials = await login(client)
        await put(client, "cloud/region_down", target=host["region"], seconds=0.2)
        # The client asks again and again, as RFC 8489 has it.
        async with allocation(host, credentials):
            assert client.cloud.faults.board.active == []


async def test_a_name_that_is_not_found(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        status, _, _ = await client.ask("GET", "/rest/v1/settings", host="c9rest.xhoot.com")
        assert status == 401
        await put(client, "cloud/name_not_found", target="c9rest.xhoot.com")
        for name in ("c9rest.xhoot.com", "C9REST.xhoot.com.localhost"):
            status, body, _ = await client.ask("GET", "/rest/v1/settings", host=name)
            assert (status, body["error"]["code"]) == (421, "no_such_host")

        def shake_hands() -> None:
            with (
                socket.create_connection(client.cloud.tls) as plain,
                client.trust.wrap_socket(plain, server_hostname="c9rest.xhoot.com"),
            ):
                pass

        # The handshake fails. uvloop may close before it has sent the alert that says why.
        with pytest.raises(ssl.SSLError, match=r"UNRECOGNIZED_NAME|EOF"):
            await asyncio.to_thread(shake_hands)
        status, _, _ = await client.ask("GET", "/rest/v1/settings")
        assert status == 401


async def test_the_web_proxy_does_not_find_it_either(tmp_path: Path) -> None:
    async with running_cloud(tmp_path, runs_turn=True, bad_web_proxy=Address("127.0.0.1", 0)) as client:
        host, credentials = await login(client)
        proxy = client.cloud.faults.web_proxy
        assert proxy is not None

        async def call() -> None:
            async with await open_turn_tls(
                Address(host["name"], 443),
                credentials["username"],
                credentials["password"],
                ssl_context=client.trust,
                server_hostname=host["name"],
                proxy=f"http://{proxy.address}",
            ) as turn:
                await turn.allocate()
                await turn.close()

        await call()
        await put(client, "cloud/name_not_found", target=host["name"])
        with pytest.raises(UpstreamError, match="refuses the tunnel: 503"):
            await call()


async def test_the_web_proxy_leads_to_the_login(tmp_path: Path) -> None:
    async with running_cloud(tmp_path, bad_web_proxy=Address("127.0.0.1", 0)) as client:
        proxy = client.cloud.faults.web_proxy
        assert proxy is not None
        reader, writer = await asyncio.open_connection(*proxy.address)
        writer.write(b"CONNECT c9rest.xhoot.com:443 HTTP/1.1\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await writer.start_tls(client.trust, server_hostname="c9rest.xhoot.com")
        writer.write(b"GET /rest/v1/settings HTTP/1.1\r\nHost: c9rest.xhoot.com\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
        writer.transport.abort()


async def test_credentials_that_have_ended(tmp_path: Path) -> None:
    async with running_cloud(tmp_path, runs_turn=True) as client:
        await put(client, "cloud/expired_credentials")
        host, credentials = await login(client)
        with pytest.raises(TurnRequestError) as refused:
            async with allocation(host, credentials):
                pass
        assert refused.value.code == 401
        await client.ask("DELETE", PATH)
        host, credentials = await login(client)
        async with allocation(host, credentials):
            pass


@contextlib.asynccontextmanager
async def site_with_a_recorder(board: FaultBoard) -> AsyncIterator[str]:
    """A site on a free port, which takes recordings and answers ``/other``. Gives its URL."""

    async def take(request: web.Request) -> web.Response:
        return web.Response(text=f"{len(await request.read())} bytes")

    site = Site(Names(catalog.load()))
    site.intercepts.append(CloudHop(board, site.names.catalog, lambda: ()).intercept)
    site.route(HostRole.RECORDING, "PUT", "/recordings/1", take)
    site.route(HostRole.LOGIN, "GET", "/other", take)
    runner = web.AppRunner(site.app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_slow_recorder_and_nobody_else() -> None:
    board, loop = FaultBoard(catalog.load()), asyncio.get_running_loop()
    async with site_with_a_recorder(board) as url, aiohttp.ClientSession() as session:
        board.put(Hop.CLOUD, Kind.SLOW_RECORDER, FaultSetting(answer_after_s=0.3))
        before = loop.time()
        async with session.put(f"{url}/recordings/1", data=b"Ogg" * 1000) as answer:
            assert await answer.text() == "3000 bytes"
        assert loop.time() - before >= 0.3
        # A client that does not wait gives up, and tries again.
        board.put(Hop.CLOUD, Kind.SLOW_RECORDER, FaultSetting(answer_after_s=120))
        with pytest.raises(TimeoutError):
            await session.put(f"{url}/recordings/1", data=b"Ogg", timeout=aiohttp.ClientTimeout(total=0.2))
        async with session.get(f"{url}/other") as answer:
            assert answer.status == 200
        board.clear()
        async with session.put(f"{url}/recordings/1", data=b"Ogg") as answer:
            assert await answer.text() == "3 bytes"
    board.close()


async def test_the_clouds_own_recorder_is_slow(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        loop, path = asyncio.get_running_loop(), "/recordings/v1/00000000-0000-4000-8000-000000000001"
        await put(client, "cloud/slow_recorder", answer_after_s=0.3)
        before = loop.time()
        status, _, _ = await client.ask("GET", path)
        assert status == 401
        assert loop.time() - before >= 0.3


async def test_the_relay_notices_that_a_region_is_down(tmp_path: Path) -> None:
    async with running_floor(tmp_path) as floor:
        await put(floor.client, "cloud/region_down", target="use1")

        def health(region: str) -> set[str]:
            return {one.health for one in floor.gateway.upstreams if one.settings.region == region}

        await eventually(lambda: health("use1") == {"down"}, "the region's upstreams are down")
        assert health("euc1") == {"up"}
        await floor.client.ask("DELETE", PATH)
        await eventually(lambda: health("use1") == {"up"}, "they are up again")
