"""Runs coturn's load client, turnutils_uclient, and reads its report.

It binds channels of RFC 5766, 0x4000 to 0x7FFF, of which RFC 8656 allows the first quarter only: against a server
that holds to RFC 8656 it needs ``by_send_indication``.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from relay.addresses import Address

ATTEMPTS = 3
_TOTALS = re.compile(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)\s*$", re.MULTILINE)
_LOST = re.compile(r"Total lost packets (-?\d+) \(.*total send dropped (\d+)")
_ROUND_TRIP = re.compile(r"Average round trip delay ([\d.]+) ms")
_JITTER = re.compile(r"Average jitter ([\d.]+) ms")


@dataclass(frozen=True)
class UclientReport:
    """What turnutils_uclient says at its end; counts are messages, ``dropped`` those its own sockets refused."""

    sent: int
    received: int
    lost: int
    dropped: int
    round_trip_ms: float
    jitter_ms: float


async def run_uclient(
    server: Address,
    username: str,
    password: str,
    *,
    peer: Address | None,
    clients: int = 1,
    messages: int = 50,
    message_bytes: int = 172,
    interval_ms: int = 20,
    rtcp: bool = False,
    by_send_indication: bool = False,
    options: Sequence[str] = (),
) -> UclientReport:
    """Send ``messages`` from each client to ``peer``, which must echo them, or to each other if it is None.

    ``rtcp`` adds to each allocation a second one on the next port (to a peer on its next port as well); ``options``
    are further flags, such as ``-t -S`` for TLS. Raises AssertionError with the output if the program fails.

    Where something is lost it is asked again, ATTEMPTS times: the program does not wait for what comes late, and on a
    busy machine it is late itself. What the server loses each time is lost in the report.
    """
    arguments = ["-u", username, "-w", password, "-p", str(server.port)]
    arguments += ["-m", str(clients), "-n", str(messages), "-l", str(message_bytes), "-z", str(interval_ms)]
    arguments += ["-y"] if peer is None else ["-e", peer.host, "-r", str(peer.port)]
    arguments += [*([] if rtcp else ["-c"]), *(["-s"] if by_send_indication else []), *options, server.host]
    for _ in range(ATTEMPTS):
        report = parse_report(await _run("turnutils_uclient", *arguments))
        if report.received == report.sent:
            break
    return report


def parse_report(output: str) -> UclientReport:
    """Read the report at the end of the output. Raises AssertionError with the output if there is none."""
    totals, lost = _TOTALS.findall(output), _LOST.search(output)
    round_trip, jitter = _ROUND_TRIP.search(output), _JITTER.search(output)
    if not totals or lost is None or round_trip is None or jitter is None:
        raise AssertionError(output)
    sent, received = (int(total) for total in totals[-1])
    return UclientReport(sent, received, int(lost[1]), int(lost[2]), float(round_trip[1]), float(jitter[1]))


async def _run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output = (await process.communicate())[0].decode(errors="replace")
    finally:
        # Also when the test's deadline cuts the wait short.
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode == 0, output
    return output
