"""Servers in a network namespace: processes of their own, which serve while a block runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import relay
from relay import deadlines
from relay.addresses import Address
from relay.demo.wan.netns import Namespace
from relay.errors import UpstreamError
from relay.plane.certificates import Certificate

COTURN = "turnserver"
# What is run, and the package of Debian that has it.
PROGRAMS = {COTURN: "coturn", "nsenter": "util-linux", "setpriv": "util-linux"}
# Python and its libraries take about a second on a quiet machine.
START_TIMEOUT_S = 30.0
POLL_S = 0.05
# The last lines of what a server said have the reason.
SHOWN_BYTES = 2000


class ServerFailedError(UpstreamError):
    """A server does not start, or has died. The message has the end of what it said."""

    def __init__(self, name: str, what: str, log: Path) -> None:
        said = log.read_bytes()[-SHOWN_BYTES:].decode(errors="replace")
        super().__init__(f"{name} {what}; it said:\n{said}")


def missing_program() -> str | None:
    """What is not installed of what servers inside need, with Debian's package; None if nothing is missing."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian's package {package} has it)"
    return None


@contextlib.asynccontextmanager
async def serving(
    name: str, command: Sequence[str | Path], namespace: Namespace, address: Address, log: Path
) -> AsyncIterator[Process]:
    """A process that accepts connections at ``address``, inside. Raises ServerFailedError, which has its ``log``."""
    # The relay that is started is the one that runs here, wherever that is.
    root = Path(relay.__file__).parents[1]
    with log.open("wb") as output:
        async with namespace.process(*command, output=output, cwd=root) as process:
            try:
                async with deadlines.timeout(START_TIMEOUT_S):
                    while not _accepts(namespace, address):
                        if process.returncode is not None:
                            raise ServerFailedError(name, "has ended", log)
                        await asyncio.sleep(POLL_S)
            except TimeoutError:
                raise ServerFailedError(name, f"does not serve on {address}", log) from None
            yield process


def _accepts(namespace: Namespace, address: Address) -> bool:
    with namespace.socket() as probe:
        return probe.connect_ex(address) == 0


def coturn_command(
    folder: Path, udp: Address, tls: Address, certificate: Certificate, *, username: str, password: str
) -> list[str | Path]:
    """coturn with one user, relaying from the host of ``udp``. Writes its configuration into the folder."""
    lines = [
        f"listening-ip={udp.host}",
        f"relay-ip={udp.host}",
        f"listening-port={udp.port}",
        f"tls-listening-port={tls.port}",
        f"cert={certificate.chain}",
        f"pkey={certificate.private_key}",
        "realm=wan.test",
        f"user={username}:{password}",
        f"userdb={folder / 'users.sqlite'}",
        f"pidfile={folder / 'pid'}",
        "relay-threads=1",
        *("lt-cred-mech", "no-cli", "no-dtls", "log-file=stdout", "simple-log", ""),
    ]
    path = folder / "turnserver.conf"
    path.write_text("\n".join(lines))
    return [COTURN, "-c", path]


def relay_command(folder: Path, tls: Address, upstream: Address, certificate: Certificate) -> list[str | Path]:
    """A relay of ours with one upstream. Writes its configuration into the folder."""
    path = folder / "relay.toml"
    path.write_text(relay_toml(tls, upstream, certificate))
    return [sys.executable, "-m", "relay", "serve", "--config", path]


def relay_toml(tls: Address, upstream: Address, certificate: Certificate) -> str:
    """Its configuration. It does not probe: what it asks would change which packets of the voice are lost."""
    return f"""\
[listen]
tls = ["{tls}"]
admin = "127.0.0.1:0"
workers = 1

[[certificates]]
certificate = {json.dumps(str(certificate.chain))}
private_key = {json.dumps(str(certificate.private_key))}

[[upstreams]]
name = "far"
address = "{upstream}"
probe = "none"

[log]
level = "warning"
"""
