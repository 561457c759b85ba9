"""The compiled plane: the contract of ``api`` on the workers of ``relay._fastpath``, one thread each.

This side of it runs on asyncio and no packet passes through it: it opens listening and UDP sockets, turns the workers'
notices into events, lets source ports rest, and hands on the copies of a tap.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import secrets
import socket
import struct
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from relay._fastpath import SharedState, Worker
from relay.addresses import Address
from relay.errors import OperatorError
from relay.plane.alternates import redirected
from relay.plane.api import (
    MAX_USERNAME_CHARACTERS,
    AllocateGranted,
    AllocateRequested,
    AllocationOrphaned,
    Carrier,
    Certificate,
    ClientLink,
    Closed,
    CloseReason,
    ConnectionId,
    DropReason,
    Event,
    EventSink,
    FlowSnapshot,
    HandshakeFailure,
    HttpOpened,
    Latency,
    PlaneSettings,
    Snapshot,
    StunReceived,
    Tap,
    TappedDatagram,
    TextReceived,
    Totals,
    Traffic,
    TurnOpened,
    Upstream,
    UpstreamLost,
)
from relay.plane.certificates import ALPN_PROTOCOLS, HANDSHAKE_FAILURES, certificate_names, check_certificates
from relay.plane.listening import open_listeners
from relay.plane.source_ports import ALLOCATION_LIFETIME_S, SourcePorts, target_of
from relay.plane.uplink import silence_detail
from relay.quality.meter import clock_table
from relay.quality.stream import Direction, RtpStream
from relay.sockaddr import from_sockaddr
from relay.wire.stream import FramingFault

if TYPE_CHECKING:
    from relay._fastpath import TapReader, _Histogram
    from relay._fastpath import _Flow as _FlowFigures

# A name, an AES-256 key and an HMAC key. A ticket is good until its key has been replaced twice: long enough for a
# client that comes back after lunch, short enough that a stolen key opens little.
TICKET_KEY_BYTES = 80
TICKET_KEY_LIFETIME_S = 4 * 3600

ADOPTED, TURN_OPENED, HTTP_OPENED, STALE, CLOSED = 1, 2, 4, 8, 16
ALLOCATE, TEXT, STUN, SILENT, UNREACHABLE, GRANTED, ALTERNATE = 32, 64, 128, 256, 512, 1024, 2048
CARRIERS = tuple(Carrier)
REASONS = tuple(CloseReason)
DROPS = tuple(DropReason)
TRAFFICS = tuple(Traffic)
# FlowRecord of _fastpath.pxd: number, age, time since the upstream was heard, and the counters.
_RECORD = struct.Struct(f"=Qqqq{5 + len(DROPS) + len(TRAFFICS)}Q")
# TapKind of tap.pxd.
TAP_WAYS = (Direction.UPLINK, Direction.DOWNLINK)
TAP_LOCAL = 2
FAULTS = (FramingFault.FIRST_BYTE, FramingFault.STUN_LENGTH, FramingFault.MAGIC_COOKIE)


@dataclass(slots=True)
class _Flow:
    """What this side remembers of a flow."""

    connection: ConnectionId
    client: Address
    server_name: str
    carrier: Carrier
    upstream: Upstream
    port: int
    # Of a session: how often it has moved, and from where, as long as its worker may not have come so far.
    moves: int = 0
    lost: bool = False
    before: _Flow | None = None


class _Tap:
    """What a worker copies, as the contract has it."""

    def __init__(self, reader: TapReader, flow: _Flow) -> None:
        self.client = flow.client
        self.server_name = flow.server_name
        self.upstream = flow.upstream
        self._reader = reader
        self._local = Address("", 0)

    @property
    def missed(self) -> int:
        return self._reader.missed

    @property
    def ended(self) -> bool:
        return self._reader.ended

    def take(self, most: int) -> list[TappedDatagram]:
        taken = []
        for kind, at_us, missed, data in self._reader.take(most):
            if kind == TAP_LOCAL:
                self._local = _address(data)
            else:
                taken.append(TappedDatagram(at_us, TAP_WAYS[kind], self._local, missed, data))
        return taken

    def close(self) -> None:
        self._reader.close()


def _address(sockaddr: bytes) -> Address:
    """Of a sockaddr_in or sockaddr_in6."""
    family, port = int.from_bytes(sockaddr[:2], sys.byteorder), int.from_bytes(sockaddr[2:4])
    if family != socket.AF_INET6:
        return Address(socket.inet_ntop(family, sockaddr[4:8]), port)
    return from_sockaddr(
        (socket.inet_ntop(family, sockaddr[8:24]), port, 0, int.from_bytes(sockaddr[24:28], sys.byteorder))
    )


_Record = tuple[int, ...]


# Of a flow that ended while a snapshot was read.
NOTHING_KNOWN: _FlowFigures = (b"", 0, 0, ([], 0), None, 0, [], 0, [])


class _Flows(Sequence[FlowSnapshot]):
    """The flows of a snapshot: their counters copied at once, the rest read when they are looked at.

    It does not keep the plane alive: of a plane that has gone nothing is left to be read.
    """

    def __init__(self, known: dict[int, _Flow], records: bytes, figures_of: Callable[[int], _FlowFigures]) -> None:
        self._known = known
        self._records = records
        self._figures_of = weakref.WeakMethod(figures_of)

    @functools.cached_property
    def _flows(self) -> list[tuple[_Flow, _Record]]:
        known = self._known
        return [(known[record[0]], record) for record in _RECORD.iter_unpack(self._records) if record[0] in known]

    def __len__(self) -> int:
        return len(self._flows)

    @overload
    def __getitem__(self, index: int) -> FlowSnapshot: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FlowSnapshot]: ...
    def __getitem__(self, index: int | slice) -> FlowSnapshot | Sequence[FlowSnapshot]:
        figures_of = self._figures_of() or _forgotten
        if isinstance(index, slice):
            return [_describe(flow, record, figures_of(record[0])) for flow, record in self._flows[index]]
        flow, record = self._flows[index]
        return _describe(flow, record, figures_of(record[0]))


def _forgotten(_identity: int) -> _FlowFigures:
    return NOTHING_KNOWN


class CompiledPlane:
    """Runs ``workers`` threads, one for each core by default; events come on the loop that creates it."""

    def __init__(
        self, settings: PlaneSettings, certificates: Sequence[Certificate], on_events: EventSink, *, workers: int = 0
    ) -> None:
        """Raises OperatorError for a certificate that cannot be used."""
        self.loop = asyncio.get_running_loop()
        self._on_events = on_events
        self._ports = SourcePorts(settings)
        self._shared = SharedState()
        self._workers = [Worker(number, self._shared) for number in range(workers or os.cpu_count() or 1)]
        self._flows: dict[int, _Flow] = {}
        self._sessions: set[int] = set()
        self._tickets: dict[int, int] = {}  # of adopted connections: Python's number to the worker's
        # Those that no worker has taken yet, and why they are to be closed already.
        self._adopting: dict[int, CloseReason | None] = {}
        self._known_as: dict[int, int] = {}  # and back
        self._next_ticket = 1 << 60
        self._handshake_failures: Counter[HandshakeFailure] = Counter()
        self._listening: list[Address] = []
        self._stopped = False
        self.set_certificates(certificates)
        self.configure(settings)
        self._rotate_ticket_keys()
        self._threads = [
            threading.Thread(target=worker.run, name=f"data plane {number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for worker, thread in zip(self._workers, self._threads, strict=True):
            self.loop.add_reader(worker.event_fd, self._take_events, worker)
            thread.start()

    # Verbs

    async def listen(self, address: Address) -> Address:
        """Accept clients on a literal address, each worker on a socket of its own."""
        try:
            sockets = open_listeners(address, len(self._workers))
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OperatorError(f"cannot listen on {address}: {reason.lower()}") from None
        bound = from_sockaddr(sockets[0].getsockname())
        for worker, listening in zip(self._workers, sockets, strict=True):
            worker.listen(listening.detach())
        return bound

    def set_certificates(self, certificates: Sequence[Certificate]) -> None:
        """Use these for new connections. Raises OperatorError and keeps the old."""
        check_certificates(certificates)
        groups: dict[frozenset[str], list[tuple[bytes, bytes]]] = {}
        for certificate in certificates:
            files = (os.fsencode(certificate.chain), os.fsencode(certificate.private_key))
            groups.setdefault(certificate_names(certificate), []).append(files)
        named = [([name.encode() for name in sorted(names)], files) for names, files in groups.items()]
        try:
            for worker in self._workers:
                worker.set_certificates(named)
        except ValueError as error:  # a file has changed since it was looked at
            raise OperatorError(f"certificates: {error}") from None

    def _rotate_ticket_keys(self) -> None:
        """One key for all workers, so that a client may come back to another one."""
        key = secrets.token_bytes(TICKET_KEY_BYTES)
        for worker in self._workers:
            worker.use_ticket_key(key)
        self._rotation = self.loop.call_later(TICKET_KEY_LIFETIME_S, self._rotate_ticket_keys)

    def configure(self, settings: PlaneSettings) -> None:
        """Use these bounds from now on. Raises ValueError for a payload type or clock that cannot be."""
        clocks = list(clock_table(settings.payload_clocks))
        self._ports.configure(settings)
        self._silence_s = settings.upstream_silence_s
        for worker in self._workers:
            worker.configure(
                round(settings.handshake_timeout_s * 1e6),
                round(settings.first_bytes_timeout_s * 1e6),
                round(settings.allocation_timeout_s * 1e6),
                round(settings.attach_timeout_s * 1e6),
                round(settings.upstream_silence_s * 1e6),
                round(settings.initial_rto_s * 1e6),
                settings.max_connections,
                settings.max_connections_per_source,
                round(settings.max_media_age_s * 1e6),
                settings.downlink_media_bytes,
                settings.downlink_control_bytes,
                round(settings.max_data_age_s * 1e6),
                settings.downlink_data_bytes,
                round(settings.playout_deadline_s * 1e6),
                round(settings.websocket_ping_s * 1e6),
                clocks,
            )

    def adopt(self, fd: int, preread: bytes = b"") -> ConnectionId:
        """Take over an accepted TCP connection."""
        os.set_blocking(fd, False)
        self._next_ticket += 1
        if self._stopped:
            os.close(fd)
            return ConnectionId(self._next_ticket)
        self._adopting[self._next_ticket] = None
        self._workers[self._next_ticket % len(self._workers)].adopt(fd, preread, self._next_ticket)
        return ConnectionId(self._next_ticket)

    def attach(self, connection: ConnectionId, upstream: Upstream) -> None:
        """Start the flow of a connection that has reported TurnOpened."""
        opened = self._open_flow(connection, Carrier.TURN, upstream, http=False)
        if opened is not None:
            identity, udp, target = opened
            self._worker(identity).attach(identity, udp, target, *_rules(upstream))

    def upgrade(self, connection: ConnectionId, response: bytes, carrier: Carrier, upstream: Upstream | None) -> None:
        """Take an HTTP connection back and go on as media."""
        if (upstream is None) is not (carrier is Carrier.SESSION):
            raise ValueError("a session has no upstream before it moves, all others have one")
        number = CARRIERS.index(carrier)
        if upstream is None:
            identity = self._tickets.get(connection, connection)
            if self._awaits(identity, http=True):
                self._sessions.add(identity)
                self._worker(identity).upgrade(identity, response, number, -1, b"", False, False, False, -1)
            return
        opened = self._open_flow(connection, carrier, upstream, http=True, response=response)
        if opened is not None:
            identity, udp, target = opened
            self._worker(identity).upgrade(identity, response, number, udp, target, *_rules(upstream))

    def _awaits(self, identity: int, *, http: bool) -> bool:
        """Whether a connection may become a flow now."""
        taken = identity in self._flows or identity in self._sessions
        return not taken and self._is_known(identity) and self._worker(identity).awaits(identity, http)

    def _open_flow(
        self, connection: ConnectionId, carrier: Carrier, upstream: Upstream, *, http: bool, response: bytes = b""
    ) -> tuple[int, int, bytes] | None:
        """Open a flow's socket: the connection's number, the descriptor, and where it is to be connected to."""
        identity = self._tickets.get(connection, connection)
        if not self._awaits(identity, http=http):
            return None
        try:
            udp = self._open_socket(identity, upstream)
        except OSError as error:
            if carrier is Carrier.WEBSOCKET:
                # It can be told why only in a Close frame.
                self._worker(identity).upgrade(
                    identity, response, CARRIERS.index(carrier), -1, b"", False, False, False, -1
                )
            exhausted = error.errno in {errno.EMFILE, errno.ENFILE}
            self.close(connection, CloseReason.NO_DESCRIPTORS if exhausted else CloseReason.UPSTREAM_UNREACHABLE)
            return None
        self._flows[identity] = self._new_flow(identity, carrier, upstream, udp.getsockname()[1])
        target = target_of(udp, upstream.address)
        return identity, udp.detach(), target

    def _open_socket(self, identity: int, upstream: Upstream) -> socket.socket:
        """A flow's UDP socket, which takes the descriptor that was kept free for it. Raises OSError."""
        with self._shared:
            self._worker(identity).give_up_reserve(identity)
            return self._ports.open_socket(self.loop.time(), upstream.address)

    def _new_flow(self, identity: int, carrier: Carrier, upstream: Upstream, port: int) -> _Flow:
        worker = self._worker(identity)
        server_name, _, _ = worker.opened(identity)
        return _Flow(self._known(identity), self._client(worker, identity), server_name, carrier, upstream, port)

    def move(self, connection: ConnectionId, upstream: Upstream, fd: int = -1) -> None:
        """Have a session go on at this upstream."""
        identity = self._tickets.get(connection, connection)
        if identity not in self._sessions:
            if fd >= 0:
                os.close(fd)
            return
        port, target, code = 0, b"", 0
        try:
            if fd < 0:
                fd = self._open_socket(identity, upstream).detach()
            port, target = _look_at(fd, upstream.address)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self.close(connection, CloseReason.NO_DESCRIPTORS)
                return
            code = error.errno or errno.EHOSTUNREACH
        worker = self._worker(identity)
        flow = self._new_flow(identity, Carrier.SESSION, upstream, port)
        flow.before = self._flows.get(identity)
        if flow.before is not None:
            flow.moves = flow.before.moves
            self._rest_port(flow.before)
            if worker.moves(identity) == flow.before.moves:
                flow.before.before = None
        flow.moves += 1
        self._flows[identity] = flow
        worker.move(identity, fd, target, code, _age_us(upstream), flow.moves)

    def tell(self, connection: ConnectionId, text: str) -> None:
        """Send the client of a session a text message."""
        identity = self._tickets.get(connection, connection)
        if identity in self._sessions:
            self._worker(identity).tell(identity, text.encode())

    def request(self, connection: ConnectionId, message: bytes) -> None:
        """Send the upstream of a session a STUN message. Raises ValueError if it is none."""
        identity = self._tickets.get(connection, connection)
        if identity in self._sessions:
            self._worker(identity).request(identity, message)

    def admit(self, connection: ConnectionId) -> None:
        """Forward the Allocate that waits."""
        identity = self._tickets.get(connection, connection)
        if identity in self._flows:
            self._worker(identity).admit(identity)

    def refuse(self, connection: ConnectionId, response: bytes) -> None:
        """Answer the Allocate that waits. Raises ValueError if the answer is no STUN message."""
        identity = self._tickets.get(connection, connection)
        if identity in self._flows:
            self._worker(identity).refuse(identity, response)

    def answer(self, connection: ConnectionId, response: bytes) -> None:
        """Answer the Allocate that was granted. Raises ValueError if the answer is not a STUN message."""
        identity = self._tickets.get(connection, connection)
        if identity in self._flows:
            self._worker(identity).answer(identity, response)

    def allocated(self, connection: ConnectionId) -> bool:
        """True while a flow has an allocation."""
        identity = self._tickets.get(connection, connection)
        return identity in self._flows and self._worker(identity).allocated(identity)

    def close(self, connection: ConnectionId, reason: CloseReason) -> None:
        """End a connection."""
        identity = self._tickets.get(connection, connection)
        if connection in self._adopting:
            self._adopting[connection] = reason
        elif self._is_known(identity):
            self._worker(identity).close(identity, REASONS.index(reason))

    def tap(self, connection: ConnectionId) -> Tap | None:
        """Copy a flow's datagrams; None if there is no such flow."""
        identity = self._tickets.get(connection, connection)
        flow = self._flows.get(identity)
        if flow is None or flow.lost or self._stopped:
            return None
        return _Tap(self._worker(identity).tap(identity), flow)

    def drain(self) -> None:
        """Accept nobody any more."""
        for worker in self._workers:
            worker.unlisten()

    async def stop(self) -> None:
        """End all connections and let go of every descriptor."""
        if self._stopped:
            return
        self._stopped = True
        self._rotation.cancel()
        for worker in self._workers:
            worker.stop()
        for worker, thread in zip(self._workers, self._threads, strict=True):
            await asyncio.to_thread(thread.join)
            self._take_events(worker)
            worker.let_go()
            self.loop.remove_reader(worker.event_fd)

    def snapshot(self) -> Snapshot:
        """All counters and flows as they are now."""
        connections = accepted = 0
        closed: Counter[CloseReason] = Counter()
        totals = Totals()
        for worker in self._workers:
            live, taken, reasons = worker.figures()
            connections += live
            accepted += taken
            closed.update({REASONS[reason]: count for reason, count in enumerate(reasons) if count})
        records, delays = [], []
        for worker in self._workers:
            copied, counters, waited = worker.flows()
            records.append(copied)
            delays.append(waited)
            totals.add(_totals(counters))
        flows = _Flows(self._flows.copy(), b"".join(records), self._figures_of)
        uplink, downlink = (_latency(one) for one in zip(*(w.histograms() for w in self._workers), strict=True))
        failures = dict(self._handshake_failures)
        return Snapshot(
            connections, flows, totals, accepted, dict(closed), failures, uplink, downlink, _latency(delays)
        )

    def _figures_of(self, identity: int) -> _FlowFigures:
        # Once control has read its end, the worker frees it at any moment.
        known = self._worker(identity).flow(identity) if identity in self._flows else None
        return known or NOTHING_KNOWN

    # Numbers

    def _worker(self, identity: int) -> Worker:
        return self._workers[identity >> 56]

    def _is_known(self, identity: int) -> bool:
        if identity >> 56 >= len(self._workers):
            return False
        try:
            self._worker(identity).ticket(identity)
        except KeyError:
            return False
        return True

    def _known(self, identity: int) -> ConnectionId:
        return ConnectionId(self._known_as.get(identity, identity))

    # Events

    def _take_events(self, worker: Worker) -> None:
        events: list[Event] = []
        for told in worker.take_events():
            try:
                events.extend(self._events_of(worker, told))
            except Exception as error:
                # A mistake of ours. The notices that come with it are of other clients.
                self.loop.call_exception_handler({"message": f"notice {told[0]} failed", "exception": error})
        if events:
            self._on_events(events)

    def _events_of(self, worker: Worker, told: tuple[int, int, bytes, int, int]) -> Sequence[Event]:
        """What a notice of a worker comes to for control."""
        notice, identity, message, move, error = told
        if notice == ADOPTED:
            self._on_adopted(worker, identity)
        elif notice == TURN_OPENED:
            return [self._on_turn_opened(worker, identity)]
        elif notice == HTTP_OPENED:
            return [self._on_http_opened(worker, identity)]
        elif notice == STALE:
            self._on_stale(worker, identity)
        elif notice == CLOSED:
            return self._on_closed(worker, identity)
        elif notice == ALLOCATE:
            return [AllocateRequested(self._known(identity), message)]
        elif notice == GRANTED:
            return [AllocateGranted(self._known(identity), message)]
        elif notice == ALTERNATE:
            self._on_alternate(worker, identity, message)
        elif notice == TEXT:
            return [TextReceived(self._known(identity), message.decode())]
        else:
            return self._of_upstream(notice, identity, message, move, error)
        return []

    def _on_adopted(self, worker: Worker, identity: int) -> None:
        ticket = worker.ticket(identity)
        self._tickets[ticket], self._known_as[identity] = identity, ticket
        reason = self._adopting.pop(ticket)
        if reason is not None:
            self.close(ConnectionId(ticket), reason)

    def _client(self, worker: Worker, identity: int) -> Address:
        ipv6, port, packed = worker.client(identity)
        return Address(socket.inet_ntop(socket.AF_INET6 if ipv6 else socket.AF_INET, packed), port)

    def _on_turn_opened(self, worker: Worker, identity: int) -> TurnOpened:
        server_name, alpn, _ = worker.opened(identity)
        chosen = ALPN_PROTOCOLS[alpn - 1] if alpn else None
        return TurnOpened(self._known(identity), self._client(worker, identity), server_name, chosen)

    def _on_http_opened(self, worker: Worker, identity: int) -> HttpOpened:
        server_name, _, version = worker.opened(identity)
        fd = worker.take_pipe(identity)
        return HttpOpened(self._known(identity), fd, self._client(worker, identity), server_name, version)

    def _on_stale(self, worker: Worker, identity: int) -> None:
        flow = self._flows.get(identity)
        if flow is None:
            return
        self._ports.rest(flow.port, flow.upstream.address, self.loop.time() + ALLOCATION_LIFETIME_S)
        try:
            udp = self._ports.open_fresh_socket(self.loop.time(), flow.upstream.address)
        except OSError:
            worker.replace(identity, -1, b"")
            return
        flow.port = udp.getsockname()[1]
        target = target_of(udp, flow.upstream.address)
        worker.replace(identity, udp.detach(), target)

    def _on_alternate(self, worker: Worker, identity: int, answer: bytes) -> None:
        """Go on at the server that a 300 names; where that may not be, the client gets the answer."""
        flow = self._flows.get(identity)
        if flow is None:
            return
        upstream = redirected(flow.upstream, answer)
        try:
            udp = None if upstream is None else self._ports.open_socket(self.loop.time(), upstream.address)
        except OSError:
            udp = None
        if upstream is None or udp is None:
            worker.replace(identity, -1, b"")
            return
        flow.upstream, flow.port = upstream, udp.getsockname()[1]
        target = target_of(udp, upstream.address)
        worker.replace(identity, udp.detach(), target)

    def _of_upstream(self, notice: int, identity: int, message: bytes, move: int, error: int) -> list[Event]:
        """What a session's upstream has sent, or that it is lost; nothing if the session has left it meanwhile."""
        flow = self._flows.get(identity)
        if flow is None or flow.moves != move:
            return []
        if notice == STUN:
            return [StunReceived(flow.connection, message)]
        self._rest_port(flow)
        flow.lost = True
        if notice == SILENT:
            detail = silence_detail(self._silence_s, error)
            return [UpstreamLost(flow.connection, CloseReason.UPSTREAM_SILENT, detail)]
        return [UpstreamLost(flow.connection, CloseReason.UPSTREAM_UNREACHABLE, os.strerror(error))]

    def _rest_port(self, flow: _Flow) -> None:
        """Of an allocation that may have been left there."""
        self._ports.rest(flow.port, flow.upstream.address, self.loop.time() + ALLOCATION_LIFETIME_S)

    def _on_closed(self, worker: Worker, identity: int) -> list[Event]:
        reason, fault, words, first_bytes = worker.closed(identity)
        server_name, _, _ = worker.opened(identity)
        connection, flow = self._known(identity), self._flows.get(identity)
        described = (
            None
            if flow is None
            else _describe(flow, _RECORD.unpack(worker.record(identity)), self._figures_of(identity))
        )
        detail = (
            silence_detail(self._silence_s, fault)
            if REASONS[reason] is CloseReason.UPSTREAM_SILENT
            else _detail(REASONS[reason], fault, words, first_bytes)
        )
        if REASONS[reason] is CloseReason.SLOW_CLIENT and described is not None:
            detail = f"{described.queued_bytes} bytes unread"
        closed = Closed(
            connection,
            REASONS[reason],
            self._client(worker, identity),
            server_name,
            _totals(worker.counters(identity)),
            described,
            detail,
            _failure(words) if REASONS[reason] is CloseReason.HANDSHAKE_FAILED else None,
        )
        if closed.handshake_failure is not None:
            self._handshake_failures[closed.handshake_failure] += 1
        self._flows.pop(identity, None)
        self._sessions.discard(identity)
        events: list[Event] = [closed]
        orphan = self._take_flow(worker, identity, connection, flow)
        if orphan is not None:
            events.insert(0, orphan)
        self._tickets.pop(self._known_as.pop(identity, 0), None)
        pipe = worker.take_pipe(identity)
        if pipe >= 0:
            os.close(pipe)
        if not self._stopped:  # or else the worker takes no more commands
            worker.release(identity)
        return events

    def _take_flow(
        self, worker: Worker, identity: int, connection: ConnectionId, flow: _Flow | None
    ) -> AllocationOrphaned | None:
        fd, left_us, allocating, request, moves = worker.take_flow(identity)
        if fd < 0:
            return None
        if flow is not None and flow.carrier is Carrier.SESSION:
            # That of the newest upstream which the worker has heard of.
            while flow.moves > moves and flow.before is not None:
                flow = flow.before
            self._rest_port(flow)
            return AllocationOrphaned(connection, fd, flow.upstream, b"")
        if flow is not None and (left_us > 0 or allocating):
            lifetime_s = left_us / 1e6 if left_us > 0 else ALLOCATION_LIFETIME_S
            self._ports.rest(flow.port, flow.upstream.address, self.loop.time() + lifetime_s)
            if left_us > 0 and request:
                return AllocationOrphaned(connection, fd, flow.upstream, request)
        os.close(fd)
        return None


