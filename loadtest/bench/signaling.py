"""Signaling under load: 1,000 users are logged in, and 50 line events a second reach the members of their lines.

``python -m loadtest.bench.signaling`` starts the emulator's server in a process of its own, on the second core, and
1,000 WebSocket clients in this one. An event is a transition of a line: its delay runs from the moment at which its
message was due to the moment at which a member has its ``line.state``. The schedule does not wait for answers.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import uvloop

from relay import garbage
from relay.emulator.lines import LineKind
from relay.emulator.signaling.server import PING_INTERVAL_S, PING_TIMEOUT_S
from tests.support.benches.emulated_signaling import People, running_signaling
from tests.support.emulated_lines import line

MEMBERS = 10
HOOT_MEMBERS = 200
HOOT = "sPK-30000000-000001"
# Logins that are on their way at once.
LOGINS_AT_ONCE = 50
# What has not come this long after the last event never will.
SETTLE_S = 2.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def user(number: int) -> str:
    """Every second user is of the other firm, so that a line has two sides."""
    return f"{'ab'[number % 2]}{number}"


def lines(users: int) -> People:
    """Shoutdown lines of ten neighbours each, two for every user, and one hoot."""
    specs = [
        line(
            LineKind.SHOUTDOWN,
            *(user((start + place) % users) for place in range(MEMBERS)),
            number=f"sPK-20000000-{start:06}",
        )
        for start in range(0, users, MEMBERS // 2)
    ]
    hoot = line(LineKind.HOOT, *(user(number) for number in range(min(HOOT_MEMBERS, users))), number=HOOT)
    return People.with_lines(*specs, hoot)


async def serve(users: int, redis_url: str | None) -> None:
    """The server, until its input ends. It pings and collects garbage as ``relay emulate`` does."""
    pings = {"ping_interval_s": PING_INTERVAL_S, "ping_timeout_s": PING_TIMEOUT_S}
    async with running_signaling(lines(users), redis_url=redis_url, **pings) as signaling:
        garbage.settle()
        print(signaling.port, flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.read)


@dataclass
class Figures:
    """What clients have seen. A delay is in seconds, one for each member and event."""

    due: dict[tuple[str, int], float] = field(default_factory=dict)
    delays: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    refused: int = 0
    # How long the server and the generator were ready to run, and something else had their core.
    waited: list[float] = field(default_factory=list)

    def on_packet(self, packet: str) -> None:
        """Note the delay of an event, or a refusal."""
        if packet.startswith('42["line.state"'):
            state = json.loads(packet[2:])[1]
            if (due := self.due.get((state["line"], state["seq"]))) is not None:
                self.delays.append(time.perf_counter() - due)
        elif packet.startswith("43") and '"ok":false' in packet:
            self.refused += 1


class Client:
    """One user's WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, figures: Figures) -> None:
        self._socket = socket
        self._figures = figures
        self.welcomed = asyncio.Event()

    async def run(self, token: str) -> None:
        """Log in, answer pings, and note the rest, until the end."""
        async for message in self._socket:
            packet = message.data
            if packet.startswith("0"):
                await self._socket.send_str("40" + json.dumps({"token": token}))
            elif packet == "2":
                await self._socket.send_str("3")
            elif packet.startswith('42["welcome"'):
                self.welcomed.set()
            else:
                self._figures.on_packet(packet)

    async def say(self, event: str, **fields: Any) -> None:
        """Send a message."""
        await self._socket.send_str("421" + json.dumps([event, fields]))


