"""``relay emulate``: as a process, or in the test's own loop, which starts in a fraction of the time."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console
from typer.testing import CliRunner

from relay import logs
from relay.cli import app
from relay.emulator.settings import EmulatorSettings
from relay.errors import OperatorError
from relay.floor import emulate as floor
from tests.support.benches.serving import PYTHON, kill, start

PORTS = ("--http", "127.0.0.1:0", "--tls", "127.0.0.1:0", "--turn-port", "0", "--bad-web-proxy", "127.0.0.1:0")


class Emulated:
    """A running ``relay emulate``. ``printed`` is what came before its ready line."""

    def __init__(self, printed: str, ready: str) -> None:
        self.printed = printed
        found = re.match(r"ready http=(\S+) tls=(\S+) folder=(.*)", ready)
        assert found is not None, ready
        self.http, self.tls, self.folder = found[1], found[2], Path(found[3])

    async def login(self, user: str, version: str = "", password: str = "trader") -> Any:
        """One login on a connection of its own."""
        wanted = {"user": user, "password": password, "client_version": version}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://{self.http}/rest/v1/login", json=wanted) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.json()


class EmulatingProcess(Emulated):
    """The same, as a process that can be killed."""

    def __init__(self, process: Process, printed: str, ready: str) -> None:
        super().__init__(printed, ready)
        self.process = process

    async def stop(self) -> tuple[int, str]:
        """Ask it to end. Returns its exit status and what it still said on stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


@contextlib.asynccontextmanager
async def emulating(folder: Path, *options: str, python: Sequence[str] = PYTHON) -> AsyncIterator[EmulatingProcess]:
    """A process while the block runs. It is killed at the end, if it runs still."""
    process = await start("emulate", "--folder", folder, *PORTS, *options, python=python)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        lines = []
        async for line in process.stdout:
            if line.startswith(b"ready "):
                break
            lines.append(line.decode())
        else:
            raise AssertionError((await process.stderr.read()).decode())
        yield EmulatingProcess(process, "".join(lines), line.decode().strip())
    finally:
        await kill(process)


class _Screen(io.StringIO):
    """What a terminal would show. ``ready`` is set when the ready line is whole."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = asyncio.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if re.search(r"^ready .*\n", self.getvalue(), re.MULTILINE):
            self.ready.set()
        return written


async def _parsed(folder: Path, *options: str) -> tuple[EmulatorSettings, bool]:
    """What the command line makes of these options: the settings, and whether a relay comes along."""
    seen: list[tuple[EmulatorSettings, bool]] = []

    async def see(settings: EmulatorSettings, _: Console, *, with_relay: bool) -> None:
        seen.append((settings, with_relay))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floor, "emulate", see)
        # The command runs a loop of its own.
        result = await asyncio.to_thread(
            CliRunner().invoke, app, ["emulate", "--folder", str(folder), *PORTS, *options]
        )
    if result.exception is not None:
        raise result.exception
    return seen[0]


async def _emulate(screen: _Screen, folder: Path, *options: str) -> None:
    settings, with_relay = await _parsed(folder, *options)
    with pytest.MonkeyPatch.context() as patch:
        # The test's own log stays as it is.
        patch.setattr(logs, "configure", lambda *_: None)
        await floor.emulate(settings, Console(file=screen, width=80), with_relay=with_relay)


@contextlib.asynccontextmanager
async def emulating_here(folder: Path, *options: str) -> AsyncIterator[Emulated]:
    """The command in this loop, while the block runs. It is cancelled at the end: a signal reaches others as well."""
    screen = _Screen()
    running = asyncio.create_task(_emulate(screen, folder, *options))
    ready = asyncio.create_task(screen.ready.wait())
    await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    if running.done():
        await running
    printed, _, line = screen.getvalue().partition("\nready ")
    try:
        yield Emulated(f"{printed}\n", f"ready {line}")
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def refusal(folder: Path, *options: str) -> str:
    """What the command says that cannot start with these options. Nothing of it is left running."""
    with pytest.raises(OperatorError) as refused:
        await _emulate(_Screen(), folder, *options)
    return f"relay: {refused.value}"
