"""The official socket.io servers and clients, run by node from what npm has installed once, and python-socketio's."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest

from relay.addresses import Address
from tests.support.benches.gateway import Relay

SCRIPTS = Path(__file__).parent / "node"
INSTALLED = Path(__file__).parents[3] / "build" / "node"
# npm fetches some 70 small packages.
INSTALL_TIMEOUT_S = 300.0
# What has not been said by then will not be: a reconnecting client waits for a second or two, and node takes seconds to
# start on a busy machine.
SAY_TIMEOUT_S = 100.0

# What npm said when ``make`` could not have it install: offline, the rest of the tests can run all the same.
FAILED = INSTALLED / "failed"


def why_not() -> str:
    """Why the node scripts cannot be run here, or nothing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not installed"
    return FAILED.read_text() if FAILED.exists() else ""


needs_node = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")


def install() -> Path:
    """What ``npm ci`` has installed for the lock file, installed now if it was not; the folder of modules."""
    INSTALLED.mkdir(parents=True, exist_ok=True)
    lock, done = (SCRIPTS / "package-lock.json").read_bytes(), INSTALLED / "installed-for.json"
    # Several test runs may find it missing at once.
    with open(INSTALLED / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not done.exists() or done.read_bytes() != lock:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SCRIPTS / name, INSTALLED / name)
            npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(npm, cwd=INSTALLED, check=True, timeout=INSTALL_TIMEOUT_S, stdout=subprocess.DEVNULL)
            done.write_bytes(lock)
    return INSTALLED / "node_modules"


class Peer:
    """A process that says what happens to it, a JSON object a line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._unheard: list[dict[str, Any]] = []

    @classmethod
    async def run(cls, *command: str, environment: dict[str, str]) -> Self:
        """Start a command."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
            env={**os.environ, **environment},
        )
        return cls(process)

    @classmethod
    async def start(cls, script: str, version: int, where: str, options: dict[str, Any], **environment: str) -> Self:
        """Start one of the node scripts with the library of this version."""
        modules = await asyncio.to_thread(install)
        command = ("node", str(SCRIPTS / script), str(version), where, json.dumps(options))
        return await cls.run(*command, environment={"NODE_PATH": str(modules), **environment})

    async def heard(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first event of this name with these fields that was not heard yet; others are kept for later."""
        assert self._process.stdout is not None
        wanted = {"event": event, **fields}
        try:
            async with asyncio.timeout(SAY_TIMEOUT_S):
                while True:
                    for number, said in enumerate(self._unheard):
                        if wanted.items() <= said.items():
                            return self._unheard.pop(number)
                    if not (line := await self._process.stdout.readline()):
                        break
                    self._unheard.append(json.loads(line))
        except TimeoutError:
            pass
        raise AssertionError(f"not said: {wanted}; but: {self._unheard}")

    def unheard(self, *events: str) -> list[dict[str, Any]]:
        """What was said of these events and not heard yet."""
        return [said for said in self._unheard if said["event"] in events]

    def tell(self, **told: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told).encode() + b"\n")

    async def stop(self) -> None:
        """End it in order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self._process.stdout.read()
                await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        # Without it the transport of the pipes would be closed by the collector.
        self._process._transport.close()  # type: ignore[attr-defined]


class SocketIoClient(Peer):
    """socket.io-client of a version."""

    async def echo(self, value: Any) -> dict[str, Any]:
        """Send a value, and wait for it to come back; the event says over which transport."""
        self.tell(echo=value)
        return await self.heard("echo", value=value)


@contextlib.asynccontextmanager
async def socketio_client(
    relay: Relay, version: int, *, through: Address | None = None, **options: Any
) -> AsyncIterator[SocketIoClient]:
    """A client of the relay, or of a proxy in front of it whose certificate is of the same authority."""
    address = through or relay.tls
    client = await SocketIoClient.start(
        "client.js",
        version,
        f"https://127.0.0.1:{address.port}",
        {"reconnectionDelay": 50, "reconnectionDelayMax": 200, "forceNew": True, **options},
        NODE_EXTRA_CA_CERTS=str(relay.authority.ca_certificate),
    )
    try:
        yield client
    finally:
        await client.stop()


class SocketIoServer(Peer):
    """socket.io of a version; ``port`` is where it listens on loopback."""

    port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


async def start_socketio_server(version: int, port: int = 0, **options: Any) -> SocketIoServer:
    """Start an official server, on a free port unless one is given."""
    server = await SocketIoServer.start("server.js", version, str(port), options)
    server.port = (await server.heard("ready"))["port"]
    return server


@contextlib.asynccontextmanager
async def socketio_server(version: int, port: int = 0, **options: Any) -> AsyncIterator[SocketIoServer]:
    """An official server while the block runs."""
    server = await start_socketio_server(version, port, **options)
    try:
        yield server
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def python_socketio_server(**options: Any) -> AsyncIterator[SocketIoServer]:
    """python-socketio's server (Engine.IO 4 only) with the same events, in a process of its own."""
    command = (sys.executable, "-m", "tests.support.peers.python_socketio", json.dumps(options))
    server = await SocketIoServer.run(*command, environment={})
    try:
        server.port = (await server.heard("ready"))["port"]
        yield server
    finally:
        await server.stop()


def main() -> None:
    """Install for the Makefile, so that no test has to; where it cannot be done, say so here and in what is skipped."""
    FAILED.unlink(missing_ok=True)
    try:
        install()
    except (OSError, subprocess.SubprocessError) as error:
        FAILED.write_text(f"npm could not install the socket.io clients: {error}")
        print(f"tests: {FAILED.read_text()}; tests with them are skipped", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
