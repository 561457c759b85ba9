"""The project's benchmark: the relay, and coturn if it is installed, take turns under the same calls.

    calls --TLS--> relay  --UDP--> upstream    (as TURN server)
    calls --TLS--> coturn --UDP--> upstream    (as peer)

Prints a table and, as the last line, one JSON object. Exit status: 0 if all was measured, 1 if something was set up or
forwarded wrongly, 2 if it could not start. README.md in this folder says what the figures mean.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from loadtest.bench import servers
from loadtest.bench.servers import BUILD, HOST, PASSWORD, ROOT, USER, BenchError, Command, Place, build
from relay.demo.authority import Authority
from relay.plane.certificates import Certificate

SERVER_NAME = "bench.test"
# Below the ports that outgoing connections use.
PORTS = range(20_000, 30_000)
# Python and its libraries take about a second on a quiet machine. A busy one shall not spoil what was measured before.
START_TIMEOUT_S = 60.0
# At the second signal the relay closes its calls at once. A process that still runs after this time is killed.
STOP_TIMEOUT_S = 5.0
# A pause before the next run, so that cleaning up after hundreds of connections does not count as its cost.
REST_S = 0.5
# Late packets do not change the CPU time, unless they bunch, which makes them cheaper. They begin to bunch at the
# interval between two packets of a call.
MAX_LATE_FOR_CPU_US = 20_000
WRONG = ("corrupt", "duplicate", "reordered", "misrouted")

Run = dict[str, Any]


@dataclass(frozen=True)
class Cores:
    """Who uses which core: clients and upstream share one, servers have the other. A single core is shared."""

    clients: int
    servers: int

    @classmethod
    def choose(cls) -> Cores:
        """The first two cores that this process may use."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[min(1, len(usable) - 1)])


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Children started inside the block inherit the core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _free_port() -> int:
    """A port that is free for TCP and UDP."""
    while True:
        port = random.choice(PORTS)  # noqa: S311
        with contextlib.suppress(OSError), socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind((HOST, port))
            udp.bind((HOST, port))
            return port


