"""Hostile TLS during calls: records that carry no data, as fast as a client can send them.

    calls    --TLS--> relay --UDP--> upstream    (the packet engine, as in ``bench``)
    hostiles --TLS--> relay                      (a process of its own on the calls' core, with lower priority)

Each hostile client makes a TLS handshake, speaks TURN, and sends records that it has made in advance. If it is closed,
it comes back. Prints a line for each kind of record and, as the last line, one JSON object. Exit status: 0 if nothing
was lost and p99 stayed below three times its value without hostile clients, 1 otherwise, 2 if it could not start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loadtest.bench import bench
from loadtest.bench.bench import Bench, Server
from loadtest.bench.servers import HOST, ROOT, BenchError
from relay.addresses import Address
from relay.wire.stun import MessageClass, Method, build_message
from tests.support.peers.client_hello import build_client_hello
from tests.support.peers.forging_client import APPLICATION_DATA, HANDSHAKE, ForgingClient

MAX_RATIO = 3.0
ALERT = 21
USER_CANCELED = b"\x01\x5a"
HELLO = build_message(Method.BINDING, MessageClass.INDICATION, bytes(12))
# A client makes this many records for each connection. The relay closes it long before it has sent them all.
RECORDS_OF_A_RETURN = 100
# The priority of the hostile process. It must be below the calls', which use the same core.
NICENESS = 10


def _key_update(client: ForgingClient) -> bytes:
    return client.update_keys()


def _key_update_requested(client: ForgingClient) -> bytes:
    return client.update_keys(requested=True)


def _empty(client: ForgingClient) -> bytes:
    return client.forge(APPLICATION_DATA, b"")


def _renegotiation(client: ForgingClient) -> bytes:
    return client.forge(HANDSHAKE, build_client_hello(None))


def _warning_and_data(client: ForgingClient) -> bytes:
    return client.forge(ALERT, USER_CANCELED) + client.forge(APPLICATION_DATA, HELLO)


def _update_and_data(client: ForgingClient) -> bytes:
    return client.update_keys() + client.forge(APPLICATION_DATA, HELLO)


Make = Callable[[ForgingClient], bytes]
KINDS: dict[str, tuple[ssl.TLSVersion, Make]] = {
    "key-update": (ssl.TLSVersion.TLSv1_3, _key_update),
    "key-update-requested": (ssl.TLSVersion.TLSv1_3, _key_update_requested),
    "key-update-and-data": (ssl.TLSVersion.TLSv1_3, _update_and_data),
    "empty": (ssl.TLSVersion.TLSv1_3, _empty),
    "empty-1.2": (ssl.TLSVersion.TLSv1_2, _empty),
    "warning-and-data": (ssl.TLSVersion.TLSv1_2, _warning_and_data),
    "renegotiation": (ssl.TLSVersion.TLSv1_2, _renegotiation),
}


# ---- The hostile process


class Hostile:
    """One client that comes back every time it is closed."""

    def __init__(self, server: Address, kind: str, folder: Path, pause_s: float) -> None:
        self.sent = self.returns = 0
        self._server, self._folder, self._pause_s = server, folder, pause_s
        self._version, self._make = KINDS[kind]
        self._client: ForgingClient | None = None
        self._wire: list[bytes] = []

    async def prepare(self, records: int) -> None:
        """Make the handshake, begin as a TURN client does, and make the records."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._client = await ForgingClient.open_forging(self._server, context, self._version, self._folder)
        await self._client.send_wire(self._client.forge(APPLICATION_DATA, HELLO))
        self._wire = [self._make(self._client) for _ in range(records)]

    async def attack(self, end: float) -> None:
        """Send the records, then come back and send more, until the time is up."""
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                await self._send(end)
            if self._client is not None:
                self._client.abort()
            self._client = None
            await asyncio.sleep(self._pause_s)
            with contextlib.suppress(OSError, ssl.SSLError):
                await self.prepare(RECORDS_OF_A_RETURN)
                self.returns += 1
        if self._client is not None:
            self._client.abort()

    async def _send(self, end: float) -> None:
        # As many as fit into a segment, so that it is known how many were sent.
        for at in range(0, len(self._wire), 50):
            if self._client is None or time.monotonic() > end:
                return
            part = self._wire[at : at + 50]
            await self._client.send_wire(b"".join(part))
            self.sent += len(part)


