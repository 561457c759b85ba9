"""Captures over the admin listener, on both planes: how they end, and who may ask for one."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from relay._fastpath import live_objects
from relay.gateway.admin import capture as capture_module
from relay.gateway.admin.capture import MAX_CAPTURES
from relay.quality.stream import Direction
from relay.wire.channeldata import build_channel_data
from tests.support.benches.capture import LONG_S, NO_PROBES, Bench, capturing, relay_with_a_flow
from tests.support.benches.gateway import running_relay, write_config
from tests.support.messages import HELLO
from tests.support.pcapng import CaptureFile, read_capture
from tests.support.peers.scripted_upstream import scripted_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually

# What waits for control, at most, of a flow that is captured.
TAP_BYTES = 1 << 20

PLANES = ["compiled", "reference"]
ALLOWED = {"allowed": True}
UP = Direction.UPLINK

on_both_planes = pytest.mark.parametrize("plane", PLANES)


def without_probes(file: CaptureFile) -> list[tuple[Direction, bytes]]:
    return [(one.direction, one.data) for one in file.packets if one.data[:2] != b"\x40\x02"]


async def post(url: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """The status and the reason of a refusal."""
    async with aiohttp.ClientSession() as session, session.post(url, headers=headers) as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.status, (await answer.json())["error"]


# ---- What is in it


@on_both_planes
async def test_ipv6(plane: str, tmp_path: Path) -> None:
    async with (
        scripted_upstream("::1") as upstream,
        running_relay(
            tmp_path,
            upstream.address,
            listen={"plane": plane, "workers": 1},
            health=NO_PROBES,
            capture=ALLOWED,
        ) as relay,
    ):
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(HELLO)
        while (came := await upstream.receive())[0] != HELLO:
            pass
        bench = Bench(relay, upstream, client, came[1])
        async with capturing(bench) as running:
            await bench.up(build_channel_data(0x4001, b"odd"))
            client.abort()
            file = await running.file()
    [one] = [one for one in file.packets if one.direction is UP]
    assert (one.source, one.target, one.data) == (came[1], upstream.address, build_channel_data(0x4001, b"odd"))


# ---- Ends


@on_both_planes
async def test_the_flow_ends_in_the_middle(plane: str, tmp_path: Path) -> None:
    async with relay_with_a_flow(tmp_path, plane, allowed=True) as bench, capturing(bench) as running:
        frames = [build_channel_data(0x4001, bytes([n])) for n in range(5)]
        for frame in frames:
            await bench.up(frame)
        bench.client.abort()
        file = await running.file()
        assert without_probes(file) == [(UP, frame) for frame in frames]
        assert (file.end, file.missed) == ("the flow has ended", 0)
        await eventually(lambda: len(bench.relay.gateway.captures) == 0)


@on_both_planes
async def test_its_time_is_over(plane: str, tmp_path: Path) -> None:
    async with relay_with_a_flow(tmp_path, plane, allowed=True) as bench, capturing(bench, 1.5) as running:
        await bench.up(build_channel_data(0x4001, b"in time"))
        file = await running.file()
        assert (file.end, file.missed) == ("the time has passed", 0)
        assert (UP, build_channel_data(0x4001, b"in time")) in without_probes(file)
        assert file.ended_us - file.started_us >= 1_450_000
        # The flow goes on.
        await bench.up(build_channel_data(0x4001, b"afterwards"))


@on_both_planes
async def test_the_file_is_bounded(plane: str, tmp_path: Path) -> None:
    most = 128 * 1024
    async with relay_with_a_flow(tmp_path, plane, allowed=True, max_bytes=most) as bench, capturing(bench) as running:
        frame = build_channel_data(0x4001, bytes(1200))
        for _ in range(150):
            await bench.up(frame)
        body = await running.answer.read()
        file = read_capture(body)
        assert most - 1500 < len(body) <= most
        assert file.end == "the file has reached capture.max_bytes"
        assert file.missed == 0
        await bench.up(frame)


@on_both_planes
async def test_a_flood_is_missed_and_media_does_not_feel_it(
    plane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While control does not take what is copied, 1 MiB of it waits and the rest is counted."""
    resumed = asyncio.Event()
    take = capture_module._write_waiting

    async def when_resumed(*arguments: Any) -> bool:
        await resumed.wait()
        return await take(*arguments)

    frame, sent = build_channel_data(0x4001, bytes(60_000)), 25
    async with relay_with_a_flow(tmp_path, plane, allowed=True) as bench, capturing(bench) as running:
        monkeypatch.setattr(capture_module, "_write_waiting", when_resumed)
        [state] = bench.relay.gateway.captures._running.values()
        # From here on nothing is taken.
        await asyncio.sleep(2 * capture_module.READ_EVERY_S)
        for _ in range(sent):
            await bench.up(frame)
        # The last one has reached the upstream, but its copy may not have been counted yet.
        missed = sent - TAP_BYTES // len(frame)
        await becomes(lambda: state.tap.missed, missed)
        resumed.set()
        await eventually(lambda: state.packets >= sent - missed)
        last = build_channel_data(0x4001, b"behind the gap")
        await bench.up(last)
        bench.client.abort()
        file = await running.file()
    ups = [one for one in file.packets if one.direction is UP]
    assert [one.data for one in ups] == [frame] * (sent - missed) + [last]
    assert (ups[-1].missed, file.missed) == (missed, missed)
    assert file.received == len(file.packets) + missed