@contextlib.contextmanager
def _process(
    command: Sequence[str | Path], core: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on a core. It ends with the block: after two signals (the first only drains a relay), or a kill."""
    with log.open("ab") as output, on_core(core):
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)  # noqa: S603
    try:
        yield process
    finally:
        for last_word in (process.terminate, process.terminate, process.kill):
            last_word()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S if last_word is process.kill else STOP_TIMEOUT_S / 4)
                break


# What a process and the machine have used, in seconds of CPU time


def _cpu_s(pid: int) -> float:
    """A process's CPU time. The clock's number follows from the process id (clock_getcpuclockid)."""
    return time.clock_gettime((~pid << 3) | 2)


def _machine_s() -> tuple[float, float]:
    """Of all cores: busy (user nice system irq softirq), and stolen by the host. Idle and iowait are neither."""
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _, _, irq, softirq, stolen = (int(text) for text in stat.readline().split()[1:9])
    per_second = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / per_second, stolen / per_second


def _own_s() -> float:
    """The CPU time of this process and of its children that have ended, such as generators."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _dropped(port: int) -> int:
    """Datagrams that the upstream's socket had no room for: the last column of its line in /proc/net/udp."""
    with open("/proc/net/udp", encoding="ascii") as table:
        rows = [line.split() for line in table]
    return sum(int(row[-1]) for row in rows[1:] if int(row[1].partition(":")[2], 16) == port)


@dataclass
class Bench:
    """The settings, the upstream, and what has been measured so far."""

    options: argparse.Namespace
    folder: Path
    certificate: Certificate
    cores: Cores
    upstream_port: int
    upstream_pid: int
    runs: list[Run] = field(default_factory=list)
    # Whether servers that can ask for a long-term credential do.
    credentials: ClassVar[bool] = False

    # Servers

    @contextlib.contextmanager
    def server(self, name: str) -> Iterator[Server]:
        """A fresh server that has already carried a call. Raises BenchError."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        place = Place(folder, self.certificate, _free_port(), _free_port(), self.upstream_port, self.credentials)
        command, environment = self._command(name, place)
        log = folder / "log"
        with _process(command, self.cores.servers, log, environment) as process:
            server = Server(name, place, process)
            deadline = time.monotonic() + START_TIMEOUT_S
            while not self._carries_a_call(server):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"{name} does not serve; it said:\n{log.read_text(errors='replace')}")
                time.sleep(0.1)
            yield server

    def _command(self, name: str, place: Place) -> Command:
        """How to start a server."""
        return servers.relay(place, self.options.plane or "") if name == "relay" else servers.coturn(place)

    # Runs

    def _carries_a_call(self, server: Server) -> bool:
        return bool(self._generate(server, "--calls=1", "--seconds=0.1", "--warmup=0").get("received"))

    def _generate(self, server: Server, *arguments: str) -> Run:
        command = [
            *(sys.executable, "-m", "loadtest.engine.run"),
            f"--port={server.port}",
            f"--peer={HOST}:{self.upstream_port}",
            f"--upstream={HOST}:{self.upstream_port}",
            f"--server-name={SERVER_NAME}",
            f"--server-pid={server.process.pid}",
            *self._client_options(server),
            *arguments,
        ]
        with on_core(self.cores.clients):
            done = subprocess.run(  # noqa: S603
                [*priority(self.options), *command], capture_output=True, text=True, check=False, cwd=ROOT
            )
        if done.returncode not in {0, 1} or not done.stdout:
            raise BenchError(f"generator: {done.stderr.strip() or 'no output'}")
        result: Run = json.loads(done.stdout)
        return result

    def _client_options(self, server: Server) -> list[str]:
        """What the generator must know of this server's clients."""
        credential = [f"--user={USER}", f"--password={PASSWORD}"] if self.credentials else []
        return [f"--carrier={server.carrier}", f"--tls={self.options.tls}", *credential]

    def run(self, server: Server, section: str, *arguments: str) -> Run:
        """One run, and what only an observer can see: other load, and drops at the upstream's socket."""
        started, before = time.monotonic(), self._outside(server)
        result = self._generate(server, *arguments)
        if server.process.poll() is not None:
            raise BenchError(f"{server.name} died during a run of {' '.join(arguments)}")
        elapsed_s = time.monotonic() - started
        drops, foreign_s, stolen_s = (now - then for now, then in zip(self._outside(server), before, strict=True))
        result |= {"section": section, "server": server.name, "carrier": server.carrier, "upstream_drops": drops}
        result["foreign_cores"] = round(max(0.0, foreign_s) / elapsed_s, 3)
        result["stolen_cores"] = round(stolen_s / elapsed_s, 3)
        result["valid"] = result.get("valid", True) and not drops
        self.runs.append(result)
        time.sleep(REST_S)
        return result

    def _outside(self, server: Server) -> tuple[int, float, float]:
        """Drops at the upstream, CPU time of other processes, and CPU time that the host stole."""
        busy_s, stolen_s = _machine_s()
        ours_s = _own_s() + _cpu_s(server.process.pid) + _cpu_s(self.upstream_pid)
        return _dropped(self.upstream_port), busy_s - ours_s, stolen_s

    def measure(self) -> None:
        """Run all sections: calls, then the storm, with each server in its turn; then idle connections."""
        options = self.options
        timing = [f"--{name}={getattr(options, name)}" for name in ("seconds", "warmup", "payload", "pps")]
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(self.server(name)) for name in options.servers]
            for number in range(options.rounds):
                for calls in options.counts:
                    for server in reversed(running) if number % 2 else running:
                        self.run(server, "voice", f"--calls={calls}", *timing)
            for server in running if options.storm else ():
                calls = options.counts[0]
                self.run(server, "storm", f"--calls={calls}", f"--storm={options.storm}", *timing)
        for name in options.servers if options.idle else ():
            # A server that was busy before would fill memory that it already has.
            with self.server(name) as server:
                self.run(server, "idle", "--idle", f"--calls={options.idle}")


@dataclass(frozen=True)
class Server:
    """What is measured: a server, where it is, and the carrier of its clients."""

    name: str
    place: Place
    process: subprocess.Popen[bytes]
    carrier: str = "tls"

    @property
    def port(self) -> int:
        """Where its clients connect to."""
        return self.place.port(self.carrier)


