"""What is printed and logged never waits for a reader: on a pipe, in memory, and in a relay that serves meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay import output as module
from relay.addresses import Address
from relay.client.turn import open_turn_tls
from relay.demo.authority import Authority
from relay.emulator.turn.slow import TurnHost
from relay.output import Output
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import settings_tree, write_config
from tests.support.benches.serving import UNWATCHED, of_the_relay
from tests.support.network.ports import reserved_address
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.waiting import eventually

PROJECT = Path(__file__).parent.parent
PIPE_BYTES = 4096
# No reload takes as long.
LONG_S = 60.0


@dataclass
class Pipe:
    """A pipe with room for 4 KiB. ``read`` gives what is in it, and empties it."""

    reader: int
    writer: int

    def read(self) -> str:
        with contextlib.suppress(BlockingIOError):
            return os.read(self.reader, 1 << 20).decode()
        return ""

    def fill(self) -> None:
        """Leave no room at all."""
        os.set_blocking(self.writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.writer, b"\n")
        os.set_blocking(self.writer, True)


@contextlib.contextmanager
def open_pipe() -> Iterator[Pipe]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(reader, False)
    pipe = Pipe(reader, writer)
    try:
        yield pipe
    finally:
        os.close(reader)
        os.close(writer)


async def read_to(pipe: Pipe, last: str) -> list[str]:
    """All lines, up to one that ends so."""
    text = [""]

    def has_come() -> bool:
        text[0] += pipe.read()
        return text[0].endswith(f"{last}\n")

    await eventually(has_come, f"no {last!r}")
    return text[0].splitlines()


def stopped(output: Output) -> bool:
    output.stop()
    return output.has_stopped(LONG_S)


# ---- The stream


async def test_lines_come_out_as_they_went_in() -> None:
    with open_pipe() as pipe:
        output = Output(pipe.writer)
        print("one", 1, file=output)
        print("two\nthree", file=output, end="")
        print(" and more \u20ac \ud800", file=output)
        output.write("without an end")
        assert stopped(output)
        assert pipe.read() == "one 1\ntwo\nthree and more \u20ac \\ud800\nwithout an end\n"
        # Who still has it after the end is not forgotten.
        print("too late", file=output)
        assert pipe.read() == "too late\n"
        assert output.lost == 0


async def test_lines_of_several_threads_are_not_mixed() -> None:
    with open_pipe() as pipe:
        output = Output(pipe.writer)

        def write(name: str) -> None:
            for number in range(500):
                print(name, number, file=output)

        threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        lines: list[str] = []

        def all_have_come() -> bool:
            lines.extend(pipe.read().split("\n"))
            return "".join(lines).count("499") == 3

        await eventually(all_have_come)
        for thread in threads:
            thread.join()
        assert stopped(output)


async def test_what_nobody_reads_is_bounded_counted_and_told_where_it_is_missing() -> None:
    line = "x" * 99
    with open_pipe() as pipe:
        output = Output(pipe.writer)
        output.describe_lost = "{} lost\n".format
        pipe.fill()
        while not output.lost:
            print(line, file=output)
        for _ in range(9):
            print(line, file=output)
        assert output.lost == 10
        assert output._waiting_bytes <= module.WAITING_BYTES
        kept = [text for text in await read_to(pipe, "10 lost") if text]
        assert kept == [line] * (len(kept) - 1) + ["10 lost"]
        assert module.WAITING_BYTES // 100 <= len(kept) - 1 <= module.WAITING_BYTES // 100 + module.CHUNK_BYTES // 100
        print("again", file=output)
        assert await read_to(pipe, "again") == ["again"]
        assert stopped(output)


async def test_lines_lost_between_others_are_told_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES", 100)
    with open_pipe() as pipe:
        output = Output(pipe.writer)
        output.describe_lost = "{} lost\n".format
        pipe.fill()
        print("taken by the thread", file=output)
        await eventually(lambda: not output._waiting)
        for text in ("a" * 60, "b" * 60, "c" * 60):
            print(text, file=output)
        assert output.lost == 2
        # It fits, behind the word of what does not.
        print("d", file=output)
        assert [text for text in await read_to(pipe, "d") if text] == ["taken by the thread", "a" * 60, "2 lost", "d"]
        assert stopped(output)


async def test_a_blocked_pipe_does_not_hold_up_the_end() -> None:
    with open_pipe() as pipe:
        output = Output(pipe.writer)
        pipe.fill()
        print("waits", file=output)
        output.stop()
        assert not output.has_stopped(0.01)
        print("lost", file=output)
        assert output.lost == 1
        assert (await read_to(pipe, "waits"))[-1] == "waits"
        assert output.has_stopped(LONG_S)


async def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        output = Output(descriptor)
        output.describe_lost = "{} lost\n".format
        print("one\ntwo", file=output)
        await eventually(lambda: output.lost == 2)
        with open_pipe() as pipe:
            os.dup2(pipe.writer, descriptor)
            print("three", file=output)
            assert await read_to(pipe, "three") == ["2 lost", "three"]
            assert stopped(output)
    finally:
        os.close(descriptor)


async def test_a_reader_that_has_gone_costs_lines_and_nothing_else() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        output = Output(writer)
        for number in range(3):
            print(number, file=output)
            await eventually(lambda number=number: output.lost == number + 1)  # type: ignore[misc]
        assert stopped(output)
    finally:
        os.close(writer)


async def test_after_a_torn_line_comes_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    full, write = True, os.write

    def torn(descriptor: int, data: bytes) -> int:
        nonlocal full
        if full and len(data) < 10:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:-5] if full else data)

    with open_pipe() as pipe:
        monkeypatch.setattr("relay.output.os.write", torn)
        output = Output(pipe.writer)
        print("0123456789abcdef", file=output)
        await eventually(lambda: output.lost == 1)
        full = False
        print("whole", file=output)
        assert stopped(output)
        assert pipe.read() == "0123456789ab\nwhole\n"


async def test_a_line_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES", 100)
    with open_pipe() as pipe:
        output = Output(pipe.writer)
        for _ in range(30):
            output.write("x" * 10)
        assert output.lost == 2
        print("whole", file=output)
        assert stopped(output)
        assert pipe.read() == "x" * 80 + "whole\n"


async def test_a_descriptor_that_another_process_made_non_blocking() -> None:
    with open_pipe() as pipe:
        pipe.fill()
        os.set_blocking(pipe.writer, False)
        output = Output(pipe.writer)
        print("x" * 10_000, file=output)
        print("last", file=output)
        lines = [text for text in await read_to(pipe, "last") if text]
        assert (lines, output.lost) == (["x" * 10_000, "last"], 0)
        assert stopped(output)


# ---- A process


PRINTS = """
import sys, threading, warnings
from relay import output
with output.queued():
    print("to stdout")
    print("to stderr", file=sys.stderr)
    warnings.warn("a warning")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
