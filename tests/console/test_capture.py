"""``relay capture`` through a running relay, on both planes: its file holds what the upstream's end saw."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay import __version__
from relay.addresses import Address
from relay.client.turn import TurnConnection
from relay.console.capture import capture, flow_of
from relay.console.listener import AdminListener
from relay.emulator.turn.slow import TurnHost
from relay.errors import OperatorError, UpstreamError
from relay.quality.stream import Direction
from relay.turn.credentials import StaticCredentials
from relay.wire.channeldata import build_channel_data
from tests.support.benches.capture import LONG_S, NO_PROBES, capturing, copies, relay_with_a_flow
from tests.support.benches.gateway import Relay, running_relay
from tests.support.benches.made_up import MadeUpRelay
from tests.support.pcapng import read_capture
from tests.support.peers.behind_turn import Inbox, echo_all_sizes, open_echo
from tests.support.waiting import eventually

UP, DOWN = Direction.UPLINK, Direction.DOWNLINK
LOOPBACK = Address("127.0.0.1", 0)

# ---- What is in it


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_the_whole_way_with_a_real_client(plane: str, tmp_path: Path) -> None:
    """A TURN host and an echo; the host's own socket is watched by a proxy in between, and saw just the same."""
    credentials, inbox = StaticCredentials({"trader": "secret"}), Inbox()
    path = tmp_path / "flow.pcapng"
    async with (
        TurnHost(LOOPBACK, credentials, allow_loopback_peers=True) as host,
        open_echo() as echo,
        watched(host.address) as wire,
        running_relay(
            tmp_path, wire.address, listen={"plane": plane}, health=NO_PROBES, capture={"allowed": True}
        ) as relay,
    ):
        turn = await relay.open_turn("trader", "secret", on_data=inbox.put)
        await turn.allocate()
        await turn.bind_channel(echo)
        [flow] = relay.gateway.plane.snapshot().flows
        started_us = time.time_ns() // 1000
        taking = asyncio.create_task(
            capture(AdminListener(f"http://{relay.admin}"), relay.gateway.ids.id_of(flow.connection), LONG_S, path)
        )
        await eventually(lambda: len(relay.gateway.captures) == 1)
        await wait_for_copies(relay, turn, echo, inbox)
        client = flow.client
        wire.seen.clear()
        await echo_all_sizes(turn, inbox, echo)
        await turn.close()
        captured = await taking
    file = read_capture(path.read_bytes())
    tapped = [(one.direction, one.source, one.target, one.data) for one in file.packets]
    # What was seen at the upstream since the marker is the end of what was captured.
    assert len(wire.seen) >= 2 * len(range(12))
    assert tapped[-len(wire.seen) :] == wire.seen
    assert [one.at_us for one in file.packets] == sorted(one.at_us for one in file.packets)
    assert started_us <= file.packets[0].at_us
    assert file.packets[-1].at_us <= file.ended_us <= time.time_ns() // 1000 + 1_000_000
    assert (file.missed, file.received, file.end) == (0, len(file.packets), "the flow has ended")
    assert (captured.packets, captured.missed, captured.end) == (len(file.packets), 0, "the flow has ended")
    assert captured.bytes == path.stat().st_size
    assert file.application == f"cloud9-relay {__version__}"
    for part in (
        f"Flow {relay.gateway.ids.id_of(flow.connection)} of client {client}",
        "relay.test",
        str(wire.address),
        "is not decrypted",
    ):
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
        taking = asyncio.create_task(capture(AdminListener(bench.url), bench.id, LONG_S, path))
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


# ---- Whose


async def test_the_one_call_of_a_user() -> None:
    relay = MadeUpRelay()
    for number, name in enumerate(("a.keller", "a.kellermann", "mei", "mei", ""), 1):
        relay.call(number, username=name)
    async with relay.served() as address:
        url = f"http://{address}/"
        assert await flow_of(AdminListener(url), "A.Keller") == "test-1"
        for user, said in (
            ("keller", "--user keller: has no call now; relay top shows who has one"),
            ("mei", r"--user mei: has 2 calls now: choose one with --flow \(test-3, test-4\)"),
        ):
            with pytest.raises(OperatorError, match=said):
                await flow_of(AdminListener(url), user)
    with pytest.raises(OperatorError, match="cannot be read"):
        await flow_of(AdminListener("http://127.0.0.1:9"), "mei")


# ---- The file


async def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(OperatorError, match="exists; it is not overwritten"):
        await capture(AdminListener("http://127.0.0.1:9"), "1", 1, path)
    assert path.read_text() == "mine"


async def test_a_name_that_is_taken_meanwhile_stays(tmp_path: Path) -> None:
    async with relay_with_a_flow(tmp_path, allowed=True) as bench:
        path = tmp_path / "flow.pcapng"
        taking = asyncio.create_task(capture(AdminListener(bench.url), bench.id, LONG_S, path))
        await eventually(lambda: len(bench.relay.gateway.captures) == 1)
        path.write_text("mine")
        bench.client.abort()
        with pytest.raises(OperatorError, match="was created meanwhile"):
            await taking
        assert path.read_text() == "mine"


async def test_to_be_cancelled_keeps_what_came(tmp_path: Path) -> None:
    path = tmp_path / "flow.pcapng"
    async with relay_with_a_flow(tmp_path, allowed=True) as bench:
        taking = asyncio.create_task(capture(AdminListener(bench.url), bench.id, LONG_S, path))
        await eventually(lambda: len(bench.relay.gateway.captures) == 1)
        await copies(bench)
        await eventually(lambda: any(part.stat().st_size > 1000 for part in tmp_path.glob(".flow.pcapng.*.part")))
        taking.cancel()
        captured = await taking
        await eventually(lambda: len(bench.relay.gateway.captures) == 0)
    file = read_capture(path.read_bytes())
    assert captured.packets == len(file.packets) > 0
    assert (file.missed, captured.end) == (None, "it was stopped here")


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
        with pytest.raises(UpstreamError, match=r"the relay went away .*flow.pcapng has the \d+ packets that came"):
            await capture(AdminListener(f"http://{host}:{port}"), "1", 1, path)
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
            await capture(AdminListener(f"http://{host}:{port}"), "1", 1, tmp_path / "flow.pcapng")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "flow", "name", "said"),
    [
        ("127.0.0.1:9443", "1", "a", "--url"),
        ("http://127.0.0.1:9", "../me", "a", "--flow ../me: expected an id"),
        ("http://127.0.0.1:9", "1", "no/such/folder", "No such file or directory"),
        ("http://127.0.0.1:9", "1", "a", "cannot be read"),
    ],
)
async def test_what_the_operator_must_mend(url: str, flow: str, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=said):
        await capture(AdminListener(url), flow, 1, tmp_path / name)
    assert os.listdir(tmp_path) == []
