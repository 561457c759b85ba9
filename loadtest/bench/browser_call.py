"""A call of a real browser beside simulated ones: do its getStats and the load tester say the same?

    load tester --TLS--> relay --UDP--> TURN server --UDP--> load tester     300 calls, a stream each way
    Chromium    --TLS--> relay --UDP--> TURN server --UDP--> Chromium        one call, the same way

With ``--loss`` both go to the TURN server over UDP, through a path that drops 2 % of each stream. They agree if losses
differ by 0.1 percent of the packets, or a tenth of what the load tester says, and jitters by 5 ms, at most. Both count
jitter as RFC 3550 has it. Prints a table in Markdown and, as the last line, one JSON object. Exit status: 0 if they
agree, 1 if not, 2 if it could not start.

    python -m loadtest.bench.browser_call --calls 300 --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from loadtest.bench.bad_path import first_second, path_of
from loadtest.bench.datachannel import open_page
from loadtest.plan.profile import Profile, parse
from loadtest.plan.target import Target
from loadtest.running.demo import demo_target
from loadtest.running.folders import make_folder
from loadtest.running.processes import Mode
from loadtest.running.supervise import Wish, run
from loadtest.running.targets import MAX_DEMO_USERS
from loadtest.verdict.result import Result
from relay import deadlines
from relay.errors import RelayError
from tests.support.peers.browser import CHROMIUM, Page

PAGE = Path(__file__).with_name("browser_call.html")
# Servers are on this machine, which may have no other network.
LOOPBACK = "--allow-loopback-in-peer-connection"
CONNECT_TIMEOUT_S = 30.0
LOOK_EVERY_S = 1.0
WARM_UP_S = 3.0
# Users come at this rate: a set-up takes the relay a millisecond, and the load tester as much.
USERS_A_SECOND = 50
MAX_CALLS = 1000
# The path that drops is written in Python.
MAX_LOSSY_CALLS = 50
MAX_LOSS_POINTS, MAX_LOSS_SHARE = 0.1, 0.1
MAX_JITTER_MS = 5.0

Run = dict[str, Any]


def profile_of(calls: int, seconds: float) -> Profile:
    """Calls with a stream each way, as a browser's call has. Nothing is judged."""
    return parse(
        {
            "description": "Beside a browser's call.",
            "users": calls,
            "warm_up_s": WARM_UP_S,
            "shape": {"ramp_s": max(1.0, calls / USERS_A_SECOND), "hold_s": WARM_UP_S + seconds},
            "media": {"up": 1, "down": 1},
            "thresholds": {"void_percent": 100},
        },
        "browser call",
    )


@contextlib.contextmanager
def ways(target: Target, *, lossy: bool, folder: Path) -> Iterator[tuple[Target, list[dict[str, str]]]]:
    """The target for the load tester, and the TURN servers of both ends of the browser's call."""
    assert target.upstream is not None
    if not lossy:
        yield target, _servers(target, f"turns:{target.server}?transport=tcp")
        return
    with path_of("loss", target, folder) as (path, through):
        path.misbehave(True)
        yield through, _servers(target, f"turn:{path.address}?transport=udp")


def _servers(target: Target, near: str) -> list[dict[str, str]]:
    # As in the load tester's calls, the other end is not on the relay: a packet goes through it once.
    urls = near, f"turn:{target.upstream}?transport=udp"
    users = [target.credentials(user) for user in range(len(urls))]
    return [{"urls": url, "username": name, "credential": word} for url, (name, word) in zip(urls, users, strict=True)]


async def connect(page: Page, servers: list[dict[str, str]]) -> None:
    """Set up the browser's call, until both ends hear the other. Raises RelayError."""
    await page.run(f"call({json.dumps(servers)})")
    try:
        async with deadlines.timeout(CONNECT_TIMEOUT_S):
            while True:
                told = await page.run("look()")
                if told["failure"]:
                    raise RelayError(f"the browser's call: {told['failure']}")
                if all(end["packetsReceived"] for end in told["ends"]):
                    return
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        raise RelayError(f"the browser's call was not set up: {told['ends']}; {page.complaints[-5:]}") from None


async def listen(page: Page, record: Path, profile: Profile, loading: asyncio.Task[Result]) -> list[Run]:
    """What ``getStats`` says, once a second, in the part of the test that is judged."""
    looks: list[Run] = []
    while not loading.done():
        started = first_second(record)
        second = -1.0 if started is None else time.time() - started
        if profile.judged_from_s <= second < profile.shape.seconds:
            looks.append(await page.run("look()"))
        await asyncio.sleep(LOOK_EVERY_S)
    return looks


