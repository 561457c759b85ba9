"""Notices of the workers become events for control, and sockets where a worker asks for one."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from relay.addresses import Address
from relay.plane.alternates import redirected
from relay.plane.api import (
    AllocateGranted,
    AllocateRequested,
    AllocationNamed,
    AllocationOrphaned,
    Carrier,
    Closed,
    CloseReason,
    ConnectionId,
    Event,
    EventSink,
    FlowSnapshot,
    HttpOpened,
    StunReceived,
    TextReceived,
    TurnOpened,
    UpstreamLost,
)
from relay.plane.certificates import ALPN_PROTOCOLS, HANDSHAKE_FAILURES, HandshakeFailure, refusal_of
from relay.plane.client_certificates import name_of
from relay.plane.compiled.connections import Connections, Flow
from relay.plane.compiled.numbers import FAULTS, REASONS, Notice
from relay.plane.compiled.snapshots import Snapshots, totals_of
from relay.plane.endings import first_bytes_detail, pause_of, silence_detail, unread_detail
from relay.plane.source_ports import ALLOCATION_LIFETIME_S, SourcePorts, target_of

if TYPE_CHECKING:
    from relay._fastpath import Worker


class NoticeReader:
    """Reads the notices of all workers of one plane; ``silence_s`` follows the settings."""

    silence_s: float

    def __init__(
        self, on_events: EventSink, connections: Connections, ports: SourcePorts, snapshots: Snapshots
    ) -> None:
        self.handshake_failures: Counter[HandshakeFailure] = Counter()
        self._loop = asyncio.get_running_loop()
        self._on_events = on_events
        self._connections = connections
        self._ports = ports
        self._snapshots = snapshots
        self._stopped = False

    def stop(self) -> None:
        """From here the workers take no more commands."""
        self._stopped = True

    def read(self, worker: Worker) -> None:
        """Take what a worker has to tell, and pass on what control has to know of it, all at once."""
        events: list[Event] = []
        for notice in worker.take_events():
            try:
                events.extend(self._events_of(worker, notice))
            except Exception as error:
                # A mistake of ours. The notices that come with it are of other clients.
                self._loop.call_exception_handler({"message": f"notice {notice[0]} failed", "exception": error})
        if events:
            self._on_events(events)

    def _events_of(self, worker: Worker, told: tuple[int, int, bytes, int, int]) -> Sequence[Event]:
        notice, identity, message, moves, error = told
        connection = self._connections.adoptions.connection_of(identity)
        match notice:
            case Notice.ADOPTED:
                self._on_adopted(worker, identity)
            case Notice.TURN_OPENED:
                return [_turn_opened(worker, identity, connection, self._client_certificate(identity))]
            case Notice.HTTP_OPENED:
                return [_http_opened(worker, identity, connection, self._client_certificate(identity))]
            case Notice.CERTIFICATE:
                self._connections.client_certificates[identity] = name_of(message)
            case Notice.STALE:
                self._on_stale(worker, identity)
            case Notice.CLOSED:
                return self._on_closed(worker, identity)
            case Notice.ALLOCATE:
                return [AllocateRequested(connection, message)]
            case Notice.GRANTED:
                return [AllocateGranted(connection, message)]
            case Notice.ALTERNATE:
                self._on_alternate(worker, identity, message)
            case Notice.NAMED:
                return [AllocationNamed(connection, message.decode(errors="replace"))]
            case Notice.PAUSED:
                return [pause_of(error)]
            case Notice.TEXT:
                return [TextReceived(connection, message.decode())]
            case _:
                return self._of_upstream(Notice(notice), identity, message, moves, error)
        return []

    # Newcomers

    def _client_certificate(self, identity: int) -> str:
        return self._connections.client_certificates.get(identity, "")

    def _on_adopted(self, worker: Worker, identity: int) -> None:
        reason = self._connections.adoptions.on_taken(worker.adoption_id(identity), identity)
        if reason is not None:
            worker.close(identity, REASONS.index(reason))

    # Flows that want another socket

    def _on_stale(self, worker: Worker, identity: int) -> None:
        """Go on from a fresh port; without one the client gets the 437."""
        flow = self._connections.flows.get(identity)
        if flow is None:
            return
        flow.rest_port(self._ports, self._loop.time())
        try:
            udp = self._ports.open_fresh_socket(self._loop.time(), flow.upstream.address)
        except OSError:
            worker.replace(identity, -1, b"")
            return
        self._replace(worker, identity, flow, udp)

    def _on_alternate(self, worker: Worker, identity: int, answer: bytes) -> None:
        """Go on at the server that a 300 names. Where that may not be, the client gets the answer."""
        flow = self._connections.flows.get(identity)
        if flow is None:
            return
        upstream = redirected(flow.upstream, answer)
        try:
            udp = None if upstream is None else self._ports.open_socket(self._loop.time(), upstream.address)
        except OSError:
            udp = None
        if upstream is None or udp is None:
            worker.replace(identity, -1, b"")
            return
        flow.upstream = upstream
        self._replace(worker, identity, flow, udp)

    def _replace(self, worker: Worker, identity: int, flow: Flow, udp: socket.socket) -> None:
        flow.port = udp.getsockname()[1]
        target = target_of(udp, flow.upstream.address)
        worker.replace(identity, udp.detach(), target)

    # Upstreams of sessions

    def _of_upstream(self, notice: Notice, identity: int, message: bytes, moves: int, error: int) -> list[Event]:
        """What a session's upstream has sent, or that it is lost; nothing if the session has left it meanwhile."""
        flow = self._connections.flows.get(identity)
        if flow is None or flow.moves != moves:
            return []
        if notice is Notice.STUN:
            return [StunReceived(flow.connection, message)]
        flow.rest_port(self._ports, self._loop.time())
        flow.lost = True
        if notice is Notice.SILENT:
            detail = silence_detail(self.silence_s, error)
            return [UpstreamLost(flow.connection, CloseReason.UPSTREAM_SILENT, detail)]
        return [UpstreamLost(flow.connection, CloseReason.UPSTREAM_UNREACHABLE, os.strerror(error))]

    # The end

    def _on_closed(self, worker: Worker, identity: int) -> list[Event]:
        closed = self._closed(worker, identity)
        if closed.handshake_failure is not None:
            self.handshake_failures[closed.handshake_failure] += 1
        flow = self._connections.forget(identity)
        orphan = self._take_flow(worker, identity, closed, flow)
        pipe = worker.take_pipe(identity)
        if pipe >= 0:
            os.close(pipe)
        if not self._stopped:
            worker.release(identity)
        return [closed] if orphan is None else [orphan, closed]

    def _closed(self, worker: Worker, identity: int) -> Closed:
        number, fault, words, first_bytes = worker.closed(identity)
        reason = REASONS[number]
        server_name, _, _ = worker.opened(identity)
        flow = self._snapshots.flow_at_end(worker, identity)
        return Closed(
            self._connections.adoptions.connection_of(identity),
            reason,
            client_of(worker, identity),
            server_name,
            totals_of(worker.counters(identity)),
            flow,
            self._detail(reason, fault, words, first_bytes, flow),
            _failure(words, fault) if reason is CloseReason.HANDSHAKE_FAILED else None,
            self._client_certificate(identity),
        )

    def _detail(
        self, reason: CloseReason, fault: int, words: str, first_bytes: bytes, flow: FlowSnapshot | None
    ) -> str:
        """What the log says of an end. ``fault`` is an errno, a framing fault, or a number of first bytes."""
        if reason is CloseReason.UPSTREAM_SILENT:
            return silence_detail(self.silence_s, fault)
        if reason is CloseReason.SLOW_CLIENT and flow is not None:
            return unread_detail(flow.queued_bytes)
        if reason is CloseReason.BROKEN_FRAME and not words:
            return FAULTS[-fault - 1]
        if reason is CloseReason.FIRST_BYTES_UNKNOWN:
            return first_bytes_detail(first_bytes[:fault])
        return words or (os.strerror(fault) if fault > 0 else "")

    def _take_flow(self, worker: Worker, identity: int, closed: Closed, flow: Flow | None) -> AllocationOrphaned | None:
        """Take the socket that a flow leaves. Control gets it if it leads to an allocation; otherwise it is closed."""
        fd, left_us, allocating, request, moves = worker.take_flow(identity)
        if fd < 0:
            return None
        if flow is not None and flow.carrier is Carrier.SESSION:
            known = flow.after(moves)
            known.rest_port(self._ports, self._loop.time())
            return AllocationOrphaned(closed.connection, fd, known.upstream, b"")
        if flow is not None and (left_us > 0 or allocating):
            lifetime_s = left_us / 1e6 if left_us > 0 else ALLOCATION_LIFETIME_S
            self._ports.rest(flow.port, flow.upstream.address, self._loop.time() + lifetime_s)
            if left_us > 0 and request:
                return AllocationOrphaned(closed.connection, fd, flow.upstream, request)
        os.close(fd)
        return None


