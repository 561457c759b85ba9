"""One TURN host of the emulator in a process of its own: ``turn_host.py native|slow UDP-PORT TLS-PORT CHAIN KEY``.

Prints ``ready`` when it serves. At SIGTERM it prints what it has counted, as one JSON object, and ends.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from dataclasses import asdict

import uvloop

from loadtest.bench.servers import HOST, PASSWORD, USER
from relay.addresses import Address
from relay.emulator.turn import native, slow
from relay.emulator.turn.host import Streams
from relay.turn.credentials import StaticCredentials


async def serve(plane: str, udp_port: int, tls_port: int, chain: str, key: str) -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    kind = native.TurnHost if plane == "native" else slow.TurnHost
    host = kind(
        Address(HOST, udp_port),
        StaticCredentials({USER: PASSWORD}),
        allow_loopback_peers=True,
        streams=Streams(tls=context, tls_port=tls_port),
    )
    async with host:
        print("ready", flush=True)  # noqa: T201
        await stopped.wait()
        print(json.dumps(asdict(host.counters)), flush=True)  # noqa: T201


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6]))
