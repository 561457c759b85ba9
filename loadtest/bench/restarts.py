"""Upgrades of a running relay under calls and logins: nobody may be refused, and no call may lose a packet.

    calls, logins --TLS--> relay serve, and its successors  --UDP--> upstream

The calls are those of the other benchmarks: every echo is checked. While they run, clients log in and leave at a steady
rate, and ``relay upgrade`` replaces the relay again and again. ``--server`` does the same to haproxy and coturn, for
comparison. Prints a table and, as the last line, one JSON object. Exit status: 0 if nothing was lost and nobody
refused, 1 if something was, 2 if it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.bench import bench, replaced
from loadtest.bench.bench import WRONG, Run, Server
from loadtest.bench.replaced import ESTABLISHED, ReplacedBench, Replacing, count_sockets
from loadtest.bench.servers import BenchError

# Until all calls are set up.
SETUP_TIMEOUT_S = 60.0
POLL_S = 0.1
# Within a second of packets that do not count yet, all calls have been set up.
SETTLE_S = 1.0


@dataclass
class Outcome:
    """What became of it. Times of upgrades are in seconds, from the command to its answer."""

    server: str
    calls: int
    logins_per_s: int
    upgrade_s: list[float] = field(default_factory=list)
    run: Run = field(default_factory=dict)

    @property
    def storm(self) -> dict[str, Any]:
        """What became of the logins."""
        found: dict[str, Any] = self.run["storm"] or {}
        return found

    @property
    def faults(self) -> dict[str, int]:
        """What must be 0."""
        calls = {key: self.run[key] for key in ("lost", "failed", "disconnected", *WRONG)}
        return {**calls, "logins failed": self.storm.get("failed", 0)}


class Restarts(ReplacedBench):
    """A server that is replaced while it is measured, at addresses that its successors have, too."""

    def replace_often(self) -> Outcome:
        """Place the calls, and replace the server while they run. Raises BenchError if that cannot be measured."""
        options = self.options
        outcome = Outcome(options.server, options.calls, options.storm)
        load = [f"--calls={options.calls}", f"--storm={options.storm}", f"--seconds={options.seconds}", "--warmup=1"]
        with self.replacing(options.server) as replacing, ThreadPoolExecutor(1) as clients:
            before = bench._dropped(self.upstream_port)
            running = clients.submit(self._generate, replacing.server, *load)
            self._wait_for_calls(replacing.server, running)
            while len(outcome.upgrade_s) < options.upgrades:
                outcome.upgrade_s.append(_timed(replacing))
                if running.done():
                    raise BenchError(f"the calls ended after {len(outcome.upgrade_s)} upgrades: raise --seconds")
                time.sleep(options.pause)
            outcome.run = running.result()
            if bench._dropped(self.upstream_port) != before:
                raise BenchError("the upstream's own socket dropped packets: this machine is too slow")
        return outcome

    def _wait_for_calls(self, server: Server, running: Future[Run]) -> None:
        deadline = time.monotonic() + SETUP_TIMEOUT_S
        while not running.done() and time.monotonic() < deadline:
            if count_sockets(server.port, ESTABLISHED) >= self.options.calls:
                # The last of them has connected. It still has to shake hands, and gets an allocation.
                time.sleep(SETTLE_S)
                return
            time.sleep(POLL_S)
        raise BenchError(f"the calls are not set up within {SETUP_TIMEOUT_S:g} s")


def _timed(replacing: Replacing) -> float:
    begin = time.monotonic()
    replacing.replace()
    return time.monotonic() - begin


def table(outcome: Outcome) -> str:
    """For people."""
    run, storm, times = outcome.run, outcome.storm, sorted(outcome.upgrade_s)
    rtt, login = (run["rtt_us"] or {}), (storm.get("login_us") or {})
    rows = {
        "server": outcome.server,
        "upgrades": f"{len(times)}, each {times[len(times) // 2]:.1f} s (median), {times[-1]:.1f} s (slowest)",
        "calls": f"{outcome.calls}, {run['failed']} not set up, {run['disconnected']} cut off",
        "packets": f"{run['due']}, {run['lost']} lost, {sum(run[kind] for kind in WRONG)} wrong",
        "round trip": f"p50 {rtt.get('p50', 0) / 1000:.2f} ms, p99 {rtt.get('p99', 0) / 1000:.2f} ms",
        "logins": f"{storm.get('done', 0)}, {storm.get('failed', 0)} failed, p99 {login.get('p99', 0) / 1000:.1f} ms",
    }
    return "\n".join(f"{name:<11}{text}" for name, text in rows.items())


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", choices=replaced.KINDS, default="relay", help="what is replaced (relay)")
    parser.add_argument("--upgrades", type=int, default=20, help="one after the other (20)")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two of them (1)")
    parser.add_argument("--calls", type=int, default=200, help="that run all the time (200)")
    parser.add_argument("--storm", type=int, default=100, help="logins a second (100)")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long: longer than all upgrades take (120)")
    parser.add_argument("--workers", type=int, default=1, help="data-plane threads of the relay (1)")
    parser.add_argument("--plane", choices=["reference", "compiled"], help="of the relay; its own default otherwise")
    parser.add_argument("--realtime", action="store_true", help="as root: the calls before all else on their core")
    return parser.parse_args(arguments)


def main() -> int:
    """Measure and print."""
    options = parse_options()
    if reason := replaced.missing(options.server):
        print(f"restarts: {reason}", file=sys.stderr)  # noqa: T201
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with bench.open_bench(bench.with_defaults(options), Restarts) as measured:
            outcome = measured.replace_often()
    except BenchError as error:
        print(f"restarts: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(table(outcome))  # noqa: T201
    print(json.dumps({**asdict(outcome), "faults": outcome.faults}))  # noqa: T201
    return int(any(outcome.faults.values()))


if __name__ == "__main__":
    sys.exit(main())
