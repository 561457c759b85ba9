"""Debian's PostgreSQL for a test: a cluster of its own in a temporary folder, on a free port of 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest

from relay.addresses import Address
from tests.support.network.ports import reserved_address
from tests.support.processes import children_of

_INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
BIN = _INSTALLED[-1].parent if _INSTALLED else None
# It refuses to run as root. Debian's package makes this user.
OWNER = "postgres"
START_TIMEOUT_S = 60

needs_postgresql = pytest.mark.skipif(BIN is None, reason="postgresql is not installed")


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    assert BIN is not None
    own: dict[str, Any] = {"user": OWNER, "group": OWNER, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [str(BIN / str(command[0])), *map(str, command[1:])],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        timeout=START_TIMEOUT_S,
        **own,
    )
    assert done.returncode == 0, done.stdout
    return done


@contextlib.contextmanager
def open_postgresql() -> Iterator[str]:
    """The URL of an empty database, while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="relay-postgresql-"))
    if os.geteuid() == 0:
        owner = pwd.getpwnam(OWNER)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    data = folder / "data"
    try:
        # Nothing of it is to outlive the test, so nothing waits for the disk.
        _run("initdb", "--pgdata", data, "--auth=trust", "--username=relay", "--encoding=UTF8", "--no-sync")
        with reserved_address() as address, _running(data, folder, address):
            yield f"postgresql://relay@{address}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _running(data: Path, folder: Path, address: Address) -> Iterator[None]:
    settings = {
        "listen_addresses": address.host,
        "port": address.port,
        "unix_socket_directories": folder,
        "fsync": "off",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    # With a log file of its own, or the server would keep the pipe of this command open.
    _run("pg_ctl", "start", "--wait", "--pgdata", data, "--log", folder / "log", "--options", options)
    try:
        yield
    finally:
        _run("pg_ctl", "stop", "--wait", "--mode=immediate", "--pgdata", data)


@contextlib.asynccontextmanager
async def hung(url: str) -> AsyncIterator[None]:
    """The server is there and does nothing, while the block runs."""
    connection = await asyncpg.connect(url)
    folder = await connection.fetchval("SELECT setting FROM pg_settings WHERE name = 'data_directory'")
    await connection.close()
    server = int((Path(folder) / "postmaster.pid").read_text().splitlines()[0])
    processes = [server, *children_of(server)]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
