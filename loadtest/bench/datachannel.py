"""Voice and a WebRTC data channel at the same time: Chromium with two peer connections, over relay and coturn.

    Chromium --TLS over the WAN--> relay --UDP--> coturn
    Chromium --TLS over the WAN--> coturn

Both peer connections can use only a TURN server (``iceTransportPolicy: "relay"``). Voice runs in both directions all
the time. One connection sends some megabytes over a data channel, then the other sends as many back. The WAN is
``relay.demo.wan.line``, which needs root. Prints a table in Markdown and, as the last line, one JSON object. Exit
status: 0 if all that README.md promises is true, 1 if not, 2 if it could not start.

    python -m loadtest.bench.datachannel --stall 0,3
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from loadtest.bench.wan_servers import WanError, started
from relay import deadlines
from relay.addresses import Address
from relay.demo.authority import Authority
from relay.demo.wan.line import Wan, open_wan
from relay.demo.wan.link import Link
from relay.demo.wan.netns import Namespace, refusal
from relay.plane.certificates import Certificate
from tests.support.peers.browser import CHROMIUM, Page, browser

PAGE = Path(__file__).with_name("datachannel.html")
SERVER_NAME = "datachannel.test"
SERVERS = ("coturn", "relay")
MEGABYTE = 1_000_000
# A line with 10 Mbit/s and a round trip of 40 ms. Its router holds 100 ms.
LINE = Link(delay_s=0.02, rate_bps=10_000_000, queue_bytes=128 * 1024)
# Chromium speaks TURN only to ports 53, 80, 443 and those above 1023.
RELAY_PORT = 443
COTURN_PORT = 5349
TURN_PORT = 3478
CONNECT_TIMEOUT_S = 20.0
# Only voice, before the transfers and after them. Late packets have come by the end of this.
QUIET_S = 3.0
LOOK_EVERY_S = 0.25
# A transfer that makes no progress for this long counts as ended. After some losses in a row SCTP waits up to 60 s
# before it sends again (RFC 9260 section 16).
PROGRESS_TIMEOUT_S = 90.0
# The promise: at least this share of coturn's throughput.
MIN_SHARE = 0.8
# Two runs of the same server differ by this much.
CONCEALED_TOLERANCE_S = 0.5
# What Opus is decoded to.
SAMPLES_PER_S = 48_000

Run = dict[str, Any]

_CHROMIUM_OPTIONS = (
    "--disable-quic",
    "--ignore-certificate-errors",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    # Relayed addresses are literal, and the namespace has no other addresses.
    "--host-resolver-rules=",
)


@dataclass(frozen=True)
class Place:
    """The addresses of the servers, and their certificate."""

    folder: Path
    host: str
    certificate: Certificate


def _coturn(place: Place) -> list[str | Path]:
    lines = [
        f"listening-ip={place.host}",
        f"relay-ip={place.host}",
        f"listening-port={TURN_PORT}",
        f"tls-listening-port={COTURN_PORT}",
        f"cert={place.certificate.chain}",
        f"pkey={place.certificate.private_key}",
        f"userdb={place.folder / 'users.sqlite'}",
        f"pidfile={place.folder / 'pid'}",
        "realm=datachannel.test",
        "user=trader:secret",
        *("lt-cred-mech", "allow-loopback-peers", "no-cli", "no-dtls", "log-file=stdout", "simple-log", ""),
    ]
    (place.folder / "turnserver.conf").write_text("\n".join(lines))
    return ["turnserver", "-c", place.folder / "turnserver.conf"]


def _relay(place: Place, plane: str) -> list[str | Path]:
    (place.folder / "relay.toml").write_text(
        f"""
[listen]
tls = ["{place.host}:{RELAY_PORT}"]
admin = "127.0.0.1:9443"
workers = 1
plane = "{plane}"

[[certificates]]
certificate = "{place.certificate.chain}"
private_key = "{place.certificate.private_key}"

[[upstreams]]
name = "coturn"
address = "{place.host}:{TURN_PORT}"

