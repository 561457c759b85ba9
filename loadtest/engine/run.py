"""The clients of the benchmark: calls on an open-loop clock, of which every echo is checked, and one JSON object.

Exit status: 0 measured (whatever the figures), 1 could not connect, 2 wrong options.

    python -m loadtest.engine.run --port PORT --peer HOST:PORT --calls 200 --server-pid PID
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from loadtest.engine.engine import Cause, Ended, Engine, Happening, Opened, Silenced
from loadtest.engine.plans import (
    CARRIERS,
    RTP_HEADER_BYTES,
    STAMP_BYTES,
    TLS_VERSIONS,
    Carrier,
    ClientPlan,
    StreamPlan,
)
from loadtest.engine.processes import cpu_s, resident_bytes
from loadtest.engine.windows import MAX_LATENESS_P99_US, Histogram, Window
from relay.addresses import Address, parse_address

SRTP_TAG_BYTES = 10
# Of a packet: RTP, the stamp, and SRTP's tag; and what one datagram carries across an Ethernet.
MIN_PACKET_BYTES = RTP_HEADER_BYTES + STAMP_BYTES + SRTP_TAG_BYTES
MAX_PACKET_BYTES = 1400
# So many handshakes under way at once: enough to keep a server busy, fewer than any listen queue.
AT_ONCE = 32
# If not one connection gets ready in this time, none will.
SETUP_PATIENCE_S = 10.0
# Between the last handshake and the first packet; and before memory is looked at.
SETTLE_S = 0.3
# An echo that takes longer than this is lost, and its stream ends soon after.
PATIENCE_S = 1.0
DRAIN_S = 3.0
# Nobody waits longer for those who go.
LEAVING_S = 3.0
# Made before --idle begins to count: buffers and caches that a server has once, not for each connection.
IDLE_NOT_COUNTED = 20
MAX_CALLS = 20_000
WAITING_S = 0.1


@dataclass(frozen=True)
class Reading:
    """Clocks that a measurement is a difference of. What could not be read is None."""

    at_s: float
    own_s: float
    server_s: float | None
    server_bytes: int | None = None


@dataclass
class Run:
    """The calls of one run, and what has become of them."""

    options: argparse.Namespace
    engine: Engine
    calls: dict[int, None] = field(default_factory=dict)  # that are ready, in order
    opened: int = 0
    failed: int = 0
    disconnected: int = 0
    first_error: str = ""
    tls: str = ""
    cipher: str = ""
    silenced: list[Silenced] = field(default_factory=list)

    # What happens

    def take(self, wait_s: float) -> None:
        """Wait for something to happen, and note all that has."""
        self.engine.wait(wait_s)
        for one in self.engine.happenings():
            self._note(one)

    def _note(self, one: Happening) -> None:
        if isinstance(one, Opened):
            self.opened += 1
            self.calls[one.client] = None
            self.tls, self.cipher = one.tls, one.cipher
        elif isinstance(one, Silenced):
            self.silenced.append(one)
        elif isinstance(one, Ended):
            self._note_end(one)

    def _note_end(self, ended: Ended) -> None:
        if ended.cause is Cause.ASKED and ended.client in self.calls:
            self.calls.pop(ended.client)
            return
        self.first_error = self.first_error or f"{ended.words or ended.cause.name} ({ended.phase.name.lower()})"
        if ended.client in self.calls:
            self.calls.pop(ended.client)
            self.disconnected += 1
        else:
            self.failed += 1

    # Connections

    def open(self, wanted: int) -> None:
        """Open calls until there are this many, ready or failed."""
        plan, begun = client_plan(self.options), self.opened + self.failed
        deadline = time.monotonic() + SETUP_PATIENCE_S
        while (ended := self.opened + self.failed) < wanted and time.monotonic() < deadline:
            while begun < min(wanted, ended + AT_ONCE):
                self.engine.open(plan)
                begun += 1
            self.take(WAITING_S)
            if self.opened + self.failed > ended:
                deadline = time.monotonic() + SETUP_PATIENCE_S

    def close(self) -> None:
        """Let all calls go."""
        for client in self.calls:
            self.engine.close(client)
        deadline = time.monotonic() + LEAVING_S
        while self.calls and time.monotonic() < deadline:
            self.take(WAITING_S)

    def sleep_until(self, when_s: float) -> None:
        """Note what happens meanwhile."""
        while (left_s := when_s - time.monotonic()) > 0:
            self.take(left_s)

    def read(self, *, memory: bool = False) -> Reading:
        """The clocks, now."""
        pids = self.options.server_pid
        return Reading(
            time.monotonic(),
            time.process_time(),
            cpu_s(pids) if pids else None,
            resident_bytes(pids) if pids and memory else None,
        )

    def connections(self) -> dict[str, Any]:
        """How setting up has ended."""
        wanted = self.options.calls + (IDLE_NOT_COUNTED if self.options.idle else 0)
        return {
            "mode": "idle" if self.options.idle else "voice",
            "calls": wanted,
            "ready": self.opened,
            "failed": wanted - self.opened,
            "disconnected": self.disconnected,
            "first_error": self.first_error,
            "tls": self.tls,
            "cipher": self.cipher,
        }


def client_plan(options: argparse.Namespace) -> ClientPlan:
    """What each call's client is to do."""
    carrier = CARRIERS[options.carrier]
    return ClientPlan(
        Address(options.host, options.port),
        carrier,
        # A session has no challenge, and says them at once.
        options.user or "bench",
        options.password or "bench",
        (options.peer,),
        server_name=options.server_name,
        upstream=options.upstream if carrier is Carrier.CONNECT_UDP else None,
        tls_version=options.tls,
    )


