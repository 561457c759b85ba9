"""Attacks during calls: what clients of the relay hear while others do their worst.

    calls     --TLS--> relay --UDP--> upstream     (the packet engine, as in ``bench``)
    attackers --TLS--> relay                       (a process of its own on the calls' core, with lower priority)

    calls, attackers --UDP--> TURN server of the emulator --UDP--> peer     (``allocates``)

Floods of TLS records come from some clients that have made them in advance, and that come back when they are closed.
Crowds come from as many addresses. Prints a row of a table for each kind and, as the last line, one JSON object. Exit
status: 0 if no call lost anything, p99 stayed below some times its value without attackers, and nobody took more memory
or descriptors than may be; 1 otherwise, 2 if it could not start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from loadtest.bench import attackers, bench, own_relay, servers
from loadtest.bench.bench import Bench, Run, Server
from loadtest.bench.servers import HOST, ROOT, BenchError, Command, Place
from relay.addresses import Address
from tests.support.processes import children_of

# Below twice the quiet value nobody hears a difference. A flood of records is within the relay's own turn, so more is
# allowed there.
MAX_RATIO, MAX_RATIO_OF_RECORDS = 2.0, 3.0
# Below this, a p99 is good whatever it was before: a ratio of two small numbers says little.
GOOD_P99_US = 2000
# Before a handshake has ended. With 10,000 of them that is 80 MB.
MAX_KIB_OF_A_CONNECTION = 8.0
# Crowds of connections that never get beyond it.
BEFORE_HANDSHAKES = ("silent", "half-hello", "claimed-hello")
# Nobody without credentials may have a state: half a megabyte is what a busy Python process varies by.
MAX_KIB_OF_ALLOCATES = 512
# Descriptors of a call: its connection, and its socket to the upstream. The emulator has one socket for all clients.
OF_A_CALL, OF_A_CALL_OF_THE_EMULATOR = 2, 1
# So few more descriptors may be a log file, or a question of somebody else.
SPARE_DESCRIPTORS = 8
# With fewer connections, memory says nothing of each.
MIN_HELD = 100
# The priority of the attackers. It must be below the calls', which use the same core.
NICENESS = 10
LOOK_S = 0.5
ANSWER_TIMEOUT_S = 2.0


class Attacked(Bench):
    """The relay of this tree, or the TURN server of the emulator."""

    credentials: ClassVar[bool] = True

    def _command(self, name: str, place: Place) -> Command:
        if name == "emulator":
            return servers.emulator(place)
        return own_relay.command(place, self.options, log={"level": "warning"})


@contextlib.contextmanager
def _attackers(
    measured: Bench, server: Server, kind: str, options: argparse.Namespace
) -> Iterator[subprocess.Popen[str]]:
    # One second longer than the measurement, because the first second is warm-up.
    command = [sys.executable, "-m", "loadtest.bench.attacks", "--attack", str(server.port), "--kinds", kind]
    command += [f"--clients={options.clients}", f"--records={options.records}", f"--seconds={options.seconds + 1}"]
    command += [f"--pause={options.pause}"]
    with bench.on_core(measured.cores.clients):
        process = subprocess.Popen(  # noqa: S603
            ["nice", f"-n{NICENESS}", *command],  # noqa: S607
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class _Footprint:
    """What a server takes at most while this is open: memory (proc(5), VmHWM); descriptors, as far as this looks.

    A relay also says how many connections it has, through its admin listener.
    """

    def __init__(self, pid: int, admin_port: int | None) -> None:
        self._folder, self._admin_port = Path(f"/proc/{pid}"), admin_port
        self._connections = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="footprint")

    def __enter__(self) -> Self:
        (self._folder / "clear_refs").write_text("5")
        self._kib_before, self._before = self._kib("VmRSS"), self._descriptors()
        self._most = self._before
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _kib(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def _descriptors(self) -> int:
        return len(os.listdir(self._folder / "fd"))

    def _look(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # it has ended, which the bench tells
            while not self._over.wait(LOOK_S):
                self._most = max(self._most, self._descriptors())
                self._connections = max(self._connections, self._asked())

    def _asked(self) -> int:
        if self._admin_port is None:
            return 0
        # It may be too busy to answer, or have no descriptor left for that.
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://{HOST}:{self._admin_port}/api/summary", timeout=ANSWER_TIMEOUT_S) as answer,
        ):
            return int(json.load(answer)["connections"])
        return 0

    def grown_kib(self) -> int:
        """By how much its memory had grown at its largest."""
        return max(0, self._kib("VmHWM") - self._kib_before)

    def held(self) -> dict[str, int]:
        """How many connections it had, and how many descriptors more, at most."""
        return {"connections": self._connections, "descriptors": self._most - self._before}


def _measure_kind(measured: Bench, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs without and with attackers by turns, on one fresh server. Raises BenchError."""
    embedded = kind in attackers.OF_THE_EMULATOR
    with measured.server("emulator" if embedded else "relay") as server:
        target = replace(server, carrier="udp") if embedded else server
        rounds = [_measure_round(measured, target, kind, options) for _ in range(options.rounds)]
    of_calls = {
        "connections": options.calls,
        "descriptors": options.calls * (OF_A_CALL_OF_THE_EMULATOR if embedded else OF_A_CALL),
    }
    quiet, attacked = (_voice([one[name] for one in rounds]) for name in ("quiet", "attacked"))
    held = {name: max(0, max(one["held"][name] for one in rounds) - own) for name, own in of_calls.items()}
    grown_kib = max(one["grown_kib"] for one in rounds)
    return {
        "kind": kind,
        "quiet": quiet,
        "attacked": attacked,
        "ratio": _ratio(quiet["p99_us"], attacked["p99_us"]),
        "lost": attacked["lost"],
        "held": held["connections"],
        "descriptors": held["descriptors"],
        "grown_kib": grown_kib,
        "kib_each": round(grown_kib / held["connections"], 1) if held["connections"] >= MIN_HELD else None,
        "done": rounds[-1]["done"],
    }