def rounds(users: int) -> Iterator[tuple[str, int, int, str, dict[str, Any]]]:
    """Events without end: line, seq, the user who causes it, and the message. All lines take turns."""
    starts = range(0, users, MEMBERS // 2)
    seq = 0
    while True:
        for event, place, fields in (
            ("line.ring", 0, {}),
            ("line.talk", 1, {"on": True}),
            ("line.talk", 1, {"on": False}),
            ("line.release", 0, {}),
        ):
            seq += 1
            for start in starts:
                yield f"sPK-20000000-{start:06}", seq, (start + place) % users, event, fields


async def log_in(url: str, users: int, figures: Figures, stack: AsyncExitStack) -> list[Client]:
    """All users, some at once."""
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
    gate = asyncio.Semaphore(LOGINS_AT_ONCE)
    group = await stack.enter_async_context(asyncio.TaskGroup())

    async def one(number: int) -> Client:
        async with gate:
            socket = await session.ws_connect(f"{url}/socket.io/?EIO=4&transport=websocket", max_msg_size=0)
            stack.push_async_callback(socket.close)
            client = Client(socket, figures)
            group.create_task(client.run(f"token-{user(number)}"))
            await client.welcomed.wait()
            return client

    return list(await asyncio.gather(*(one(number) for number in range(users))))


async def load(clients: list[Client], figures: Figures, per_second: float, seconds: float) -> None:
    """Open loop: event k is due at ``start + k / per_second``. Once a second someone talks on the hoot, or stops."""
    events = rounds(len(clients))
    start = time.perf_counter() + 0.1
    for number in range(int(per_second * seconds)):
        due = start + number / per_second
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        name, seq, who, event, fields = next(events)
        figures.due[name, seq] = due
        figures.late.append(time.perf_counter() - due)
        await clients[who].say(event, line=name, **fields)
        if number % int(per_second) == 0:
            await clients[0].say("line.talk", line=HOOT, on=number // int(per_second) % 2 == 0)


def cpu_s(pid: int) -> float:
    """The CPU time of a process."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def waited_s(pid: int) -> float:
    """How long a process's first thread was ready to run, and had no core."""
    with open(f"/proc/{pid}/schedstat") as stat:
        return int(stat.read().split()[1]) / 1e9


def rss_mib(pid: int) -> float:
    """The memory of a process."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / (1 << 20)


def percentile(values: list[float], share: float) -> float:
    """In milliseconds, rounded up to a value that was measured."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def spread(values: list[float]) -> str:
    """Percentiles of a list of times."""
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return "  ".join(f"{name} {percentile(values, share):.1f} ms" for name, share in shares.items())


async def start_server(options: argparse.Namespace) -> asyncio.subprocess.Process:
    """The server's process, on the last core."""
    command = [sys.executable, "-m", "loadtest.bench.signaling", "--users", str(options.users)]
    command += ["--serve", str(options.cores[-1])]
    if options.redis_url:
        command += ["--redis-url", options.redis_url]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)


async def measure(options: argparse.Namespace) -> bool:
    """One run. True if it has met the target."""
    server = await start_server(options)
    assert server.stdin is not None
    assert server.stdout is not None
    figures = Figures()
    try:
        url = f"http://127.0.0.1:{int(await server.stdout.readline())}"
        empty, begin = rss_mib(server.pid), time.perf_counter()
        cpu = cpu_s(server.pid)
        async with AsyncExitStack() as stack:
            clients = await log_in(url, options.users, figures, stack)
            took = time.perf_counter() - begin
            print(f"logins     {options.users} users in {took:.1f} s, {cpu_s(server.pid) - cpu:.1f} s of CPU")  # noqa: T201
            for number in range(min(HOOT_MEMBERS, options.users)):
                await clients[number].say("line.join", line=HOOT)
            await asyncio.sleep(SETTLE_S)
            # A minute makes little garbage, and to look for it would delay what is measured.
            garbage.settle()
            gc.disable()
            cpu, begin = cpu_s(server.pid), time.perf_counter()
            waited = [waited_s(pid) for pid in (server.pid, os.getpid())]
            await load(clients, figures, options.per_second, options.seconds)
            await asyncio.sleep(SETTLE_S)
            figures.waited = [waited_s(server.pid) - waited[0], waited_s(os.getpid()) - waited[1]]
            cores = (cpu_s(server.pid) - cpu) / (time.perf_counter() - begin)
            memory = (rss_mib(server.pid) - empty) * 1024 / options.users
    finally:
        server.stdin.close()
        await server.wait()
    return report(options, figures, cores, memory)


def report(options: argparse.Namespace, figures: Figures, cores: float, memory_kib: float) -> bool:
    """Print it. True if it has met the target."""
    expected = len(figures.due) * MEMBERS
    p99 = percentile(figures.delays, 0.99)
    print(f"events     {len(figures.due)} in {options.seconds:.0f} s, {figures.refused} refused")  # noqa: T201
    print(f"delivered  {len(figures.delays)} of {expected} states of lines to members")  # noqa: T201
    print(f"delay      {spread(figures.delays)}")  # noqa: T201
    print(f"late       {spread(figures.late)}   the generator's own: over 5 ms at p99 the run says little")  # noqa: T201
    server, generator = (1000 * waited / (options.seconds + SETTLE_S) for waited in figures.waited)
    print(f"waited     server {server:.0f} ms, generator {generator:.0f} ms a second, while others had their cores")  # noqa: T201
    print(f"server     {cores:.2f} cores, {memory_kib:.0f} KiB a user")  # noqa: T201
    met = len(figures.delays) == expected and not figures.refused and p99 <= options.target_ms
    print(f"target     p99 of {options.target_ms:.0f} ms and nothing lost: {'met' if met else 'missed'}")  # noqa: T201
    return met


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--per-second", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--target-ms", type=float, default=50.0)
    parser.add_argument("--redis-url", help="share the state in this Redis")
    parser.add_argument("--serve", type=int, metavar="CORE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # The server inherits what this process may use, so it is told its core.
    options.cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {options.cores[0] if options.serve is None else options.serve})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * options.users)), hard))
    if options.serve is not None:
        uvloop.run(serve(options.users, options.redis_url))
    else:
        sys.exit(0 if uvloop.run(measure(options)) else 1)


if __name__ == "__main__":
    main()
