"""What is asked of an upstream to find out whether it lives, and whether it serves; each question is asked once.

Any well-formed answer proves life, also a refusal: ``ask_life`` sends a Binding and, if that stays unanswered for half
of the time, an Allocate without credentials, or the other way round. A server that is told not to answer the first
(coturn's ``no-stun``) answers the second with 401. ``ask_service`` makes a whole allocation and releases it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from relay import deadlines
from relay.addresses import Address, RelayPolicy
from relay.client.requests import TurnRequestError
from relay.client.turn import TurnConnection, open_turn_udp
from relay.errors import UpstreamError
from relay.plane.alternates import MAX_HOPS
from relay.tasks import Tasks
from relay.wire.stun import Method

# Source ports that are tried if another client's allocation is still there (437).
MAX_PORTS = 4
# This module decides what is too late. The connection waits for longer than any stall of our loop.
DECIDED_HERE_S = 3600.0
# Turns of the loop, until what a socket holds has been read and has reached the task that waits for it.
TURNS_TO_READ = 4
# Servers that answer one of these have first found the credentials good (RFC 8656 section 7.2), so they work. Reasons
# are an earlier use of the source port (437), a family that it does not relay (440) and this user's quota (486).
_SERVES = frozenset({437, 440, 486})
# Our own machine has no descriptor, or no memory, to ask with. However long that lasts, the upstream does not count as
# down. With any other error of our own it does, after ``health.OURS_S``.
_NOTHING_TO_ASK_WITH = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class ProbeVerdict(Enum):
    """What an attempt says of the upstream."""

    GOOD = "good"
    BAD = "bad"  # silence, or a refusal to serve
    GONE = "gone"  # ICMP: no server listens there, so no packet was lost
    OURS = "ours"  # our own machine did not send the question: nothing is known of the upstream
    EXHAUSTED = "exhausted"  # the same, because we have no descriptor


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, and why. A good one has the round-trip time in seconds, and the method that was answered."""

    verdict: ProbeVerdict
    cause: str = ""
    rtt_s: float | None = None
    answered: Method | None = None


class _Redirected(UpstreamError):
    """The upstream sends us on to an address that may not be relayed to."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks from the address that media leaves from: another may take another way. None is the kernel's choice."""

    timeout_s: float
    source_ipv4: str | None
    source_ipv6: str | None
    # Where an upstream may send us on to.
    policy: RelayPolicy

    async def ask_life(self, address: Address, methods: Sequence[Method]) -> Finding:
        """Whether the server answers anything: asked with the first method, and with the next if it does not answer."""
        try:
            async with await self._open(address, "", "", self.timeout_s + DECIDED_HERE_S) as turn:
                return await self._first_answer(turn, methods)
        except UpstreamError as error:
            return _finding_of(error)

    async def ask_service(self, address: Address, username: str, password: str) -> Finding:
        """Whether it grants this user an allocation, which is released."""
        try:
            await self._allocate(address, username, password)
        except UpstreamError as error:
            return _finding_of(error)
        return Finding(ProbeVerdict.GOOD)

    async def _open(self, address: Address, username: str, password: str, timeout_s: float) -> TurnConnection:
        host = self.source_ipv6 if address.is_ipv6 else self.source_ipv4
        source = None if host is None else Address(host, 0)
        return await open_turn_udp(address, username, password, timeout_s=timeout_s, local_address=source)

    async def _first_answer(self, turn: TurnConnection, methods: Sequence[Method]) -> Finding:
        found: asyncio.Future[Finding] = asyncio.get_running_loop().create_future()
        asking = Tasks()
        try:
            for method in methods:
                asking.start(_knock(turn, method, found), f"probe {method.name}")
                with contextlib.suppress(TimeoutError):
                    async with deadlines.timeout(self.timeout_s / len(methods)):
                        return await asyncio.shield(found)
            # If our own loop has stood still, the answer waits in the socket.
            for _ in range(TURNS_TO_READ):
                await asyncio.sleep(0)
            if found.done():
                return found.result()
            not_sent = _of_our_own(turn.not_sent, f"our own machine did not send: {turn.not_sent}")
            return not_sent or Finding(ProbeVerdict.BAD, f"no answer within {self.timeout_s:g} s")
        finally:
            await asking.cancel()

    async def _allocate(self, address: Address, username: str, password: str) -> None:
        """Follows 300 and 437. Raises UpstreamError if there is no allocation to be had."""
        hops, ports = 0, 1
        while True:
            try:
                async with await self._open(address, username, password, self.timeout_s) as turn:
                    await turn.allocate()  # the end of the block releases it
                return
            except TurnRequestError as error:
                if error.code == 300 and hops < MAX_HOPS:
                    address = self._alternate(error)
                    hops += 1
                elif error.code == 437 and ports < MAX_PORTS:
                    ports += 1
                elif error.code in _SERVES:
                    return
                else:
                    raise

    def _alternate(self, redirected: TurnRequestError) -> Address:
        alternate = redirected.alternate
        if alternate is None:
            raise redirected
        if not self.policy.permits(alternate.host):
            raise _Redirected(f"{redirected}: {alternate} may not be relayed to (media.allowed_networks)")
        return alternate


async def _knock(turn: TurnConnection, method: Method, found: asyncio.Future[Finding]) -> None:
    """Ask once, and tell ``found`` what was answered. Silence says nothing yet."""
    # Not the loop's clock: uvloop's counts whole milliseconds.
    started = time.perf_counter()
    finding: Finding | None = None
    try:
        await (turn.binding() if method is Method.BINDING else turn.allocate())
    except TurnRequestError as error:
        if not error.answered:
            finding = _finding_of(error)
    if not found.done():
        found.set_result(finding or Finding(ProbeVerdict.GOOD, rtt_s=time.perf_counter() - started, answered=method))


def _finding_of(error: UpstreamError) -> Finding:
    return _of_our_own(error.__cause__, str(error)) or Finding(ProbeVerdict.BAD, str(error))


def _of_our_own(cause: BaseException | None, words: str) -> Finding | None:
    """What an OSError says: one from ICMP, that no server listens; any other, that our own machine did not send."""
    if not isinstance(cause, OSError):
        return None
    if isinstance(cause, ConnectionRefusedError):
        return Finding(ProbeVerdict.GONE, words)
    return Finding(ProbeVerdict.EXHAUSTED if cause.errno in _NOTHING_TO_ASK_WITH else ProbeVerdict.OURS, words)
