"""A real coturn (turnserver) for a test: its own configuration, free ports, ended by process id."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from relay.addresses import Address
from relay.client.requests import TurnRequestError
from relay.client.turn import open_turn_udp
from relay.plane.certificates import Certificate
from tests.support.network.ports import reserved_address

REALM = "coturn.test"
USERNAME = "trader"
PASSWORD = "secret"
# coturn starts within a second; a loaded machine may need many.
START_TIMEOUT_S = 60.0
# It sets up its listeners first; this is the last of its threads.
STARTED = "admin thread"


@dataclass(frozen=True)
class Coturn:
    """A running coturn: ``address`` for UDP and TCP, ``tls_address`` if it has a certificate."""

    address: Address
    tls_address: Address | None
    process_id: int = 0
    realm: str = REALM
    username: str = USERNAME
    password: str = PASSWORD


@contextlib.asynccontextmanager
async def open_coturn(
    *, host: str = "127.0.0.1", certificate: Certificate | None = None, options: Sequence[str] = ()
) -> AsyncIterator[Coturn]:
    """Start coturn and wait until it answers; ``options`` are further lines of its configuration."""
    with contextlib.ExitStack() as held:
        directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="coturn-")))
        address = held.enter_context(reserved_address(host))
        tls_address = None if certificate is None else held.enter_context(reserved_address(host))
        coturn = Coturn(address, tls_address)
        configuration = _write_configuration(directory, coturn, certificate, options)
        process = await asyncio.create_subprocess_exec("turnserver", "-c", configuration, stdout=PIPE, stderr=STDOUT)
        log = _Log(process)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await log.wait_for(STARTED)
                await _answered(coturn.address)
            yield replace(coturn, process_id=process.pid)
        finally:
            await _end(process)
            await log.wait_closed()


def _write_configuration(
    directory: Path, coturn: Coturn, certificate: Certificate | None, options: Sequence[str]
) -> Path:
    path = directory / "turnserver.conf"
    path.write_text("\n".join([*_configuration(coturn, directory, certificate), *options, ""]))
    return path


def _configuration(coturn: Coturn, directory: Path, certificate: Certificate | None) -> list[str]:
    lines = [
        f"listening-ip={coturn.address.host}",
        f"relay-ip={coturn.address.host}",
        f"listening-port={coturn.address.port}",
        f"realm={coturn.realm}",
        f"user={coturn.username}:{coturn.password}",
        f"userdb={directory / 'users.sqlite'}",
        f"pidfile={directory / 'pid'}",
        *("lt-cred-mech", "allow-loopback-peers", "no-cli", "no-dtls", "log-file=stdout", "simple-log"),
    ]
    if certificate is None or coturn.tls_address is None:
        return [*lines, "no-tls"]
    lines.append(f"tls-listening-port={coturn.tls_address.port}")
    return [*lines, f"cert={certificate.chain}", f"pkey={certificate.private_key}"]


async def _answered(server: Address) -> None:
    """Ask until there is an answer; a refusal by ICMP comes at once, the socket may be a moment behind.

    An Allocate without credentials is answered 401 also where a Binding is not (``no-stun``).
    """
    async with await open_turn_udp(server, rto_s=0.05) as probe:
        while True:
            try:
                await probe.allocate()
            except TurnRequestError as error:
                if error.answered:
                    return


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


class _Log:
    """Reads the output to its end, so that the pipe never fills up."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self._stdout = process.stdout
        self._lines: list[str] = []
        self._ended = False
        self._grown = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for line in self._stdout:
            async with self._grown:
                self._lines.append(line.decode(errors="replace"))
                self._grown.notify_all()
        async with self._grown:
            self._ended = True
            self._grown.notify_all()

    async def wait_for(self, text: str) -> None:
        """Wait for a line that has ``text``. Raises AssertionError with the output if the program ends before."""
        async with self._grown:
            await self._grown.wait_for(lambda: self._ended or self._has(text))
        assert self._has(text), "".join(self._lines)

    def _has(self, text: str) -> bool:
        return any(text in line for line in self._lines)

    async def wait_closed(self) -> None:
        await self._reading
