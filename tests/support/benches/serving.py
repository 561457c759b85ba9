"""``relay serve`` as a process of its own: its log, its addresses, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from relay.addresses import Address, parse_address
from relay.client.turn import OnData, TurnConnection, open_turn_tls
from relay.demo.authority import Authority
from relay.emulator.turn.slow import TurnHost
from tests.support.benches.gateway import CREDENTIALS, LIMITS, settings_tree, write_config
from tests.support.processes import with_argument
from tests.support.waiting import EVENTUALLY_S, POLL_S

PROJECT = Path(__file__).parents[3]
PYTHON = (sys.executable, "-X", "dev", "-W", "error", "-m", "relay")
# For one that is killed, and whose words nobody reads: it starts in half of the time.
PLAIN_PYTHON = (sys.executable, "-m", "relay")
# Limits of a relay that no balancer watches, and of one that also waits for its flows as long as the test wants.
UNWATCHED = {"lame_duck_s": 0}
PATIENT = {**UNWATCHED, "drain_timeout_s": 3600}


async def start(
    *arguments: str | Path,
    descriptors: int | None = None,
    python: Sequence[str] = PYTHON,
    **environment: str,
) -> Process:
    """``relay`` with these arguments; what it prints is read by the caller."""
    limited = () if descriptors is None else ("sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh")
    return await asyncio.create_subprocess_exec(
        *limited, *python, *arguments, stdout=PIPE, stderr=PIPE, cwd=PROJECT, env={**os.environ, **environment}
    )


async def kill(process: Process) -> None:
    """End it, if it runs still."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def of_the_relay(log: str) -> list[str]:
    """The lines of a log without those that a debug loop writes of a callback that took long.

    These say something of the machine, and nothing of what is tested.
    """
    return [line for line in log.splitlines() if "Executing <" not in line]


class Served:
    """A running ``relay serve`` that logs in JSON."""

    def __init__(self, process: Process, path: Path, tree: dict[str, Any], trust: ssl.SSLContext) -> None:
        self.path = path
        self.tree = tree
        self.tls = self.admin = Address("", 0)
        # As the ready line has it. It may be a unix socket.
        self.admin_text = ""
        self.process = self._process = process
        self.trust = trust
        self.web_proxies: list[Address] = []
        self.log: list[dict[str, Any]] = []

    async def ready(self) -> None:
        """Wait until it serves, and take its addresses."""
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        found = re.fullmatch(r"ready tls=(\S+) admin=(\S+)(?: web_proxy=(\S+))?\n", line)
        assert found, (line, await self._rest_of_stderr())
        self.tls = parse_address(found[1].partition(",")[0])
        self.admin_text = found[2]
        if not found[2].startswith("unix:"):
            self.admin = parse_address(found[2])
        self.web_proxies = [parse_address(one) for one in (found[3] or "").split(",") if one]

    async def _rest_of_stderr(self) -> str:
        assert self._process.stderr is not None
        return (await self._process.stderr.read()).decode()

    async def open_turn(self, on_data: OnData = lambda _, __: None) -> TurnConnection:
        """A client with an allocation."""
        turn = await open_turn_tls(
            self.tls,
            "trader",
            "secret",
            ssl_context=self.trust,
            server_hostname="relay.test",
            on_data=on_data,
            timeout_s=EVENTUALLY_S,
        )
        await turn.allocate()
        return turn

    async def readyz(self) -> int:
        """The status of ``/readyz``."""
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.admin}/readyz") as response:
            return response.status

    async def becomes_ready(self) -> None:
        """Wait until it would send newcomers here."""
        while await self.readyz() != 200:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def logged(self, event: str) -> dict[str, Any]:
        """Wait for a line of the log; a line that is not JSON fails the test."""
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.log.append(json.loads(line))
            if self.log[-1]["event"] == event:
                return self.log[-1]
        raise AssertionError(f"{event!r} was not logged: {self.log}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True once the process is gone."""
        return self._process.returncode is not None

    async def ended(self) -> int | None:
        """Wait for the end: nothing more on stdout, and nothing but log lines on stderr."""
        assert self._process.stdout is not None
        assert await self._process.stdout.read() == b""
        self.log += [json.loads(line) for line in (await self._rest_of_stderr()).splitlines()]
        assert not [line for line in self.log if line["level"] == "error"]
        return await self._process.wait()


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    upstream: Address,
    environment: dict[str, str] | None = None,
    *,
    descriptors: int | None = None,
    **sections: Any,
) -> AsyncIterator[Served]:
    """``relay serve`` while the block runs. It may have as many ``descriptors`` as this process, or fewer."""
    authority, path = Authority(folder), folder / "relay.toml"
    tree = settings_tree(authority, upstream, **{"log": {"format": "json"}, "limits": LIMITS | UNWATCHED, **sections})
    write_config(path, tree)
    process = await start("serve", "--config", path, descriptors=descriptors, **(environment or {}))
    served = Served(process, path, tree, authority.client_context())
    try:
        await served.ready()
        yield served
    finally:
        # It may have handed over to others, which serve from the same file.
        others = [number for number in with_argument(str(path)) if number != process.pid]
        for number in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        await kill(process)
        if others:
            # They had its pipes.
            await process.communicate()


def open_host() -> TurnHost:
    """A TURN host on loopback that knows ``CREDENTIALS``."""
    return TurnHost(Address("127.0.0.1", 0), CREDENTIALS)
