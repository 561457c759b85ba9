"""The benchmark: a good relay is found good, and whatever goes wrong on the way does not go unseen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench import bench, servers
from loadtest.engine import run as engine_run
from relay.addresses import Address
from relay.wire.stun import Method, is_stun, parse_message
from tests.support.benches.gateway import Relay, running_relay
from tests.support.messages import allocated, answer

CALLS = 5
PPS = 50
WRONG = ("lost", "corrupt", "duplicate", "reordered", "misrouted", "dirty_padding")

# What an echo does with the Nth packet: the answers that are sent instead of it.
Fault = Callable[[int, bytes], list[bytes]]


def missing() -> str:
    """Why the upstream cannot be built here, or nothing."""
    return "" if shutil.which("gcc") and shutil.which("make") else "gcc or make is not installed"


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    if reason := missing():
        pytest.skip(reason)
    servers.build()


@contextlib.asynccontextmanager
async def native_upstream() -> AsyncIterator[Address]:
    process = await asyncio.create_subprocess_exec(servers.BUILD / "upstream", stdout=PIPE)
    try:
        assert process.stdout is not None
        ready, _, address = (await process.stdout.readline()).decode().strip().partition(" ")
        assert ready == "ready"
        host, _, port = address.partition(":")
        yield Address(host, int(port))
        process.terminate()
        counted = json.loads(await process.stdout.read())
        assert counted["ignored"] == counted["not_sent"] == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def generate(relay: Relay, *options: str) -> dict[str, Any]:
    """One run against the relay, by the engine in this process."""
    port, server = f"--port={relay.tls.port}", f"--server-pid={os.getpid()}"
    parsed = engine_run.parse_options([port, server, *options])
    _, result = await asyncio.to_thread(engine_run.measure, parsed, None)
    return result


async def generate_apart(
    relay: Relay, *options: str, on_started: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """The same in a process of its own, as ``bench`` starts it; ``on_started`` is told its process id."""
    command = [sys.executable, "-m", "loadtest.engine.run", f"--port={relay.tls.port}", *options]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    if on_started is not None:
        on_started(process.pid)
    try:
        printed, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    result: dict[str, Any] = json.loads(printed)
    return result


async def test_a_good_relay_is_found_good(tmp_path: Path) -> None:
    async with native_upstream() as upstream, running_relay(tmp_path, upstream) as relay:
        result = await generate(relay, f"--calls={CALLS}", "--seconds=1", "--warmup=0.2")
    assert (result["ready"], result["failed"], result["disconnected"]) == (CALLS, 0, 0), result["first_error"]
    assert result["due"] == result["received"] == CALLS * PPS
    assert {kind: result[kind] for kind in WRONG} == dict.fromkeys(WRONG, 0)
    assert 0 < result["rtt_us"]["p50"] <= result["rtt_us"]["p99"] <= result["rtt_us"]["max"]
    assert result["cpu_us_per_packet"] > 0


@pytest.mark.parametrize("payload", [42, 43, 44, 45, 1200])
async def test_every_padding_and_the_lengths_at_both_ends(tmp_path: Path, payload: int) -> None:
    async with native_upstream() as upstream, running_relay(tmp_path, upstream) as relay:
        result = await generate(relay, "--calls=2", "--seconds=0.2", "--warmup=0", f"--payload={payload}")
    assert result["received"] == 20
    assert {kind: result[kind] for kind in WRONG} == dict.fromkeys(WRONG, 0)


async def test_logins_beside_the_calls(tmp_path: Path) -> None:
    async with native_upstream() as upstream, running_relay(tmp_path, upstream) as relay:
        result = await generate_apart(relay, "--calls=2", "--seconds=0.5", "--warmup=0", "--storm=20")
    assert result["lost"] == 0
    assert (result["storm"]["begun"], result["storm"]["done"], result["storm"]["failed"]) == (10, 10, 0)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_idle_connections(tmp_path: Path, version: str) -> None:
    async with native_upstream() as upstream, running_relay(tmp_path, upstream) as relay:
        result = await generate(relay, "--idle", "--calls=10", f"--tls={version}")
    assert (result["mode"], result["ready"], result["failed"]) == ("idle", 30, 0)
    assert result["tls"] == f"TLSv{version}"
    assert result["setup_cpu_us"] > 0


async def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        command = [sys.executable, "-m", "loadtest.engine.run", f"--port={bound.getsockname()[1]}", "--calls=2"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert (result["ready"], result["failed"], result["valid"]) == (0, 2, False)
    assert "refused" in result["first_error"]


# What goes wrong is seen


def success(request: bytes) -> bytes:
    return allocated(request) if parse_message(request).method == Method.ALLOCATE else answer(request)


@contextlib.contextmanager
def faulty_upstream(fault: Fault) -> Iterator[Address]:
    """An upstream that agrees to everything, and treats the packets as the test says; they are counted from 1."""
    loop, packets = asyncio.get_running_loop(), 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as upstream:
        upstream.bind(("127.0.0.1", 0))

        def on_readable() -> None:
            nonlocal packets
            data, sender = upstream.recvfrom(2048)
            packets += not is_stun(data)
            for answer in [success(data)] if is_stun(data) else fault(packets, data):
                upstream.sendto(answer, sender)

        loop.add_reader(upstream, on_readable)
        try:
            yield Address(*upstream.getsockname())
        finally:
            loop.remove_reader(upstream)


def tenth(fault: Callable[[bytes], list[bytes]]) -> Fault:
    return lambda number, data: [data] if number % 10 else fault(data)


def flip(at: int) -> Fault:
    """Change one bit of each tenth packet, so far behind the ChannelData header, or so far before the end."""
    return tenth(lambda data: [bytes(byte ^ (index == at % len(data)) for index, byte in enumerate(data))])


def swap() -> Fault:
    """Hold each ninth packet back until the tenth has gone; for one call."""
    held: list[bytes] = []

    def fault(number: int, data: bytes) -> list[bytes]:
        if number % 10 == 9:
            held.append(data)
            return []
        return [data] if number % 10 else [data, held.pop()]

    return fault


def mix_up() -> Fault:
    """Each tenth packet is the one that the other call sent last; for two calls."""
    last: dict[bytes, bytes] = {}

    def fault(number: int, data: bytes) -> list[bytes]:
        ssrc = data[HEADER + 8 : HEADER + 12]
        last[ssrc] = data
        return [packet for call, packet in last.items() if call != ssrc] if number % 10 == 0 else [data]

    return fault


HEADER = 4
FAULTS: dict[str, tuple[Fault, int, str]] = {
    "dropped": (tenth(lambda _: []), 2, "lost"),
    "twice": (tenth(lambda data: [data, data]), 2, "duplicate"),
    "out of order": (swap(), 1, "reordered"),
    "cut short": (tenth(lambda data: [data[:2] + (len(data) - 8).to_bytes(2) + data[4:-4]]), 2, "corrupt"),
    "RTP header": (flip(HEADER), 2, "corrupt"),
    "connection": (flip(HEADER + 15), 2, "corrupt"),
    "send time": (flip(HEADER + 27), 2, "corrupt"),
    "last byte": (flip(-1), 2, "corrupt"),
    "another call's packet": (mix_up(), 2, "misrouted"),
    "another channel": (tenth(lambda data: [b"\x40\x7f" + data[2:]]), 2, "misrouted"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_is_counted_as_what_it_is(tmp_path: Path, name: str) -> None:
    fault, calls, kind = FAULTS[name]
    with faulty_upstream(fault) as upstream:
        async with running_relay(tmp_path, upstream) as relay:
            result = await generate(relay, f"--calls={calls}", "--seconds=0.4", "--warmup=0")
    expected = calls * 20 // 10
    assert result[kind] == expected, result
    # A packet that came back wrong has not come back.
    lost = expected if kind in {"lost", "corrupt", "misrouted"} else 0
    assert {other: result[other] for other in WRONG} == {**dict.fromkeys(WRONG, 0), kind: expected, "lost": lost}


async def test_a_late_generator_voids_the_run(tmp_path: Path) -> None:
    """It is stopped for a fifth of the run; its clock goes on, and it must own up."""
    stopped: list[asyncio.TimerHandle] = []
    processes: list[int] = []

    def stop_once(_: int, data: bytes) -> list[bytes]:
        if not stopped:
            os.kill(processes[0], signal.SIGSTOP)
            stopped.append(asyncio.get_running_loop().call_later(0.2, os.kill, processes[0], signal.SIGCONT))
        return [data]

    with faulty_upstream(stop_once) as upstream:
        async with running_relay(tmp_path, upstream) as relay:
            timing = ("--calls=2", "--seconds=1", "--warmup=0")
            result = await generate_apart(relay, *timing, on_started=processes.append)
    assert result["due"] == result["received"] == 100
    assert result["late_us"]["p99"] > 100_000
    assert result["valid"] is False


# Reading the runs


def run(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = dict.fromkeys([*WRONG, "failed", "disconnected"], 0)
    plain |= {"section": "voice", "server": "relay", "calls": 200, "valid": True, "loss": 0.0}
    plain |= {"cpu_us_per_packet": 10.0, "server_cores": 0.4, "foreign_cores": 0.0, "stolen_cores": 0.0}
    plain |= {"upstream_drops": 0}
    plain |= {"rtt_us": {"p50": 200, "p99": 900, "p999": 1500}, "late_us": {"p99": 300}}
    return plain | changes


def test_runs_that_do_not_count_give_no_figures_but_their_faults() -> None:
    late = run(valid=False, cpu_us_per_packet=99.0, corrupt=3, late_us={"p99": 20_001})
    row = bench.summarize([run(), run(cpu_us_per_packet=20.0), late])["voice"]["200"]["relay"]
    assert (row["runs"], row["valid_runs"], row["cpu_us_per_packet"], row["wrong"]) == (3, 2, 15.0, 3)
    alone = bench.summarize([late])["voice"]["200"]["relay"]
    assert (alone["cpu_us_per_packet"], alone["rtt_p99_ms"], alone["loss"]) == (None, None, None)


def test_cpu_time_bears_more_lateness_than_latency_but_no_drops() -> None:
    late = run(valid=False, late_us={"p99": 20_000})
    row = bench.summarize([late])["voice"]["200"]["relay"]
    assert (row["cpu_us_per_packet"], row["rtt_p99_ms"]) == (10.0, None)
    row = bench.summarize([late | {"upstream_drops": 1}])["voice"]["200"]["relay"]
    assert row["cpu_us_per_packet"] is None


def test_the_ratio_is_of_the_same_count() -> None:
    summary = bench.summarize([run(), run(server="coturn", cpu_us_per_packet=20.0), run(calls=400)])
    assert summary["voice"]["200"]["cpu_ratio"] == 0.5
    assert summary["voice"]["400"]["cpu_ratio"] is None
    assert "the relay takes 0.50 of coturn's CPU time" in bench.table(summary)


def test_attackers_do_what_they_are_for() -> None:
    """How long packets took is not judged here: the machine may be busy."""
    kinds = {"key-update": "returns", "half-hello": "connections", "storm": "handshakes", "allocates": "answered"}
    options = ["--calls=5", "--clients=3", "--records=300", "--seconds=1", f"--kinds={','.join(kinds)}"]
    command = [sys.executable, "-m", "loadtest.bench.attacks", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [one["kind"] for one in found["kinds"]] == list(kinds)
    for one in found["kinds"]:
        assert one["done"][kinds[one["kind"]]] > 0
        assert one["attacked"]["due"] == 5 * PPS
        assert not any(one["attacked"][key] for key in ("failed", "disconnected", *bench.WRONG))


def test_an_attack_that_nobody_knows() -> None:
    command = [sys.executable, "-m", "loadtest.bench.attacks", "--kinds=key-update,unkind"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("attacks: --kinds unkind: expected some of key-update,")
