"""Voice over a bad WAN: the relay, and coturn if it is installed, under the same disturbances of the client's link.

    client --TLS over the WAN--> relay  --UDP--> source    (the source is the relay's upstream)
    client --TLS over the WAN--> coturn --UDP--> source    (the source is coturn's peer)

The WAN is ``relay.demo.wan.line``, which needs root. Servers and source are at its far end, with nothing between
them. Prints a table in Markdown and, as the last line, one JSON object. Exit status: 0 if all was measured, 1 if a
frame or a connection was broken, 2 if it could not start. README.md in this folder says what the figures mean.

    python -m loadtest.bench.wan --server all --scenario a,b,c,d,e
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from loadtest.bench.wan_call import (
    BURST_STREAM,
    VOICE_STREAMS,
    Client,
    Delivery,
    Source,
    connect,
    feed_bursts,
    feed_voice,
)
from loadtest.bench.wan_servers import KIB, SERVER_PORT, SERVERS, Server, WanError, installed, open_server
from relay import deadlines
from relay.addresses import Address
from relay.demo.authority import Authority
from relay.demo.wan.line import Wan, open_wan
from relay.demo.wan.link import Link
from relay.demo.wan.netns import refusal

SERVER_NAME = "wan.test"
WARM_UP_S = 2.0
# Frames that have not come this long after the last one was sent will not come.
DRAIN_S = 4.0
SAMPLE_S = 0.1
# Voice is old if no jitter buffer accepts it. An answer to STUN is late if clients begin to worry.
OLD_S = 0.5
LATE_ANSWER_S = 1.0
# If the 99th percentile of voice leaves the source later than this, the machine was too busy to measure anything.
MAX_LATE_MS = 20.0
# How long a run is observed after a disturbance.
AFTER_S = 10.0
# How much a client that does not read has in its kernel before the server notices. Linux doubles this value.
SLOW_READER_BUFFER_BYTES = 16 * KIB

Run = dict[str, Any]

# Only a round trip of 40 ms.
FAR = Link(delay_s=0.02)


@dataclass(frozen=True)
class Scenario:
    """A link and its disturbance: it passes nothing for ``stall_s``; the client reads nothing for ``pause_s``."""

    name: str
    title: str
    uplink: Link = FAR
    downlink: Link = FAR
    stall_s: float = 0.0
    pause_s: float = 0.0
    bursts: bool = False
    # How long the run is observed, after the disturbance if there is one.
    seconds: float = AFTER_S

    @property
    def disturbs(self) -> bool:
        """Whether nothing comes for a while."""
        return bool(self.stall_s or self.pause_s)


def _stall(seconds: float) -> Scenario:
    return Scenario(f"c{seconds:g}", f"stall of {seconds:g} s, 40 ms RTT", stall_s=seconds)


def _loss(percent: int) -> Scenario:
    lossy = Link(delay_s=0.02, loss=percent / 100)
    return Scenario(f"b{percent}", f"{percent} % loss, 40 ms RTT", lossy, lossy, seconds=20)


SCENARIOS = [
    # The uplink carries its two streams (27 KB/s with all headers), so a late answer is caused by the downlink. The
    # queue is half a second long: the answer to a request has another half.
    Scenario(
        "a",
        "64 kbit/s down, 40 ms RTT",
        Link(delay_s=0.02, rate_bps=512_000, queue_bytes=16 * KIB),
        Link(delay_s=0.02, rate_bps=64_000, queue_bytes=4 * KIB),
        seconds=20,
    ),
    _loss(1),
    _loss(3),
    _stall(0.2),
    _stall(1),
    _stall(3),
    Scenario("d", "200 KB burst a second, 40 ms RTT", bursts=True),
    Scenario("e", "client reads nothing for 5 s", pause_s=5),
    # Only to measure memory, and only on request.
    Scenario("m", "client reads nothing for 60 s", pause_s=60),
]
DEFAULT_SCENARIOS = [scenario for scenario in SCENARIOS if scenario.name != "m"]


# One run


@dataclass(frozen=True)
class Times:
    """When a run's disturbance began and ended, and when its last frame was sent, in seconds of CLOCK_MONOTONIC."""

    begin: float
    disturbed_until: float
    end: float


