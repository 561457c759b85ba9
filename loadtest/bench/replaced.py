"""Servers that are replaced while they are measured: the relay, and for comparison haproxy and coturn.

relay      ``relay upgrade``: a new process takes the sockets, the old one serves its calls
haproxy    a reload of its master process (mode tcp, TLS ended here, in front of a coturn that stays): the same idea
coturn     SIGTERM, and a new start: it knows no other way
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol

from loadtest.bench import bench, own_relay, servers
from loadtest.bench.bench import Bench, Server
from loadtest.bench.servers import HOST, ROOT, BenchError, Command, Place
from loadtest.bench.waiting import wait_until
from tests.support.processes import children_of

KINDS = ("relay", "haproxy", "coturn")
# Of haproxy. Each takes two descriptors, and a process often has 20,000.
MAX_CONNECTIONS = 4000
# A server that is not there again by then has failed.
RETURN_TIMEOUT_S = 60.0
# As /proc/net/tcp has them.
ESTABLISHED, LISTENS = "01", "0A"


class Replacing(Protocol):
    """A server that runs, and how it is replaced."""

    server: Server

    def replace(self) -> None:
        """Replace it once. Returns when the new one serves. Raises BenchError."""


def missing(name: str) -> str:
    """Why a server cannot be measured here, or nothing."""
    needed = {"haproxy": ("haproxy", "turnserver"), "coturn": ("turnserver",)}.get(name, ())
    absent = [program for program in needed if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def count_sockets(port: int, state: str) -> int:
    """How many TCP sockets with this local port are in a state."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    rows = [line.split()[:4] for line in lines]
    return sum(at == state and int(local.partition(":")[2], 16) == port for _, local, _, at in rows)


class ReplacedBench(Bench):
    """Starts any of them."""

    # haproxy and coturn forward what the relay's upstream answers: nobody asks for a password.
    credentials: ClassVar[bool] = False

    def _command(self, name: str, place: Place) -> Command:
        if name == "relay":
            return own_relay.command(place, self.options, limits={"lame_duck_s": 0})
        return servers.coturn(place)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Replacing]:
        """The server, which carries calls. Raises BenchError."""
        with self.server("relay" if name == "relay" else "coturn") as server:
            if name == "haproxy":
                with self._haproxy(server) as front:
                    yield Haproxy(front)
            else:
                running: _Relay | _Coturn = _Relay(server) if name == "relay" else _Coturn(server, self)
                with running:
                    yield running

    @contextlib.contextmanager
    def _haproxy(self, coturn: Server) -> Iterator[Server]:
        place = replace(coturn.place, tls_port=bench._free_port())
        command = haproxy_command(place, coturn.place.udp_port)
        with bench._process(command, self.cores.servers, place.folder / "haproxy.log") as process:
            front = Server("haproxy", place, process)
            wait_until(
                lambda: count_sockets(front.port, LISTENS) or process.poll() is not None,
                "haproxy is silent",
                RETURN_TIMEOUT_S,
            )
            if not self._carries_a_call(front):
                said = (place.folder / "haproxy.log").read_text(errors="replace")
                raise BenchError(f"haproxy does not serve; it said:\n{said}")
            yield front

    def start_again(self, server: Server) -> subprocess.Popen[bytes]:
        """Another process of the same server, at its place."""
        command, environment = self._command(server.name, server.place)
        with (server.place.folder / "log").open("ab") as output, bench.on_core(self.cores.servers):
            return subprocess.Popen(command, stdout=output, stderr=output, env=environment)  # noqa: S603


def haproxy_command(place: Place, turn_port: int) -> list[str | Path]:
    """haproxy as master and worker, one thread, which ends TLS and passes on bytes."""
    pair = place.folder / "haproxy.pem"
    pair.write_bytes(place.certificate.chain.read_bytes() + place.certificate.private_key.read_bytes())
    lines = [
        *("global", f"  maxconn {MAX_CONNECTIONS}", "  nbthread 1"),
        *("defaults", "  mode tcp", "  timeout connect 5s", "  timeout client 1h", "  timeout server 1h"),
        *("frontend tls", f"  bind {HOST}:{place.tls_port} ssl crt {pair}", "  default_backend turn"),
        *("backend turn", f"  server coturn {HOST}:{turn_port}", ""),
    ]
    path = place.folder / "haproxy.cfg"
    path.write_text("\n".join(lines))
    return ["haproxy", "-W", "-f", path]


class _Relay:
    """The relay's processes, the newest last. All but the first end with the block."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._pids = [server.process.pid]

    def __enter__(self) -> _Relay:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._pids[1:]:
            with contextlib.suppress(ProcessLookupError):
                for number in (signal.SIGTERM, signal.SIGTERM):  # the first only drains
                    os.kill(pid, number)

    def replace(self) -> None:
        """As ``Replacing`` says."""
        command = [sys.executable, "-m", "relay", "upgrade", "--pid", str(self._pids[-1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)  # noqa: S603
        if done.returncode:
            raise BenchError(f"upgrade {len(self._pids)}: {done.stderr.strip()}")
        self._pids.append(int(done.stdout.split()[1]))


class Haproxy:
    """A reload: the master starts a new worker, and the old one serves its connections until they end."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def replace(self) -> None:
        """As ``Replacing`` says."""
        master = self.server.process.pid
        before = set(children_of(master))
        os.kill(master, signal.SIGUSR2)
        wait_until(lambda: set(children_of(master)) - before, "haproxy has no new worker", RETURN_TIMEOUT_S)


class _Coturn:
    """A new start. All but the first process end with the block."""

    def __init__(self, server: Server, measured: ReplacedBench) -> None:
        self.server = server
        self._measured = measured
        self._process = server.process

    def __enter__(self) -> _Coturn:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not self.server.process:
            self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(bench.STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def replace(self) -> None:
        """As ``Replacing`` says."""
        self._end()
        self._process = self._measured.start_again(self.server)
        wait_until(lambda: count_sockets(self.server.port, LISTENS) > 0, "coturn does not listen", RETURN_TIMEOUT_S)
