"""Capacity: how many calls one or several targets carry, side by side, in rounds that alternate.

A call has a stream up and a stream down, of 50 packets a second each; with a sink, one stream up that comes back down.
It holds if nothing is lost, nobody is refused, and 99 of 100 packets are there within 20 ms: at their listener's, or
with a sink back where they came from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.plan.profile import Profile, parse
from loadtest.plan.search import Outcome, Search
from loadtest.plan.target import NAME, Target, carrier_name
from loadtest.running.folders import make_folder
from loadtest.running.processes import Mode
from loadtest.running.supervise import Wish, run
from loadtest.verdict.environment import environment
from loadtest.verdict.judging import SETUP, SOUNDS
from loadtest.verdict.result import Result
from relay import writing
from relay.errors import OperatorError

# The voice SLO.
MAX_DELAY_P99_MS = 20.0
# More void seconds than this, and the try says nothing of the target.
MAX_VOID_PERCENT = 34.0
# A caller waits this long at most until a call is set up.
MAX_SETUP_P95_MS = 2000.0
# Calls come this fast: a handshake costs half a millisecond, so setting up takes a twentieth of a core.
CALLS_A_SECOND = 100
MIN_RAMP_S = 2.0
WARM_UP_S = 2.0
FORMAT = "relay-loadtest-capacity/1"


@dataclass
class Contestant:
    """A target over a carrier, and what was found of it."""

    name: str
    target: Target
    search: Search
    # CPU time of the relay for each call, of tries that held.
    cores_a_call: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        _require_name(self.name)

    @property
    def streams_of_a_call(self) -> int:
        """A sink sends the one stream back."""
        return 1 if self.target.sink is not None else 2

    @property
    def calls_a_core(self) -> float | None:
        """How many calls a core carries at the knee, by the relay's own metrics."""
        return len(self.cores_a_call) / sum(self.cores_a_call) if sum(self.cores_a_call) else None

    def plain(self, *, interrupted: bool = False) -> dict[str, Any]:
        """For JSON. Without a try there is no knee; if the search was interrupted before its end, no limit is known."""
        search = self.search
        unfinished = interrupted and search.next() is not None
        return {
            "name": self.name,
            "carrier": carrier_name(self.target),
            "server": str(self.target.server),
            "delay": "one way" if self.target.sink is None else "there and back",
            "knee_calls": search.knee if search.tries else None,
            "limit": "interrupted" if unfinished else search.limit,
            "calls_per_core": self.calls_a_core,
            "tries": {str(calls): dict(outcomes) for calls, outcomes in sorted(search.tries.items())},
        }


def named(text: str) -> tuple[str, str]:
    """``NAME=TARGET``, or a target that is its own name. Raises OperatorError."""
    name, _, where = text.rpartition("=") if "=" in text else (text, "", text)
    _require_name(name)
    return name, where


def _require_name(name: str) -> None:
    # It is also that of a folder.
    if not NAME.fullmatch(name):
        raise OperatorError(f"--target {name}: expected a name of a-z, 0-9, _ and -, such as relay")


def profile_of(calls: int, seconds: float) -> Profile:
    """A try: all calls are there for this many seconds, and for a warm-up before."""
    return parse(
        {
            "description": f"Capacity: {calls} calls.",
            "users": calls,
            "warm_up_s": WARM_UP_S,
            "shape": {"ramp_s": max(MIN_RAMP_S, calls / CALLS_A_SECOND), "hold_s": WARM_UP_S + seconds},
            "media": {"up": 1, "down": 1},
            "thresholds": {"loss_percent": 0, "errors_percent": 0, "void_percent": 100},
        },
        "capacity",
    )


def failures(result: Result) -> int:
    """What users tried in vain."""
    failed = sum(timing.failed for name, timing in result.timings.items() if name not in SOUNDS)
    return failed + sum(result.user_errors.values())