@dataclass
class Samples:
    """Readings of the server's memory and of its kernel's queue towards the client."""

    server: Server
    taken: list[tuple[float, int, int]] = field(default_factory=list)

    def take(self) -> None:
        """Take one reading."""
        self.taken.append((time.monotonic(), self.server.rss_kb, self.server.kernel_queue_bytes))

    async def collect(self) -> None:
        """Take readings until cancelled."""
        while True:
            self.take()
            await asyncio.sleep(SAMPLE_S)

    def summary(self, times: Times) -> Run:
        """RSS before the disturbance, halfway through it, at most and at the end, and the longest queue."""
        since = [sample for sample in self.taken if sample[0] >= times.begin]
        halfway = (times.begin + times.disturbed_until) / 2
        return {
            "rss_before_kb": next(rss for when, rss, _ in reversed(self.taken) if when < times.begin),
            "rss_halfway_kb": next(rss for when, rss, _ in since if when >= halfway),
            "rss_max_kb": max(rss for _, rss, _ in since),
            "rss_after_kb": since[-1][1],
            "kernel_queue_max_bytes": max(queued for _, _, queued in since),
        }


@contextlib.asynccontextmanager
async def _background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines while the block runs. If one of them raises, the block raises it at its end."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error


async def _disturb(scenario: Scenario, line: Wan, client: Client) -> Times:
    """Let the call run during the disturbance, and after it."""
    begin = time.monotonic()
    line.uplink.change(**asdict(scenario.uplink))
    line.downlink.change(**asdict(scenario.downlink))
    if scenario.stall_s:
        line.stall(scenario.stall_s)
    if scenario.pause_s:
        client.pause()
    await asyncio.sleep(max(0.0, begin + scenario.stall_s + scenario.pause_s - time.monotonic()))
    if scenario.pause_s:
        client.resume()
    disturbed_until = time.monotonic()
    await asyncio.sleep(scenario.seconds)
    return Times(begin, disturbed_until, time.monotonic())


async def _call(scenario: Scenario, line: Wan, server: Server, client: Client, source: Source) -> Run:
    """Set up a call, run it, and judge it."""
    await client.set_up(source.address)
    samples, tracks = Samples(server), client.downlink
    async with _background(client.talk(), client.request(), samples.collect()):
        # The first frame tells the source where to send.
        async with deadlines.timeout(AFTER_S):
            await source.heard.wait()
        (flow,) = source.flows
        async with _background(feed_voice(source, flow, tracks)):
            await asyncio.sleep(WARM_UP_S)
            async with contextlib.AsyncExitStack() as stack:
                if scenario.bursts:
                    bursts = feed_bursts(source, flow, tracks[BURST_STREAM])
                    await stack.enter_async_context(_background(bursts))
                times = await _disturb(scenario, line, client)
    await asyncio.sleep(DRAIN_S)
    samples.take()
    run = {"scenario": scenario.name, "server": server.name, **judge(scenario, client, source, times)}
    ways = {"uplink": line.uplink, "downlink": line.downlink}
    return run | samples.summary(times) | {"links": {name: asdict(way.counters) for name, way in ways.items()}}


async def measure(scenario: Scenario, name: str, *, congestion: str, seed: int = 1) -> Run:
    """One scenario against a fresh server on a fresh WAN. Raises WanError, or OSError, if it cannot be set up."""
    # Until the call has been set up, the link is good, but has its final length.
    base = [Link(delay_s=link.delay_s) for link in (scenario.uplink, scenario.downlink)]
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-wan-")))
        line = stack.enter_context(open_wan(*base, seed=seed))
        for namespace in (line.client_ns, line.server_ns):
            namespace.set_sysctl("net/ipv4/tcp_congestion_control", congestion)
        authority, address = Authority(folder), Address(line.server_address, SERVER_PORT)
        bound = line.server_ns.socket(kind=socket.SOCK_DGRAM)
        bound.bind(("127.0.0.1", 0))
        source = stack.enter_context(contextlib.closing(Source(bound)))
        server = await stack.enter_async_context(
            open_server(
                name,
                folder,
                line.server_ns,
                address=address,
                source=source.address,
                certificate=authority.issue(SERVER_NAME),
            )
        )
        context = authority.client_context()
        # coturn 4.6.1 may refuse TLS 1.3, so both speak 1.2.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        buffer = SLOW_READER_BUFFER_BYTES if scenario.pause_s else None
        opened = line.client_ns.socket()
        connected = await asyncio.to_thread(connect, opened, address, context, SERVER_NAME, buffer)
        client = stack.enter_context(contextlib.closing(Client(connected)))
        return await _call(scenario, line, server, client, source)