@on_both_planes
async def test_who_asked_goes_away(plane: str, tmp_path: Path) -> None:
    async with relay_with_a_flow(tmp_path, plane, allowed=True) as bench:
        buffers = live_objects().get("buffers")
        with capture_logs() as logged:
            async with capturing(bench) as running:
                [state] = bench.relay.gateway.captures._running.values()
                running.answer.close()
                await eventually(lambda: len(bench.relay.gateway.captures) == 0)
        assert state.tap.ended
        [ended] = [line for line in logged if line["event"] == "capture ended"]
        assert ended["reason"] == "the requester has gone, or does not read"
        if plane == "compiled" and buffers is not None:
            await eventually(lambda: live_objects()["buffers"] <= buffers)
        # Another one may come.
        async with capturing(bench) as running:
            await bench.up(build_channel_data(0x4001, b"again"))
            bench.client.abort()
            assert without_probes(await running.file()) == [(UP, build_channel_data(0x4001, b"again"))]


async def test_who_does_not_read_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "LATE_S", 0.2)
    frame = build_channel_data(0x4001, bytes(60_000))
    async with relay_with_a_flow(tmp_path, allowed=True) as bench, capturing(bench, 1.5):
        # Nobody reads the answer, which the kernel and aiohttp hold for a while.
        [state] = bench.relay.gateway.captures._running.values()
        while len(bench.relay.gateway.captures):
            await bench.up(frame)
        assert state.tap.ended


