"""Running calls while the relay's own machine does not send: a packet filter, no route, a link that is down.

    calls, sessions --TLS--> relay serve  --UDP over a veth-->  two coturns, and a peer that echoes

It runs in two network namespaces without names, with a veth between them; both end with it. It needs root, coturn, ip
and nft. Each call sends voice and refreshes its allocation all the time. After each disturbance a new call and a new
session must be served. Prints a table and, as the last line, one JSON object. Exit status: 0 if nothing ended and the
first two disturbances marked no upstream down, 1 otherwise, 2 if it could not start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from relay import deadlines
from relay.addresses import Address
from relay.client.session import Session, open_session
from relay.client.turn import TurnConnection, open_turn_tls, open_turn_udp
from relay.demo.authority import Authority
from relay.demo.wan.netns import Namespace
from relay.demo.wan.netns import refusal as netns_refusal
from relay.errors import UpstreamError
from tests.support.benches.gateway import settings_tree, write_config

DEVICE, OTHER_DEVICE = "flap0", "flap1"
RELAY_ADDRESS = "198.18.77.1"
UPSTREAMS = ("198.18.77.2", "198.18.77.3")
NETWORK = "198.18.77.0/24"
TURN_PORT = 3478
RELAY = Address("127.0.0.1", 443)
SERVER_NAME = "relay.test"
USER, PASSWORD, REALM = "trader", "secret", "flap.test"
# Enough to notice who is heard. With 50 a second, 25 calls would keep this process itself busy.
PACKETS_PER_SECOND = 20
REFRESH_EVERY_S = 0.7
START_TIMEOUT_S = 60.0
# The longest that a client waits to be served, or to be heard again. Both should be immediate.
PATIENCE_S = 20.0


class FlapError(Exception):
    """The measurement could not be made."""


@dataclass(frozen=True)
class Plan:
    """How many calls, and how long each disturbance lasts. The first one refuses one in ``one_in`` datagrams."""

    plane: str = "compiled"
    calls: int = 20
    sessions: int = 5
    one_in: int = 10
    refused_s: float = 5.0
    route_gone_s: float = 0.1
    link_down_s: float = 2.0


@dataclass
class Phase:
    """What a disturbance did. Times are in seconds since its end."""

    name: str
    ended: int = 0
    marked_down: int = 0
    refused: int = 0
    heard_after_s: float = 0.0
    call_served_after_s: float = 0.0
    session_served_after_s: float = 0.0


@dataclass
class Result:
    """The plan, and what happened."""

    plan: Plan
    phases: list[Phase] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True if nothing ended, and the first two disturbances marked no upstream down."""
        return not any(phase.ended for phase in self.phases) and not any(one.marked_down for one in self.phases[:2])


