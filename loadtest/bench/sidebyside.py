"""All servers and all carriers side by side: what a packet costs, how long it takes, what is lost, and memory.

    clients --carrier--> relay                         --UDP--> echo    (as TURN server)
    clients --carrier--> coturn | emulator | pion      --UDP--> echo    (as peer)

A row is a server and a carrier. Each row has the same calls, in rounds of which every second one goes the other way
round. Prints a table in Markdown, in which each row has the command that measures it alone, and as the last line one
JSON object. Exit status: 0 if all was measured, 1 if something was set up or forwarded wrongly, 2 if it could not
start. A server that is not installed is no fault: its rows say so. README.md in this folder says what the figures mean.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from loadtest.bench import bench
from loadtest.bench.bench import WRONG, Bench, Run, Server, cell, combine
from loadtest.bench.servers import HOST, KINDS, OVER_TLS, PASSWORD, USER, BenchError, Command, Place
from loadtest.verdict.environment import environment

MODULE = "loadtest.bench.sidebyside"
# Beyond this, what Python forwards is late, and its figures say only that.
MAX_SLOW_CALLS = 50
# The slow twin of the emulator is measured when it is asked for.
NOT_BY_DEFAULT = "emulator-slow"
CARRIERS = (*OVER_TLS, "udp")
# What the environment is told of, if they are Debian's.
PACKAGES = ("coturn", "golang-github-pion-turn.v2-dev", "golang-go")


@dataclass(frozen=True)
class Row:
    """A server, and the carrier of its clients."""

    server: str
    carrier: str

    def __str__(self) -> str:
        """As the command line has it."""
        return f"{self.server}/{self.carrier}"

    @property
    def slow(self) -> bool:
        """Whether Python forwards each packet."""
        return self.carrier in KINDS[self.server].slow

    @classmethod
    def parse(cls, text: str) -> Row:
        """Raises ArgumentTypeError."""
        server, _, carrier = text.partition("/")
        if server not in KINDS or carrier not in KINDS[server].carriers:
            known = ",".join(str(row) for row in _rows(KINDS))
            raise argparse.ArgumentTypeError(f"{text!r}: expected some of {known}")
        return cls(server, carrier)


def _rows(servers: Iterable[str]) -> list[Row]:
    return [Row(name, carrier) for name in servers for carrier in KINDS[name].carriers]


@dataclass
class SideBySide(Bench):
    """The same bench with all servers, which ask for a credential if they can."""

    # Servers that cannot be measured here, and why.
    missing: dict[str, str] = field(init=False)
    credentials: ClassVar[bool] = True

    def __post_init__(self) -> None:
        names = dict.fromkeys(row.server for row in self.options.rows)
        self.missing = {name: reason for name in names if (reason := KINDS[name].missing())}

    def _command(self, name: str, place: Place) -> Command:
        command, given = KINDS[name].command(place)
        return [*bench.priority(self.options), *command], given

    @property
    def rows(self) -> list[Row]:
        """Those that can be measured."""
        return [row for row in self.options.rows if row.server not in self.missing]

    @contextlib.contextmanager
    def servers(self) -> Iterator[list[Server]]:
        """Each row's server; rows of one server share it."""
        with contextlib.ExitStack() as stack:
            names = dict.fromkeys(row.server for row in self.rows)
            running = {name: stack.enter_context(self.server(name)) for name in names}
            yield [replace(running[row.server], carrier=row.carrier) for row in self.rows]

    def measure(self) -> None:
        """All rows at all counts, by turns; then memory, on fresh servers."""
        options = self.options
        timing = [f"--{name}={getattr(options, name)}" for name in ("seconds", "warmup", "payload", "pps")]
        with self.servers() as servers:
            for number in range(options.rounds):
                for calls in options.counts:
                    for server in reversed(servers) if number % 2 else servers:
                        if calls in counts_of(Row(server.name, server.carrier), options):
                            self.run(server, "voice", f"--calls={calls}", *timing)
        for row in self.rows if options.idle else ():
            with self.server(row.server) as fresh:
                self.run(replace(fresh, carrier=row.carrier), "idle", "--idle", f"--calls={options.idle}")


