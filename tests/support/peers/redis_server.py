"""Debian's redis-server, on a free port, with nothing on disk."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.plane.certificates import Certificate
from tests.support.network.ports import reserved_address

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
READY_TIMEOUT_S = 60.0


@dataclass
class RedisServer:
    """A process. ``pause`` and ``resume`` stop it and let it go on: a server that does not answer."""

    port: int
    process: asyncio.subprocess.Process

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def pause(self) -> None:
        """It takes connections still, as the kernel does that for it, and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on, and answers what it was asked meanwhile."""
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def end(self) -> None:
        """End it, and close the pipe to it."""
        await self.kill()
        self.process._transport.close()  # type: ignore[attr-defined]


async def start_redis(folder: Path, port: int, *options: str) -> RedisServer:
    """Start a server, and wait until it takes connections. Later options count."""
    process = await asyncio.create_subprocess_exec(
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
        "--dir", str(folder), *options,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(READY_TIMEOUT_S):
        while b"Ready to accept connections" not in await process.stdout.readline():
            assert process.returncode is None, "redis-server has ended"
    return RedisServer(port, process)


@contextlib.asynccontextmanager
async def redis_server(folder: Path, *options: str, tls: Certificate | None = None) -> AsyncIterator[RedisServer]:
    """A server while the block runs. With a certificate it speaks TLS, and nothing else."""
    with reserved_address() as address:
        if tls is not None:
            files = ("--tls-cert-file", str(tls.chain), "--tls-key-file", str(tls.private_key))
            options = ("--port", "0", "--tls-port", str(address.port), *files, "--tls-auth-clients", "no", *options)
        server = await start_redis(folder, address.port, *options)
        try:
            yield server
        finally:
            await server.end()