def refusal() -> str | None:
    """Why it cannot be measured here, or None if it can."""
    missing = [name for name in ("ip", "nft", "turnserver", "nsenter", "setpriv") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else netns_refusal()


# Namespaces and programs


def run(namespace: Namespace, *command: str) -> None:
    """Run a command inside the namespaces. Raises FlapError with its error message."""
    with namespace.entered():
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise FlapError(f"{' '.join(command)}: {done.stderr.strip()}")


def lay_link(relay_ns: Namespace, upstream_ns: Namespace, holder: int) -> None:
    """Put a veth between the two namespaces. ``holder`` is a process in the second."""
    run(relay_ns, "ip", "link", "add", DEVICE, "type", "veth", "peer", "name", OTHER_DEVICE, "netns", str(holder))
    for host in UPSTREAMS:
        run(upstream_ns, "ip", "address", "add", f"{host}/24", "dev", OTHER_DEVICE)
    run(relay_ns, "ip", "address", "add", f"{RELAY_ADDRESS}/24", "dev", DEVICE)
    run(upstream_ns, "ip", "link", "set", OTHER_DEVICE, "up")
    run(relay_ns, "ip", "link", "set", DEVICE, "up")


def coturn_configuration(folder: Path, host: str) -> Path:
    """The configuration of a coturn on one address."""
    path = folder / f"turnserver-{host}.conf"
    path.write_text(
        f"listening-ip={host}\nrelay-ip={host}\nlistening-port={TURN_PORT}\nrealm={REALM}\nuser={USER}:{PASSWORD}\n"
        f"userdb={folder / host}.sqlite\npidfile={folder / host}.pid\nlt-cred-mech\nno-cli\nno-dtls\nno-tls\n"
        "log-file=stdout\nsimple-log\n"
    )
    return path


def relay_configuration(folder: Path, plane: str, authority: Authority) -> Path:
    """The configuration of a relay with both upstreams and default settings."""
    path = folder / "relay.toml"
    tree = settings_tree(
        authority,
        *(Address(host, TURN_PORT) for host in UPSTREAMS),
        names=(SERVER_NAME,),
        listen={"tls": [str(RELAY)], "admin": "127.0.0.1:9443", "plane": plane},
        log={"format": "json"},
    )
    write_config(path, tree)
    return path


class RelayLog:
    """The relay's log, line by line."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self.lines: list[str] = []
        self.ready = asyncio.Event()
        self._stdout = process.stdout
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for line in self._stdout:
            self.lines.append(line.decode(errors="replace"))
            if self.lines[-1].startswith("ready"):
                self.ready.set()

    def count(self, event: str, since: int) -> int:
        """How many lines, from a line number on, contain these words."""
        return sum(event in line for line in self.lines[since:])


# Calls


class Call:
    """A call or a session that talks to the echo all the time, and renews its allocation."""

    def __init__(self) -> None:
        self.heard = 0
        self.line: TurnConnection | Session

    def on_data(self, _: Address, __: bytes) -> None:
        """Note that the echo has come back."""
        self.heard += 1

    @property
    def ended(self) -> bool:
        """True when the call is over."""
        return self.line.closed.done()

    async def open(self, authority: Authority, echo: Address, *, session: bool) -> None:
        """Get an allocation, and a channel to the echo. Raises UpstreamError."""
        context = authority.client_context()
        if session:
            line = await open_session(
                f"wss://{RELAY}/media",
                username=USER,
                password=PASSWORD,
                on_data=self.on_data,
                ssl_context=context,
                server_hostname=SERVER_NAME,
                timeout_s=PATIENCE_S,
            )
            self.line = line
            await line.bind(echo)
            return
        turn = await open_turn_tls(
            RELAY, USER, PASSWORD, ssl_context=context, server_hostname=SERVER_NAME, on_data=self.on_data
        )
        self.line = turn
        await turn.allocate()
        await turn.bind_channel(echo)

    async def talk(self, echo: Address) -> None:
        """Send voice until cancelled, or until the call ends."""
        refresh_at = time.monotonic()
        refreshing: asyncio.Task[int] | None = None
        while not self.ended:
            with contextlib.suppress(UpstreamError):
                self.line.send(echo, bytes(160))
            if isinstance(self.line, TurnConnection) and time.monotonic() >= refresh_at:
                refresh_at = time.monotonic() + REFRESH_EVERY_S
                if refreshing is None or refreshing.done():
                    refreshing = asyncio.ensure_future(self.line.refresh())
                    refreshing.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.sleep(1 / PACKETS_PER_SECOND)


def open_echo(namespace: Namespace) -> tuple[socket.socket, Address]:
    """A socket inside the namespaces that sends back what it receives, on the running loop."""
    opened = namespace.socket(kind=socket.SOCK_DGRAM)
    opened.setblocking(False)
    opened.bind((UPSTREAMS[0], 0))

    def on_readable() -> None:
        with contextlib.suppress(OSError):
            data, sender = opened.recvfrom(2048)
            opened.sendto(data, sender)

    asyncio.get_running_loop().add_reader(opened, on_readable)
    return opened, Address(*opened.getsockname())


# Disturbances

# Waits until the relay's machine has refused a datagram. On a busy machine it may send nothing in a tenth of a second.
Happened = Callable[[], Awaitable[None]]


async def refuse_some(relay_ns: Namespace, plan: Plan, refused: Happened) -> None:
    """For a while, our own packet filter refuses one in this many datagrams to the upstreams."""
    run(relay_ns, "nft", "add table ip flap")
    run(relay_ns, "nft", "add chain ip flap out { type filter hook output priority 0; }")
    rule = f"ip daddr {NETWORK} meta l4proto udp numgen inc mod {plan.one_in} == 0 drop"
    run(relay_ns, "nft", f"add rule ip flap out {rule}")
    await asyncio.sleep(plan.refused_s)
    await refused()
    run(relay_ns, "nft", "delete table ip flap")


async def take_route(relay_ns: Namespace, plan: Plan, refused: Happened) -> None:
    """For a while, there is no route to the upstreams."""
    run(relay_ns, "ip", "route", "del", NETWORK, "dev", DEVICE)
    await asyncio.sleep(plan.route_gone_s)
    await refused()
    run(relay_ns, "ip", "route", "add", NETWORK, "dev", DEVICE, "src", RELAY_ADDRESS)


async def take_link(relay_ns: Namespace, plan: Plan, refused: Happened) -> None:
    """For a while, the link to the upstreams is down."""
    run(relay_ns, "ip", "link", "set", DEVICE, "down")
    await asyncio.sleep(plan.link_down_s)
    await refused()
    run(relay_ns, "ip", "link", "set", DEVICE, "up")


DISTURBANCES = {
    "datagrams refused": refuse_some,
    "route gone": take_route,
    "link down": take_link,
}


# Measuring


@dataclass
class Scene:
    """Everything that runs during the measurement."""

    plan: Plan
    relay_ns: Namespace
    log: RelayLog
    authority: Authority
    echo: Address
    calls: list[Call] = field(default_factory=list)
    talking: list[asyncio.Task[None]] = field(default_factory=list)

    async def begin(self, *, session: bool) -> float:
        """Place a new call, which stays. Returns how long it took to be served, in seconds."""
        started, call = time.monotonic(), Call()
        while True:
            try:
                await call.open(self.authority, self.echo, session=session)
                break
            except UpstreamError as error:
                if time.monotonic() - started > PATIENCE_S:
                    raise FlapError(f"a newcomer is not served: {error}") from error
                await asyncio.sleep(0.05)
        self.calls.append(call)
        self.talking.append(asyncio.ensure_future(call.talk(self.echo)))
        return round(time.monotonic() - started, 3)

    async def heard_again(self) -> float:
        """How long until all calls that have not ended have heard something new, in seconds."""
        started = time.monotonic()
        before = {call: call.heard for call in self.calls}
        with contextlib.suppress(TimeoutError):
            async with deadlines.timeout(PATIENCE_S):
                while any(call.heard == heard and not call.ended for call, heard in before.items()):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        return round(time.monotonic() - started, 3)

    async def disturb(self, name: str) -> Phase:
        """Make one disturbance, and measure what it does."""
        phase, since, refused = Phase(name), len(self.log.lines), await refused_datagrams()
        over = {call for call in self.calls if call.ended}

        async def happened() -> None:
            with contextlib.suppress(TimeoutError):
                async with deadlines.timeout(PATIENCE_S):
                    while await refused_datagrams() == refused:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)

        await DISTURBANCES[name](self.relay_ns, self.plan, happened)
        phase.heard_after_s = await self.heard_again()
        running = list(self.calls)
        phase.call_served_after_s = await self.begin(session=False)
        phase.session_served_after_s = await self.begin(session=True)
        # A call that ends because of silence has ended by then.
        await asyncio.sleep(self.plan.link_down_s)
        phase.ended = sum(call.ended for call in running if call not in over)
        phase.marked_down = self.log.count("upstream down", since)
        phase.refused = await refused_datagrams() - refused
        return phase


async def refused_datagrams() -> int:
    """The refused datagrams, as the relay counts them. Must be called inside its namespace."""
    reader, writer = await asyncio.open_connection("127.0.0.1", 9443)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9443\r\nConnection: close\r\n\r\n")
    body = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    lines = [line for line in body.splitlines() if line.startswith('relay_drops_total{reason="uplink_refused"}')]
    return int(float(lines[0].rpartition(" ")[2])) if lines else 0


@contextlib.asynccontextmanager
async def scene(plan: Plan) -> AsyncIterator[tuple[Namespace, Namespace, RelayLog, Authority]]:
    """Namespaces, coturns and a relay that serves."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-flap-")))
        relay_ns, upstream_ns = (stack.enter_context(Namespace()) for _ in range(2))
        holder = await stack.enter_async_context(upstream_ns.process("sleep", "infinity"))
        await entered_by(holder)
        lay_link(relay_ns, upstream_ns, holder.pid)
        for host in UPSTREAMS:
            configuration = coturn_configuration(folder, host)
            await stack.enter_async_context(upstream_ns.process("turnserver", "-c", configuration, output=DEVNULL))
        await relay_ns.run(all_answer)
        authority = Authority(folder)
        file = relay_configuration(folder, plan.plane, authority)
        serve = (sys.executable, "-m", "relay", "serve", "--config", file)
        log = RelayLog(await stack.enter_async_context(relay_ns.process(*serve, output=PIPE)))
        async with deadlines.timeout(START_TIMEOUT_S):
            await log.ready.wait()
        yield relay_ns, upstream_ns, log, authority


