"""One fault, from a fresh relay to the verdict: what others notice of it, and what is left when it is over."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench import bench
from loadtest.bench.faults.calls import CARRIERS, OTHERS, SHORT_PACKETS, STRUCK
from loadtest.bench.faults.kinds import KINDS, Kind
from loadtest.bench.faults.processes import Json
from loadtest.bench.faults.scene import Ledger, Plan, Reading, Scene, open_scene
from loadtest.bench.servers import BenchError

# A client that was cut off is served again within a second: somebody who speaks hardly notices more.
MAX_RECOVERY_S = 1.0
# Of the relay's memory: what an allocator may keep.
MAX_GROWTH = 1.05
# What was on its way when a call was cut off: sent by the client, and never read by the relay, or the other way round.
MAX_IN_FLIGHT = 3
# The relay has this long until all of a fault is gone: questions that hang end within 5 s.
SETTLE_TIMEOUT_S = 20.0
# Newcomers of the others have this long while the fault lasts.
SERVED_WITHIN_S = 5.0
LEDGER_TIMEOUT_S = 3.0


@dataclass
class Outcome:
    """What became of it. Packets of a group are ``due``, ``sent``, ``received``; times are in seconds."""

    kind: str
    others: dict[str, int]
    struck: dict[str, int]
    wrong: int
    cut: dict[str, int]
    # A newcomer of the others while it lasted; until a newcomer of those that were struck was served, and until all
    # calls that still ran heard something again, both from its end.
    served_s: float | None
    recovered_s: float | None
    heard_s: float | None
    before: Reading
    after: Reading
    # Packets that are neither delivered nor counted as dropped, by group and direction.
    unaccounted: dict[str, dict[str, int]]
    dropped: dict[str, int]
    struck_truly: bool
    late_p99_us: int
    foreign_cores: float = 0.0

    @property
    def lost(self) -> dict[str, int]:
        """Of the packets that were due, by group."""
        return {
            OTHERS: self.others["due"] - self.others["received"],
            STRUCK: self.struck["due"] - self.struck["received"],
        }

    @property
    def growth(self) -> float:
        """Of the relay's memory."""
        return self.after.rss_kib / self.before.rss_kib

    def faults(self) -> list[str]:
        """What does not hold."""
        kind, told = KINDS[self.kind], [] if self.struck_truly else ["it did not strike"]
        must_be_none = {
            "lost": self.lost[OTHERS],
            "wrong": self.wrong,
            "of the others cut off": self.cut[OTHERS],
            "cut off": 0 if kind.cuts else self.cut[STRUCK],
        }
        told += [f"{count} {what}" for what, count in must_be_none.items() if count]
        told += ["newcomers wait"] if kind.serves and self.served_s is None else []
        for what, seconds in (("served", self.recovered_s), ("heard", self.heard_s)):
            if seconds is None or seconds > MAX_RECOVERY_S:
                told.append(f"{what} again after {'-' if seconds is None else f'{seconds:.2f}'} s")
        return told + left_behind(self.before, self.after) + self._unaccounted()

    def _unaccounted(self) -> list[str]:
        told = []
        for group, ways in self.unaccounted.items():
            most = MAX_IN_FLIGHT * self.cut[group]
            told += [f"{count} unaccounted {way}, {group}" for way, count in ways.items() if not 0 <= count <= most]
        return told


def left_behind(before: Reading, after: Reading) -> list[str]:
    """What is not as it was."""
    told = [
        f"{name} {then} to {now}"
        for name, then, now in (
            ("descriptors", before.descriptors, after.descriptors),
            ("tasks", before.tasks, after.tasks),
        )
        if now > then
    ]
    if after.flows != before.flows:
        told.append(f"flows {before.flows} to {after.flows}")
    if after.rss_kib > MAX_GROWTH * before.rss_kib:
        told.append(f"memory {before.rss_kib} to {after.rss_kib} KiB")
    return told


