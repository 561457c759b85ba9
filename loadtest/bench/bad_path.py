"""Is the load tester right? It goes through a bad path that knows what it did, and both are compared.

    load tester --UDP--> path --UDP--> TURN server     loss: 2 % of the packets, two in a row
    load tester --TLS--> path --TLS--> relay           stalls: nothing passes for 220 ms, once a second

The path (``tests.support.network.known_path``) writes down what became of each packet. From that ``relay.quality`` has
loss, lateness and MOS, without the packet engine. The load tester must report the same, within a tenth. Prints a table
in Markdown and, as the last line, one JSON object. Exit status: 0 if they agree, 1 if not, 2 if it could not start.

    python -m loadtest.bench.bad_path --users 10 --seconds 60
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.engine.plans import Carrier
from loadtest.figures.quality import CODEC, score
from loadtest.figures.record import read
from loadtest.plan.profile import Profile, parse
from loadtest.plan.target import Target
from loadtest.running.demo import demo_target
from loadtest.running.folders import make_folder
from loadtest.running.processes import Mode
from loadtest.running.supervise import Wish, run
from loadtest.verdict.result import Result
from relay.demo.authority import Authority
from relay.errors import RelayError
from relay.quality.playout import Playout, play
from tests.support.network.known_path import Faults, KnownPath, Ledger, Passage, TlsPath, UdpPath, Voice, open_path

# A packet comes every 20 ms, so a stall of 220 ms holds one of each stream for 200 ms: that is what counts as a stall.
STALL_S = 0.22
STALL_COUNTS_FROM_S = 0.2
PARTS = {"loss": Faults(period=100, run=2), "stalls": Faults(stall_s=STALL_S, stall_every_s=1.0)}
WITHIN = 0.1
# Farther from what a busy machine does to packets than the usual 60 ms.
PLAYOUT_MS = 100.0
RAMP_S, WARM_UP_S = 1.0, 1.0
# The path is bad from here on after the warm-up, and until this long before the end: what is lost is known after 2 s.
BAD_AFTER_S, BAD_UNTIL_S = 1.0, 4.0
MIN_SECONDS = 8.0
# A packet of the load tester that leaves later than this looks late to the path, and not to the load tester.
MAX_LATENESS_MS = 30.0
RTP_CLOCK = 8000


@dataclass(frozen=True)
class Row:
    """One figure: what was injected, and what the load tester has reported."""

    figure: str
    injected: float
    reported: float

    @property
    def agrees(self) -> bool:
        """Whether they differ by a tenth of what was injected, at most. Nothing injected is nothing reported."""
        return abs(self.reported - self.injected) <= WITHIN * abs(self.injected) + 1e-9


@dataclass(frozen=True)
class Truth:
    """What the path knows. ``stalls`` are packets that took 200 ms longer than the one before them in their stream."""

    played: Playout
    stalls: int


# What the path knows


def truth_of(ledger: Ledger, begin_s: float, end_s: float, playout_ms: float) -> Truth:
    """Of the packets that came between these times of CLOCK_MONOTONIC. Raises ValueError if a stream has nothing."""
    delays: list[float | None] = []
    stalls = 0
    for voice in ledger.values():
        passed = _delays_ms(voice, begin_s, end_s)
        delays += passed
        stalls += _stalls(passed)
    return Truth(play(delays, CODEC, playout_ms), stalls)


def _delays_ms(voice: Voice, begin_s: float, end_s: float) -> list[float | None]:
    """The delay of each packet on top of the fastest of its stream, by RTP's clock, which says when it was due."""
    delays = [_delay_s(one) for one in voice.passages]
    least_s = min((delay for delay in delays if delay is not None), default=0.0)
    return [
        None if delay is None else 1000 * (delay - least_s)
        for one, delay in zip(voice.passages, delays, strict=True)
        if begin_s <= one.came_s < end_s
    ]


def _delay_s(one: Passage) -> float | None:
    return None if one.left_s is None else one.left_s - one.timestamp / RTP_CLOCK


def _stalls(delays_ms: Sequence[float | None]) -> int:
    came = [delay for delay in delays_ms if delay is not None]
    return sum(after - before >= 1000 * STALL_COUNTS_FROM_S for before, after in itertools.pairwise(came))


def rows_of(part: str, truth: Truth, result: Result) -> list[Row]:
    """The figures that a part is about. ``MOS`` is what its faults cost: a tenth of a MOS itself is nearly nothing."""
    played, packets = truth.played, result.packets
    best = score(1, 0, 0, PLAYOUT_MS)
    assert best is not None
    mos = Row("MOS lost", best - (played.mos or 0), best - (result.mos or 0))
    missing = Row("missing %", played.missing_percent or 0, packets.missing_percent or 0)
    if part == "loss":
        percent = 100 * played.lost / max(1, played.sent)
        loss = Row("loss %", percent, packets.loss_percent or 0)
        return [Row("lost", played.lost, packets.lost), loss, missing, mos]
    return [Row("late", played.late, packets.late), missing, Row("stalls", truth.stalls, packets.stalls), mos]


# One run


