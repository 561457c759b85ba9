"""Captures through a running relay, on both planes: what the file holds is what the upstream's end saw."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from relay import __version__
from relay._fastpath import live_objects
from relay.addresses import Address
from relay.client.turn import TurnConnection
from relay.console.capture import capture
from relay.emulator.turnhost import TurnHost
from relay.errors import OperatorError, UpstreamError
from relay.gateway.admin import capture as capture_module
from relay.gateway.admin.capture import MAX_CAPTURES
from relay.quality.stream import Direction
from relay.turn.credentials import StaticCredentials
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import is_stun
from tests.plane.test_contract import HELLO
from tests.support.benches.gateway import Relay, eventually, running_relay
from tests.support.pcapng import CaptureFile, read_capture
from tests.support.peers.behind_turn import Inbox, echo_all_sizes, open_echo
from tests.support.peers.scripted_upstream import ScriptedUpstream, scripted_upstream
from tests.support.peers.tls_client import TlsClient

PLANES = ["compiled", "reference"]
ALLOWED = {"allowed": True}
UP, DOWN = Direction.UPLINK, Direction.DOWNLINK
# Longer than any test: another end comes first.
LONG_S = 60
LOOPBACK = Address("127.0.0.1", 0)
NO_PROBES = {"interval_s": 3600.0}

on_both_planes = pytest.mark.parametrize("plane", PLANES)


@dataclass
class Bench:
    """A relay with one flow, whose upstream does what the test says."""

    relay: Relay
    upstream: ScriptedUpstream
    client: TlsClient
    flow: Address

    @property
    def connection(self) -> int:
        """The flow's number."""
        [flow] = self.relay.gateway.plane.snapshot().flows
        return flow.connection

    @property
    def url(self) -> str:
        return f"http://{self.relay.admin}"

    async def hears(self, data: bytes) -> None:
        """The upstream hears this next, but for copies of the health probe."""
        while (came := (await self.upstream.receive())[0]) != data:
            assert is_stun(came), came.hex()

    async def up(self, frame: bytes) -> None:
        """One frame from client to upstream."""
        await self.client.send(frame + bytes(-len(frame) & 3))
        while (came := await self.upstream.receive())[1] != self.flow:
            pass  # the health probe, again
        assert came[0] == frame

    async def down(self, frame: bytes) -> None:
        """And one back."""
        self.upstream.send(self.flow, frame)
        assert await self.client.receive_unit() == frame


@contextlib.asynccontextmanager
async def relay_with_a_flow(folder: Path, plane: str = "compiled", **capture: Any) -> AsyncIterator[Bench]:
    async with (
        scripted_upstream() as upstream,
        running_relay(
            folder, upstream.address, listen={"plane": plane, "workers": 1}, health=NO_PROBES, capture=capture
        ) as relay,
    ):
        client = await TlsClient.open(relay.tls, relay.trust)
        try:
            await client.send(HELLO)
            while (came := await upstream.receive())[0] != HELLO:
                pass  # the health probe
            yield Bench(relay, upstream, client, came[1])
        finally:
            client.abort()


class Running:
    """A capture whose answer has begun."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def file(self) -> CaptureFile:
        """All of it, once it has ended."""
        return read_capture(await self.answer.read())


@contextlib.asynccontextmanager
async def capturing(bench: Bench, seconds: float = LONG_S) -> AsyncIterator[Running]:
    """Captures while the block runs; the plane copies already."""
    url = f"{bench.url}/api/flows/{bench.connection}/capture"
    async with aiohttp.ClientSession() as session, session.post(url, params={"seconds": str(seconds)}) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["Content-Type"] == "application/vnd.tcpdump.pcap"
        await copies(bench)
        yield Running(answer)


async def copies(bench: Bench) -> None:
    """Wait until the plane's turn in which it begins to copy: it takes commands in order."""
    [running] = bench.relay.gateway.captures._running.values()
    probe = build_channel_data(0x4002, b"probe")

    def is_seen() -> bool:
        bench.upstream.send(bench.flow, probe)
        return running.packets > 0

    await eventually(is_seen)


def without_probes(file: CaptureFile) -> list[tuple[Direction, bytes]]:
    return [(one.direction, one.data) for one in file.packets if one.data[:2] != b"\x40\x02"]