def counts_of(row: Row, options: argparse.Namespace) -> list[int]:
    """With how many calls a row is measured. Without ``--rows``, those in Python have few."""
    return [calls for calls in options.counts if options.asked or not row.slow or calls <= MAX_SLOW_CALLS]


# Reading the runs


def summarize(measured: SideBySide) -> list[Run]:
    """The lines of the table: by calls, then by carrier."""
    options = measured.options
    lines = [
        _line(measured, row, calls)
        for calls in options.counts
        for carrier in CARRIERS
        for row in options.rows
        if row.carrier == carrier and calls in counts_of(row, options)
    ]
    for line in lines:
        theirs = next((one for one in lines if _is_coturn_of(one, line)), {}).get("cpu_us_per_packet")
        ours = line.get("cpu_us_per_packet")
        line["of_coturn"] = ours / theirs if ours and theirs else None
    return lines


def _is_coturn_of(one: Run, line: Run) -> bool:
    """coturn has no carrier over TLS but TURN itself."""
    alike = bool(one["calls"] == line["calls"]) and (one["carrier"] == "udp") == (line["carrier"] == "udp")
    return alike and one["server"] == "coturn"


def _line(measured: SideBySide, row: Row, calls: int) -> Run:
    line: Run = {"server": row.server, "carrier": row.carrier, "calls": calls}
    line["command"] = command_of(row, calls, measured.options)
    if reason := measured.missing.get(row.server):
        return line | {"missing": reason}
    ours = [run for run in measured.runs if (run["server"], run["carrier"]) == (row.server, row.carrier)]
    idle = next((run for run in ours if run["section"] == "idle"), {})
    voice = combine([run for run in ours if run["section"] == "voice" and run["calls"] == calls])
    return line | voice | {"rss_kb_per_call": idle.get("rss_kb_per_connection")}


def command_of(row: Row, calls: int, options: argparse.Namespace) -> str:
    """What measures one row, with the options of this run."""
    return " ".join(["python -m", MODULE, f"--rows {row} --counts {calls}", *options.changed])


def table(lines: Sequence[Run]) -> str:
    """In Markdown. A dash is a figure that is not known, such as the latency of runs that do not count."""
    head = "carrier|server|calls|us/packet|of coturn's|cores|RTT p50 / p99 ms|lost|KiB a call|valid|command"
    text = [f"| {head.replace('|', ' | ')} |", "|---" * (head.count("|") + 1) + "|"]
    for line in lines:
        known = [line["carrier"], line["server"], str(line["calls"])]
        figures = [f"not measured: {line['missing']}", *[""] * 6] if "missing" in line else _figures(line)
        text.append(f"| {' | '.join([*known, *figures, '`' + line['command'] + '`'])} |")
    return "\n".join(text)


def _figures(line: Run) -> list[str]:
    return [
        cell(line["cpu_us_per_packet"], "{:.1f}"),
        cell(line["of_coturn"], "{:.2f}"),
        cell(line["server_cores"], "{:.2f}"),
        f"{cell(line['rtt_p50_ms'], '{:.2f}')} / {cell(line['rtt_p99_ms'], '{:.2f}')}",
        _lost(line),
        cell(line["rss_kb_per_call"], "{:.1f}"),
        f"{line['valid_runs']}/{line['runs']}",
    ]


def _lost(line: Run) -> str:
    """With what went wrong, if something did."""
    lost = "0" if line["loss"] == 0 else cell(line["loss"], "{:.4%}")
    return ", ".join([lost, *(f"{line[kind]} {kind}" for kind in ("wrong", "broken") if line[kind])])


def surroundings(measured: SideBySide) -> dict[str, str]:
    """The machine, the versions, and what else went on."""
    found = {"date": f"{datetime.date.today():%Y-%m-%d}", **environment()}
    if shutil.which("dpkg-query"):
        command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *PACKAGES]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        found |= dict(line.split(" ") for line in asked.stdout.splitlines() if not line.endswith(" "))
    for name in ("foreign_cores", "stolen_cores"):
        found[name.replace("_", " ")] = str(max((run[name] for run in measured.runs), default=0))
    return found


# The command