async def _be_hostile(options: argparse.Namespace, kind: str) -> None:
    """Print ``ready`` when all records are made, and begin when a line comes on standard input."""
    with tempfile.TemporaryDirectory() as name:
        server = Address(HOST, options.be_hostile)
        folders = [Path(name) / str(number) for number in range(options.hostiles)]
        hostiles = []
        for folder in folders:
            folder.mkdir()
            hostiles.append(Hostile(server, kind, folder, options.pause))
            await hostiles[-1].prepare(options.records)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        started = time.monotonic()
        # One second longer than the measurement, because the first second is warm-up.
        end = started + options.seconds + 1
        await asyncio.gather(*(hostile.attack(end) for hostile in hostiles))
        sent, returns = sum(one.sent for one in hostiles), sum(one.returns for one in hostiles)
        sys.stdout.write(
            json.dumps({"records": sent, "returns": returns, "seconds": time.monotonic() - started}) + "\n"
        )


# ---- The measurement


@contextlib.contextmanager
def _hostiles(
    measured: Bench, server: Server, kind: str, options: argparse.Namespace
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "loadtest.bench.hostile_tls", "--be-hostile", str(server.port), "--kinds", kind]
    command += [f"--hostiles={options.hostiles}", f"--records={options.records}", f"--seconds={options.seconds}"]
    command += [f"--pause={options.pause}"]
    with bench.on_core(measured.cores.clients):
        process = subprocess.Popen(  # noqa: S603
            ["nice", f"-n{NICENESS}", *command],  # noqa: S607
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _voice(run: dict[str, Any]) -> dict[str, Any]:
    keys = ("due", "lost", "failed", "disconnected", *bench.WRONG, "rtt_us", "valid", "cpu_us_per_packet")
    return {key: run.get(key) for key in keys}


def _measure_kind(measured: Bench, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """A run without and a run with hostile clients, on the same fresh relay. Raises BenchError."""
    timing = [f"--calls={options.calls}", f"--seconds={options.seconds}", "--warmup=1"]
    with measured.server("relay") as server:
        quiet = measured.run(server, "quiet", *timing)
        with _hostiles(measured, server, kind, options) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BenchError(f"the hostile clients ({kind}) could not connect")
            process.stdin.write("go\n")
            process.stdin.flush()
            hostile = measured.run(server, "hostile", *timing)
            said = json.loads(process.stdout.readline() or "{}")
    before, after = ((run["rtt_us"] or {}).get("p99", 0) for run in (quiet, hostile))
    return {
        "kind": kind,
        "quiet": _voice(quiet),
        "hostile": _voice(hostile),
        "ratio": round(after / before, 2) if before else None,
        "lost": hostile["lost"],
        "records_a_second": round(said["records"] / said["seconds"]) if said else None,
        "returns": said.get("returns"),
    }


def _is_good(found: dict[str, Any]) -> bool:
    whole = not any(found["hostile"][key] for key in ("lost", "failed", "disconnected", *bench.WRONG))
    return whole and found["ratio"] is not None and found["ratio"] < MAX_RATIO


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=50, help="running calls (50)")
    parser.add_argument("--hostiles", type=int, default=8, help="hostile clients (8)")
    parser.add_argument("--kinds", default="key-update", help=f"of records, or all (key-update): {','.join(KINDS)}")
    parser.add_argument("--records", type=int, default=20_000, help="made in advance for each hostile client (20000)")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds until one that was closed comes back (0.1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--plane", choices=["reference", "compiled"], help="of the relay; its own default otherwise")
    parser.add_argument("--realtime", action="store_true", help="as root: the calls before all else on their core")
    parser.add_argument("--be-hostile", type=int, metavar="PORT", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    options = _parse_options()
    kinds = list(KINDS) if options.kinds == "all" else options.kinds.split(",")
    if options.be_hostile:
        asyncio.run(_be_hostile(options, kinds[0]))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = []
    try:
        with bench.open_bench(bench.with_defaults(options), Bench) as measured:
            for kind in kinds:
                found.append(_measure_kind(measured, kind, options))
                print(_line(found[-1]), flush=True)  # noqa: T201
    except BenchError as error:
        print(f"hostile_tls: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(json.dumps({"calls": options.calls, "hostiles": options.hostiles, "kinds": found}))  # noqa: T201
    return int(not all(_is_good(one) for one in found))


def _line(found: dict[str, Any]) -> str:
    quiet, hostile = ((found[name]["rtt_us"] or {}).get("p99", 0) / 1000 for name in ("quiet", "hostile"))
    return (
        f"{found['kind']:<22} p99 {quiet:.2f} ms quiet, {hostile:.2f} ms beside {found['records_a_second']} records/s"
        f" ({found['returns']} returns): {found['ratio']} times, {found['lost']} lost"
    )


if __name__ == "__main__":
    sys.exit(main())