# Reading the runs


def _cpu_valid(run: Run) -> bool:
    late_us = (run["late_us"] or {}).get("p99")
    return late_us is not None and late_us <= MAX_LATE_FOR_CPU_US and not run["upstream_drops"]


def _median(runs: Sequence[Run], *path: str) -> float | None:
    """The median of a figure over the runs that have this figure."""
    found = []
    for run in runs:
        value: Any = run
        for key in path:
            value = (value or {}).get(key)
        if value is not None:
            found.append(value)
    return statistics.median(found) if found else None


def _ms(microseconds: float | None) -> float | None:
    return None if microseconds is None else microseconds / 1000


def combine(runs: Sequence[Run]) -> Run:
    """The runs of one server at one count, combined into one."""
    valid, cpu_valid = [run for run in runs if run["valid"]], [run for run in runs if _cpu_valid(run)]
    row: Run = {"runs": len(runs), "valid_runs": len(valid)}
    row["cpu_us_per_packet"] = _median(cpu_valid, "cpu_us_per_packet")
    row["server_cores"] = _median(cpu_valid, "server_cores")
    for name in ("p50", "p99", "p999"):
        row[f"rtt_{name}_ms"] = _ms(_median(valid, "rtt_us", name))
    row["loss"] = _median(valid, "loss")
    row["wrong"] = sum(run[kind] for run in runs for kind in WRONG)
    row["broken"] = sum(run["failed"] + run["disconnected"] for run in runs)
    row["late_p99_ms"] = max((run["late_us"] or {}).get("p99", 0) for run in runs) / 1000
    row["foreign_cores"], row["stolen_cores"] = (
        max(run[kind] for run in runs) for kind in ("foreign_cores", "stolen_cores")
    )
    row["dirty_padding"] = sum(run["dirty_padding"] for run in runs)
    if runs[0]["section"] == "storm":
        row["logins"], row["failed_logins"] = (sum(run["storm"][key] for run in runs) for key in ("done", "failed"))
        row["login_p99_ms"] = _ms(_median(valid, "storm", "login_us", "p99"))
    return row


def summarize(runs: Sequence[Run]) -> Run:
    """``voice`` and ``storm`` by count and server, with the ratio of CPU per packet; ``idle`` by server."""
    summary: Run = {"voice": {}, "storm": {}, "idle": {}}
    for run in runs:
        if run["section"] == "idle":
            wanted = ("rss_kb_per_connection", "setup_cpu_us", "failed", "foreign_cores")
            summary["idle"][run["server"]] = {key: run[key] for key in wanted}
            continue
        alike = [one for one in runs if all(one[key] == run[key] for key in ("section", "server", "calls"))]
        summary[run["section"]].setdefault(str(run["calls"]), {})[run["server"]] = combine(alike)
    for by_server in summary["voice"].values():
        ours, theirs = (by_server.get(name, {}).get("cpu_us_per_packet") for name in ("relay", "coturn"))
        by_server["cpu_ratio"] = ours / theirs if ours and theirs else None
    return summary


_COLUMNS = {
    "us/packet": ("cpu_us_per_packet", "{:.1f}"),
    "cores": ("server_cores", "{:.2f}"),
    "p50 ms": ("rtt_p50_ms", "{:.2f}"),
    "p99 ms": ("rtt_p99_ms", "{:.2f}"),
    "p99.9 ms": ("rtt_p999_ms", "{:.2f}"),
    "loss": ("loss", "{:.4%}"),
    "wrong": ("wrong", "{}"),
    "broken": ("broken", "{}"),
    "late ms": ("late_p99_ms", "{:.2f}"),
    "foreign": ("foreign_cores", "{:.2f}"),
    "stolen": ("stolen_cores", "{:.2f}"),
}


def cell(value: float | None, form: str) -> str:
    """A figure of a table. A dash is a figure that is not known."""
    return "-" if value is None else form.format(value)


