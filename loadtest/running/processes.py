"""Locust's command line, and its process: it is watched, stopped politely, and ended if that does not help.

If this process dies, however it does, Locust and its workers see their lifeline end, and end as well.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from loadtest.plan.hosts import canonical, is_loopback
from loadtest.plan.work import FOLDER, LIFELINE, VARIABLE, Work
from relay.addresses import Address, parse_address
from relay.errors import OperatorError

LOCUSTFILE = Path(__file__).parent.parent / "locustfile.py"
SHAPEFILE = LOCUSTFILE.with_name("shapefile.py")
# A worker that is told to stop has this long: streams are heard out, softphones log out.
STOPS_WITHIN_S = 75.0
ENDS_WITHIN_S = 10.0
LOOKS_EVERY_S = 0.2
# Locust's own, which masters and workers of several machines expect.
MASTER_PORT = 5557
# Below those that the kernel takes for connections (net.ipv4.ip_local_port_range), of which a load test has many.
PORTS = range(30_000, 32_768)
MAX_PORTS_TRIED = 100


@dataclass(frozen=True)
class Mode:
    """How Locust runs: alone, with workers that it forks, as a master, or as a worker of one."""

    processes: int = 0
    master: bool = False
    expect_workers: int = 1
    worker: bool = False
    master_host: str = "127.0.0.1"
    # None: what workers of other machines expect, or with workers of this process any that is free.
    master_port: int | None = None
    web: str = ""

    @property
    def wants_port(self) -> bool:
        """Whether any free port will do for the workers of this process."""
        return self.processes > 1 and not (self.master or self.worker or self.master_port)

    def arguments(self, port: int | None = None) -> list[str]:
        """For Locust. ``port`` is for the workers of this process, if they want one."""
        master_port = str(self.master_port or port or MASTER_PORT)
        if self.worker:
            return ["--worker", "--master-host", self.master_host, "--master-port", master_port]
        found = ["--only-summary"]
        if self.web:
            page = parse_address(self.web)
            found += ["--web-host", page.host, "--web-port", str(page.port), "--autostart", "--autoquit", "3"]
        else:
            found.append("--headless")
        if self.master:
            bind = ["--master-bind-host", self.master_host, "--master-bind-port", master_port]
            found += ["--master", *bind, "--expect-workers", str(self.expect_workers)]
            found += ["--expect-workers-max-wait", "60"]
        elif self.processes > 1:
            found += ["--processes", str(self.processes), "--master-bind-port", master_port]
            found += ["--master-port", master_port, "--master-bind-host", "127.0.0.1"]
        return found


def web_address(text: str) -> Address:
    """Where Locust's page is to be. Raises OperatorError.

    Whoever sees the page can start and stop load, and change its users. It asks for no password.
    """
    try:
        address = parse_address(text)
        host = canonical(address.host)
    except ValueError as error:
        raise OperatorError(f"--web {error}") from None
    if not address.port:
        raise OperatorError(f"--web {text}: expected a port from 1 to 65535")
    if not is_loopback(host):
        raise OperatorError(
            f"--web {text}: the page starts and stops load, and has no password; expected a loopback address, such as "
            "127.0.0.1:8089"
        )
    return Address(host, address.port)


class FreePort:
    """A TCP port of this machine that is free, and that no other load test takes until ``close``.

    It is not bound, because Locust binds it later. A name on an abstract Unix socket (unix(7)) says that it is taken,
    and goes with this process at the latest. Raises OperatorError if none of a hundred is free.
    """

    def __init__(self) -> None:
        for port in random.sample(PORTS, MAX_PORTS_TRIED):
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0relay-loadtest/port/{port}")
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            except OSError:
                claim.close()
                continue
            self.port, self._claim = port, claim
            return
        raise OperatorError(f"no free port from {PORTS.start} to {PORTS.stop - 1} for workers; expected --master-port")

    def close(self) -> None:
        """Others may take it."""
        self._claim.close()


class Locust:
    """Locust's process, while a block runs. It inherits the descriptors ``shared``."""

    def __init__(
        self,
        work: Work,
        mode: Mode,
        log: IO[bytes] | None,
        locustfile: Path = LOCUSTFILE,
        shared: Sequence[int] = (),
    ) -> None:
        files = str(locustfile) if locustfile == LOCUSTFILE else f"{SHAPEFILE},{locustfile}"
        self._port = FreePort() if mode.wants_port else None
        port = None if self._port is None else self._port.port
        command = [sys.executable, "-m", "locust", "-f", files, *mode.arguments(port)]
        told = {FOLDER: str(Path(work.record).parent)} if work.record else {}
        lifeline, self._lifeline = os.pipe()
        try:
            with work.handed() as handed:
                # Its own group: Ctrl-C is for us, and we pass it on, once.
                self._process = subprocess.Popen(  # noqa: S603 - Locust, with arguments that were checked
                    command,
                    env={**os.environ, VARIABLE: str(handed), LIFELINE: str(lifeline), **told},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(handed, lifeline, *shared),
                )
        except BaseException:
            self._let_go()
            raise
        finally:
            os.close(lifeline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill()
        self._let_go()

    def _let_go(self) -> None:
        # What it has forked and left ends with this.
        os.close(self._lifeline)
        if self._port is not None:
            self._port.close()

    def wait(self, seconds: float, on_look: Callable[[], bool]) -> int | None:
        """Wait until it has ended, ``on_look`` says True, or the time is over: its exit status, or None."""
        for _ in range(max(1, round(seconds / LOOKS_EVERY_S))):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(LOOKS_EVERY_S)
            if on_look():
                return None
        return None

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> int | None:
        """Ask it to end, and end it if it does not, or if nobody wants to wait: its exit status, or None if killed."""
        for number, seconds in ((signal.SIGINT, STOPS_WITHIN_S), (signal.SIGTERM, ENDS_WITHIN_S)):
            if self._process.poll() is None:
                self._process.send_signal(number)
            status = self.wait(seconds, hurry)
            if status is not None:
                return status
            if hurry():
                break
        self.kill()
        return None

    def kill(self) -> None:
        """End it and the workers that it has forked, now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