class _Enough(Exception):
    """Nobody needs the servers any more."""


def _hold(measured: SideBySide) -> None:
    """Say where the servers are, and how to point the load tester at them, until Ctrl-C or SIGTERM."""
    with contextlib.suppress(_Enough), measured.servers() as servers:
        for carrier in CARRIERS:
            if speaking := [one for one in servers if one.carrier == carrier]:
                print(_capacity(measured, carrier, speaking), flush=True)  # noqa: T201
        signal.pause()


def _end_when_asked() -> None:
    """Take the signals that mean the end, also where a script has started this: there SIGINT is ignored by default."""

    def on_signal(*_: object) -> None:
        # Another one must not hinder the end of the servers.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise _Enough

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


def _capacity(measured: SideBySide, carrier: str, servers: Sequence[Server]) -> str:
    echo = f"{HOST}:{measured.upstream_port}"
    options = [f"--target {one.name}={HOST}:{one.port}" for one in servers]
    options += [f"--carrier {carrier} --sink {echo} --username {USER} --password {PASSWORD}"]
    options += [] if carrier == "udp" else [f"--server-name {bench.SERVER_NAME}"]
    options += [f"--upstream {echo}"] if carrier == "connect-udp" else []
    return f"taskset -c {measured.cores.clients} relay loadtest capacity {' '.join(options)}"


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rows",
        type=lambda text: [Row.parse(part) for part in text.split(",")],
        help=f"SERVER/CARRIER,...: by default all, those in Python with at most {MAX_SLOW_CALLS} calls",
    )
    parser.add_argument("--counts", type=bench.counts, default=[20, 200], help="calls (20,200)")
    parser.add_argument("--rounds", type=int, default=2, help="every second one in the other order (2)")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured time of a run (4)")
    parser.add_argument("--warmup", type=float, default=1.0, help="before it (1)")
    parser.add_argument("--payload", type=int, default=182, help="bytes of a packet (182: SRTP G.711)")
    parser.add_argument("--pps", type=int, default=50, help="packets a second and call, each way (50)")
    parser.add_argument("--tls", choices=["1.2", "1.3"], default="1.2", help="version (1.2: coturn may refuse 1.3)")
    parser.add_argument("--idle", type=int, default=200, help="calls whose memory is measured; 0: none (200)")
    parser.add_argument(
        "--realtime", action="store_true", help="as root: clients and servers go before everything else"
    )
    parser.add_argument(
        "--hold",
        action="store_true",
        help="measure nothing: start the servers, say how to point `relay loadtest capacity` at them, and stay until "
        "Ctrl-C or SIGTERM",
    )
    options = parser.parse_args(arguments)
    options.asked = options.rows is not None
    options.rows = options.rows or _rows([name for name in KINDS if name != NOT_BY_DEFAULT])
    options.changed = [
        f"--{name}" if value is True else f"--{name} {value:g}" if isinstance(value, float) else f"--{name} {value}"
        for name, value in vars(options).items()
        if name not in {"rows", "counts", "asked", "hold"} and value != parser.get_default(name)
    ]
    return options


def main() -> int:
    """Measure and print."""
    options = parse_options()
    if options.hold:
        _end_when_asked()
    else:
        # So that a kill also ends the processes that were started.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with bench.open_bench(bench.with_defaults(options), SideBySide) as measured:
            if options.hold:
                _hold(measured)
                return 0
            measured.measure()
    except _Enough:
        return 0
    except BenchError as error:
        print(f"sidebyside: {error}", file=sys.stderr)  # noqa: T201
        return 2
    lines, around = summarize(measured), surroundings(measured)
    settings = {key: value for key, value in vars(options).items() if key not in {"rows", "asked", "changed", "hold"}}
    print(table(lines))  # noqa: T201
    print("\n" + ", ".join(f"{name}: {value}" for name, value in around.items()))  # noqa: T201
    print(json.dumps({"settings": settings, "environment": around, "rows": lines, "runs": measured.runs}))  # noqa: T201
    return int(any(run["failed"] or any(run.get(kind, 0) for kind in WRONG) for run in measured.runs))


if __name__ == "__main__":
    sys.exit(main())