async def entered_by(process: Process) -> None:
    """Wait until the program runs, in place of the command that put it into its namespace."""
    program = Path(f"/proc/{process.pid}/comm")
    async with deadlines.timeout(START_TIMEOUT_S):
        while (await asyncio.to_thread(program.read_text)).strip() != "sleep":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def all_answer() -> None:
    """Wait for both coturns."""
    async with deadlines.timeout(START_TIMEOUT_S):
        for host in UPSTREAMS:
            async with await open_turn_udp(Address(host, TURN_PORT), timeout_s=1.0) as probe:
                while True:
                    with contextlib.suppress(UpstreamError):
                        await probe.binding()
                        break
                    await asyncio.sleep(0.05)


async def measure(plan: Plan) -> Result:
    """Make all disturbances, one after the other, to the same calls. Raises FlapError or OSError."""
    result = Result(plan)
    async with scene(plan) as (relay_ns, upstream_ns, log, authority):

        async def inside() -> None:
            opened, echo = open_echo(upstream_ns)
            stage = Scene(plan, relay_ns, log, authority, echo)
            try:
                for number in range(plan.calls + plan.sessions):
                    await stage.begin(session=number >= plan.calls)
                await stage.heard_again()
                for name in DISTURBANCES:
                    result.phases.append(await stage.disturb(name))
            finally:
                for task in stage.talking:
                    task.cancel()
                await asyncio.gather(*stage.talking, return_exceptions=True)
                await asyncio.gather(*(call.line.close() for call in stage.calls), return_exceptions=True)
                asyncio.get_running_loop().remove_reader(opened)
                opened.close()

        await relay_ns.run(inside)
    return result


