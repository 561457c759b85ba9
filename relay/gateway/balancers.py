"""Balancers in front of the relay: for whom they open a connection (PROXY protocol), and their own health checks.

A balancer must be in ``balancers.networks``: whoever may send the header can claim to be any client. Its checks are no
trouble of a client's, so they are counted apart, and logged at level debug.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import structlog

from relay import deadlines
from relay.addresses import Address
from relay.config import BalancerSettings
from relay.gateway.http.closing import READ_BYTES, build_response, send_last
from relay.gateway.lines import Lines
from relay.plane.api import Closed, CloseReason
from relay.plane.certificates import HandshakeFailure
from relay.wire.proxy_header import ProxyHeader, ProxyHeaderError, parse_proxy_header

log = structlog.get_logger()

# A balancer sends the header as it connects, so it is there within a round trip. Of 1,000 newcomers in a second, as
# many as may begin a handshake, one or two wait at any moment. If packets are lost and sent again, all that come within
# a second do. Each takes a descriptor and 10 KB.
MAX_WAITING = 1000
# Only a balancer that has stopped leaves more of them. It must not shut out the others.
MAX_WAITING_OF_ONE = MAX_WAITING // 2
LINES_PER_S = 5
# How a check over HTTP begins.
_HTTP = (b"GET ", b"HEAD ", b"OPTIONS ")


class Check(StrEnum):
    """What a balancer did to see whether the relay is there: a label of metrics."""

    CONNECT = "connect"  # connected, and closed without a word
    LOCAL = "local"  # sent a PROXY header of its own (LOCAL, UNKNOWN, or its own address), and closed
    HTTP = "http"  # sent an HTTP request without TLS
    TLS = "tls"  # shook hands, and asked for /healthz or for nothing


class HeaderFault(StrEnum):
    """Why a connection that needs a PROXY header was closed: a label of metrics."""

    UNTRUSTED = "untrusted"  # not from ``balancers.networks``
    BROKEN = "broken"  # no header, or one that cannot be used
    TIMEOUT = "timeout"
    TOO_MANY = "too_many"  # wait for their header already


# How a check looks to the plane, where no header is needed.
_CHECKS = {HandshakeFailure.CLIENT_CLOSED: Check.CONNECT, HandshakeFailure.PLAIN_HTTP: Check.HTTP}
# How one with TLS ends. Some balancers reset it.
_ENDS_OF_CHECKS = frozenset({CloseReason.CLIENT_CLOSED, CloseReason.CLIENT_LOST, CloseReason.HTTP_CLOSED})


@dataclass(frozen=True, slots=True)
class Introduced:
    """Who a connection is from, and the first bytes after the header."""

    client: Address
    preread: bytes


@dataclass(slots=True)
class BalancerTotals:
    """Counters from the start.

    ``failures`` and ``closed`` count the checks that the plane has taken for clients: those whose handshake failed, and
    all of them.
    """

    checks: Counter[Check] = field(default_factory=Counter)
    failures: Counter[HandshakeFailure] = field(default_factory=Counter)
    closed: Counter[CloseReason] = field(default_factory=Counter)
    faults: Counter[HeaderFault] = field(default_factory=Counter)


class Balancers:
    """Knows the balancers, and reads what they say first."""

    def __init__(self, settings: BalancerSettings, timeout_s: float, ready: Callable[[], bool]) -> None:
        """``ready`` says what a check over HTTP is told, 200 or 503: whether newcomers should come here."""
        self.totals = BalancerTotals()
        self._ready = ready
        # Connections whose header has not come, by balancer.
        self._waiting: Counter[str] = Counter()
        self._lines = Lines(LINES_PER_S)
        self.configure(settings, timeout_s)

    def configure(self, settings: BalancerSettings, timeout_s: float) -> None:
        """Trust these networks. A header must be whole within ``timeout_s``."""
        self._networks = settings.networks
        self._timeout_s = timeout_s

    def trusts(self, host: str) -> bool:
        """Whether a balancer may have this literal address. Any other text is refused."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    async def introduce(self, accepted: socket.socket, peer: Address, connection: str) -> Introduced | None:
        """Read the PROXY header of a connection. Returns None if the caller is only to close it.

        ``connection`` is the id by which the log knows it.
        """
        reading = _Reading(accepted, peer, connection)
        if not self.trusts(peer.host):
            self._refuse(HeaderFault.UNTRUSTED, reading, "expected a balancer of balancers.networks")
            return None
        if self._waiting.total() >= MAX_WAITING or self._waiting[peer.host] >= MAX_WAITING_OF_ONE:
            expected = f"at most {MAX_WAITING} connections without a header, {MAX_WAITING_OF_ONE} of one balancer"
            self._refuse(HeaderFault.TOO_MANY, reading, f"expected {expected}")
            return None
        self._waiting[peer.host] += 1
        try:
            return await self._introduce(reading)
        finally:
            self._waiting[peer.host] -= 1
            if not self._waiting[peer.host]:
                del self._waiting[peer.host]

    async def _introduce(self, reading: _Reading) -> Introduced | None:
        try:
            async with deadlines.timeout(self._timeout_s):
                return await self._read(reading)
        except TimeoutError:
            self._refuse(HeaderFault.TIMEOUT, reading, f"expected a PROXY header within {self._timeout_s:g} s")
        except ProxyHeaderError as error:
            self._refuse(HeaderFault.BROKEN, reading, str(error))
        except OSError:
            # A balancer may end its check with a reset.
            self._on_end(reading)
        return None

    async def _read(self, reading: _Reading) -> Introduced | None:
        if await reading.is_http():
            await self.answer_check(reading.socket, reading.peer, reading.connection)
            return None
        header = await reading.take_header()
        if header is None:
            self._on_end(reading)
            return None
        client = header.client or reading.peer
        # A header has no zones.
        if client.host == reading.peer.host.partition("%")[0]:
            return await self._read_own(reading, client)
        return Introduced(client, reading.received)

    async def _read_own(self, reading: _Reading, client: Address) -> Introduced | None:
        """What the balancer itself says after its header: nothing, an HTTP request, or TLS.

        In its checks haproxy names itself, and ends them with a reset.
        """
        with contextlib.suppress(OSError):
            if await reading.is_http():
                await self.answer_check(reading.socket, reading.peer, reading.connection)
                return None
        if reading.received:
            return Introduced(client, reading.received)
        self.note_check(Check.LOCAL, client, reading.connection)
        return None

    def _on_end(self, reading: _Reading) -> None:
        if reading.received:
            self._refuse(HeaderFault.BROKEN, reading, "expected a whole PROXY header")
        else:
            self.note_check(Check.CONNECT, reading.peer, reading.connection)

    async def answer_check(self, connected: socket.socket, peer: Address, connection: str) -> None:
        """Count a check over HTTP, and tell it whether newcomers should come here."""
        self.note_check(Check.HTTP, peer, connection)
        ready, kind = self._ready(), "text/plain; charset=utf-8"
        body = b"ready\n" if ready else b"not ready\n"
        response = build_response(200 if ready else 503, body, kind, connection=connection)
        with contextlib.suppress(OSError):  # it has seen enough
            await send_last(connected, response)

    def note_closed(self, closed: Closed, *, asked: bool) -> bool:
        """Whether a connection that the plane has closed was a balancer's check, which is then counted.

        ``asked`` says that it has asked for something besides ``/healthz``.
        """
        check = _check_of(closed, asked=asked)
        if check is None or not self.trusts(closed.client.host):
            return False
        if closed.handshake_failure is not None:
            self.totals.failures[closed.handshake_failure] += 1
        self.totals.closed[closed.reason] += 1
        self.note_check(check, closed.client)
        return True

    def note_check(self, check: Check, peer: Address, connection: str = "") -> None:
        """Count a check."""
        self.totals.checks[check] += 1
        told = {"connection": connection} if connection else {}
        log.debug("health check", check=check.value, balancer=str(peer), **told)

    def _refuse(self, fault: HeaderFault, reading: _Reading, expected: str) -> None:
        self.totals.faults[fault] += 1
        told = {"connection": reading.connection, "reason": fault.value, "peer": str(reading.peer), "detail": expected}
        self._lines.info("proxy header refused", fault, **told)