def profile_of(users: int, seconds: float) -> Profile:
    """Calls with a stream each way. Nothing is judged: figures are compared, not limits."""
    return parse(
        {
            "description": "Through a bad path.",
            "users": users,
            "warm_up_s": WARM_UP_S,
            "shape": {"ramp_s": RAMP_S, "hold_s": seconds + WARM_UP_S},
            "media": {"up": 1, "down": 1, "playout_ms": PLAYOUT_MS},
            "thresholds": {"void_percent": 100},
        },
        "bad path",
    )


class Conductor:
    """Lets the path be bad in the middle of a test. ``look`` is called several times a second."""

    def __init__(self, path: KnownPath, record: Path, profile: Profile) -> None:
        self._path = path
        self._record = record
        begin, end = profile.judged_from_s + BAD_AFTER_S, profile.shape.seconds - BAD_UNTIL_S
        self._begin, self._end = begin, end
        self._started: int | None = None

    def look(self) -> bool:
        """Begin or end what is due. Returns False: the test goes on."""
        if self._started is None:
            self._started = first_second(self._record)
        else:
            self._path.misbehave(self._begin <= time.time() - self._started < self._end)
        return False


def first_second(record: Path) -> int | None:
    """When the record begins; None before."""
    with contextlib.suppress(OSError), record.open(encoding="utf-8") as file:
        # A look at the relay may be before it.
        return next((second for line in file for second in read([line]).intervals), None)
    return None


@contextlib.contextmanager
def path_of(part: str, target: Target, folder: Path) -> Iterator[tuple[KnownPath, Target]]:
    """The path of a part, and the target through it."""
    if part == "loss":
        assert target.upstream is not None
        with open_path(UdpPath(target.upstream, PARTS[part])) as udp:
            yield udp, target.model_copy(update={"server": udp.address, "carrier": Carrier.UDP, "metrics": None})
        return
    authority = Authority(folder)
    trust = ssl.create_default_context(cafile=target.authorities)
    own = authority.issue(target.server_name)
    with open_path(TlsPath(target.server, PARTS[part], own, trust, target.server_name)) as tls:
        changed = {"server": tls.address, "carrier": Carrier.TLS, "authorities": str(authority.ca_certificate)}
        yield tls, target.model_copy(update=changed)


def measure(part: str, target: Target, users: int, seconds: float, folder: Path) -> dict[str, Any]:
    """One run of a part. Raises RelayError."""
    profile = profile_of(users, seconds)
    with path_of(part, target, folder) as (path, through):
        wish = Wish("bad path", profile, part, Mode(), make_folder(folder / "report"))
        conductor = Conductor(path, wish.folder / "record.jsonl", profile)
        result = run(wish, through, Console(quiet=True), conductor.look)
    if not result.packets.received:
        raise RelayError(f"{part}: nothing came through: {'; '.join(result.why)}")
    # A second of the record is the time until its tick, which is anywhere in it: on average the middle.
    begin = result.started_at - 0.5 - (time.time() - time.monotonic())
    truth = truth_of(path.ledger, begin + profile.judged_from_s, begin + profile.shape.seconds, PLAYOUT_MS)
    rows = rows_of(part, truth, result)
    return {
        "part": part,
        "rows": [{**asdict(row), "agrees": row.agrees} for row in rows],
        "agrees": all(row.agrees for row in rows),
        "packets": truth.played.sent,
        "lateness_max_ms": result.generator.lateness.max_ms,
    }


def measure_calmly(part: str, target: Target, options: argparse.Namespace) -> dict[str, Any]:
    """Repeat a run in which the load tester itself was late, as often as ``--tries`` says. Raises RelayError."""
    for _ in range(options.tries):
        with tempfile.TemporaryDirectory(prefix="relay-bad-path-") as folder:
            found = measure(part, target, options.users, options.seconds, Path(folder))
        if found["lateness_max_ms"] <= MAX_LATENESS_MS:
            break
    return found


# The command


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line for each figure."""
    lines = [("part", "figure", "injected", "reported", "agrees"), ("---",) * 5]
    lines += [
        (
            run["part"],
            row["figure"],
            f"{row['injected']:.4g}",
            f"{row['reported']:.4g}",
            "yes" if row["agrees"] else "NO",
        )
        for run in runs
        for row in run["rows"]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _parts(text: str) -> list[str]:
    found = text.split(",")
    if not set(found) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text}: expected some of {', '.join(PARTS)}")
    return found


def _seconds(text: str) -> float:
    if not float(text) >= MIN_SECONDS:
        raise argparse.ArgumentTypeError(f"{text}: expected {MIN_SECONDS:g} or more")
    return float(text)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)} (all)")
    parser.add_argument("--users", type=int, default=10, help="calls, with a stream each way (10)")
    parser.add_argument("--seconds", type=_seconds, default=30.0, help="of each part (30)")
    parser.add_argument("--tries", type=int, default=3, help="runs of a part, if the machine is busy (3)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare and print."""
    options = parse_options(arguments)
    try:
        with demo_target(options.users) as target:
            runs = [measure_calmly(part, target, options) for part in options.parts]
    except (RelayError, OSError) as error:
        print(f"bad_path: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"{table(runs)}\n\n{json.dumps({'users': options.users, 'seconds': options.seconds, 'runs': runs})}")  # noqa: T201
    return 0 if all(one["agrees"] for one in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