def client_of(worker: Worker, identity: int) -> Address:
    """The address of a connection's client."""
    is_ipv6, port, packed = worker.client(identity)
    return Address(socket.inet_ntop(socket.AF_INET6 if is_ipv6 else socket.AF_INET, packed), port)


def _turn_opened(worker: Worker, identity: int, connection: ConnectionId, certificate: str) -> TurnOpened:
    server_name, alpn, _ = worker.opened(identity)
    protocol = ALPN_PROTOCOLS[alpn - 1] if alpn else None
    return TurnOpened(connection, client_of(worker, identity), server_name, protocol, certificate)


def _http_opened(worker: Worker, identity: int, connection: ConnectionId, certificate: str) -> HttpOpened:
    server_name, _, version = worker.opened(identity)
    client, fd = client_of(worker, identity), worker.take_pipe(identity)
    return HttpOpened(connection, fd, client, server_name, version, certificate)


def _failure(words: str, refused_for: int) -> HandshakeFailure:
    """``refused_for`` is OpenSSL's number for what is wrong with the client's certificate, or 0."""
    if refused_for:
        return refusal_of(refused_for)
    if words == "timeout":
        return HandshakeFailure.TIMEOUT
    if not words:
        return HandshakeFailure.CLIENT_CLOSED
    return HANDSHAKE_FAILURES.get(words.upper().replace(" ", "_"), HandshakeFailure.OTHER)