# Judging it


def _percentile_ms(seconds: Sequence[float], rank: float) -> float | None:
    """A percentile in milliseconds; between two ranks, the greater value. None if there are no values."""
    return round(1000 * sorted(seconds)[math.ceil(rank * len(seconds)) - 1], 1) if seconds else None


def _ages(deliveries: Iterable[Delivery]) -> Run:
    """The ages of frames. Percentiles are of the frames that came."""
    ages = [delivery.age_s for delivery in deliveries]
    return {
        **{f"age_{name}_ms": _percentile_ms(ages, rank) for name, rank in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
        "old": sum(age > OLD_S for age in ages),
        "looked_at": len(ages),
    }


def _stream_figures(client: Client, streams: Sequence[int], scenario: Scenario, times: Times) -> Run:
    """What became of the frames since the disturbance began, and the age of those that came after its end."""
    tracks = [client.downlink[stream] for stream in streams]
    numbers = [(track, number) for track in tracks for number in track.sent_between(times.begin, times.end)]
    delivered = sum(number in track.deliveries for track, number in numbers)
    until = times.disturbed_until + scenario.seconds + (DRAIN_S if not scenario.disturbs else 0)
    came = [one for track in tracks for one in track.deliveries.values() if times.disturbed_until <= one.came < until]
    return {"sent": len(numbers), "delivered": delivered, "lost": len(numbers) - delivered, **_ages(came)}


def _answers(client: Client, scenario: Scenario, times: Times) -> Run:
    """Requests since the disturbance began. No answer can come while it lasts, so this time does not count."""
    requests = [request for request in client.requests.values() if times.begin <= request.sent < times.end]
    took = [(request, request.answered - request.sent) for request in requests if request.answered is not None]
    excused = times.disturbed_until if scenario.disturbs else times.begin
    late = [
        one for one, _ in took if one.answered is not None and one.answered - max(one.sent, excused) > LATE_ANSWER_S
    ]
    return {
        "stun_sent": len(requests),
        "stun_lost": len(requests) - len(took),
        "stun_late": len(late),
        "stun_max_ms": round(1000 * max((seconds for _, seconds in took), default=0.0), 1),
        "stun_refused": client.refused_requests,
    }


def judge(scenario: Scenario, client: Client, source: Source, times: Times) -> Run:
    """All figures of one run, except the server's memory."""
    uplink = [source.uplink[stream] for stream in VOICE_STREAMS if stream in source.uplink]
    return {
        "voice": _stream_figures(client, VOICE_STREAMS, scenario, times),
        "burst": _stream_figures(client, [BURST_STREAM], scenario, times) if scenario.bursts else None,
        **_answers(client, scenario, times),
        "uplink": {
            "sent": sum(client.sent.values()),
            "lost": sum(client.sent.values()) - sum(len(track.deliveries) for track in uplink),
            "unsent": client.unsent,
            **_ages(one for track in uplink for one in track.deliveries.values()),
        },
        "wrong": sum(track.wrong for track in [*uplink, *client.downlink.values()]),
        "broken": client.ended,
        "source_refused": source.refused,
        "late_p99_ms": _percentile_ms(source.late_s, 0.99),
    }


# Showing it

COLUMNS: dict[str, Callable[[Run], Any]] = {
    "scenario": lambda run: run["title"],
    "server": lambda run: run["server"],
    "sent": lambda run: run["voice"]["sent"],
    "lost": lambda run: run["voice"]["lost"],
    "age p50": lambda run: run["voice"]["age_p50_ms"],
    "p99": lambda run: run["voice"]["age_p99_ms"],
    "max ms": lambda run: run["voice"]["age_max_ms"],
    "> 0.5 s": lambda run: run["voice"]["old"],
    "burst lost": lambda run: "" if run["burst"] is None else f"{run['burst']['lost']} of {run['burst']['sent']}",
    "burst p99 ms": lambda run: "" if run["burst"] is None else run["burst"]["age_p99_ms"],
    "STUN lost": lambda run: f"{run['stun_lost']} of {run['stun_sent']}",
    "late": lambda run: run["stun_late"],
    "STUN max ms": lambda run: run["stun_max_ms"],
    "RSS KiB": lambda run: run["rss_before_kb"],
    "at most": lambda run: f"+{run['rss_max_kb'] - run['rss_before_kb']}",
    "after": lambda run: f"{run['rss_after_kb'] - run['rss_before_kb']:+}",
    "kernel KiB": lambda run: round(run["kernel_queue_max_bytes"] / KIB),
    "harness late ms": lambda run: run["late_p99_ms"],
    "broken": lambda run: (run["broken"] or "") + (f" {run['wrong']} wrong" if run["wrong"] else ""),
}


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.0f}" if isinstance(value, float) else str(value)


