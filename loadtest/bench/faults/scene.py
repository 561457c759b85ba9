"""The stage: a relay in a process of its own, its two upstreams, calls through both; and what is read of the relay.

calls      --TLS--> relay --UDP--> others     (in C; nothing ever happens to it)
calls      --TLS--> relay --UDP--> struck     (``upstream``)
newcomers  --TLS--> relay
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.bench import bench
from loadtest.bench.faults.calls import CARRIERS, OTHERS, STRUCK, Calls
from loadtest.bench.faults.processes import Json, Preparation, Relay, Upstream
from loadtest.bench.servers import BUILD, HOST
from loadtest.engine.engine import Engine
from loadtest.engine.processes import resident_bytes
from relay.addresses import Address

# How often descriptors and tasks are looked at: questions to upstreams come and go.
LOOKS, LOOKS_S = 20, 1.0
# The engine and the upstream of the others look this often instead of being woken. Nobody measures microseconds here.
TICK_S = 0.002
MAX_CALLS = 1000


@dataclass(frozen=True)
class Plan:
    """How many calls, of which plane, and for how long a fault lasts."""

    others: int = 20
    struck: int = 10
    fault_s: float = 3.0
    quiet_s: float = 1.0
    plane: str = "compiled"
    realtime: bool = False

    @property
    def priority(self) -> list[str]:
        """What a command begins with that goes before everything else on its core."""
        return ["chrt", "--rr", "1"] if self.realtime else []


@dataclass(frozen=True)
class Reading:
    """What the relay has: descriptors and tasks at their least within a second, flows, and memory."""

    descriptors: int
    tasks: int
    flows: int
    rss_kib: int


@dataclass(frozen=True)
class Ledger:
    """What the relay has counted of the flows of a group: packets forwarded and dropped, each way."""

    up: int = 0
    down: int = 0
    dropped_up: int = 0
    dropped_down: int = 0


@dataclass
class Scene:
    """Everything that runs."""

    plan: Plan
    folder: Path
    relay: Relay
    upstream: Upstream
    calls: Calls
    cores: bench.Cores
    others_pid: int
    # What a kind of fault keeps for its end.
    kept: dict[str, Any] = field(default_factory=dict)
    # The length of the log when the fault began.
    since: int = 0

    def read(self) -> Reading:
        """What the relay has now."""
        descriptors, tasks = [], []
        for _ in range(LOOKS):
            descriptors.append(self.relay.descriptors())
            tasks.append(self.relay.tasks())
            self.calls.sleep(LOOKS_S / LOOKS)
        rss = resident_bytes([self.relay.pid])
        assert rss is not None
        return Reading(min(descriptors), min(tasks), len(self.relay.flows()), rss // 1024)

    def pids(self) -> list[int]:
        """Of the processes that run for this."""
        return [self.relay.pid, self.others_pid, *([self.upstream.pid] if self.upstream.runs else [])]

    def logged(self, words: str) -> int:
        """How many lines of the log have these words, since the fault began."""
        return self.relay.log.count(words, self.since)

    def ledgers(self, before: Mapping[str, Json]) -> dict[str, Ledger]:
        """What has been counted of these flows since then, by group, also of those that have ended."""
        running = self.relay.flows()
        after = {name: running.get(name) or self.relay.flow(name) for name in before}
        return {group: _ledger(before, after, group) for group in CARRIERS}


def _ledger(before: Mapping[str, Json], after: Mapping[str, Json], group: str) -> Ledger:
    total: Counter[str] = Counter()
    for name, begun in before.items():
        if begun["region"] != group:
            continue
        now = after[name]
        # Nothing but voice passes meanwhile, so no request of a client is sent again either.
        total["up"] += now["uplink"]["packets"] - begun["uplink"]["packets"]
        total["down"] += now["downlink"]["packets"] - begun["downlink"]["packets"]
        for reason, count in now["drops"].items():
            # Garbage of the upstream is not voice.
            if reason != "downlink_malformed":
                way = "dropped_up" if reason.startswith("uplink") else "dropped_down"
                total[way] += count - begun["drops"].get(reason, 0)
    return Ledger(**total)


def _give_priority(engine: Engine) -> None:
    thread = engine._thread.native_id
    assert thread is not None
    os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(1))


@contextlib.contextmanager
def open_scene(folder: Path, prepared: Preparation, plan: Plan, cores: bench.Cores) -> Iterator[Scene]:
    """All of it, with calls that do not talk yet. Raises BenchError."""
    port, others_port = bench._free_port(), bench._free_port()
    with contextlib.ExitStack() as stack:
        others: list[str | Path] = [
            *plan.priority,
            BUILD / "upstream",
            f"--port={others_port}",
            f"--tick-us={TICK_S * 1e6:.0f}",
        ]
        process = stack.enter_context(bench._process(others, cores.clients, folder / "others.log"))
        upstream = Upstream(Address(HOST, port), cores.clients, plan.priority)
        stack.callback(upstream.kill)
        upstreams = {OTHERS: f"{HOST}:{others_port}", STRUCK: f"{prepared.host}:{port}"}
        relay = Relay(folder, prepared, plan.plane, upstreams, cores.servers)
        stack.callback(relay.stop)
        with bench.on_core(cores.clients):
            engine = stack.enter_context(Engine(max_clients=MAX_CALLS, max_streams=MAX_CALLS, tick_s=TICK_S))
        if plan.realtime:
            _give_priority(engine)
        calls = Calls(engine, relay.port, {OTHERS: Address(HOST, others_port), STRUCK: Address(HOST, port)})
        stack.callback(calls.close)
        calls.place({OTHERS: plan.others, STRUCK: plan.struck})
        yield Scene(plan, folder, relay, upstream, calls, cores, process.pid)