def _measure_round(measured: Bench, server: Server, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    timing = [f"--calls={options.calls}", f"--seconds={options.seconds}", "--warmup=1"]
    quiet = measured.run(server, "quiet", *timing)
    with _attackers(measured, server, kind, options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise BenchError(f"the attackers ({kind}) could not begin")
        admin_port = server.place.udp_port if server.name == "relay" else None
        with _Footprint(server.process.pid, admin_port) as footprint:
            process.stdin.write("go\n")
            process.stdin.flush()
            began, used_s = time.monotonic(), _used_s(process.pid)
            attacked = measured.run(server, "attacked", *timing)
            own = (_used_s(process.pid) - used_s) / (time.monotonic() - began - bench.REST_S)
            attacked["foreign_cores"] = round(max(0.0, attacked["foreign_cores"] - own), 3)
            said = json.loads(process.stdout.readline() or "{}")
            grown_kib = footprint.grown_kib()
    return {"quiet": quiet, "attacked": attacked, "done": said, "grown_kib": grown_kib, "held": footprint.held()}


def _used_s(pid: int) -> float:
    """CPU time of the attackers: their process, and the program that it may have started."""
    used = 0.0
    for one in (pid, *children_of(pid)):
        with contextlib.suppress(OSError):
            used += bench._cpu_s(one)
    return used


def _voice(runs: Sequence[Run]) -> dict[str, Any]:
    """Several runs as one: the median of p99, also of runs whose generator was late; faults are sums."""
    p99s = [run["rtt_us"]["p99"] for run in runs if run["rtt_us"]]
    counted = {key: sum(run[key] for run in runs) for key in ("due", "lost", "failed", "disconnected", *bench.WRONG)}
    load = {key: max(run[key] for run in runs) for key in ("foreign_cores", "stolen_cores")}
    valid = sum(bool(run["valid"]) for run in runs)
    return {**counted, **load, "runs": len(runs), "valid": valid, "p99_us": statistics.median(p99s) if p99s else None}


def _ratio(before: float | None, after: float | None) -> float | None:
    return round(after / before, 2) if before and after else None


def faults(found: dict[str, Any]) -> list[str]:
    """What calls have felt of it, or what it has cost, more than may be."""
    kind, attacked, ratio = found["kind"], found["attacked"], found["ratio"]
    told = [f"{attacked[key]} {key}" for key in ("lost", "failed", "disconnected", *bench.WRONG) if attacked[key]]
    most = MAX_RATIO_OF_RECORDS if kind in attackers.RECORDS else MAX_RATIO
    if ratio is None or (ratio >= most and attacked["p99_us"] >= GOOD_P99_US):
        told.append(f"p99 {ratio} times")
    if kind in BEFORE_HANDSHAKES and (found["kib_each"] or 0) > MAX_KIB_OF_A_CONNECTION:
        told.append(f"{found['kib_each']} KiB a connection")
    if kind in attackers.OF_THE_EMULATOR:
        told += [f"{found['grown_kib']} KiB"] if found["grown_kib"] > MAX_KIB_OF_ALLOCATES else []
        told += [f"{found['descriptors']} descriptors"] if found["descriptors"] > SPARE_DESCRIPTORS else []
    return told


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=50, help="running calls (50)")
    parser.add_argument("--kinds", default="key-update", help=f"of attack, or all (key-update): {','.join(KINDS)}")
    parser.add_argument("--clients", type=int, default=0, help="attackers, instead of as many as the kind has")
    parser.add_argument("--records", type=int, default=20_000, help="made in advance for each client (20000)")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds until one that was closed comes back (0.1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--rounds", type=int, default=1, help="without and with attackers, by turns (1)")
    parser.add_argument("--plane", choices=["reference", "compiled"], help="of the relay; its own default otherwise")
    parser.add_argument("--realtime", action="store_true", help="as root: the calls before all else on their core")
    parser.add_argument("--attack", type=int, metavar="PORT", help=argparse.SUPPRESS)
    return parser.parse_args()


KINDS = attackers.KINDS


def main() -> int:
    """Measure and print."""
    options = _parse_options()
    kinds = list(KINDS) if options.kinds == "all" else options.kinds.split(",")
    if unknown := sorted(set(kinds) - set(KINDS)):
        print(f"attacks: --kinds {unknown[0]}: expected some of {', '.join(KINDS)}", file=sys.stderr)  # noqa: T201
        return 2
    if options.attack:
        asyncio.run(
            attackers.attack(
                kinds[0],
                Address(HOST, options.attack),
                seconds=options.seconds,
                clients=options.clients,
                records=options.records,
                pause_s=options.pause,
            )
        )
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(HEAD, flush=True)  # noqa: T201
    found = []
    try:
        with bench.open_bench(bench.with_defaults(options), Attacked) as measured:
            for kind in kinds:
                found.append(_measure_kind(measured, kind, options))
                print(row(found[-1]), flush=True)  # noqa: T201
    except BenchError as error:
        print(f"attacks: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(json.dumps({"calls": options.calls, "kinds": [{**one, "faults": faults(one)} for one in found]}))  # noqa: T201
    return int(any(faults(one) for one in found))


COLUMNS = ("attack", "did", "held", "descriptors", "p99 quiet, ms", "p99 attacked, ms", "ratio", "lost", "MiB more")
COLUMNS += ("KiB each", "other load", "faults")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def row(found: dict[str, Any]) -> str:
    """Of the table. Held are connections; they and descriptors are without those of the calls. The load is in cores."""
    quiet, attacked = ((found[name]["p99_us"] or 0) / 1000 for name in ("quiet", "attacked"))
    said = {name.replace("_", " "): count for name, count in found["done"].items() if name != "seconds"}
    done = ", ".join(f"{count:,} {name}" for name, count in said.items())
    foreign = max(found[name]["foreign_cores"] for name in ("quiet", "attacked"))
    cells = [
        *(f"`{found['kind']}`", done or "-", f"{found['held']:,}", f"{found['descriptors']:,}"),
        *(f"{quiet:.2f}", f"{attacked:.2f}", found["ratio"]),
        *(found["lost"], f"{found['grown_kib'] / 1024:.1f}", found["kib_each"] or "-", f"{foreign:.2f}"),
        "; ".join(faults(found)) or "none",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
