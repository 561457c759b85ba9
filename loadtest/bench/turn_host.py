"""One TURN host of the emulator in a process of its own, for ``turn_udp``: ``turn_host.py PORT native|slow``.

Prints ``ready`` when it serves. At SIGTERM it prints what it has counted, as one JSON object, and ends.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict

import uvloop

from relay.addresses import Address
from relay.emulator.turn import native, slow
from relay.turn.credentials import StaticCredentials

USER, PASSWORD, REALM = "bench", "bench", "cloud9"


async def serve(port: int, plane: str) -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    kind = native.TurnHost if plane == "native" else slow.TurnHost
    host = kind(Address("127.0.0.1", port), StaticCredentials({USER: PASSWORD}), allow_loopback_peers=True)
    async with host:
        print("ready", flush=True)  # noqa: T201
        await stopped.wait()
        print(json.dumps(asdict(host.counters)), flush=True)  # noqa: T201


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2]))