def _quotient(above: float | None, below: float) -> float | None:
    """A figure that cannot be had is None, never 0."""
    return above / below if above is not None and above >= 0 and below > 0 else None


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


# Idle: what a connection costs


def run_idle(run: Run) -> dict[str, Any]:
    """Open the connections, and look at the server's memory and CPU time."""
    run.open(IDLE_NOT_COUNTED)
    run.sleep_until(time.monotonic() + SETTLE_S)
    before = run.read(memory=True)
    run.open(IDLE_NOT_COUNTED + run.options.calls)
    after = run.read()
    run.sleep_until(time.monotonic() + SETTLE_S)
    settled = run.read(memory=True)
    counted = run.opened - IDLE_NOT_COUNTED
    grown, spent_s = (
        _difference(before.server_bytes, settled.server_bytes),
        _difference(before.server_s, after.server_s),
    )
    grown_kb = grown / 1024 if grown else None
    setup_us = None if spent_s is None else spent_s * 1e6
    return {"rss_kb_per_connection": _quotient(grown_kb, counted), "setup_cpu_us": _quotient(setup_us, counted)}


# Voice: what a packet costs, and how long it takes


@dataclass
class Voice:
    """What was measured of calls. ``measured`` is the window in which CPU time was, ``windows`` all."""

    before: Reading
    after: Reading
    measured: Window
    windows: list[Window]
    streams: list[Silenced]
    storm: dict[str, Any] | None

    def faults(self, *kinds: str) -> int:
        """Of all packets, also those of the warm-up."""
        return sum(window.counters[kind] for window in self.windows for kind in kinds)

    def merged(self, kind: str) -> Histogram:
        """A histogram without the warm-up."""
        total = Histogram()
        for window in self.windows[1:]:
            total.update(getattr(window, kind))
        return total

    def report(self) -> dict[str, Any]:
        """For the JSON of the run."""
        due = sum(one.sent + one.unsent for one in self.streams)
        received = sum(one.received for one in self.streams)
        lateness, delay = self.merged("lateness"), self.merged("delay")
        late_p99 = lateness.percentile(99)
        storm = {"storm": self.storm} if self.storm is not None else {}
        return {
            "due": due,
            "unsent": sum(one.unsent for one in self.streams),
            "received": received,
            "lost": due - received,
            "loss": _quotient(due - received, due),
            **{kind: self.faults(kind) for kind in ("corrupt", "duplicate", "reordered")},
            "misrouted": self.faults("misrouted", "foreign"),
            "dirty_padding": self.faults("dirty_padding"),
            "rtt_us": delay.percentiles(),
            "late_us": lateness.percentiles(),
            "valid": late_p99 is not None and late_p99 <= MAX_LATENESS_P99_US,
            **storm,
            **self.costs(),
        }

    def costs(self) -> dict[str, float | None]:
        """CPU time, from the first packet that counts until the last one was due."""
        elapsed_s = self.after.at_s - self.before.at_s
        frames = self.measured.counters["sent"] + self.measured.counters["received"]
        server_s = _difference(self.before.server_s, self.after.server_s)
        return {
            "generator_cores": _quotient(self.after.own_s - self.before.own_s, elapsed_s),
            "engine_us_per_packet": _quotient(self.measured.cpu_seconds * 1e6, frames),
            "server_cores": _quotient(server_s, elapsed_s),
            "cpu_us_per_packet": _quotient(None if server_s is None else server_s * 1e6, frames),
        }


def _talk(run: Run, start_s: float, packets: int) -> list[int]:
    """A stream for each call, with phases that are spread evenly."""
    options = run.options
    return [
        run.engine.talk(
            StreamPlan(
                client,
                payload_bytes=options.payload - RTP_HEADER_BYTES - SRTP_TAG_BYTES,
                interval_s=1 / options.pps,
                start_s=start_s + place / (options.calls * options.pps),
                packets=packets,
                patience_s=PATIENCE_S,
            )
        )
        for place, client in enumerate(run.calls)
    ]