def table(runs: Sequence[Run]) -> str:
    """Markdown, a line for each scenario and server."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    lines += [[_cell(column(run)) for column in COLUMNS.values()] for run in runs]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# The command


def _scenarios(text: str) -> list[Scenario]:
    """``c`` means all scenarios that begin with c, ``c3`` only one."""
    chosen = [[one for one in SCENARIOS if part in {one.name, one.name[0]}] for part in text.split(",")]
    if not all(chosen):
        raise argparse.ArgumentTypeError(f"scenarios are {', '.join(one.name for one in SCENARIOS)}; {text!r} is not")
    return [one for part in chosen for one in part]


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    names = ",".join(one.name for one in SCENARIOS)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--server", choices=[*SERVERS, "all"], default="all", help="all: those that are installed (all)"
    )
    parser.add_argument(
        "--scenario", type=_scenarios, default=DEFAULT_SCENARIOS, help=f"of {names}; c is c0.2,c1,c3 (all but m)"
    )
    parser.add_argument("--congestion", default="reno", help="TCP's congestion control at both ends (reno)")
    parser.add_argument("--seed", type=int, default=1, help="decides which packets are lost (1)")
    parser.add_argument("--tries", type=int, default=3, help="until the machine has time for a run (3)")
    parser.add_argument("--json", type=Path, help="write the JSON to this file, too")
    return parser.parse_args(arguments)


async def _measure_all(options: argparse.Namespace) -> list[Run]:
    names = installed() if options.server == "all" else [options.server]
    runs = []
    for scenario in options.scenario:
        for name in names:
            try:
                run = await _measure_in_peace(scenario, name, options)
            except (OSError, TimeoutError) as error:
                raise WanError(f"{scenario.name}: {name}: {error or 'no answer'}") from error
            runs.append({"title": f"{scenario.name}: {scenario.title}", **run})
    return runs


async def _measure_in_peace(scenario: Scenario, name: str, options: argparse.Namespace) -> Run:
    """The first run for which the machine was not too busy, or else the run for which it was least busy."""
    tries: list[Run] = []
    while len(tries) < options.tries and not (tries and tries[-1]["late_p99_ms"] <= MAX_LATE_MS):
        tries.append(await measure(scenario, name, congestion=options.congestion, seed=options.seed))
        print(f"wan: {scenario.name} {name}: late by {tries[-1]['late_p99_ms']} ms", file=sys.stderr)  # noqa: T201
    return {**min(tries, key=lambda run: float(run["late_p99_ms"])), "tries": len(tries)}


def main() -> int:
    """Measure and print."""
    options = parse_options()
    if (reason := refusal()) is not None:
        print(f"wan: {reason}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        runs = uvloop.run(_measure_all(options))
    except WanError as error:
        print(f"wan: {error}", file=sys.stderr)  # noqa: T201
        return 2
    settings = {"congestion": options.congestion, "seed": options.seed, "old_s": OLD_S, "late_answer_s": LATE_ANSWER_S}
    result = json.dumps({"settings": settings, "runs": runs})
    print(f"{table(runs)}\n\n{result}")  # noqa: T201
    if options.json is not None:
        options.json.write_text(result + "\n")
    return int(any(run["wrong"] or run["stun_refused"] or run["broken"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())