def outcome_of(result: Result, streams: int) -> Outcome:
    """What a try with this many streams says. It is void if the generator was late, or had not begun all of them.

    A late generator sends packets in bunches, so what is lost then may be its own doing. Nothing has held, either way.
    """
    packets, p99 = result.packets, result.delay.p99_ms
    if failures(result):
        return Outcome.BROKE
    if not result.judged_seconds or result.generator.void_percent > MAX_VOID_PERCENT:
        return Outcome.VOID
    if _streams_there(result) < streams:
        return Outcome.BROKE if _is_slow_to_set_up(result) else Outcome.VOID
    if packets.lost or packets.unsent or not packets.received:
        return Outcome.BROKE
    if p99 is None:
        return Outcome.VOID
    return Outcome.HELD if p99 <= MAX_DELAY_P99_MS else Outcome.BROKE


def _streams_there(result: Result) -> int:
    """How many streams there were all the time."""
    counted = [one.streams for one in result.intervals if one.second >= result.judged_from_s]
    return min(counted[: result.judged_seconds], default=0)


def _is_slow_to_set_up(result: Result) -> bool:
    """Whether calls had to wait for the target; as they did if none was set up at all."""
    setup = result.timings.get(SETUP)
    return setup is None or setup.took.p95_ms is None or setup.took.p95_ms > MAX_SETUP_P95_MS


@dataclass(frozen=True)
class Rounds:
    """How tries are made: how long each takes, and where its files go."""

    folder: Path
    seconds: float
    mode: Mode

    def search(self, contestants: Sequence[Contestant], console: Console, interrupted: Callable[[], int]) -> None:
        """Try all, one after the other, until each knee is known. Raises OperatorError."""
        number = 0
        while waiting := [(one, calls) for one in contestants if (calls := one.search.next()) is not None]:
            for one, calls in waiting:
                number += 1
                result = self._try(number, one, calls, interrupted)
                if interrupted():
                    return
                _note(one, calls, result, console)

    def _try(self, number: int, one: Contestant, calls: int, interrupted: Callable[[], int]) -> Result:
        into = make_folder(self.folder / f"{number:03}-{one.name}-{carrier_name(one.target)}-{calls}")
        wish = Wish("capacity", profile_of(calls, self.seconds), one.name, self.mode, into)
        return run(wish, one.target, Console(quiet=True), interrupted)


def _note(one: Contestant, calls: int, result: Result, console: Console) -> None:
    outcome = outcome_of(result, calls * one.streams_of_a_call)
    one.search.note(calls, outcome)
    if outcome is Outcome.HELD and result.relay is not None and result.relay.cores is not None:
        one.cores_a_call.append(result.relay.cores / calls)
    p99 = "-" if result.delay.p99_ms is None else f"{result.delay.p99_ms:.2f} ms"
    failed = failures(result)
    console.print(
        f"{one.name:<12} {carrier_name(one.target):<12} {calls:>6} calls  {outcome:<6} p99 {p99}, "
        f"{result.packets.lost} lost, {result.packets.unsent} unsent, {failed} failed, "
        f"{result.generator.void_percent:.0f} % void",
        highlight=False,
        soft_wrap=True,
    )


WORDS = {
    "target": "The limit is the target's.",
    "generator": "The limit is the generator's: it was too late to judge more.",
    "search": "The limit is the search's: nothing broke up to --to.",
    "interrupted": "The search was interrupted, so the limit is not known.",
}
NOTHING_KNOWN = "nothing is known: the search was interrupted before a try had ended."


def told(found: dict[str, Any]) -> str:
    """What was found of a contestant (``plain``), in a line."""
    name = f"{found['name']} over {found['carrier']}"
    if found["knee_calls"] is None:
        return f"{name}: {NOTHING_KNOWN}"
    per_core = found["calls_per_core"]
    cores = "" if per_core is None else f", {per_core:,.0f} calls on a core of the relay"
    so_far = " so far" if found["limit"] == "interrupted" else ""
    return f"{name}: {found['knee_calls']} calls{so_far}{cores}. {WORDS[found['limit']]}"


def write(contestants: Sequence[Contestant], folder: Path, *, interrupted: bool = False) -> Path:
    """Write all as JSON. Raises OperatorError."""
    path = folder / "capacity.json"
    plain = {
        "format": FORMAT,
        "interrupted": interrupted,
        "slo": {"lost": 0, "delay_p99_ms": MAX_DELAY_P99_MS},
        "environment": environment(),
        "targets": [one.plain(interrupted=interrupted) for one in contestants],
    }
    writing.replace(path, json.dumps(plain, indent=1).encode() + b"\n")
    return path