async def measure(options: argparse.Namespace) -> Run:
    """One run. Raises RelayError."""
    profile = profile_of(options.calls, options.seconds)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-browser-call-")))
        demo = demo_target(max(2, min(options.calls, MAX_DEMO_USERS)))
        target = await asyncio.to_thread(stack.enter_context, demo)
        through, servers = stack.enter_context(ways(target, lossy=options.loss, folder=folder))
        page = await stack.enter_async_context(open_page(PAGE, LOOPBACK))
        await connect(page, servers)
        wish = Wish("browser call", profile, "demo", Mode(options.processes), make_folder(folder / "report"))
        stopping = asyncio.Event()
        loading = asyncio.create_task(asyncio.to_thread(run, wish, through, Console(quiet=True), stopping.is_set))
        try:
            looks = await listen(page, wish.folder / "record.jsonl", profile, loading)
        finally:
            stopping.set()
            result = await loading
        browser = browser_figures(looks)
        return {
            "calls": options.calls,
            "lossy": options.loss,
            "browser": browser,
            "load_tester": tester_figures(result),
        }


# Judgement


def browser_figures(looks: Sequence[Run]) -> Run:
    """From the first look to the last, of both ends. What was not measured is None."""
    if len(looks) < 2:
        return {"received": 0, "lost": 0, "loss_percent": None, "jitter_p50_ms": None, "states": []}
    first, last = looks[0]["ends"], looks[-1]["ends"]
    received, lost = (
        sum(after[key] - before[key] for before, after in zip(first, last, strict=True))
        for key in ("packetsReceived", "packetsLost")
    )
    jitters = [1000 * end["jitter"] for look in looks for end in look["ends"]]
    return {
        "received": received,
        "lost": lost,
        "loss_percent": 100 * lost / (received + lost) if received else None,
        "jitter_p50_ms": statistics.median(jitters),
        "states": [end["state"] for end in last],
    }


def tester_figures(result: Result) -> Run:
    """The same of the load tester's report."""
    return {
        "received": result.packets.received,
        "lost": result.packets.lost,
        "loss_percent": result.packets.loss_percent,
        "jitter_p50_ms": result.jitter.p50_ms,
        "void_percent": result.generator.void_percent,
    }


def complaints(found: Run) -> list[str]:
    """Where the two do not agree."""
    browser, tester = found["browser"], found["load_tester"]
    said = [f"the browser's call is {state}" for state in browser["states"] if state != "connected"]
    loss, other = browser["loss_percent"], tester["loss_percent"]
    if loss is None or other is None:
        return [*said, "nothing was measured"]
    if abs(loss - other) > max(MAX_LOSS_POINTS, MAX_LOSS_SHARE * other):
        said.append(f"the browser lost {loss:.3f} % of its packets, the load tester {other:.3f} %")
    jitter, of_tester = browser["jitter_p50_ms"], tester["jitter_p50_ms"]
    if of_tester is None:
        said.append("the load tester was late all the time, so it has measured no jitter")
    elif abs(jitter - of_tester) > MAX_JITTER_MS:
        said.append(f"the browser's jitter is {jitter:.2f} ms, the load tester's {of_tester:.2f} ms")
    return said


def table(found: Run) -> str:
    """Markdown, a line for each side."""
    lines: list[Sequence[str]] = [("", "received", "lost", "loss %", "jitter p50 ms"), ("---",) * 5]
    for name in ("browser", "load_tester"):
        one = found[name]
        figures = [one["loss_percent"], one["jitter_p50_ms"]]
        texts = ["-" if figure is None else f"{figure:.3f}" for figure in figures]
        lines.append((name.replace("_", " "), str(one["received"]), str(one["lost"]), *texts))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# The command


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=300, help="of the load tester (300)")
    parser.add_argument("--seconds", type=float, default=60.0, help="that are compared (60)")
    parser.add_argument("--processes", type=int, default=1, help="of the load tester (1)")
    parser.add_argument("--loss", action="store_true", help="over UDP, through a path that drops 2 %% of each stream")
    options = parser.parse_args(arguments)
    most = MAX_LOSSY_CALLS if options.loss else MAX_CALLS
    if not 1 <= options.calls <= most:
        parser.error(f"--calls {options.calls}: expected 1 to {most}")
    if not options.seconds >= 1:
        parser.error(f"--seconds {options.seconds:g}: expected 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare and print."""
    options = parse_options(arguments)
    if CHROMIUM is None:
        print("browser_call: chromium is not installed", file=sys.stderr)  # noqa: T201
        return 2
    try:
        found = uvloop.run(measure(options))
    except (RelayError, OSError, TimeoutError) as error:
        print(f"browser_call: {str(error) or 'no answer'}", file=sys.stderr)  # noqa: T201
        return 2
    found["complaints"] = complaints(found)
    print(f"{table(found)}\n\n{json.dumps(found)}")  # noqa: T201
    return int(bool(found["complaints"]))


if __name__ == "__main__":
    sys.exit(main())
