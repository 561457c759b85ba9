"""A target on this machine: the emulated cloud and a relay of ``relay demo``, in a process of their own.

    python -m loadtest.demo_target --users 10

It prints the target as one line of JSON. It ends, and takes its files with it, when its standard input is closed, which
is also when the process that started it has died; and at SIGINT and SIGTERM. So it does before it is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from relay import logs
from relay.addresses import Address
from relay.demo.cloud import Floor, running_floor, softphone_user, with_more
from relay.demo.run import SERVER_NAME
from relay.emulator import fixtures
from relay.emulator.lines import LineKind
from relay.emulator.softphone.rest import Rest, open_http
from relay.emulator.store.passwords import hash_password
from relay.errors import OperatorError
from relay.floor.relays import upstreams_up

LINE = "sPK-20000001-{number:06}"
# Each checks a password, which takes a core some ten milliseconds.
LOGINS_AT_ONCE = 2


def _line(number: int) -> fixtures.LineFixture:
    members = (f"load-{2 * number}", f"load-{2 * number + 1}")
    return fixtures.LineFixture(
        number=LINE.replace("{number:06}", f"{number:06}"), kind=LineKind.RINGDOWN, label="Load", members=members
    )


async def run(folder: Path, users: int, *, through_web_proxy: bool) -> None:
    """Start all, tell, and stay until the input ends or a signal comes, however far it has come by then."""
    ending = asyncio.create_task(_input_ends())
    serving = asyncio.create_task(_serve(folder, users, through_web_proxy=through_web_proxy))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.cancel)
    await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    serving.cancel()
    for task in (ending, serving):
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _serve(folder: Path, users: int, *, through_web_proxy: bool) -> None:
    users = max(2, users + users % 2)
    password = secrets.token_urlsafe(16)
    hashed = await asyncio.to_thread(hash_password, password)
    more = [softphone_user(f"load-{number}", hashed) for number in range(users)]
    people = with_more(fixtures.bundled(), more, [_line(number) for number in range(users // 2)])
    proxy = Address("127.0.0.1", 0) if through_web_proxy else None
    async with running_floor(folder, people, bad_web_proxy=proxy) as floor:
        await upstreams_up(floor.gateway)
        await _log_in(floor, [user.id for user in more], password)
        sys.stdout.write(json.dumps(_facts(floor, users, password)) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


async def _log_in(floor: Floor, users: list[str], password: str) -> None:
    """The relay's entitlement asks the cloud, which lets users call who have logged in."""
    at_once = asyncio.Semaphore(LOGINS_AT_ONCE)

    async def log_in(http: aiohttp.ClientSession, user: str) -> None:
        async with at_once:
            await Rest(floor.url, http).login(user, password)

    async with open_http(None, None) as http, asyncio.TaskGroup() as group:
        for user in users:
            group.create_task(log_in(http, user))


def _facts(floor: Floor, users: int, password: str) -> dict[str, Any]:
    host = next(host for host in floor.cloud.running_hosts() if host.name == SERVER_NAME)
    return {
        "server": str(floor.gateway.tls[0]),
        "server_name": SERVER_NAME,
        "authorities": str(floor.cloud.files.ca),
        "secret": floor.cloud.turn_secret,
        "users": users,
        "peer": "127.0.0.1:0",
        "upstream": str(host.address),
        "metrics": f"http://{floor.gateway.admin}/metrics",
        # Through the relay, as desks have it.
        "cloud": f"https://{floor.gateway.tls[0]}",
        "control": floor.url,
        "cloud_password": password,
        "lines": LINE,
        # The proxy would find the vendor's name in the cloud, past the relay.
        "tunnel": str(floor.gateway.tls[0]),
        "web_proxy": None if floor.cloud.faults.web_proxy is None else str(floor.cloud.faults.web_proxy.address),
    }


async def _input_ends() -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while await reader.read(4096):
            pass
    finally:
        transport.close()


def main() -> None:
    """The program. Exits with 2 for what the operator must act on, after a line that says it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--web-proxy", action="store_true", help="through the firm's web proxy, which faults make bad")
    wanted = parser.parse_args()
    logs.configure("error", "text")
    try:
        # The folder goes when the loop's threads have ended: one may still write a key when the start is given up.
        with (
            tempfile.TemporaryDirectory(prefix="relay-loadtest-") as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(run(Path(folder), wanted.users, through_web_proxy=wanted.web_proxy))
    except (OperatorError, OSError) as error:
        # An OSError: no room for its files, or no folder that can be written.
        sys.stderr.write(f"{_words_of(error)}\n")
        raise SystemExit(2) from None


def _words_of(error: OperatorError | OSError) -> str:
    if isinstance(error, OperatorError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


if __name__ == "__main__":
    main()