def measure(name: str, plan: Plan, cores: bench.Cores) -> Outcome:
    """Let it happen once. Raises BenchError if that cannot be measured."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory(prefix="relay-faults-") as text:
        folder = Path(text)
        prepared = kind.prepare(folder)
        with open_scene(folder, prepared, plan, cores) as scene, contextlib.ExitStack() as kept:
            kept.callback(_let_go, scene)
            _warm_up(scene, reloads=prepared.logs_here)
            return _measure(name, kind, scene)


def _let_go(scene: Scene) -> None:
    """What a fault that was not ended has kept."""
    for one in scene.kept.values():
        if hasattr(one, "kill"):
            one.kill()
        elif hasattr(one, "close"):
            one.close()


def _warm_up(scene: Scene, *, reloads: bool) -> None:
    """Everything once that also happens later, so that what it takes for the first time is not counted as left."""
    scene.calls.talk()
    for group in CARRIERS:
        scene.calls.newcomer_s(group, packets=SHORT_PACKETS)
    if reloads:
        scene.relay.reload()
    scene.relay.metric("relay_connections")
    scene.calls.silence()
    scene.calls.begin_anew()


def _measure(name: str, kind: Kind, scene: Scene) -> Outcome:
    calls, plan = scene.calls, scene.plan
    before, flows = scene.read(), scene.relay.flows()
    started, load = time.monotonic(), _foreign_s(scene)
    calls.talk()
    calls.sleep(plan.quiet_s)
    scene.since = len(scene.relay.log.lines)
    end = time.monotonic() + plan.fault_s
    kind.strike(scene)
    served_s = calls.newcomer_s(OTHERS, SERVED_WITHIN_S) if kind.serves else None
    calls.sleep(end - time.monotonic())
    kind.heal(scene)
    recovered_s, heard_s = calls.newcomer_s(STRUCK), calls.heard_again_s()
    calls.sleep(plan.quiet_s)
    calls.silence()
    foreign_cores = (_foreign_s(scene) - load) / (time.monotonic() - started)
    others, struck = (dict(calls.totals[group]) for group in (OTHERS, STRUCK))
    cut = {group: calls.cut(group) for group in CARRIERS}
    wrong = calls.wrong
    unaccounted, ledgers = _account(scene, flows)
    truly = kind.proof(scene)
    calls.place(cut)
    return Outcome(
        kind=name,
        others=others,
        struck=struck,
        wrong=wrong,
        cut=cut,
        served_s=served_s,
        recovered_s=recovered_s,
        heard_s=heard_s,
        before=before,
        after=_settled(scene, before),
        unaccounted=unaccounted,
        dropped={group: one.dropped_up + one.dropped_down for group, one in ledgers.items()},
        struck_truly=truly,
        late_p99_us=calls.late_p99_us,
        foreign_cores=round(max(0.0, foreign_cores), 2),
    )


def _account(scene: Scene, flows: dict[str, Json]) -> tuple[dict[str, dict[str, int]], dict[str, Ledger]]:
    """Compare what the relay has counted with what clients have sent and received."""
    deadline = time.monotonic() + LEDGER_TIMEOUT_S
    while True:
        ledgers = scene.ledgers(flows)
        found = {}
        for group, one in ledgers.items():
            total = scene.calls.totals[group]
            received = total["received"] + total["duplicate"]
            found[group] = {
                "up": total["sent"] - one.up - one.dropped_up,
                "down": one.down - received,
            }
        # The relay's threads are read one after the other.
        if not any(count for ways in found.values() for count in ways.values()) or time.monotonic() > deadline:
            return found, ledgers


def _settled(scene: Scene, before: Reading) -> Reading:
    """What the relay has when all is as it was, or when it had its time for that."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while left_behind(before, after := scene.read()) and time.monotonic() < deadline:
        continue
    return after


def _foreign_s(scene: Scene) -> float:
    """CPU time of everything but this bench and its processes."""
    busy_s, stolen_s = bench._machine_s()
    ours_s = bench._own_s()
    for pid in scene.pids():
        # One that was killed meanwhile has been counted with its parent.
        with contextlib.suppress(OSError):
            ours_s += bench._cpu_s(pid)
    return busy_s + stolen_s - ours_s


def check(names: list[str]) -> None:
    """Raises BenchError for a kind that nobody knows."""
    if unknown := sorted(set(names) - set(KINDS)):
        raise BenchError(f"--kinds {unknown[0]}: expected some of {', '.join(KINDS)}")