def _describe(flow: _Flow, record: _Record, figures: _FlowFigures) -> FlowSnapshot:
    _, age_us, heard_us, allocated_us, *counters = record
    name, queued, oldest_us, (delays, waited_us), link, uplink_rtcp, uplink, downlink_rtcp, downlink = figures
    return FlowSnapshot(
        flow.connection,
        flow.client,
        flow.server_name,
        flow.carrier,
        flow.upstream,
        age_us / 1e6,
        heard_us / 1e6,
        _totals(counters),
        username=name.decode(errors="replace")[:MAX_USERNAME_CHARACTERS],
        allocated=allocated_us > 0,
        queued_bytes=queued,
        queue_age_s=oldest_us / 1e6,
        queue_delay=Latency(delays, waited_us),
        link=None if link is None else ClientLink(*link),
        uplink_rtcp=uplink_rtcp,
        downlink_rtcp=downlink_rtcp,
        streams=(
            *(RtpStream(Direction.UPLINK, *stream) for stream in uplink),
            *(RtpStream(Direction.DOWNLINK, *stream) for stream in downlink),
        ),
    )


def _latency(histograms: Sequence[_Histogram]) -> Latency:
    counts: Counter[int] = Counter()
    for buckets, _ in histograms:
        counts.update(dict(buckets))
    return Latency(sorted(counts.items()), sum(sum_us for _, sum_us in histograms))