def table(result: Result) -> str:
    """The table, for people."""
    head = "| disturbance | calls and sessions ended | upstreams marked down | refused | heard, call, session after s |"
    rows = [
        f"| {one.name} | {one.ended} | {one.marked_down} | {one.refused} | "
        f"{one.heard_after_s:.2f}, {one.call_served_after_s:.2f}, {one.session_served_after_s:.2f} |"
        for one in result.phases
    ]
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plane", choices=["compiled", "reference"], default=Plan.plane)
    parser.add_argument("--calls", type=int, default=Plan.calls)
    parser.add_argument("--sessions", type=int, default=Plan.sessions)
    parser.add_argument(
        "--refused", type=float, default=Plan.refused_s, help="seconds of every tenth datagram refused (5)"
    )
    parser.add_argument("--route-gone", type=float, default=Plan.route_gone_s, help="seconds without a route (0.1)")
    parser.add_argument("--link-down", type=float, default=Plan.link_down_s, help="seconds with the link down (2)")
    given = parser.parse_args(arguments)
    plan = Plan(
        plane=given.plane,
        calls=given.calls,
        sessions=given.sessions,
        refused_s=given.refused,
        route_gone_s=given.route_gone,
        link_down_s=given.link_down,
    )
    if (reason := refusal()) is not None:
        sys.stderr.write(f"flap: {reason}\n")
        return 2
    try:
        result = asyncio.run(measure(plan))
    except (FlapError, OSError, UpstreamError) as error:
        sys.stderr.write(f"flap: {error}\n")
        return 2
    passed = {"passed": result.passed, "plan": asdict(plan), "phases": [asdict(phase) for phase in result.phases]}
    sys.stdout.write(f"{table(result)}\n\n{json.dumps(passed)}\n")
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