def _check_of(closed: Closed, *, asked: bool) -> Check | None:
    """What kind of check this was, if a balancer did it."""
    if closed.handshake_failure is not None:
        return _CHECKS.get(closed.handshake_failure)
    is_check = not asked and closed.flow is None and closed.reason in _ENDS_OF_CHECKS
    return Check.TLS if is_check else None


class _Reading:
    """The first bytes of a connection."""

    def __init__(self, connected: socket.socket, peer: Address, connection: str) -> None:
        self.socket = connected
        self.peer = peer
        self.connection = connection
        self.received = b""

    async def is_http(self) -> bool:
        """Wait until it is clear whether an HTTP request begins here. Raises OSError."""
        while any(start.startswith(self.received) and start != self.received for start in _HTTP):
            if not await self._more():
                return False
        return self.received.startswith(_HTTP)

    async def take_header(self) -> ProxyHeader | None:
        """Wait for a header, and take it off. Returns None at the end. Raises OSError and ProxyHeaderError."""
        while (header := parse_proxy_header(self.received)) is None:
            if not await self._more():
                return None
        self.received = self.received[header.size :]
        return header

    async def _more(self) -> bool:
        data = await asyncio.get_running_loop().sock_recv(self.socket, READ_BYTES)
        self.received += data
        return bool(data)
