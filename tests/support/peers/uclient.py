"""Runs coturn's load client, turnutils_uclient, and reads its report.

It binds channels of RFC 5766, 0x4000 to 0x7FFF, of which RFC 8656 allows the first quarter only: against a server
that holds to RFC 8656 it needs ``by_send_indication``.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from relay.addresses import Address
from tests.support.benches.gateway import Relay
from tests.support.waiting import eventually

ATTEMPTS = 3
_TOTALS = re.compile(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)\s*$", re.MULTILINE)
_LOST = re.compile(r"Total lost packets (-?\d+) \(.*total send dropped (\d+)")


@dataclass(frozen=True)
class UclientReport:
    """What turnutils_uclient says at its end; counts are messages, ``dropped`` those its own sockets refused."""

    sent: int
    received: int
    lost: int
    dropped: int


# Told of a loss, it says whether all that was sent has come back as far as the program's own socket.
Excuses = Callable[[UclientReport], Awaitable[bool]]


class Witness:
    """Counts what reaches the peer, and tells with it whether the program itself lost what is missing."""

    def __init__(self) -> None:
        self._heard = 0

    def on_datagram(self, _: bytes) -> None:
        """For the echo that is the peer."""
        self._heard += 1

    async def excuses(self, relay: Relay, report: UclientReport) -> bool:
        """True if all that was sent has reached the peer, and all that came back the program's connection.

        Each packet up brings one down. Only the last of a flow may not: the program does not wait for that answer.
        """
        await eventually(lambda: not relay.connections)
        heard, self._heard = self._heard, 0
        plane = relay.gateway.plane.snapshot()
        unanswered = plane.totals.uplink_packets - plane.totals.downlink_packets
        return heard == report.sent and not plane.totals.drops and unanswered <= plane.accepted


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
    excuses: Excuses | None = None,
) -> UclientReport:
    """Send ``messages`` from each client to ``peer``, which must echo them, or to each other if it is None.

    ``rtcp`` adds to each allocation a second one on the next port (to a peer on its next port as well); ``options``
    are further flags, such as ``-t -S`` for TLS. Raises AssertionError with the output if the program fails.

    On a busy machine the program loses some of what has reached it. It then runs again, ATTEMPTS times in all, but only
    if ``excuses`` has proved that nobody else lost anything. Without a proof the loss is in the report.
    """
    arguments = ["-u", username, "-w", password, "-p", str(server.port)]
    arguments += ["-m", str(clients), "-n", str(messages), "-l", str(message_bytes), "-z", str(interval_ms)]
    arguments += ["-y"] if peer is None else ["-e", peer.host, "-r", str(peer.port)]
    arguments += [*([] if rtcp else ["-c"]), *(["-s"] if by_send_indication else []), *options, server.host]
    for _ in range(ATTEMPTS):
        report = parse_report(await _run("turnutils_uclient", *arguments))
        if report.received == report.sent or excuses is None or not await excuses(report):
            break
    return report


def parse_report(output: str) -> UclientReport:
    """Read the report at the end of the output. Raises AssertionError with the output if there is none."""
    totals, lost = _TOTALS.findall(output), _LOST.search(output)
    if not totals or lost is None:
        raise AssertionError(output)
    sent, received = (int(total) for total in totals[-1])
    return UclientReport(sent, received, int(lost[1]), int(lost[2]))


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
