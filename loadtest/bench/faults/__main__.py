"""Measure faults, and print: ``python -m loadtest.bench.faults``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from typing import Any

from loadtest.bench import bench
from loadtest.bench.faults import __doc__ as about
from loadtest.bench.faults.calls import OTHERS, STRUCK
from loadtest.bench.faults.kinds import KINDS
from loadtest.bench.faults.measuring import Outcome, check, measure
from loadtest.bench.faults.scene import Plan
from loadtest.bench.servers import BenchError, build

COLUMNS = ("fault", "others: packets, lost", "wrong", "struck: cut, lost", "newcomer meanwhile, s", "recovered, s")
COLUMNS += ("descriptors", "tasks", "flows", "memory", "dropped", "unaccounted", "other load", "faults")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def row(outcome: Outcome) -> str:
    """Of the table. Recovered is the later of newcomers and of calls that still ran; the load is in cores."""
    before, after, ways = outcome.before, outcome.after, [*outcome.unaccounted.values()]
    recovered = [one for one in (outcome.recovered_s, outcome.heard_s) if one is not None]
    cells = [
        f"{outcome.kind}: {KINDS[outcome.kind].what}",
        f"{outcome.others['due']:,}, {outcome.lost[OTHERS]}",
        outcome.wrong,
        f"{outcome.cut[STRUCK]}, {outcome.lost[STRUCK]}",
        "-" if outcome.served_s is None else f"{outcome.served_s:.2f}",
        f"{max(recovered):.2f}" if len(recovered) == 2 else "never",
        *(f"{before.descriptors} → {after.descriptors}", f"{before.tasks} → {after.tasks}"),
        *(f"{before.flows} → {after.flows}", f"{100 * (outcome.growth - 1):+.1f} %"),
        sum(outcome.dropped.values()),
        sum(count for way in ways for count in way.values()),
        f"{outcome.foreign_cores:.2f}",
        "; ".join(outcome.faults()) or "none",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--kinds", default="all", help=f"of faults, with commas (all): {', '.join(KINDS)}")
    parser.add_argument("--others", type=int, default=Plan.others, help="calls that nothing happens to (20)")
    parser.add_argument("--struck", type=int, default=Plan.struck, help="calls that a fault strikes (10)")
    parser.add_argument("--seconds", type=float, default=Plan.fault_s, help="how long a fault lasts (3)")
    parser.add_argument("--plane", choices=["reference", "compiled"], default=Plan.plane, help="of the relay")
    parser.add_argument("--realtime", action="store_true", help="as root: the clients before all else on their core")
    return parser.parse_args(arguments)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything, and the verdict."""
    return {**asdict(outcome), "lost": outcome.lost, "faults": outcome.faults()}


def main() -> int:
    """Exit status: 0 if all holds, 1 if something does not, 2 if it could not be measured."""
    options = parse_options()
    names = list(KINDS) if options.kinds == "all" else options.kinds.split(",")
    plan = Plan(options.others, options.struck, options.seconds, plane=options.plane, realtime=options.realtime)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = []
    try:
        check(names)
        build()
        print(HEAD, flush=True)  # noqa: T201
        for name in names:
            if reason := KINDS[name].missing():
                print(f"| {name}: {KINDS[name].what} | not measured: {reason} |", flush=True)  # noqa: T201
                continue
            found.append(measure(name, plan, bench.Cores.choose()))
            print(row(found[-1]), flush=True)  # noqa: T201
    except BenchError as error:
        print(f"faults: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(json.dumps({"plan": asdict(plan), "kinds": [as_json(one) for one in found]}))  # noqa: T201
    return int(any(one.faults() for one in found))


if __name__ == "__main__":
    sys.exit(main())
