"""The relay and the upstream that is struck, as processes: what can be done to them, and what they say."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from loadtest.bench import bench
from loadtest.bench.servers import HOST, ROOT, BenchError
from loadtest.bench.waiting import LOOK_S, TOLD_TIMEOUT_S, wait_until
from relay.addresses import Address
from relay.demo.authority import Authority
from tests.support.benches.gateway import write_config

Json = dict[str, Any]

# The log of one that nobody reads: the least that the kernel gives a pipe.
PIPE_BYTES = 4096
RELOADED, NOT_RELOADED = "configuration reloaded", "configuration not reloaded"


@dataclass
class Preparation:
    """What a kind of fault needs from the start: words before the command, its environment, and settings."""

    before: Sequence[str | Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # The host of the struck upstream, as the configuration has it.
    host: str = HOST
    # False if its log goes elsewhere.
    logs_here: bool = True


class Upstream:
    """The upstream that is struck: it can be killed, stopped, started again, and told its mood."""

    def __init__(self, address: Address, core: int, priority: Sequence[str] = ()) -> None:
        self.address = address
        self._core, self._priority = core, priority
        self.start()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        command = [*self._priority, sys.executable, "-m", "loadtest.bench.faults.upstream", str(self.address)]
        with bench.on_core(self._core):
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
        if self._pipes[1].readline() != "ready\n":
            raise BenchError(f"the upstream at {self.address} does not start")

    @property
    def pid(self) -> int:
        """Of its process, also of one that has been killed."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """False once it was killed."""
        return self._process.poll() is None

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _say(self, line: str) -> None:
        self._pipes[0].write(f"{line}\n")
        self._pipes[0].flush()

    def become(self, mood: str) -> None:
        """Change its mood; it has when this returns."""
        self._say(f"mood {mood}")
        self.count()

    def count(self) -> dict[str, int]:
        """What it has seen since it was started."""
        self._say("count")
        found: dict[str, int] = json.loads(self._pipes[1].readline())
        return found

    def signal(self, number: signal.Signals) -> None:
        """Stop it, or let it go on."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """As kill -9 does."""
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()


class Log:
    """What the relay says on stderr, line by line, unless nobody reads."""

    def __init__(self, descriptor: int) -> None:
        self.lines: list[str] = []
        self._descriptor = descriptor
        self._reads = threading.Event()
        self._reads.set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="log")
        self._thread.start()

    def _read(self) -> None:
        waiting = b""
        while not self._over.is_set():
            self._reads.wait()
            if not select.select([self._descriptor], [], [], LOOK_S)[0]:
                continue
            if not (data := os.read(self._descriptor, 65_536)):
                return
            *lines, waiting = (waiting + data).split(b"\n")
            self.lines += [line.decode(errors="replace") for line in lines]

    def pause(self) -> None:
        """Read nothing from now on, and leave little room."""
        self._reads.clear()
        # It has room for more than that already if something waits in it, which is as well.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def resume(self) -> None:
        """Read on."""
        self._reads.set()

    def close(self) -> None:
        """Read no more."""
        self._over.set()
        self._reads.set()
        self._thread.join()
        os.close(self._descriptor)

    def count(self, words: str, since: int = 0) -> int:
        """How many lines, from one on, have these words."""
        return sum(words in line for line in self.lines[since:])


class Relay:
    """The relay's process, its files, and what operators see of it."""

    def __init__(
        self, folder: Path, prepared: Preparation, plane: str, upstreams: Mapping[str, str], core: int
    ) -> None:
        self.folder, self.prepared = folder, prepared
        self.port, self.admin_port = bench._free_port(), bench._free_port()
        issued = Authority(folder).issue("*.bench.test", HOST)
        self.files = {"certificate": folder / "chain.pem", "private_key": folder / "key.pem"}
        self.good = {
            self.files["certificate"]: issued.chain.read_bytes(),
            self.files["private_key"]: issued.private_key.read_bytes(),
        }
        self.path, self.tree = folder / "relay.toml", self._tree(plane, upstreams)
        self.restore()
        self._watch = folder / "watch.sock"
        self._start(core)

    def _tree(self, plane: str, upstreams: Mapping[str, str]) -> Json:
        tree: Json = {
            "listen": {
                "tls": [f"{HOST}:{self.port}"],
                "admin": f"{HOST}:{self.admin_port}",
                "workers": 1,
                "plane": plane,
            },
            "certificates": [{name: str(path) for name, path in self.files.items()}],
            "upstreams": [{"name": name, "region": name, "address": address} for name, address in upstreams.items()],
            "routes": [{"server_name": f"{name}.bench.test", "region": name} for name in upstreams],
            "limits": {"lame_duck_s": 0},
            "log": {"format": "json"},
        }
        for name, section in self.prepared.sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        return tree

    def restore(self) -> None:
        """Write the good configuration, and the good certificate."""
        for path, content in self.good.items():
            path.write_bytes(content)
        write_config(self.path, self.tree)

    def _start(self, core: int) -> None:
        program = "loadtest.bench.faults.watched_relay"
        command: list[str | Path] = [sys.executable, "-m", program, self._watch, "serve", "--config", self.path]
        reader, writer = os.pipe()
        with bench.on_core(core):
            self.process = subprocess.Popen(  # noqa: S603
                [*self.prepared.before, *command],
                stdout=subprocess.PIPE,
                stderr=writer,
                text=True,
                cwd=ROOT,
                env={**os.environ, **self.prepared.environment},
            )
        os.close(writer)
        self.log = Log(reader)
        assert self.process.stdout is not None
        if not self.process.stdout.readline().startswith("ready "):
            self.log.close()
            raise BenchError("the relay does not start; it said:\n" + "\n".join(self.log.lines))

    def stop(self) -> None:
        """End it, and what reads from it."""
        for last_word in (self.process.terminate, self.process.terminate, self.process.kill):
            last_word()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(bench.STOP_TIMEOUT_S / 4)
                break
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()

    # What operators do and see

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.process.pid

    def reload(self, words: str = RELOADED) -> None:
        """Have it read its configuration again, and wait until the log has these words. Raises BenchError."""
        since = len(self.log.lines)
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.log.count(words, since) > 0, f"the log does not say {words!r}")

    def ask(self, path: str) -> bytes:
        """What the admin listener answers. Raises OSError."""
        url = f"http://{HOST}:{self.admin_port}{path}"
        with urllib.request.urlopen(url, timeout=TOLD_TIMEOUT_S) as answer:
            found: bytes = answer.read()
        return found

    def metric(self, name: str) -> float:
        """A metric, written with its labels."""
        lines = self.ask("/metrics").decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    def flows(self) -> dict[str, Json]:
        """All that run, by their ids."""
        return {flow["id"]: flow for flow in json.loads(self.ask("/api/flows?limit=10000"))["flows"]}

    def flow(self, name: str) -> Json:
        """One that runs, or is among the last 200 that have ended. Raises OSError if it is not."""
        found: Json = json.loads(self.ask(f"/api/flows/{name}"))
        return found

    def limit_descriptors(self, count: int) -> int:
        """Let it have this many from now on. Returns how many it could have before."""
        before, hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (count, hard))
        return before

    def descriptors(self) -> int:
        """How many it has."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def tasks(self) -> int:
        """How many of asyncio's."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(self._watch))
            with asking.makefile() as answer:
                return int(answer.readline())
