"""Logins beside running calls: TCP, TLS and Allocate at a rate, each closed when it is answered.

A process of its own: a handshake costs a client half a millisecond of computing, which would make the clock of the
calls late. It is also nicer than the calls, so that it yields to them on a core that they share.

    python -m loadtest.engine.logins --port PORT --rate RATE

It says "ready", reads one line, which is when to begin and to end on the monotonic clock, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from loadtest.engine.engine import Cause, Ended, Engine, Opened
from loadtest.engine.plans import Carrier, ClientPlan
from loadtest.engine.windows import Histogram
from relay.addresses import Address

NICENESS = 10
# A browser's patience with a TURN server is about that long.
LOGIN_TIMEOUT_S = 5.0
MAX_RATE = 1000
# For logins whose end Python has not heard of yet.
SPARE_CLIENTS = 256


@dataclass
class Logins:
    """The logins of a run, and what has become of them."""

    engine: Engine
    plan: ClientPlan
    rate: int
    begun: int = 0
    done: int = 0
    failed: int = 0
    due_s: dict[int, float] = field(default_factory=dict)
    took: Histogram = field(default_factory=Histogram)

    def run(self, start_s: float, end_s: float) -> None:
        """Log in at the rate from start to end, and wait for the last ones."""
        due_s = start_s
        while (now_s := time.monotonic()) < end_s + LOGIN_TIMEOUT_S and (due_s < end_s or self.due_s):
            while due_s <= now_s and due_s < end_s:
                self.due_s[self.engine.open(self.plan)] = due_s
                self.begun += 1
                due_s = start_s + self.begun / self.rate
            wait_s = max(0.0, (due_s if due_s < end_s else end_s + LOGIN_TIMEOUT_S) - now_s)
            self.engine.wait(wait_s)
            self.take()
        # With those that never ended.
        self.failed = self.begun - self.done

    def take(self) -> None:
        """Judge what has come to its end, well or not."""
        for one in self.engine.happenings():
            if isinstance(one, Opened) and one.client in self.due_s:
                self.done += 1
                self.took.record(one.at_s - self.due_s.pop(one.client))
                self.engine.close(one.client)
            elif isinstance(one, Ended) and one.cause is not Cause.ASKED:
                self.due_s.pop(one.client, None)

    def report(self) -> dict[str, Any]:
        """For the JSON of the run."""
        counted = {"rate": self.rate, "begun": self.begun, "done": self.done, "failed": self.failed}
        return {**counted, "login_us": self.took.percentiles()}


def _be_nice() -> None:
    # Niceness counts for nothing under the real-time scheduling that the calls may have been given.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)


def main() -> int:
    """Log in, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--server-name", default="")
    parser.add_argument("--tls", default="")
    parser.add_argument("--rate", type=int, required=True)
    parser.add_argument("--tick-us", type=int, default=0)
    options = parser.parse_args()
    _be_nice()
    plan = ClientPlan(
        Address(options.host, options.port),
        Carrier.TLS,
        server_name=options.server_name,
        tls_version=options.tls,
        patience_s=LOGIN_TIMEOUT_S,
    )
    room = min(options.rate, MAX_RATE) * (int(LOGIN_TIMEOUT_S) + 1) + SPARE_CLIENTS
    with Engine(max_clients=room, max_streams=1, tick_s=options.tick_us / 1e6) as engine:
        logins = Logins(engine, plan, options.rate)
        print("ready", flush=True)  # noqa: T201
        times = sys.stdin.readline().split()
        if times:
            logins.run(*map(float, times))
        print(json.dumps(logins.report()))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