def table(summary: Run) -> str:
    """The table, for people. A dash is a figure that is not known, such as the latency of runs that do not count."""
    lines = [["section", "calls", "server", "valid", *_COLUMNS]]
    for section in ("voice", "storm"):
        for calls, by_server in summary[section].items():
            for name, row in by_server.items():
                if name == "cpu_ratio":
                    continue
                cells = [cell(row[key], form) for key, form in _COLUMNS.values()]
                lines.append([section, calls, name, f"{row['valid_runs']}/{row['runs']}", *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    for calls, by_server in summary["voice"].items():
        if by_server["cpu_ratio"] is not None:
            text.append(f"{calls} calls: the relay takes {by_server['cpu_ratio']:.2f} of coturn's CPU time a packet")
    for name, row in ((name, row) for rows in summary["storm"].values() for name, row in rows.items()):
        took = cell(row["login_p99_ms"], "{:.1f}")
        text.append(f"storm: {name}: {row['logins']} logins, {row['failed_logins']} failed, p99 {took} ms")
    for name, row in summary["idle"].items():
        kb, cpu = (cell(row[key], "{:.1f}") for key in ("rss_kb_per_connection", "setup_cpu_us"))
        text.append(f"idle: {name}: {kb} KB a connection, {cpu} us of CPU time a login")
    return "\n".join(text)


# The command


def counts(text: str) -> list[int]:
    """Numbers of calls, with commas between them."""
    return [int(part) for part in text.split(",")]


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plane", choices=["reference", "compiled"], help="of the relay; its own default otherwise")
    parser.add_argument("--only", choices=["relay", "coturn"], help="measure one server")
    parser.add_argument("--counts", type=counts, default=[200, 400, 600], help="calls (200,400,600)")
    parser.add_argument("--rounds", type=int, default=2, help="every second one in the other order (2)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of a run (5)")
    parser.add_argument("--warmup", type=float, default=1.0, help="before it (1)")
    parser.add_argument("--payload", type=int, default=182, help="bytes of a packet (182: SRTP G.711)")
    parser.add_argument("--pps", type=int, default=50, help="packets a second and call (50)")
    parser.add_argument("--tls", choices=["1.2", "1.3"], default="1.2", help="for both (1.2: coturn may refuse 1.3)")
    parser.add_argument("--storm", type=int, default=100, help="logins a second beside the lowest count; 0: none (100)")
    parser.add_argument("--idle", type=int, default=400, help="connections that only stay open; 0: none (400)")
    parser.add_argument(
        "--realtime", action="store_true", help="as root: clients before everything else on their core, so never late"
    )
    options = parser.parse_args(arguments)
    found = ["relay", "coturn"] if shutil.which("turnserver") else ["relay"]
    options.servers = [options.only] if options.only else found
    return options


def with_defaults(options: argparse.Namespace) -> argparse.Namespace:
    """The options of another benchmark, with defaults from this one."""
    return argparse.Namespace(**{**vars(parse_options([])), **vars(options)})


def priority(options: argparse.Namespace) -> list[str]:
    """What a command begins with that goes before everything else on its core."""
    return ["chrt", "--rr", "1"] if options.realtime else []


_Bench = TypeVar("_Bench", bound=Bench)


@contextlib.contextmanager
def open_bench(options: argparse.Namespace, kind: type[_Bench]) -> Iterator[_Bench]:
    """An upstream, certificates, and nothing measured yet. Raises BenchError."""
    build()
    cores, port = Cores.choose(), _free_port()
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        folder = Path(name)
        certificate = Authority(folder).issue(SERVER_NAME, HOST)
        upstream: list[str | Path] = [*priority(options), BUILD / "upstream", f"--port={port}"]
        with _process(upstream, cores.clients, folder / "upstream.log") as process:
            yield kind(options, folder, certificate, cores, port, process.pid)


def main() -> int:
    """Measure and print."""
    options = parse_options()
    # So that a kill also ends the processes that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with open_bench(options, Bench) as bench:
            bench.measure()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)  # noqa: T201
        return 2
    summary = summarize(bench.runs)
    settings = {key: value for key, value in vars(options).items() if key != "only"}
    print(table(summary))  # noqa: T201
    print(json.dumps({"settings": settings, **summary, "runs": bench.runs}))  # noqa: T201
    return int(any(run["failed"] or any(run.get(kind, 0) for kind in WRONG) for run in bench.runs))


if __name__ == "__main__":
    sys.exit(main())
