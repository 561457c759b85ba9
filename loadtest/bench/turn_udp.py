"""The emulator's TURN host beside coturn, over UDP: CPU time of a forwarded packet, loss, and memory of an allocation.

    clients --UDP--> host   --UDP--> echo
    clients --UDP--> coturn --UDP--> echo

Both have long-term credentials, one core and the same clients by turns. Prints a table and, as the last line, one JSON
object. Exit status: 0 if all was measured, 1 if something was set up or forwarded wrongly, 2 if it could not start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.bench import bench
from loadtest.bench.bench import COTURN_PORTS, HOST, ROOT, WRONG, Bench, BenchError, Run, Server
from loadtest.bench.turn_host import PASSWORD, REALM, USER

SERVERS = ("native", "slow", "coturn")


class UdpBench(Bench):
    """The same bench with other servers, and clients without TLS."""

    def _command(self, name: str, folder: Path, port: int) -> tuple[list[str | Path], dict[str, str]]:
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        priority = bench.priority(self.options)
        if name != "coturn":
            return [*priority, sys.executable, "-m", "loadtest.bench.turn_host", str(port), name], environment
        lines = [
            f"listening-ip={HOST}",
            f"relay-ip={HOST}",
            f"listening-port={port}",
            f"min-port={COTURN_PORTS[0]}",
            f"max-port={COTURN_PORTS[1]}",
            f"realm={REALM}",
            f"user={USER}:{PASSWORD}",
            f"userdb={folder / 'users.sqlite'}",
            f"pidfile={folder / 'pid'}",
            "relay-threads=1",
            *(
                "lt-cred-mech",
                "allow-loopback-peers",
                "no-cli",
                "no-tls",
                "no-dtls",
                "log-file=stdout",
                "simple-log",
                "",
            ),
        ]
        path = folder / "turnserver.conf"
        path.write_text("\n".join(lines))
        return [*priority, "turnserver", "-c", path], environment

    def _client_options(self, server: Server) -> list[str]:
        return ["--carrier=udp", f"--user={USER}", f"--password={PASSWORD}"]

    def measure(self) -> None:
        """All counts, the servers by turns; then memory, on fresh servers."""
        options = self.options
        timing = [f"--{name}={getattr(options, name)}" for name in ("seconds", "warmup", "payload", "pps")]
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(self.server(name)) for name in options.servers]
            for number in range(options.rounds):
                for count in options.counts:
                    for server in reversed(servers) if number % 2 else servers:
                        self.run(server, "voice", f"--calls={count}", *timing)
        for name in options.servers if options.idle else ():
            with self.server(name) as server:
                self.run(server, "idle", "--idle", f"--calls={options.idle}")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--servers", default="native,coturn", help=f"some of {','.join(SERVERS)} (native,coturn)")
    parser.add_argument("--counts", default="400,1000", help="allocations (400,1000)")
    parser.add_argument("--rounds", type=int, default=3, help="every second one in the other order (3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of a run (5)")
    parser.add_argument("--warmup", type=float, default=1.0, help="before it (1)")
    parser.add_argument("--payload", type=int, default=182, help="bytes of a packet (182: SRTP G.711)")
    parser.add_argument("--pps", type=int, default=50, help="packets a second and allocation, each way (50)")
    parser.add_argument("--idle", type=int, default=1000, help="allocations whose memory is measured; 0: none (1000)")
    parser.add_argument(
        "--realtime", action="store_true", help="as root: clients and servers go before everything else"
    )
    options = parser.parse_args(arguments)
    options.counts = [int(count) for count in options.counts.split(",")]
    options.servers = options.servers.split(",")
    if unknown := set(options.servers) - set(SERVERS):
        parser.error(f"--servers {min(unknown)}: expected some of {', '.join(SERVERS)}")
    if "coturn" in options.servers and not shutil.which("turnserver"):
        options.servers.remove("coturn")
    return options


def summarize(runs: Sequence[Run]) -> Run:
    """The summary of ``bench``, with the ratio of CPU per packet, and packets a second."""
    summary = bench.summarize(runs)
    for count, by_server in summary["voice"].items():
        rows = {name: row for name, row in by_server.items() if name in SERVERS}
        pps = next(run["pps"] for run in runs if run["section"] == "voice")
        ours, theirs = (rows.get(name, {}).get("cpu_us_per_packet") for name in ("native", "coturn"))
        by_server["cpu_ratio"] = ours / theirs if ours and theirs else None
        by_server["packets_per_s"] = 2 * pps * int(count)
    return summary


def table(summary: Run) -> str:
    """For people. A dash is a figure that is not known."""
    lines = ["allocations  packets/s  server  valid  us/packet  cores  p50 ms  p99 ms  loss      late ms  foreign"]
    for count, by_server in summary["voice"].items():
        for name in (name for name in by_server if name in SERVERS):
            row = by_server[name]
            cells = [
                bench.cell(row[key], form)
                for key, form in (
                    ("cpu_us_per_packet", "{:9.2f}"),
                    ("server_cores", "{:5.2f}"),
                    ("rtt_p50_ms", "{:6.2f}"),
                    ("rtt_p99_ms", "{:6.2f}"),
                    ("loss", "{:8.4%}"),
                    ("late_p99_ms", "{:7.2f}"),
                    ("foreign_cores", "{:7.2f}"),
                )
            ]
            valid = f"{row['valid_runs']}/{row['runs']}"
            lines.append(f"{count:>11}  {by_server['packets_per_s']:>9}  {name:6}  {valid:>5}  {'  '.join(cells)}")
        if by_server["cpu_ratio"] is not None:
            lines.append(
                f"{count} allocations: native takes {by_server['cpu_ratio']:.2f} of coturn's CPU time a packet"
            )
    for name, row in summary["idle"].items():
        kb, cpu = (bench.cell(row[key], "{:.1f}") for key in ("rss_kb_per_connection", "setup_cpu_us"))
        lines.append(f"idle: {name}: {kb} KB an allocation, {cpu} us of CPU time to set one up")
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    options = parse_options()
    # So that a kill also ends the processes that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with bench.open_bench(bench.with_defaults(options), UdpBench) as udp:
            udp.measure()
    except BenchError as error:
        print(f"turn_udp: {error}", file=sys.stderr)  # noqa: T201
        return 2
    summary = summarize(udp.runs)
    print(table(summary))  # noqa: T201
    print(json.dumps({"settings": vars(options), **summary, "runs": udp.runs}))  # noqa: T201
    return int(any(run["failed"] or any(run.get(kind, 0) for kind in WRONG) for run in udp.runs))


if __name__ == "__main__":
    sys.exit(main())