async def post(url: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """The status and the reason of a refusal."""
    async with aiohttp.ClientSession() as session, session.post(url, headers=headers) as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.status, (await answer.json())["error"]


# ---- What is in it


@on_both_planes
async def test_the_whole_way_with_a_real_client(plane: str, tmp_path: Path) -> None:
    """A TURN host and an echo; the host's own socket is watched by a proxy in between, and saw just the same."""
    credentials, inbox = StaticCredentials({"trader": "secret"}), Inbox()
    path = tmp_path / "flow.pcapng"
    async with (
        TurnHost(LOOPBACK, credentials, allow_loopback_peers=True) as host,
        open_echo() as echo,
        watched(host.address) as wire,
        running_relay(tmp_path, wire.address, listen={"plane": plane}, health=NO_PROBES, capture=ALLOWED) as relay,
    ):
        turn = await relay.open_turn("trader", "secret", on_data=inbox.put)
        await turn.allocate()
        await turn.bind_channel(echo)
        [flow] = relay.gateway.plane.snapshot().flows
        started_us = time.time_ns() // 1000
        taking = asyncio.create_task(capture(f"http://{relay.admin}", str(flow.connection), LONG_S, path))
        await eventually(lambda: len(relay.gateway.captures) == 1)
        await wait_for_copies(relay, turn, echo, inbox)
        client = flow.client
        wire.seen.clear()
        await echo_all_sizes(turn, inbox, echo)
        await turn.close()
        captured = await taking
    file = read_capture(path.read_bytes())
    tapped = [(one.direction, one.source, one.target, one.data) for one in file.packets]
    # What was seen behind the relay since the marker is the end of what was captured.
    assert len(wire.seen) >= 2 * len(range(12))
    assert tapped[-len(wire.seen) :] == wire.seen
    assert [one.at_us for one in file.packets] == sorted(one.at_us for one in file.packets)
    assert started_us <= file.packets[0].at_us
    assert file.packets[-1].at_us <= file.ended_us <= time.time_ns() // 1000 + 1_000_000
    assert (file.missed, file.received, file.end) == (0, len(file.packets), "the flow has ended")
    assert (captured.packets, captured.missed, captured.end) == (len(file.packets), 0, "the flow has ended")
    assert captured.bytes == path.stat().st_size
    assert file.application == f"cloud9-relay {__version__}"
    for part in (f"Flow {flow.connection} of client {client}", "relay.test", str(wire.address), "was not decrypted"):
        assert part in file.comment
    assert path.stat().st_mode & 0o777 == 0o600
    assert [name for name in os.listdir(tmp_path) if "part" in name] == []


class Wire:
    """A forwarder between relay and TURN host that notes each datagram, its direction and addresses."""

    def __init__(self) -> None:
        self.address = Address("", 0)
        self.seen: list[tuple[Direction, Address, Address, bytes]] = []


@contextlib.asynccontextmanager
async def watched(host: Address) -> AsyncIterator[Wire]:
    """Forwards for each source from a socket of its own."""
    loop, wire, behind = asyncio.get_running_loop(), Wire(), dict[Address, asyncio.DatagramTransport]()

    class Front(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, source: Any) -> None:
            source = Address(*source[:2])
            wire.seen.append((UP, source, wire.address, data))
            if source in behind:
                behind[source].sendto(data)
            else:
                tasks.append(loop.create_task(self.open(source, data)))

        async def open(self, source: Address, data: bytes) -> None:
            def back(answer: bytes) -> None:
                wire.seen.append((DOWN, wire.address, source, answer))
                self.transport.sendto(answer, source)

            behind[source], _ = await loop.create_datagram_endpoint(lambda: Back(back), remote_addr=host)
            behind[source].sendto(data)

    class Back(asyncio.DatagramProtocol):
        def __init__(self, back: Any) -> None:
            self.back = back

        def datagram_received(self, data: bytes, _: Any) -> None:
            self.back(data)

    tasks: list[asyncio.Task[None]] = []
    front, _ = await loop.create_datagram_endpoint(Front, local_addr=("127.0.0.1", 0))
    wire.address = Address(*front.get_extra_info("sockname"))
    try:
        yield wire
    finally:
        await asyncio.gather(*tasks)
        for transport in (front, *behind.values()):
            transport.close()


async def wait_for_copies(relay: Relay, turn: TurnConnection, echo: Address, inbox: Inbox) -> None:
    """Send until the capture has it; all that was sent has come back then."""
    [running] = relay.gateway.captures._running.values()
    while not running.packets:
        turn.send(echo, b"marker")
        await inbox.get()
        await asyncio.sleep(0)


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
async def test_wireshark_reads_the_same(tmp_path: Path) -> None:
    """And finds nothing wrong with it: no bad checksum, nothing malformed."""
    path = tmp_path / "flow.pcapng"
    async with relay_with_a_flow(tmp_path, allowed=True) as bench:
        taking = asyncio.create_task(capture(bench.url, str(bench.connection), LONG_S, path))
        await eventually(lambda: len(bench.relay.gateway.captures) == 1)
        await copies(bench)
        for size in (0, 1, 172, 1400):
            await bench.up(build_channel_data(0x4001, b"\x80" * size))
        bench.client.abort()
        await taking
    file = read_capture(path.read_bytes())
    names = ["frame.time_epoch", "ip.src", "udp.srcport", "ip.dst", "udp.dstport", "udp.length", "_ws.expert.severity"]
    checks = ["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    command = [
        "tshark",
        "-n",
        "-r",
        str(path),
        *checks,
        "-T",
        "fields",
        *(part for name in names for part in ("-e", name)),
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    stdout, _ = await process.communicate()
    assert process.returncode == 0
    expected = [
        (
            f"{one.at_us // 1_000_000}.{one.at_us % 1_000_000:06}000",
            *map(str, (*one.source, *one.target, len(one.data) + 8)),
        )
        for one in file.packets
    ]
    rows = [line.split("\t") for line in stdout.decode().splitlines()]
    assert [tuple(row[:6]) for row in rows] == expected
    # 8388608 is an error, such as a bad checksum or a malformed packet.
    assert not [row for row in rows if "8388608" in row[6]]
    process = await asyncio.create_subprocess_exec("capinfos", "-M", "-c", "-E", str(path), stdout=PIPE, stderr=PIPE)
    stdout, stderr = await process.communicate()
    assert (process.returncode, stderr) == (0, b"")
    assert f"Number of packets:   {len(file.packets)}" in stdout.decode()


@on_both_planes
async def test_ipv6(plane: str, tmp_path: Path) -> None:
    async with (
        scripted_upstream("::1") as upstream,
        running_relay(
            tmp_path,
            upstream.address,
            listen={"plane": plane, "workers": 1},
            health={"interval_s": 3600.0},
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
        assert (file.end, file.missed) == ("its time is over", 0)
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
        await eventually(lambda: state.tap.missed > 0)
        missed = state.tap.missed
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
        assert ended["reason"] == "whoever asked has gone, or does not read"
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
        assert (await reading).end == "the relay stops, or allows it no more"


async def test_a_reload_that_forbids_it_ends_it(tmp_path: Path) -> None:
    from tests.support.benches.gateway import write_config

    async with relay_with_a_flow(tmp_path, allowed=True) as bench, capturing(bench) as running:
        write_config(bench.relay.config_file, {**bench.relay.tree, "capture": {"allowed": False}})
        bench.relay.gateway.reload(bench.relay.config_file)
        assert (await running.file()).end == "the relay stops, or allows it no more"
        status, _ = await post(f"{bench.url}/api/flows/{bench.connection}/capture?seconds=1")
        assert status == 403


# ---- Who may


async def test_off_unless_the_configuration_allows_it(tmp_path: Path) -> None:
    async with relay_with_a_flow(tmp_path) as bench:
        status, reason = await post(f"{bench.url}/api/flows/{bench.connection}/capture?seconds=1")
        assert (status, reason) == (
            403,
            "captures are not allowed: set capture.allowed = true in the relay's configuration",
        )
        assert len(bench.relay.gateway.captures) == 0


async def test_no_web_page_may(tmp_path: Path) -> None:
    """Any page that an operator looks at can have his browser send a POST to a listener on loopback."""
    async with relay_with_a_flow(tmp_path, allowed=True) as bench:
        url = f"{bench.url}/api/flows/{bench.connection}/capture?seconds=1"
        for origin in ("https://evil.example", "null", bench.url):
            assert (await post(url, {"Origin": origin}))[0] == 403
        assert len(bench.relay.gateway.captures) == 0


async def test_bad_requests(tmp_path: Path) -> None:
    async with relay_with_a_flow(tmp_path, allowed=True, max_seconds=30.0) as bench:
        flow = f"{bench.url}/api/flows/{bench.connection}/capture"
        for seconds in ("", "?seconds=", "?seconds=0", "?seconds=0.0", "?seconds=-1", "?seconds=1e1", "?seconds=nan"):
            assert (await post(flow + seconds))[0] == 400
        expected = (400, "seconds: expected a number up to 30 (capture.max_seconds)")
        assert await post(flow + "?seconds=30.1") == expected
        assert await post(flow + "?seconds=99999999999999") == expected
        for connection in ("0", "5", "x", "-1", "18446744073709551615", "9" * 21, "%D9%A3"):
            url = f"{bench.url}/api/flows/{connection}/capture?seconds=1"
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
        connections = [flow.connection for flow in bench.relay.gateway.plane.snapshot().flows]
        session = await stack.enter_async_context(aiohttp.ClientSession())
        urls = [f"{bench.url}/api/flows/{connection}/capture?seconds=60" for connection in connections]
        answers = [await stack.enter_async_context(session.post(url)) for url in urls[:MAX_CAPTURES]]
        assert [answer.status for answer in answers] == [200] * MAX_CAPTURES
        assert await post(urls[0]) == (409, "this flow is being captured already")
        assert await post(urls[-1]) == (409, "4 captures run already, more must wait")
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
            connection = bench.connection
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


# ---- The file


async def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(OperatorError, match="exists; it is not overwritten"):
        await capture("http://127.0.0.1:9", "1", 1, path)
    assert path.read_text() == "mine"


async def test_a_name_that_is_taken_meanwhile_stays(tmp_path: Path) -> None:
    async with relay_with_a_flow(tmp_path, allowed=True) as bench:
        path = tmp_path / "flow.pcapng"
        taking = asyncio.create_task(capture(bench.url, str(bench.connection), LONG_S, path))
        await eventually(lambda: len(bench.relay.gateway.captures) == 1)
        path.write_text("mine")
        bench.client.abort()
        with pytest.raises(OperatorError, match="has come meanwhile"):
            await taking
        assert path.read_text() == "mine"


async def test_to_be_cancelled_keeps_what_came(tmp_path: Path) -> None:
    path = tmp_path / "flow.pcapng"
    async with relay_with_a_flow(tmp_path, allowed=True) as bench:
        taking = asyncio.create_task(capture(bench.url, str(bench.connection), LONG_S, path))
        await eventually(lambda: len(bench.relay.gateway.captures) == 1)
        await copies(bench)
        await eventually(lambda: any(part.stat().st_size > 1000 for part in tmp_path.glob(".flow.pcapng.*.part")))
        taking.cancel()
        captured = await taking
        await eventually(lambda: len(bench.relay.gateway.captures) == 0)
    file = read_capture(path.read_bytes())
    assert captured.packets == len(file.packets) > 0
    assert (file.missed, captured.end) == (None, "it was ended here")


async def test_a_relay_that_dies_leaves_what_came(tmp_path: Path) -> None:
    body = bytearray()
    async with relay_with_a_flow(tmp_path, allowed=True) as bench, capturing(bench) as running:
        bench.client.abort()
        body += await running.answer.read()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        # In the middle of the last block.
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body[:-20])
        await writer.drain()
        writer.close()

    path = tmp_path / "flow.pcapng"
    async with await asyncio.start_server(die, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(UpstreamError, match=r"the relay went away .*flow.pcapng holds the \d+ packets that came"):
            await capture(f"http://{host}:{port}", "1", 1, path)
    assert read_capture(path.read_bytes()).received is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", "answers 404: is this the relay's admin listener"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 16\r\n\r\n" + json.dumps({"error": "why"}).encode(), "answers 403: why"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<html>\n</html>\n", "answers something else"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
async def test_what_answers_is_no_relay(answer: bytes, said: str, tmp_path: Path) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(OperatorError, match=said):
            await capture(f"http://{host}:{port}", "1", 1, tmp_path / "flow.pcapng")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "flow", "name", "said"),
    [
        ("127.0.0.1:9443", "1", "a", "--url"),
        ("http://127.0.0.1:9", "me", "a", "--flow me: expected a number"),
        ("http://127.0.0.1:9", "1", "no/such/folder", "No such file or directory"),
        ("http://127.0.0.1:9", "1", "a", "cannot be read"),
    ],
)
async def test_what_the_operator_must_mend(url: str, flow: str, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=said):
        await capture(url, flow, 1, tmp_path / name)
    assert os.listdir(tmp_path) == []