def run_voice(run: Run, storm: Storm | None) -> dict[str, Any]:
    """Send for as long as was asked for, after a warm-up, and judge what has come back."""
    options = run.options
    warmup, packets = (int(seconds * options.pps) for seconds in (options.warmup, options.seconds))
    if not run.calls:
        warmup = packets = 0
    start_s = time.monotonic() + SETTLE_S
    counted_s, end_s = start_s + warmup / options.pps, start_s + (warmup + packets) / options.pps
    if storm:
        storm.begin(counted_s, end_s)
    if warmup:
        _talk(run, start_s, warmup)
    streams = set(_talk(run, counted_s, packets)) if packets else set[int]()
    if warmup:
        run.sleep_until(counted_s)
    windows, before = [run.engine.window()], run.read()
    run.sleep_until(end_s)
    windows, after = [*windows, run.engine.window()], run.read()
    deadline = time.monotonic() + DRAIN_S
    while sum(one.stream in streams for one in run.silenced) < len(streams) and time.monotonic() < deadline:
        run.take(WAITING_S)
    windows.append(run.engine.window())
    heard = [one for one in run.silenced if one.stream in streams]
    return Voice(before, after, windows[1], windows, heard, storm.end() if storm else None).report()


@dataclass
class Storm:
    """Logins beside the calls, in a process of their own."""

    process: subprocess.Popen[str]
    begun: bool = False

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def begin(self, start_s: float, end_s: float) -> None:
        """Say when."""
        self._pipes[0].write(f"{start_s} {end_s}\n")
        self._pipes[0].flush()
        self.begun = True

    def end(self) -> dict[str, Any]:
        """Wait for what it prints."""
        result: dict[str, Any] = json.loads(self._pipes[1].read())
        return result


@contextmanager
def open_storm(options: argparse.Namespace) -> Iterator[Storm | None]:
    """A process that is ready to log in, if that was asked for. It ends with the block."""
    if not options.storm or options.idle:
        yield None
        return
    command = [sys.executable, "-m", "loadtest.engine.logins", f"--rate={options.storm}"]
    command += [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in ("host", "port", "tls", "tick-us")]
    command.append(f"--server-name={options.server_name}")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            storm = Storm(process)
            storm._pipes[1].readline()
            yield storm
        finally:
            if not storm.begun:
                process.kill()


# The command


def _between(lowest: float, highest: float) -> Any:
    def parse(text: str) -> float:
        value = float(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text}: expected {lowest:g} to {highest:g}")
        return value

    return parse


def _whole(lowest: int, highest: int) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text}: expected {lowest} to {highest}")
        return value

    return parse


def _pids(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="where the server listens (127.0.0.1)")
    parser.add_argument("--port", type=_whole(1, 65535), required=True)
    nobody = Address("127.0.0.1", 9)
    parser.add_argument(
        "--peer", type=parse_address, default=nobody, help="of the channels: behind coturn the upstream"
    )
    parser.add_argument("--carrier", choices=CARRIERS, default="tls", help="all but the last over TLS (tls)")
    parser.add_argument("--user", default="", help="of a long-term credential, with")
    parser.add_argument("--password", default="", help="for a server that asks for it (none)")
    upstream = Address("127.0.0.1", 3478)
    parser.add_argument("--upstream", type=parse_address, default=upstream, help="whom connect-udp names")
    parser.add_argument("--server-name", default="bench.test", help="sent as SNI (bench.test)")
    parser.add_argument("--calls", type=_whole(1, MAX_CALLS), default=100, help="connections (100)")
    parser.add_argument("--seconds", type=_between(0.001, 86400), default=5.0, help="measured time (5), after")
    parser.add_argument("--warmup", type=_between(0, 3600), default=1.0, help="time that is not measured (1)")
    bytes_of = _whole(MIN_PACKET_BYTES, MAX_PACKET_BYTES)
    parser.add_argument("--payload", type=bytes_of, default=182, help="bytes of each packet (182: SRTP G.711)")
    parser.add_argument("--pps", type=_whole(1, 10_000), default=50, help="packets a second and call (50)")
    parser.add_argument("--tls", choices=[*filter(None, TLS_VERSIONS)], default="", help="version (either)")
    parser.add_argument("--server-pid", type=_pids, default=[], help="PID,...: whose CPU time and memory are measured")
    parser.add_argument("--storm", type=_whole(1, 1000), default=0, help="logins a second beside the calls (none)")
    parser.add_argument("--idle", action="store_true", help="only open the connections; memory and CPU for each")
    parser.add_argument("--tick-us", type=_whole(0, 100_000), default=200, help="how often it looks; 0: is woken (200)")
    return parser.parse_args(arguments)


def _raise_files() -> None:
    """A descriptor for each connection, and some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def measure(options: argparse.Namespace, storm: Storm | None) -> tuple[int, dict[str, Any]]:
    """One run: how many calls were ready, and what there is to print."""
    calls = options.calls + IDLE_NOT_COUNTED
    with Engine(max_clients=calls, max_streams=2 * calls, tick_s=options.tick_us / 1e6) as engine:
        run = Run(options, engine)
        if options.idle:
            result = run_idle(run)
        else:
            run.open(options.calls)
            result = {"payload": options.payload, "pps": options.pps, **run_voice(run, storm)}
        result = {**run.connections(), **result}
        run.close()
    return run.opened, result


def main() -> int:
    """Measure and print."""
    options = parse_options()
    _raise_files()
    with open_storm(options) as storm:
        ready, result = measure(options, storm)
    print(json.dumps(result))  # noqa: T201
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())
