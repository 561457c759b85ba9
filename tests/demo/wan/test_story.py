"""The story, told: three real calls over a simulated path, and over a real one, with every packet accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import os
import shutil
import signal
import threading
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.client.turn import TurnConnection
from relay.demo.wan import call, real, sentence, servers, simulated, sound
from relay.demo.wan.call import Conversation, Heard
from relay.demo.wan.netns import refusal
from relay.demo.wan.playout import Arrival
from relay.demo.wan.story import Story, Told, judge, packets_for, render, tell
from relay.demo.wan.way import RELAY, TLS, UDP
from relay.errors import UpstreamError
from tests.support.processes import children_of
from tests.support.waiting import eventually

needs_a_path = pytest.mark.skipif(real.why_not() is not None, reason=real.why_not() or "")
WORDS = sentence.load()
# Three seconds, of which so much is lost that each call must suffer.
PACKETS = 150
LOSS = 0.1


@pytest.fixture
def bad_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "LOSS", LOSS)


def samples_of(wav: bytes) -> list[int]:
    with wave.open(io.BytesIO(wav)) as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (1, 2, 8000)
        return list(memoryview(reader.readframes(reader.getnframes())).cast("h"))


def heard(*delays_ms: float | None) -> Heard:
    arrivals = tuple(Arrival(n, delay, WORDS[n]) for n, delay in enumerate(delays_ms) if delay is not None)
    return Heard(len(delays_ms), arrivals, 0)


# What is made of a call


def test_the_whole_sentence_heard_is_the_whole_sentence() -> None:
    everything = samples_of(render(heard(*[40.0] * len(WORDS))))
    assert everything == [sample for payload in WORDS for sample in sound.decode(payload)]


def test_what_is_lost_or_late_is_concealed_and_takes_its_time() -> None:
    delays: list[float | None] = [40.0] * len(WORDS)
    delays[50] = None
    delays[60] = 101.0
    told = judge(Conversation(TLS, heard(*delays), heard(40.0), 7))
    assert (told.way, told.wrong, told.path_lost) == (TLS, 0, 7)
    assert (told.trader.sent, told.trader.lost, told.trader.late) == (len(WORDS), 1, 1)
    assert told.other.sent == 1
    came = samples_of(told.wav)
    assert len(came) == len(WORDS) * sentence.SAMPLES_PER_PACKET
    said = [sample for payload in WORDS for sample in sound.decode(payload)]
    differs = {n // sentence.SAMPLES_PER_PACKET for n in range(len(said)) if came[n] != said[n]}
    # A hole changes the end of what comes before it and the beginning of what comes after it, and no more.
    assert {50, 60} <= differs <= {49, 50, 51, 59, 60, 61}


def test_a_call_of_which_nothing_came_is_silence_of_the_same_length() -> None:
    assert samples_of(render(heard(None, None))) == [0] * 2 * sentence.SAMPLES_PER_PACKET


@pytest.mark.parametrize(
    ("seconds", "times"), [(None, 1), (0.1, 1), (8.7, 1), (13.0, 1), (13.1, 2), (60.0, 7), (3600.0, 414)]
)
def test_the_sentence_is_said_as_often_as_comes_closest(seconds: float | None, times: int) -> None:
    assert packets_for(seconds) == times * len(WORDS)


# The calls


def check(told: Story) -> None:
    """What a path that loses forces, whatever else happens."""
    ways = {one.way: one for one in told.calls}
    assert list(ways) == [UDP, TLS, RELAY]
    assert told.authentic
    for one in told.calls:
        for direction in (one.trader, one.other):
            assert direction.sent == direction.received + direction.lost == PACKETS
        assert len(samples_of(one.wav)) == PACKETS * sentence.SAMPLES_PER_PACKET
        assert one.path_lost > 0
    # Six standard deviations.
    most = PACKETS * LOSS + 6 * math.sqrt(PACKETS * LOSS * (1 - LOSS))
    for way in (UDP, RELAY):
        assert 0 < ways[way].trader.lost <= ways[way].path_lost
        assert ways[way].trader.lost <= most
        assert 0 < ways[way].other.lost <= most
    # TCP sends again what was lost. That takes a round trip, and a jitter buffer waits for less.
    for direction in (ways[TLS].trader, ways[TLS].other):
        assert direction.lost == 0
        assert direction.late > 0


@pytest.mark.usefixtures("bad_path")
async def test_over_a_simulated_path() -> None:
    ticks = 0

    def on_tick() -> None:
        nonlocal ticks
        ticks += 1

    told = await tell(PACKETS, "a test wants it so", on_tick)
    assert told.simulated == "a test wants it so"
    check(told)
    assert ticks >= 3 * PACKETS


@needs_a_path
@pytest.mark.usefixtures("bad_path")
async def test_over_a_real_path_and_nothing_is_left_of_it() -> None:
    before, threads = children_of(os.getpid()), threading.active_count()
    told = await tell(PACKETS, None, lambda: None)
    assert told.simulated is None
    check(told)
    assert children_of(os.getpid()) == before
    assert threading.active_count() == threads


async def test_a_perfect_path_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "LOSS", 0.0)
    told = await tell(20, "a test wants it so", lambda: None)
    assert [(one.trader.lost, one.other.lost, one.wrong, one.path_lost) for one in told.calls] == [(0, 0, 0, 0)] * 3


# What goes wrong


@contextlib.asynccontextmanager
async def talking() -> AsyncIterator[asyncio.Task[Story]]:
    """A long story, in which all three have begun to talk; nothing is left of it."""
    before, threads = children_of(os.getpid()), set[int]()
    telling = asyncio.create_task(tell(180_000, None, lambda: threads.add(threading.get_ident())))
    await eventually(lambda: len(threads) == 3 or telling.done())
    assert not telling.done()
    yield telling
    assert telling.done()
    assert children_of(os.getpid()) == before


@needs_a_path
async def test_a_turn_server_that_dies_ends_the_story_with_a_word() -> None:
    async with talking() as telling:
        for process, name in children_of(os.getpid()).items():
            if name == servers.COTURN:
                os.kill(process, signal.SIGKILL)
        with pytest.raises(UpstreamError, match="closed the connection"):
            await telling


@needs_a_path
async def test_a_story_that_is_interrupted_leaves_nothing() -> None:
    async with talking() as telling:
        telling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await telling


@needs_a_path
async def test_a_turn_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "turnserver"
    program.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(servers, "COTURN", str(program))
    with pytest.raises(UpstreamError, match=r"coturn has ended; it said:\nno such luck"):
        await tell(PACKETS, None, lambda: None)


@needs_a_path
async def test_a_turn_server_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "START_TIMEOUT_S", 0.2)
    monkeypatch.setattr(real, "coturn_command", lambda *_, **__: ["sleep", "600"])
    with pytest.raises(UpstreamError, match=r"coturn does not serve on 198\.18\.0\.2:443"):
        await tell(PACKETS, None, lambda: None)


@needs_a_path
async def test_a_relay_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "relay_toml", lambda *_: "[listen]\ntls = 7\n")
    with pytest.raises(UpstreamError, match=r"the relay has ended; it said:\nrelay: .*listen.tls"):
        await tell(PACKETS, None, lambda: None)


async def test_a_call_that_cannot_be_set_up_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    began = asyncio.Event()

    async def refuse(*_: object, **__: object) -> TurnConnection:
        await began.wait()
        raise UpstreamError("no TLS today")

    monkeypatch.setattr(simulated, "open_turn_tls", refuse)
    # The direct call would take an hour.
    with pytest.raises(UpstreamError, match="no TLS today"):
        await tell(180_000, "a test wants it so", began.set)


# Whether there can be a path


def test_without_a_program_there_is_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert servers.missing_program() == "turnserver is not installed (Debian's package coturn has it)"
    for number, program in enumerate(servers.PROGRAMS):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
        assert (servers.missing_program() is None) is (number == len(servers.PROGRAMS) - 1)


@pytest.mark.skipif(shutil.which("turnserver") is None, reason="coturn is not installed")
def test_whether_there_can_be_a_path() -> None:
    assert real.why_not() == refusal()


def test_a_wrong_packet_is_not_authentic() -> None:
    one = judge(Conversation(UDP, Heard(1, (), 1), heard(40.0), 0))
    assert isinstance(one, Told)
    assert not Story((one,), None).authentic
