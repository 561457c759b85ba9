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

from relay.addresses import Address
from relay.config import BalancerSettings
from relay.gateway.http.closing import READ_BYTES, build_response, send_last
from relay.gateway.lines import Lines
from relay.plane.api import Closed
from relay.plane.certificates import HandshakeFailure
from relay.wire.proxy_header import ProxyHeader, ProxyHeaderError, parse_proxy_header

log = structlog.get_logger()

# A balancer sends the header as it connects. Only one that has stopped leaves connections waiting for it.
MAX_WAITING = 1000
LINES_PER_S = 5
# How a check over HTTP begins.
_HTTP = (b"GET ", b"HEAD ", b"OPTIONS ")


class Check(StrEnum):
    """What a balancer did to see whether the relay is there: a label of metrics."""

    CONNECT = "connect"  # connected, and closed without a word
    LOCAL = "local"  # sent a PROXY header of its own (LOCAL, UNKNOWN, or its own address), and closed
    HTTP = "http"  # sent an HTTP request without TLS


class HeaderFault(StrEnum):
    """Why a connection that needs a PROXY header was closed: a label of metrics."""

    UNTRUSTED = "untrusted"  # not from ``balancers.networks``
    BROKEN = "broken"  # no header, or one that cannot be used
    TIMEOUT = "timeout"
    TOO_MANY = "too_many"  # wait for their header already


# How a check looks to the plane, where no header is needed.
_CHECKS = {HandshakeFailure.CLIENT_CLOSED: Check.CONNECT, HandshakeFailure.PLAIN_HTTP: Check.HTTP}


@dataclass(frozen=True, slots=True)
class Introduced:
    """Who a connection is from, and the first bytes after the header."""

    client: Address
    preread: bytes


@dataclass(slots=True)
class BalancerTotals:
    """Counters from the start. ``failures`` counts the checks that the plane has taken for clients."""

    checks: Counter[Check] = field(default_factory=Counter)
    failures: Counter[HandshakeFailure] = field(default_factory=Counter)
    faults: Counter[HeaderFault] = field(default_factory=Counter)


class Balancers:
    """Knows the balancers, and reads what they say first."""

    def __init__(self, settings: BalancerSettings, timeout_s: float, ready: Callable[[], bool]) -> None:
        """``ready`` says what a check over HTTP is told, 200 or 503: whether newcomers should come here."""
        self.totals = BalancerTotals()
        self._ready = ready
        self._waiting = 0
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
        if self._waiting >= MAX_WAITING:
            expected = f"expected at most {MAX_WAITING} connections without a header"
            self._refuse(HeaderFault.TOO_MANY, reading, expected)
            return None
        self._waiting += 1
        try:
            return await self._introduce(reading)
        finally:
            self._waiting -= 1

    async def _introduce(self, reading: _Reading) -> Introduced | None:
        try:
            async with asyncio.timeout(self._timeout_s):
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
            await self._answer_check(reading)
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
                await self._answer_check(reading)
                return None
        if reading.received:
            return Introduced(client, reading.received)
        self._note_check(Check.LOCAL, client, reading.connection)
        return None

    def _on_end(self, reading: _Reading) -> None:
        if reading.received:
            self._refuse(HeaderFault.BROKEN, reading, "expected a whole PROXY header")
        else:
            self._note_check(Check.CONNECT, reading.peer, reading.connection)

    async def _answer_check(self, reading: _Reading) -> None:
        self._note_check(Check.HTTP, reading.peer, reading.connection)
        ready, kind = self._ready(), "text/plain; charset=utf-8"
        body = b"ready\n" if ready else b"not ready\n"
        response = build_response(200 if ready else 503, body, kind, connection=reading.connection)
        with contextlib.suppress(OSError):  # it has seen enough
            await send_last(reading.socket, response)

    def note_closed(self, closed: Closed) -> bool:
        """Whether a failed handshake was a balancer's check, which is then counted."""
        failure = closed.handshake_failure
        check = None if failure is None else _CHECKS.get(failure)
        if failure is None or check is None or not self.trusts(closed.client.host):
            return False
        self.totals.failures[failure] += 1
        self._note_check(check, closed.client)
        return True

    def _note_check(self, check: Check, peer: Address, connection: str = "") -> None:
        self.totals.checks[check] += 1
        told = {"connection": connection} if connection else {}
        log.debug("health check", check=check.value, balancer=str(peer), **told)

    def _refuse(self, fault: HeaderFault, reading: _Reading, expected: str) -> None:
        self.totals.faults[fault] += 1
        told = {"connection": reading.connection, "reason": fault.value, "peer": str(reading.peer), "detail": expected}
        self._lines.info("proxy header refused", fault, **told)


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
