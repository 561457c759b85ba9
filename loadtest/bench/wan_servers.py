"""The servers that ``wan.py`` measures, in the namespace at the far end: the relay, and coturn."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from relay.addresses import Address
from relay.demo.wan.netns import Namespace
from relay.demo.wan.servers import ServerFailedError, serving
from relay.plane.certificates import Certificate
from tests.support.benches.gateway import write_config

# The namespace is empty: any port is free.
SERVER_PORT = 443
TURN_PORT = 3478
KIB = 1024


class WanError(Exception):
    """Something could not start, or has ended. The message says what."""


@dataclass(frozen=True)
class Server:
    """A server that is measured. ``log`` has what it has printed. Its figures raise WanError when it has died."""

    name: str
    process: Process
    log: Path

    @property
    def rss_kb(self) -> int:
        """Memory in use, in KiB."""
        pages = int(self._read("statm").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // KIB

    @property
    def kernel_queue_bytes(self) -> int:
        """The bytes that TCP holds and the client has not acknowledged (the tx_queue of /proc/net/tcp)."""
        rows = [line.split() for line in self._read("net/tcp").splitlines()[1:]]
        ours = [row for row in rows if int(row[1].partition(":")[2], 16) == SERVER_PORT and row[3] == "01"]
        return sum(int(row[4].partition(":")[0], 16) for row in ours)

    def _read(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.process.pid}", name).read_text()
        except OSError:
            raise WanError(f"{self.name} died; it said:\n{self.log.read_text(errors='replace')}") from None


def _relay(folder: Path, address: Address, source: Address, certificate: Certificate) -> list[str | Path]:
    tree = {
        "listen": {"tls": [str(address)], "admin": "127.0.0.1:0", "workers": 1},
        "certificates": [{"certificate": str(certificate.chain), "private_key": str(certificate.private_key)}],
        "upstreams": [{"name": "wan", "address": str(source)}],
        "log": {"level": "warning"},
    }
    write_config(folder / "relay.toml", tree)
    return [sys.executable, "-m", "relay", "serve", "--config", folder / "relay.toml"]


def _coturn(folder: Path, address: Address, _: Address, certificate: Certificate) -> list[str | Path]:
    lines = [
        f"listening-ip={address.host}",
        "relay-ip=127.0.0.1",
        f"listening-port={TURN_PORT}",
        f"tls-listening-port={address.port}",
        f"cert={certificate.chain}",
        f"pkey={certificate.private_key}",
        f"userdb={folder / 'users.sqlite'}",
        f"pidfile={folder / 'pid'}",
        "relay-threads=1",
        *("no-auth", "allow-loopback-peers", "no-cli", "no-dtls", "log-file=stdout", "simple-log", ""),
    ]
    (folder / "turnserver.conf").write_text("\n".join(lines))
    return ["turnserver", "-c", folder / "turnserver.conf"]


Command = Callable[[Path, Address, Address, Certificate], list[str | Path]]
SERVERS: dict[str, Command] = {"relay": _relay, "coturn": _coturn}


def installed() -> list[str]:
    """The servers that can be measured here."""
    return [name for name in SERVERS if name != "coturn" or shutil.which("turnserver")]


@contextlib.asynccontextmanager
async def open_server(
    name: str, folder: Path, namespace: Namespace, *, address: Address, source: Address, certificate: Certificate
) -> AsyncIterator[Server]:
    """A server that accepts connections. Raises WanError."""
    command, log = SERVERS[name](folder, address, source, certificate), folder / "log"
    async with started(name, command, namespace, address, log) as process:
        yield Server(name, process, log)


@contextlib.asynccontextmanager
async def started(
    name: str, command: Sequence[str | Path], namespace: Namespace, address: Address, log: Path
) -> AsyncIterator[Process]:
    """A process that accepts connections at ``address``, inside. Raises WanError."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            process = await stack.enter_async_context(serving(name, command, namespace, address, log))
        except ServerFailedError as error:
            raise WanError(str(error)) from None
        yield process
