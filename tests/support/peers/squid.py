"""A real squid for a test: the web proxy of a firm, which wants a name and a password from everybody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.addresses import Address
from tests.support.network.ports import reserved_address
from tests.support.waiting import eventually

USERNAME = "desk"
PASSWORD = "open sesame"
# Where squid keeps what its processes share, under its service name; it leaves that behind.
SHARED_MEMORY = Path("/dev/shm")
AUTHENTICATOR = Path("/usr/lib/squid/basic_ncsa_auth")

needs_squid = pytest.mark.skipif(
    shutil.which("squid") is None or not AUTHENTICATOR.exists(), reason="squid is not installed"
)


@dataclass(frozen=True)
class Squid:
    """A running squid, and what its users say to it."""

    address: Address
    log: Path
    service: str
    username: str = USERNAME
    password: str = PASSWORD

    @property
    def url(self) -> str:
        """Where it is, without name and password."""
        return f"http://{self.address}"

    def requests(self) -> list[list[str]]:
        """What it has done so far: (client, code and status, method and URL, user) of each request that has ended."""
        lines = self.log.read_text(encoding="ascii").splitlines() if self.log.exists() else []
        return [line.split(" ") for line in lines]


def _access(folder: Path) -> list[str]:
    return [
        f"auth_param basic program {AUTHENTICATOR} {folder / 'passwords'}",
        "auth_param basic realm squid.test",
        "acl users proxy_auth REQUIRED",
        # A tunnel through anything but 443 is what squid's own defaults refuse; the relay under test has a free port.
        # Nothing but this machine: a browser asks its maker's servers all the time.
        r"acl here dstdom_regex -n ^127\.",
        "http_access deny !here",
        "http_access allow users",
        "http_access deny all",
    ]


def _configuration(folder: Path, squid: Squid, access: Sequence[str]) -> str:
    lines = [
        f"http_port {squid.address}",
        *(access or _access(folder)),
        "cache deny all",
        "logformat short %>a %Ss/%>Hs %rm %ru %un",
        f"access_log stdio:{squid.log} short",
        f"cache_log {folder / 'cache.log'}",
        f"pid_filename {folder / 'squid.pid'}",
        f"coredump_dir {folder}",
        # Otherwise it looks for a name of this machine.
        "visible_hostname squid.test",
        "netdb_filename none",
        "pinger_enable off",
        "shutdown_lifetime 0 seconds",
        "",
    ]
    return "\n".join(lines)


def _write_files(folder: Path, squid: Squid, access: Sequence[str]) -> None:
    hashed = subprocess.run(
        ["openssl", "passwd", "-apr1", "-stdin"], input=squid.password, capture_output=True, text=True, check=True
    ).stdout
    (folder / "passwords").write_text(f"{squid.username}:{hashed}")
    (folder / "squid.conf").write_text(_configuration(folder, squid, access))
    # Started by root it goes on as a user of its own, who writes its logs here.
    folder.chmod(0o777)


@contextlib.asynccontextmanager
async def open_squid(access: Sequence[str] = ()) -> AsyncIterator[Squid]:
    """Start squid and wait until it listens. Nothing of it is shared with another squid, and nothing stays.

    ``access`` are lines of its configuration that say who may go where, in place of a login for this machine alone.
    """
    # Letters and digits only. By default all are called squid, and meet in one shared memory.
    service = f"relaytest{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="squid-") as name, reserved_address() as address:
        folder = Path(name)
        squid = Squid(address, folder / "access.log", service)
        _write_files(folder, squid, access)
        command = ("squid", "-N", "-n", service, "-f", folder / "squid.conf")
        # Sanitizers of this process are not for squid.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=DEVNULL, env=environment)
        try:
            await eventually(lambda: process.returncode is not None or _listens(squid.address), "squid listens")
            assert process.returncode is None, (folder / "cache.log").read_text()
            yield squid
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            for path in shared_memory(service):
                path.unlink()


def shared_memory(service: str) -> list[Path]:
    """The files that the squid of this service name has in memory."""
    return sorted(SHARED_MEMORY.glob(f"{service}-*"))


def _listens(address: Address) -> bool:
    wanted = f"{int.from_bytes(bytes(map(int, address.host.split('.'))), 'little'):08X}:{address.port:04X}"
    with open("/proc/net/tcp", encoding="ascii") as table:
        return any(line.split()[1:4:2] == [wanted, "0A"] for line in table)