async def test_the_relay_stops(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        bench = await stack.enter_async_context(relay_with_a_flow(tmp_path, allowed=True))
        running = await stack.enter_async_context(capturing(bench))
        reading = asyncio.create_task(running.file())
        await bench.relay.gateway.stop()
        assert (await reading).end == "the relay stops, or no longer allows captures"


async def test_a_reload_that_forbids_it_ends_it(tmp_path: Path) -> None:
    async with relay_with_a_flow(tmp_path, allowed=True) as bench, capturing(bench) as running:
        write_config(bench.relay.config_file, {**bench.relay.tree, "capture": {"allowed": False}})
        bench.relay.gateway.reload(bench.relay.config_file)
        assert (await running.file()).end == "the relay stops, or no longer allows captures"
        status, _ = await post(f"{bench.url}/api/flows/{bench.id}/capture?seconds=1")
        assert status == 403


# ---- Who may


async def test_off_unless_the_configuration_allows_it(tmp_path: Path) -> None:
    async with relay_with_a_flow(tmp_path) as bench:
        status, reason = await post(f"{bench.url}/api/flows/{bench.id}/capture?seconds=1")
        assert (status, reason) == (
            403,
            "captures are not allowed: set capture.allowed = true in the relay's configuration",
        )
        assert len(bench.relay.gateway.captures) == 0


async def test_no_web_page_may(tmp_path: Path) -> None:
    """Any page that an operator looks at can make the browser send a POST to a listener on loopback."""
    async with relay_with_a_flow(tmp_path, allowed=True) as bench:
        url = f"{bench.url}/api/flows/{bench.id}/capture?seconds=1"
        for origin in ("https://evil.example", "null", bench.url):
            assert (await post(url, {"Origin": origin}))[0] == 403
        assert len(bench.relay.gateway.captures) == 0


async def test_bad_requests(tmp_path: Path) -> None:
    async with relay_with_a_flow(tmp_path, allowed=True, max_seconds=30.0) as bench:
        flow = f"{bench.url}/api/flows/{bench.id}/capture"
        for seconds in ("", "?seconds=", "?seconds=0", "?seconds=0.0", "?seconds=-1", "?seconds=1e1", "?seconds=nan"):
            assert (await post(flow + seconds))[0] == 400
        expected = (400, "seconds: expected a number up to 30 (capture.max_seconds)")
        assert await post(flow + "?seconds=30.1") == expected
        assert await post(flow + "?seconds=99999999999999") == expected
        prefix = bench.relay.gateway.ids.prefix
        for wrong in ("0", "x", "-1", "9" * 500, "%D9%A3", "test-1", prefix, f"{prefix}-", f"{prefix}-{'z' * 20}"):
            url = f"{bench.url}/api/flows/{wrong}/capture?seconds=1"
            assert await post(url) == (404, "no such flow")
        async with aiohttp.ClientSession() as session, session.get(flow + "?seconds=1") as answer:
            assert answer.status == 405


@on_both_planes
async def test_one_of_a_flow_and_few_of_all(plane: str, tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        bench = await stack.enter_async_context(relay_with_a_flow(tmp_path, plane, allowed=True))
        clients = [bench.client]
        for _ in range(MAX_CAPTURES):
            client = await TlsClient.open(bench.relay.tls, bench.relay.trust)
            stack.callback(client.abort)
            await client.send(HELLO)
            await bench.hears(HELLO)
            clients.append(client)
        flows = bench.relay.gateway.plane.snapshot().flows
        connections = [bench.relay.gateway.ids.id_of(flow.connection) for flow in flows]
        session = await stack.enter_async_context(aiohttp.ClientSession())
        urls = [f"{bench.url}/api/flows/{connection}/capture?seconds=60" for connection in connections]
        answers = [await stack.enter_async_context(session.post(url)) for url in urls[:MAX_CAPTURES]]
        assert [answer.status for answer in answers] == [200] * MAX_CAPTURES
        assert await post(urls[0]) == (409, "this flow is being captured already")
        assert await post(urls[-1]) == (409, "4 captures run already: try again later")
        # Each has its own flow's packets.
        for client, number in zip(clients, range(len(clients)), strict=True):
            await client.send(build_channel_data(0x4001, bytes([number]) * 4))
            await bench.hears(build_channel_data(0x4001, bytes([number]) * 4))
        for client in clients:
            client.abort()
        files = [read_capture(await answer.read()) for answer in answers]
        held = [file.datagrams(UP) for file in files]
        assert all(len(one) == 1 for one in held)
        assert len({one[0] for one in held}) == MAX_CAPTURES
        assert len({file.packets[0].source for file in files}) == MAX_CAPTURES


async def test_the_log_says_who_asked_for_what(tmp_path: Path) -> None:
    with capture_logs() as logged:
        async with relay_with_a_flow(tmp_path, allowed=True) as bench, capturing(bench) as running:
            connection = bench.id
            bench.client.abort()
            body = await running.answer.read()
    started, ended = [line for line in logged if line["event"].startswith("capture ")]
    assert (started["event"], ended["event"]) == ("capture started", "capture ended")
    for line in (started, ended):
        assert line["connection"] == connection
        assert line["asked_by"].startswith("127.0.0.1:")
        assert line["client"].startswith("127.0.0.1:")
    assert started["seconds"] == LONG_S
    assert (ended["reason"], ended["missed"]) == ("the flow has ended", 0)
    assert ended["packets"] == len(read_capture(body).packets)
    assert ended["bytes"] == len(body)
