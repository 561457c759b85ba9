"""Attacks during calls: what clients of the relay hear while others do their worst.

    calls     --TLS--> relay --UDP--> upstream    (the packet engine, as in ``bench``)
    attackers --TLS--> relay                      (a process of its own on the calls' core, with lower priority)

Floods of TLS records come from some clients that have made them in advance, and that come back when they are closed.
Crowds come from as many addresses. Prints a line for each kind and, as the last line, one JSON object. Exit status: 0
if no call lost anything and p99 stayed below some times its value without attackers, 1 otherwise, 2 if it could not
start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.bench import attackers, bench
from loadtest.bench.bench import Bench, Server
from loadtest.bench.servers import HOST, ROOT, BenchError
from relay.addresses import Address

# Below twice the quiet value nobody hears a difference. A flood of records is within the relay's own turn, so more is
# allowed there.
MAX_RATIO, MAX_RATIO_OF_RECORDS = 2.0, 3.0
# Below this, a p99 is good whatever it was before: a ratio of two small numbers says little.
GOOD_P99_US = 2000
# The priority of the attackers. It must be below the calls', which use the same core.
NICENESS = 10


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


def _voice(run: dict[str, Any]) -> dict[str, Any]:
    keys = ("due", "lost", "failed", "disconnected", *bench.WRONG, "rtt_us", "valid", "cpu_us_per_packet")
    return {key: run.get(key) for key in keys}


class _Memory:
    """How much memory a process has taken at most since this was made; proc(5), VmHWM."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        (self._folder / "clear_refs").write_text("5")
        self._before = self._kib("VmRSS")

    def _kib(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def grown_kib(self) -> int:
        """By how much it had grown at its largest."""
        return max(0, self._kib("VmHWM") - self._before)


def _measure_kind(measured: Bench, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """A run without and a run with attackers, on the same fresh relay. Raises BenchError."""
    timing = [f"--calls={options.calls}", f"--seconds={options.seconds}", "--warmup=1"]
    with measured.server("relay") as server:
        quiet = measured.run(server, "quiet", *timing)
        with _attackers(measured, server, kind, options) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BenchError(f"the attackers ({kind}) could not begin")
            memory = _Memory(server.process.pid)
            process.stdin.write("go\n")
            process.stdin.flush()
            attacked = measured.run(server, "attacked", *timing)
            said = json.loads(process.stdout.readline() or "{}")
            grown_kib = memory.grown_kib()
    before, after = ((run["rtt_us"] or {}).get("p99", 0) for run in (quiet, attacked))
    return {
        "kind": kind,
        "quiet": _voice(quiet),
        "attacked": _voice(attacked),
        "ratio": round(after / before, 2) if before else None,
        "lost": attacked["lost"],
        "grown_kib": grown_kib,
        "done": said,
    }


def _is_good(found: dict[str, Any]) -> bool:
    """Whether calls have felt nothing of it."""
    whole = not any(found["attacked"][key] for key in ("lost", "failed", "disconnected", *bench.WRONG))
    p99 = (found["attacked"]["rtt_us"] or {}).get("p99")
    most = MAX_RATIO_OF_RECORDS if found["kind"] in attackers.RECORDS else MAX_RATIO
    return whole and p99 is not None and (p99 < GOOD_P99_US or (found["ratio"] is not None and found["ratio"] < most))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=50, help="running calls (50)")
    parser.add_argument("--kinds", default="key-update", help=f"of attack, or all (key-update): {','.join(KINDS)}")
    parser.add_argument("--clients", type=int, default=0, help="attackers, instead of as many as the kind has")
    parser.add_argument("--records", type=int, default=20_000, help="made in advance for each client (20000)")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds until one that was closed comes back (0.1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (10)")
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
    found = []
    try:
        with bench.open_bench(bench.with_defaults(options), Bench) as measured:
            for kind in kinds:
                found.append(_measure_kind(measured, kind, options))
                print(_line(found[-1]), flush=True)  # noqa: T201
    except BenchError as error:
        print(f"attacks: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(json.dumps({"calls": options.calls, "kinds": found}))  # noqa: T201
    return int(not all(_is_good(one) for one in found))


def _line(found: dict[str, Any]) -> str:
    quiet, attacked = ((found[name]["rtt_us"] or {}).get("p99", 0) / 1000 for name in ("quiet", "attacked"))
    done = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in found["done"].items() if name != "seconds"
    )
    return (
        f"{found['kind']:<22} p99 {quiet:.2f} ms quiet, {attacked:.2f} ms attacked: {found['ratio']} times, "
        f"{found['lost']} lost, {found['grown_kib'] / 1024:.1f} MiB more{'; ' + done if done else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