print("afterwards", file=sys.stderr)
raise SystemExit("the last word")
"""


def test_all_that_a_process_says_comes_out() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "to stdout\n")
    said = done.stderr.splitlines()
    assert said[0] == "to stderr"
    assert "UserWarning: a warning" in said[1]
    assert said[-3:] == ["ZeroDivisionError: division by zero", "afterwards", "the last word"]


def test_a_process_without_output_runs_too() -> None:
    script = f"exec {sys.executable} -c 'from relay import output\nwith output.queued(): print(1)' >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], cwd=PROJECT, check=False).returncode == 0


BLOCKED = """
from relay import output
with output.queued():
    print("x" * 100_000)
raise ValueError("x" * 100_000)
"""


async def test_a_process_ends_though_nobody_reads_its_last_words() -> None:
    with open_pipe() as pipe:
        pipe.fill()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BLOCKED, stdout=pipe.writer, stderr=pipe.writer, cwd=PROJECT
        )
        assert await process.wait() == 1


# ---- A relay


@dataclass
class Blocked:
    """A relay whose output nobody reads."""

    process: Process
    path: Path
    tree: dict[str, Any]
    tls: Address
    admin: Address
    authority: Authority
    said: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str) -> str:
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.admin}{path}") as response:
            assert response.status == 200
            return await response.text()

    async def is_served(self) -> None:
        """Wait until it answers; it cannot say that it is ready."""
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                await self.get("/healthz")
                return
            assert self.process.returncode is None
            await asyncio.sleep(0.05)

    async def call(self) -> None:
        """A new call, with a packet that comes back."""
        inbox, context = Inbox(), self.authority.client_context()
        async with (
            open_echo() as peer,
            await open_turn_tls(
                self.tls, "trader", "secret", ssl_context=context, server_hostname="relay.test", on_data=inbox.put
            ) as turn,
        ):
            await turn.allocate()
            await turn.bind_channel(peer)
            turn.send(peer, b"voice")
            assert await inbox.get() == (peer, b"voice")

    async def lines_lost(self) -> int:
        [line] = [
            line for line in (await self.get("/metrics")).splitlines() if line.startswith("relay_log_lines_lost_t")
        ]
        return round(float(line.split(" ")[1]))

    async def lose_lines(self) -> None:
        """Have it log until some is lost: a line for each mistake in its file."""
        write_config(self.path, {**self.tree, **{f"unknown_{number}": {} for number in range(2000)}})
        while not await self.lines_lost():
            self.process.send_signal(signal.SIGHUP)


@contextlib.asynccontextmanager
async def blocked_relay(folder: Path, plane: str, style: str, pipe: Pipe) -> AsyncIterator[Blocked]:
    host = TurnHost(Address("127.0.0.1", 0), StaticCredentials({"trader": "secret"}), allow_loopback_peers=True)
    authority, path = Authority(folder), folder / "relay.toml"
    pipe.fill()
    with reserved_address() as tls, reserved_address() as admin:
        async with host:
            listen = {"tls": [str(tls)], "admin": str(admin), "plane": plane}
            tree = settings_tree(authority, host.address, listen=listen, log={"format": style}, limits=UNWATCHED)
            write_config(path, tree)
            command = (sys.executable, "-X", "dev", "-W", "error", "-m", "relay", "serve", "--config", path)
            process = await asyncio.create_subprocess_exec(
                *command, stdout=pipe.writer, stderr=pipe.writer, cwd=PROJECT
            )
            relay = Blocked(process, path, tree, tls, admin, authority)
            try:
                await relay.is_served()
                yield relay
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path, plane: str) -> None:
    with open_pipe() as pipe:
        async with blocked_relay(tmp_path, plane, "text", pipe) as relay:
            await relay.call()
            await relay.lose_lines()
            await relay.call()
            assert await relay.get("/healthz") == "ok\n"
            relay.process.send_signal(signal.SIGTERM)
            assert await relay.process.wait() == 0


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_lines_that_were_lost_are_told_once_somebody_reads(tmp_path: Path, plane: str) -> None:
    with open_pipe() as pipe:
        async with blocked_relay(tmp_path, plane, "json", pipe) as relay:
            await relay.lose_lines()
            # What was asked for meanwhile finds nothing to complain of.
            write_config(relay.path, relay.tree)
            text = ""

            def has_come(last: str) -> bool:
                nonlocal text
                text += pipe.read()
                return last in text

            await eventually(lambda: has_come('"lines":'))
            lost = await relay.lines_lost()
            await relay.call()
            relay.process.send_signal(signal.SIGTERM)
            await eventually(lambda: has_come('"event": "stopped"') and relay.process.returncode is not None)
            lines = of_the_relay(text.lstrip("\n"))
            # It comes from another writer than the lines of the log.
            lines.remove(f"ready tls={relay.tls} admin={relay.admin}")
            entries = [json.loads(line) for line in lines]
            told = [(entry["level"], entry["lines"]) for entry in entries if "lines" in entry]
            assert {level for level, _ in told} == {"warning"}
            assert sum(count for _, count in told) == lost
            assert entries[-1]["event"] == "stopped"
            assert relay.process.returncode == 0
