"""A plane in a process of its own, with few descriptors: ``python -m tests.support.benches.plane_process …``.

It writes its address on a line, serves until its standard input ends, and says then what it has counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from relay.addresses import Address
from relay.plane.api import AcceptPaused, Event, HttpOpened, Plane, TurnOpened, Upstream
from relay.plane.certificates import Certificate, read_certificate
from relay.plane.settings import PlaneSettings
from tests.support.benches.plane import PLANES


def answer(fd: int) -> None:
    """A response to any request, and the end."""
    with socket.socket(fileno=fd) as stream:
        stream.send(b"HTTP/1.1 204 No Content\r\n\r\n")


async def serve(name: str, spare_descriptors: int, chain: str, private_key: str, upstream_port: int) -> None:
    # A slow machine is not a mistake of the relay.
    asyncio.get_running_loop().slow_callback_duration = float("inf")
    planes: list[Plane] = []
    pauses: list[str] = []
    upstream = Upstream("scripted", Address("127.0.0.1", upstream_port))

    def on_events(events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, TurnOpened):
                planes[0].attach(event.connection, upstream)
            elif isinstance(event, HttpOpened):
                answer(event.fd)
            elif isinstance(event, AcceptPaused):
                pauses.append(event.cause)

    plane = PLANES[name](PlaneSettings(), [read_certificate(Certificate(Path(chain), Path(private_key)))], on_events)
    planes.append(plane)
    server = await plane.listen(Address("127.0.0.1", 0))
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    limit = len(os.listdir("/proc/self/fd")) - 1 + spare_descriptors
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    await ended
    before = plane.snapshot()
    await plane.stop()
    sys.stdout.write(
        json.dumps({"accepted": before.accepted, "closed": dict(before.closed), "pauses": sorted(set(pauses))})
    )


if __name__ == "__main__":
    import uvloop

    _, plane_name, spare, certificate, key, port = sys.argv
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(plane_name, int(spare), certificate, key, int(port)))
