"""The benchmark over a WAN: it finds what was disturbed, blames whom it should, and both servers pass a short run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench import wan, wan_servers
from loadtest.bench.wan_call import (
    BURST_PACKETS,
    BURST_STREAM,
    VOICE_BYTES,
    VOICE_STREAMS,
    Client,
    Delivery,
    Request,
    Track,
    build_frame,
    connect,
    stream_of,
)
from relay.addresses import Address
from relay.demo.authority import Authority
from relay.demo.wan.link import Link
from relay.demo.wan.netns import refusal
from tests.support.waiting import eventually

needs_wan = pytest.mark.skipif(refusal() is not None, reason=refusal() or "")
CALM = wan.Scenario("x", "calm", seconds=1)
STALL = wan.Scenario("y", "stall", stall_s=0.3, seconds=1)
# The disturbance lasts from 10 to 13, frames are sent until 23.
TIMES = wan.Times(10, 13, 23)


def server(name: str) -> object:
    """A server as a parameter, skipped by name if it is not installed."""
    missing = name == "coturn" and shutil.which("turnserver") is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason="coturn is not installed"))


SERVERS = [server(name) for name in wan_servers.SERVERS]


class Ends:
    """What ``judge`` looks at of a client and of a source, without sockets."""

    def __init__(self) -> None:
        self.downlink = {stream: Track() for stream in (*VOICE_STREAMS, BURST_STREAM)}
        self.uplink = {stream: Track() for stream in VOICE_STREAMS}
        self.requests: dict[bytes, Request] = {}
        self.sent = dict.fromkeys(VOICE_STREAMS, 0)
        self.unsent = self.refused = self.refused_requests = 0
        self.ended: str | None = None
        self.late_s = [0.001, 0.002]

    def voice(self, sent: float, came: float | None) -> None:
        track = self.downlink[1]
        if came is not None:
            track.deliveries[len(track.sent)] = Delivery(sent, came)
        track.sent.append(sent)

    def request(self, sent: float, answered: float | None) -> None:
        self.requests[len(self.requests).to_bytes(12)] = Request(sent, answered)

    def judge(self, scenario: wan.Scenario = wan.SCENARIOS[5]) -> wan.Run:
        return wan.judge(scenario, self, self, TIMES)  # type: ignore[arg-type]


def test_a_frame_knows_its_stream_and_its_time() -> None:
    before = time.monotonic()
    frame = build_frame(2, 70_000, VOICE_BYTES)
    track = Track()
    track.judge(2, frame, time.monotonic())
    assert (len(frame), stream_of(frame), track.wrong) == (VOICE_BYTES, 2, 0)
    assert before - 1e-3 <= track.deliveries[70_000].sent <= time.monotonic()
    assert track.deliveries[70_000].age_s < 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda frame: frame[:-1] + bytes([frame[-1] ^ 1]),
        lambda frame: build_frame(1, 4, VOICE_BYTES),
        lambda frame: build_frame(2, 6, VOICE_BYTES)[:40] + frame[40:],
    ],
    ids=["a bit", "behind", "filler of another"],
)
def test_what_is_wrong_with_a_frame_is_seen(damage: Callable[[bytes], bytes]) -> None:
    track, frame = Track(), build_frame(1, 5, VOICE_BYTES)
    track.judge(1, frame, 0)
    track.judge(1, frame, 0)
    assert track.wrong == 1
    track.judge(1, damage(build_frame(1, 6, VOICE_BYTES)), 0)
    assert (track.wrong, list(track.deliveries)) == (2, [5])


def test_ages_are_of_what_came_after_the_disturbance() -> None:
    ends = Ends()
    ends.voice(9, 9.1)  # before it
    ends.voice(10, 13.01)  # old
    ends.voice(12.9, 13.02)
    ends.voice(13.5, None)  # lost
    ends.voice(24, None)  # nobody asked for it any more
    assert ends.judge()["late_p99_ms"] == 2
    voice = ends.judge()["voice"]
    assert (voice["sent"], voice["delivered"], voice["lost"], voice["old"]) == (3, 2, 1, 1)
    assert (voice["age_p50_ms"], voice["age_max_ms"]) == (120, 3010)


def test_an_answer_is_not_late_for_the_time_in_which_none_could_come() -> None:
    ends = Ends()
    ends.request(9, None)  # before it
    ends.request(10, 13.9)
    ends.request(11, 14.1)  # late
    ends.request(15, 16.1)  # late
    ends.request(16, None)
    run = ends.judge()
    assert (run["stun_sent"], run["stun_lost"], run["stun_late"], run["stun_max_ms"]) == (4, 1, 2, 3900)
    assert ends.judge(CALM)["stun_late"] == 3


def test_nothing_came_and_nothing_was_asked() -> None:
    run = Ends().judge()
    assert (run["voice"]["age_p99_ms"], run["voice"]["sent"], run["stun_max_ms"]) == (None, 0, 0)


def test_scenarios_are_chosen_by_name_and_by_letter() -> None:
    def chosen(text: str) -> list[str]:
        return [scenario.name for scenario in wan.parse_options(["--scenario", text]).scenario]

    assert chosen("c") == ["c0.2", "c1", "c3"]
    assert chosen("e,b3") == ["e", "b3"]
    with pytest.raises(argparse.ArgumentTypeError, match="b1"):
        wan._scenarios("a,z")


@needs_wan
@pytest.mark.parametrize("name", SERVERS)
async def test_a_stall_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan, "WARM_UP_S", 0.3)
    monkeypatch.setattr(wan, "DRAIN_S", 1.0)
    run = await wan.measure(STALL, name, congestion="reno")
    voice = run["voice"]
    assert voice["sent"]
    # Nothing passed for so long, so that a frame sent at its beginning is that old, or dropped.
    assert voice["lost"] or voice["age_max_ms"] >= 100
    assert voice["age_p50_ms"] >= 20
    assert (run["wrong"], run["broken"], run["stun_refused"], run["stun_lost"]) == (0, None, 0, 0)
    assert run["uplink"]["lost"] == 0
    assert run["rss_max_kb"] >= run["rss_before_kb"] > 1000
    assert run["kernel_queue_max_bytes"] > 0
    assert run["links"]["downlink"]["dropped_packets"] == 0
    row = wan.table([{"title": "t", **run}]).splitlines()[-1]
    assert row.startswith(f"| t | {name} | {voice['sent']} | {voice['lost']} |")


@needs_wan
async def test_bursts_and_a_reader_that_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan, "WARM_UP_S", 0.3)
    monkeypatch.setattr(wan, "DRAIN_S", 1.0)
    both = wan.Scenario("z", "bursts", Link(), Link(), pause_s=0.3, bursts=True, seconds=1)
    run = await wan.measure(both, "relay", congestion="reno")
    assert run["burst"]["sent"] >= BURST_PACKETS
    assert run["burst"]["delivered"] > 0
    assert run["voice"]["delivered"] > 0
    assert (run["wrong"], run["broken"]) == (0, None)


async def test_a_connection_that_ends_while_the_client_pauses_is_broken(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, context = authority.issue("wan.test"), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.private_key)
    ended = asyncio.Event()

    async def on_client(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        ended.set()

    async with await asyncio.start_server(on_client, "127.0.0.1", 0, ssl=context) as server:
        address = Address(*server.sockets[0].getsockname()[:2])
        opened = socket.socket()
        connected = await asyncio.to_thread(connect, opened, address, authority.client_context(), "wan.test", None)
        client = Client(connected)
        client.pause()
        await ended.wait()
        # It notices as it writes.
        talking = asyncio.create_task(client.talk())
        await eventually(lambda: client.ended)
        talking.cancel()
        client.resume()
        client.pause()
        assert client.closed


@needs_wan
async def test_a_server_that_dies_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan, "WARM_UP_S", 0.3)
    servers = list[wan_servers.Server]()
    disturb = wan._disturb

    @contextlib.asynccontextmanager
    async def open_server(*where: Any, **addresses: Any) -> AsyncIterator[wan_servers.Server]:
        async with wan_servers.open_server(*where, **addresses) as opened:
            servers.append(opened)
            yield opened

    async def kill(*call: Any) -> wan.Times:
        servers[0].process.kill()
        return await disturb(*call)

    monkeypatch.setattr(wan, "open_server", open_server)
    monkeypatch.setattr(wan, "_disturb", kill)
    with pytest.raises(wan_servers.WanError, match="relay died"):
        await wan.measure(CALM, "relay", congestion="reno")


@needs_wan
async def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wan_servers.SERVERS, "relay", lambda *_: ["sh", "-c", "echo no such luck; exit 3"])
    with pytest.raises(wan_servers.WanError, match="no such luck"):
        await wan.measure(CALM, "relay", congestion="reno")
