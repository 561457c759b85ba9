"""Idle socket.io clients and running calls on one relay, for a minute: is anything lost, and does memory stay flat?

    calls   --TLS--> relay --UDP--> upstream            (the packet engine, as in ``bench``)
    clients --TLS--> relay --TCP--> socket.io server    (half of them WebSocket, half polling)

At the end every client must answer a question. Prints a table and, as the last line, one JSON object. Exit status: 0 if
nothing was lost, 1 if something was, 2 if it could not start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import ssl
import statistics
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import socketio
from aiohttp import web

from loadtest.bench import bench
from loadtest.bench.bench import Bench, Server
from loadtest.bench.servers import HOST, OVER_TLS, BenchError

# Shorter than socket.io's 25 s, so that every client sends several signs of life within the minute.
PING_INTERVAL_S = 10
PING_TIMEOUT_S = 20
# The most logins at a time: this process has one thread.
LOGINS_AT_ONCE = 20
CONNECT_TIMEOUT_S = 30.0
SAMPLE_S = 1.0
# A pause after the logins, before memory counts, so that their garbage has been collected.
SETTLE_S = 5.0


class Clients:
    """Idle socket.io clients, and what became of them."""

    def __init__(self, server: Server, count: int) -> None:
        self.disconnected = 0
        self._server = server
        self._closing = False
        self._clients: list[Any] = []
        self._count = count
        trust = ssl.create_default_context()
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        # One session for all. Otherwise each would have its own pool of connections.
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, limit=0), trust_env=False)

    async def connect(self) -> None:
        """Log in all clients. Raises BenchError."""
        room = asyncio.Semaphore(LOGINS_AT_ONCE)
        numbers = range(self._count)
        await asyncio.gather(*(self._login(room, "websocket" if number % 2 else "polling") for number in numbers))

    async def _login(self, room: asyncio.Semaphore, transport: str) -> None:
        client = socketio.AsyncClient(reconnection=False, http_session=self._http)
        client.on("disconnect", self._on_disconnect)
        async with room:
            try:
                await client.connect(
                    f"https://{HOST}:{self._server.port}", transports=[transport], wait_timeout=CONNECT_TIMEOUT_S
                )
            except socketio.exceptions.ConnectionError as error:
                raise BenchError(f"a socket.io client could not log in: {error}") from None
        self._clients.append(client)

    def _on_disconnect(self, *_: object) -> None:
        self.disconnected += not self._closing

    async def ask_all(self) -> int:
        """How many clients answer."""
        answers = await asyncio.gather(*(self._ask(client, n) for n, client in enumerate(self._clients)))
        return sum(answers)

    async def _ask(self, client: Any, number: int) -> bool:
        try:
            return bool(await client.call("echo", number, timeout=PING_TIMEOUT_S) == number)
        except socketio.exceptions.SocketIOError:
            return False

    async def close(self) -> None:
        """Log out all clients."""
        self._closing = True
        await asyncio.gather(*(client.disconnect() for client in self._clients))
        await self._http.close()


@contextlib.asynccontextmanager
async def _socketio_server() -> AsyncIterator[int]:
    """A socket.io server in this process. Gives its port."""
    server = socketio.AsyncServer(async_mode="aiohttp", ping_interval=PING_INTERVAL_S, ping_timeout=PING_TIMEOUT_S)

    async def echo(_: str, said: object) -> object:
        return said

    server.on("echo", echo)
    app = web.Application()
    server.attach(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        yield runner.addresses[0][1]
    finally:
        await server.shutdown()
        await runner.cleanup()


def _rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


async def _sample(pid: int, samples: list[int]) -> None:
    while True:
        samples.append(_rss_kb(pid))
        await asyncio.sleep(SAMPLE_S)


async def _calls(measured: Bench, server: Server, options: argparse.Namespace) -> dict[str, Any]:
    arguments = (
        f"--calls={options.calls}",
        f"--seconds={options.seconds}",
        "--warmup=1",
        f"--carrier={options.carrier}",
    )
    return await asyncio.to_thread(measured.run, server, "together", *arguments)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run: clients log in, calls begin, both go on together, all clients are asked. Raises BenchError."""
    async with _socketio_server() as port:
        os.environ["RELAY_SIGNALING"] = f"http://{HOST}:{port}"
        # In a thread, because the relay probes its signaling upstream, which is this process.
        with contextlib.ExitStack() as stack:
            measured = await asyncio.to_thread(stack.enter_context, bench.open_bench(options, Bench))
            server = await asyncio.to_thread(stack.enter_context, measured.server("relay"))
            clients = Clients(server, options.clients)
            samples: list[int] = []
            try:
                await clients.connect()
                await asyncio.sleep(SETTLE_S)
                sampling = asyncio.create_task(_sample(server.process.pid, samples))
                voice = await _calls(measured, server, options)
                sampling.cancel()
                answered = await clients.ask_all()
            finally:
                await clients.close()
    return {
        "calls": options.calls,
        "clients": options.clients,
        "seconds": options.seconds,
        "carrier": options.carrier,
        "voice": {
            key: voice[key] for key in ("due", "lost", "failed", "disconnected", *bench.WRONG, "rtt_us", "valid")
        },
        "disconnected_clients": clients.disconnected,
        "clients_that_answered": answered,
        "rss_kb": _thirds(samples),
    }


def _thirds(samples: list[int]) -> list[int]:
    """The median of each third. Three equal values mean that memory does not grow."""
    third = max(1, len(samples) // 3)
    return [int(statistics.median(samples[at : at + third])) for at in (0, third, len(samples) - third)]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=500, help="running calls (500)")
    parser.add_argument("--clients", type=int, default=500, help="idle socket.io clients (500)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--carrier", choices=OVER_TLS, default="tls", help="of the calls (tls)")
    options = bench.with_defaults(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    try:
        found = asyncio.run(measure(options))
    except BenchError as error:
        print(f"together: {error}", file=sys.stderr)  # noqa: T201
        return 2
    voice = found["voice"]
    rss = " → ".join(f"{kb / 1024:.1f}" for kb in found["rss_kb"])
    print(f"{found['calls']} calls and {found['clients']} socket.io clients for {options.seconds:g} s")  # noqa: T201
    print(f"voice: {voice['due']} packets, {voice['lost']} lost, p99 {(voice['rtt_us'] or {}).get('p99', 0) / 1000} ms")  # noqa: T201
    print(f"clients: {found['clients_that_answered']} answered, {found['disconnected_clients']} were cut off")  # noqa: T201
    print(f"memory of the relay, each third of the time: {rss} MiB")  # noqa: T201
    print(json.dumps(found))  # noqa: T201
    whole = found["clients_that_answered"] == options.clients and not found["disconnected_clients"]
    return int(not whole or any(voice[key] for key in ("lost", "failed", "disconnected", *bench.WRONG)))


if __name__ == "__main__":
    sys.exit(main())