def _totals(counters: Sequence[int]) -> Totals:
    first_dropped = 5 + len(DROPS)
    drops = {reason: count for reason, count in zip(DROPS, counters[5:first_dropped], strict=True) if count}
    dropped = {traffic: count for traffic, count in zip(TRAFFICS, counters[first_dropped:], strict=True) if count}
    uplink_packets, uplink_bytes, downlink_packets, downlink_bytes, retransmissions = counters[:5]
    return Totals(uplink_packets, uplink_bytes, downlink_packets, downlink_bytes, retransmissions, drops, dropped)


def _age_us(upstream: Upstream) -> int:
    return -1 if upstream.max_media_age_s is None else round(upstream.max_media_age_s * 1e6)


def _look_at(fd: int, upstream: Address) -> tuple[int, bytes]:
    """The source port of a UDP socket, which is made non-blocking, and where it is to be connected to.

    Takes no descriptor of its own. Raises OSError.
    """
    udp = socket.socket(fileno=fd)
    try:
        udp.setblocking(False)
        return udp.getsockname()[1], target_of(udp, upstream)
    finally:
        udp.detach()


def _rules(upstream: Upstream) -> tuple[bool, bool, bool, int]:
    follows = upstream.alternates is not None
    return upstream.releases_allocations, upstream.asks_for_users, follows, _age_us(upstream)


def _failure(words: str) -> HandshakeFailure:
    if words == "timeout":
        return HandshakeFailure.TIMEOUT
    if not words:
        return HandshakeFailure.CLIENT_CLOSED
    return HANDSHAKE_FAILURES.get(words.upper().replace(" ", "_"), HandshakeFailure.OTHER)


def _detail(reason: CloseReason, fault: int, words: str, first_bytes: bytes) -> str:
    if reason is CloseReason.BROKEN_FRAME and not words:
        return FAULTS[-fault - 1]
    if reason is CloseReason.FIRST_BYTES_UNKNOWN:
        return f"first bytes {first_bytes[:fault].hex(' ')}"
    return words or (os.strerror(fault) if fault > 0 else "")