[log]
level = "info"
"""
    )
    return [sys.executable, "-m", "relay", "serve", "--config", place.folder / "relay.toml"]


@contextlib.asynccontextmanager
async def _server(
    namespace: Namespace, command: Sequence[str | Path], log: Path, address: Address
) -> AsyncIterator[None]:
    async with started("it", command, namespace, address, log) as process:
        yield
        if process.returncode is not None:
            raise WanError(f"it died; it said:\n{_said(log)}")


def _said(log: Path) -> str:
    return log.read_text(errors="replace")


@contextlib.asynccontextmanager
async def open_page(html: Path, *options: str) -> AsyncIterator[Page]:
    """A page that may use its microphone and speaks TURN, in a Chromium that runs in this thread's namespace."""

    async def answer(_: web.Request) -> web.FileResponse:
        return web.FileResponse(html)

    application = web.Application()
    application.router.add_get("/", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with browser(*_CHROMIUM_OPTIONS, *options) as page:
            await page.open(f"http://127.0.0.1:{runner.addresses[0][1]}/")
            await page.until("typeof look === 'function'")
            yield page
    finally:
        await runner.cleanup()


async def _transfer(page: Page, line: Wan, port: int, bytes_each: int, stall_s: float) -> Run:
    url = f"turns:{line.server_address}:{port}?transport=tcp"
    servers = json.dumps([{"urls": url, "username": "trader", "credential": "secret"}])
    await page.run(f"place({servers}, {bytes_each})")
    async with deadlines.timeout(CONNECT_TIMEOUT_S):
        while True:
            told = await page.run("look()")
            if told["failure"]:
                raise WanError(f"the page says {told['failure']}")
            if all(end["channel"] == "open" for end in told["ends"]):
                break
            await asyncio.sleep(LOOK_EVERY_S)
    await asyncio.sleep(QUIET_S)
    before = await page.run("look()")
    await page.run(f"void transfer({bytes_each}).catch(report)")
    last, seen_at, stalled = -1, time.monotonic(), not stall_s
    while True:
        told = await page.run("look()")
        received = [end["received"] for end in told["ends"]]
        if sum(received) != last:
            last, seen_at = sum(received), time.monotonic()
        # In the middle of the first transfer.
        if not stalled and max(received) >= bytes_each / 2:
            stalled = True
            line.stall(stall_s)
        if all(end["done_ms"] for end in told["ends"]) or time.monotonic() > seen_at + PROGRESS_TIMEOUT_S:
            break
        await asyncio.sleep(LOOK_EVERY_S)
    await asyncio.sleep(QUIET_S)
    return _judge(before, await page.run("look()"), bytes_each)


def _judge(before: Run, after: Run, bytes_each: int) -> Run:
    ends = after["ends"]
    took_ms = [(end["done_ms"] or after["now_ms"]) - (end["began_ms"] or after["now_ms"]) for end in ends]
    voice = [
        {key: value - earlier["voice"][key] for key, value in end["voice"].items() if value is not None}
        for end, earlier in zip(ends, before["ends"], strict=True)
    ]
    total = {key: sum(one[key] for one in voice) for key in voice[0]}
    return {
        "whole": all(end["received"] >= bytes_each and not end["wrong"] for end in ends),
        "received": [end["received"] for end in ends],
        "seconds": [round(one / 1000, 1) for one in took_ms],
        "mbit_s": round(sum(end["received"] for end in ends) * 8 / max(1, sum(took_ms)) / 1000, 2),
        "states": [end["states"] for end in ends],
        "open": all(end["state"] == "connected" and end["channel"] == "open" for end in ends),
        "voice_lost": round(total["packetsLost"] / max(1, total["packetsLost"] + total["packetsReceived"]), 4),
        "concealed_s": round(total["concealedSamples"] / SAMPLES_PER_S, 2),
        "voice_delay_ms": round(1000 * total["jitterBufferDelay"] / max(1, total["jitterBufferEmittedCount"])),
        "voice": total,
    }


async def measure(server: str, options: argparse.Namespace, stall_s: float) -> Run:
    """One run over one server. Raises WanError."""
    with tempfile.TemporaryDirectory() as temporary, open_wan(LINE, seed=options.seed) as line:
        host = line.server_address
        authority = Authority(Path(temporary))
        place = Place(Path(temporary), host, authority.issue(SERVER_NAME))
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(
                _server(line.server_ns, _coturn(place), place.folder / "coturn.log", Address(host, TURN_PORT))
            )
            port = COTURN_PORT
            if server == "relay":
                port = RELAY_PORT
                command = _relay(place, options.plane)
                await stack.enter_async_context(
                    _server(line.server_ns, command, place.folder / "relay.log", Address(host, port))
                )

            async def inside() -> Run:
                async with open_page(PAGE) as page:
                    return await _transfer(page, line, port, round(options.megabytes * MEGABYTE), stall_s)

            run = await line.client_ns.run(inside)
        closed = []
        if server == "relay":
            closed = [text for text in _said(place.folder / "relay.log").splitlines() if "slow_client" in text]
        return {"server": server, "stall_s": stall_s, "closed": closed, **run}


COLUMNS = ("server", "stall_s", "whole", "open", "mbit_s", "seconds", "voice_lost", "concealed_s", "voice_delay_ms")


def table(runs: Sequence[Run]) -> str:
    """Markdown, a line for each run."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    lines += [[str(run[column]) for column in COLUMNS] for run in runs]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def complaints(runs: Sequence[Run]) -> list[str]:
    """The promises that the relay has not kept."""
    said = []
    coturns = {run["stall_s"]: run for run in runs if run["server"] == "coturn"}
    for run in runs:
        where = f"{run['server']}, stall of {run['stall_s']:g} s"
        if run["server"] == "relay" and not (run["whole"] and run["open"]):
            said.append(f"{where}: not whole, or not open")
        other = coturns.get(run["stall_s"])
        if run["server"] != "relay" or other is None:
            continue
        if run["mbit_s"] < MIN_SHARE * other["mbit_s"]:
            said.append(f"{where}: {run['mbit_s']} Mbit/s, coturn {other['mbit_s']}")
        if run["concealed_s"] > other["concealed_s"] + CONCEALED_TOLERANCE_S:
            said.append(f"{where}: {run['concealed_s']} s of voice concealed, coturn {other['concealed_s']} s")
    return said


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", choices=[*SERVERS, "all"], default="all", help="what is measured (all)")
    parser.add_argument("--megabytes", type=float, default=25.0, help="each way (25)")
    parser.add_argument(
        "--stall", type=lambda text: [float(one) for one in text.split(",")], default=[0.0, 3.0], help="seconds (0,3)"
    )
    parser.add_argument(
        "--plane", choices=["compiled", "reference"], default="compiled", help="of the relay (compiled)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the line (1)")
    parser.add_argument("--json", type=Path, help="write the JSON to this file, too")
    return parser.parse_args(arguments)


async def _measure_all(options: argparse.Namespace) -> list[Run]:
    runs = []
    for stall_s in options.stall:
        for server in SERVERS if options.server == "all" else [options.server]:
            runs.append(await measure(server, options, stall_s))
            print(f"datachannel: {json.dumps(runs[-1])}", file=sys.stderr)  # noqa: T201
    return runs


def main() -> int:
    """Measure and print."""
    options = parse_options()
    if CHROMIUM is None or (reason := refusal()) is not None:
        print(f"datachannel: {'chromium is not installed' if CHROMIUM is None else reason}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        runs = uvloop.run(_measure_all(options))
    except (WanError, OSError, TimeoutError) as error:
        print(f"datachannel: {str(error) or 'no answer'}", file=sys.stderr)  # noqa: T201
        return 2
    result = json.dumps({"megabytes": options.megabytes, "plane": options.plane, "runs": runs})
    print(f"{table(runs)}\n\n{result}")  # noqa: T201
    if options.json is not None:
        options.json.write_text(result + "\n")
    for complaint in (said := complaints(runs)):
        print(f"datachannel: {complaint}", file=sys.stderr)  # noqa: T201
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
