"""The compiled plane: the contract of ``api`` on the workers of ``relay._fastpath``, one thread each.

Python runs on asyncio, and no packet passes through it. This file has the verbs: it opens listening and UDP sockets,
and gives the workers their commands. What they tell comes back through ``events``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import threading
import weakref
from collections.abc import Sequence

from relay._fastpath import SharedState, UserShare, Worker
from relay.addresses import Address
from relay.errors import OperatorError
from relay.plane.api import Carrier, CloseReason, ConnectionId, EventSink, Snapshot, Upstream
from relay.plane.certificates import ServerCertificate
from relay.plane.client_certificates import ClientAuthorities, ClientCertificates
from relay.plane.compiled.connections import Connections, Flow
from relay.plane.compiled.events import NoticeReader, client_of
from relay.plane.compiled.numbers import CARRIERS, CLIENT_CERTIFICATES, REASONS
from relay.plane.compiled.snapshots import Snapshots
from relay.plane.compiled.tap import FlowTap
from relay.plane.endings import is_exhausted, reason_without_socket
from relay.plane.listening import open_listeners
from relay.plane.settings import PlaneSettings
from relay.plane.source_ports import SourcePorts, target_of
from relay.plane.taps import Tap
from relay.quality.meter import clock_table
from relay.sockaddr import from_sockaddr, pack_sockaddr

# A name, an AES-256 key and an HMAC key. A session ticket is good until its key has been replaced twice: long enough
# for a client that comes back after lunch, short enough that a stolen key opens little.
TICKET_KEY_BYTES = 80
TICKET_KEY_LIFETIME_S = 4 * 3600
# Of ``ClientAuthorities.digest``.
DIGEST_BYTES = 32


class CompiledPlane:
    """Runs ``workers`` threads, by default one for each core. Events come on the loop that creates it."""

    def __init__(
        self,
        settings: PlaneSettings,
        certificates: Sequence[ServerCertificate],
        on_events: EventSink,
        *,
        workers: int = 0,
    ) -> None:
        """Raises OperatorError for a certificate that cannot be used."""
        self.loop = asyncio.get_running_loop()
        self._ports = SourcePorts(settings)
        self._shared = SharedState()
        self._workers = [Worker(number, self._shared) for number in range(workers or os.cpu_count() or 1)]
        self._connections = Connections()
        self._users: weakref.WeakValueDictionary[str, UserShare] = weakref.WeakValueDictionary()
        self._snapshots = Snapshots(self._workers, self._connections.flows)
        self._notices = NoticeReader(on_events, self._connections, self._ports, self._snapshots)
        self._stopped = False
        self._certificates = certificates
        self._authorities: ClientAuthorities | None = None
        self.set_certificates(certificates)
        self.configure(settings)
        self._rotate_ticket_keys()
        self._threads = [
            threading.Thread(target=worker.run, name=f"data plane {number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for worker, thread in zip(self._workers, self._threads, strict=True):
            self.loop.add_reader(worker.event_fd, self._notices.read, worker)
            thread.start()

    # Verbs

    async def listen(
        self,
        address: Address,
        given: Sequence[socket.socket] = (),
        asks: ClientCertificates = ClientCertificates.NONE,
    ) -> Address:
        """Accept clients on a literal address, each worker on a socket of its own if there are enough.

        Each socket has a queue of its own, so each needs a worker. Where there are fewer sockets than workers, some
        share one: all of them are woken by a newcomer, and the first takes it.
        """
        sockets = given or open_listeners(address, len(self._workers))
        bound = from_sockaddr(sockets[0].getsockname())
        listening = [one.detach() for one in sockets]
        missing = len(self._workers) - len(listening)
        listening += [os.dup(listening[number % len(sockets)]) for number in range(missing)]
        for number, fd in enumerate(listening):
            self._workers[number % len(self._workers)].listen(fd, CLIENT_CERTIFICATES.index(asks))
        return bound

    def set_certificates(self, certificates: Sequence[ServerCertificate]) -> None:
        """Use these for new connections. Raises OperatorError and keeps the old."""
        self._use(certificates, self._authorities)
        self._certificates = certificates

    def trust_clients(self, authorities: ClientAuthorities | None) -> None:
        """Accept certificates of clients that these have signed. Raises OperatorError and keeps the old."""
        self._use(self._certificates, authorities)
        self._authorities = authorities

    def _use(self, certificates: Sequence[ServerCertificate], authorities: ClientAuthorities | None) -> None:
        groups: dict[frozenset[str], list[tuple[bytes, bytes, bytes]]] = {}
        for one in certificates:
            groups.setdefault(one.names, []).append((one.chain, one.private_key, one.staple))
        named = [([name.encode() for name in sorted(names)], files) for names, files in groups.items()]
        trusted = [] if authorities is None else list(authorities.certificates)
        digest = bytes(DIGEST_BYTES) if authorities is None else authorities.digest()
        try:
            for worker in self._workers:
                worker.set_certificates(named, trusted, digest)
        except ValueError as error:  # read_certificate would have refused it
            raise OperatorError(f"certificates: {error}") from None

    def _rotate_ticket_keys(self) -> None:
        """Give all workers one new key, so that a client may come back to another worker."""
        key = secrets.token_bytes(TICKET_KEY_BYTES)
        for worker in self._workers:
            worker.use_ticket_key(key)
        self._rotation = self.loop.call_later(TICKET_KEY_LIFETIME_S, self._rotate_ticket_keys)

    def configure(self, settings: PlaneSettings) -> None:
        """Use these bounds from now on. Raises ValueError for a payload type or clock that cannot be."""
        clock_table(settings.payload_clocks)
        self._ports.configure(settings)
        self._notices.silence_s = settings.upstream_silence_s
        entries = settings.networks().pack()
        for worker in self._workers:
            worker.configure(settings)
            worker.use_networks(entries)

    def new_id(self) -> ConnectionId:
        """The id of a connection that control has accepted."""
        return self._connections.adoptions.new_id()

    def adopt(
        self,
        fd: int,
        preread: bytes = b"",
        client: Address | None = None,
        asks: ClientCertificates = ClientCertificates.NONE,
        connection: ConnectionId | None = None,
    ) -> ConnectionId:
        """Take over an accepted TCP connection."""
        os.set_blocking(fd, False)
        connection = connection or self.new_id()
        if self._stopped:
            os.close(fd)
            return connection
        self._connections.adoptions.await_worker(connection)
        packed = b"" if client is None else pack_sockaddr(client)
        worker = self._workers[connection % len(self._workers)]
        worker.adopt(fd, preread, connection, packed, CLIENT_CERTIFICATES.index(asks))
        return connection

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
            identity = self._identity_of(connection)
            if self._awaits(identity, http=True):
                self._connections.sessions.add(identity)
                self._worker(identity).upgrade(identity, response, number, -1, b"", *_NO_RULES)
            return
        opened = self._open_flow(connection, carrier, upstream, http=True, response=response)
        if opened is not None:
            identity, udp, target = opened
            self._worker(identity).upgrade(identity, response, number, udp, target, *_rules(upstream))

    def _awaits(self, identity: int, *, http: bool) -> bool:
        """Whether a connection may become a flow now."""
        if self._connections.is_taken(identity) or not self._is_known(identity):
            return False
        return self._worker(identity).awaits(identity, http)

    def _open_flow(
        self, connection: ConnectionId, carrier: Carrier, upstream: Upstream, *, http: bool, response: bytes = b""
    ) -> tuple[int, int, bytes] | None:
        """Open a flow's socket. Returns the connection's number, the descriptor, and where to connect it to."""
        identity = self._identity_of(connection)
        if not self._awaits(identity, http=http):
            return None
        try:
            udp = self._open_socket(identity, upstream)
        except OSError as error:
            if carrier is Carrier.WEBSOCKET:
                # It can be told why only in a Close frame.
                self._worker(identity).upgrade(identity, response, CARRIERS.index(carrier), -1, b"", *_NO_RULES)
            self.close(connection, reason_without_socket(error))
            return None
        self._connections.flows[identity] = self._new_flow(identity, carrier, upstream, udp.getsockname()[1])
        target = target_of(udp, upstream.address)
        return identity, udp.detach(), target

    def _open_socket(self, identity: int, upstream: Upstream) -> socket.socket:
        """A flow's UDP socket, in place of the descriptor that was kept free for it. Raises OSError."""
        with self._shared:
            self._worker(identity).give_up_reserve(identity)
            return self._ports.open_socket(self.loop.time(), upstream.address)

    def _new_flow(self, identity: int, carrier: Carrier, upstream: Upstream, port: int) -> Flow:
        worker = self._worker(identity)
        server_name, _, _ = worker.opened(identity)
        connection = self._connections.adoptions.connection_of(identity)
        certificate = self._connections.client_certificates.get(identity, "")
        return Flow(connection, client_of(worker, identity), server_name, carrier, upstream, port, certificate)

    def move(self, connection: ConnectionId, upstream: Upstream, fd: int = -1) -> None:
        """Have a session go on at this upstream."""
        identity = self._identity_of(connection)
        if identity not in self._connections.sessions:
            if fd >= 0:
                os.close(fd)
            return
        port, target, code = 0, b"", 0
        try:
            if fd < 0:
                fd = self._open_socket(identity, upstream).detach()
            port, target = _look_at(fd, upstream.address)
        except OSError as error:
            if is_exhausted(error):
                self.close(connection, CloseReason.NO_DESCRIPTORS)
                return
            code = error.errno or errno.EHOSTUNREACH
        worker = self._worker(identity)
        flow = self._new_flow(identity, Carrier.SESSION, upstream, port)
        before = self._connections.flows.get(identity)
        if before is not None:
            before.rest_port(self._ports, self.loop.time())
        flow.follow(before, worker.moves(identity))
        self._connections.flows[identity] = flow
        worker.move(identity, fd, target, code, _age_us(upstream), flow.moves)

    def tell(self, connection: ConnectionId, text: str) -> None:
        """Send the client of a session a text message."""
        identity = self._identity_of(connection)
        if identity in self._connections.sessions:
            self._worker(identity).tell(identity, text.encode())

    def request(self, connection: ConnectionId, message: bytes) -> None:
        """Send the upstream of a session a STUN message. Raises ValueError if it is not one."""
        identity = self._identity_of(connection)
        if identity in self._connections.sessions:
            self._worker(identity).request(identity, message)

    def admit(self, connection: ConnectionId) -> None:
        """Forward the Allocate that waits."""
        identity = self._identity_of(connection)
        if identity in self._connections.flows:
            self._worker(identity).admit(identity)

    def refuse(self, connection: ConnectionId, response: bytes) -> None:
        """Answer the Allocate that waits. Raises ValueError if the answer is not a STUN message."""
        identity = self._identity_of(connection)
        if identity in self._connections.flows:
            self._worker(identity).refuse(identity, response)

    def answer(self, connection: ConnectionId, response: bytes) -> None:
        """Answer the Allocate that was granted. Raises ValueError if the answer is not a STUN message."""
        identity = self._identity_of(connection)
        if identity in self._connections.flows:
            self._worker(identity).answer(identity, response)

    def share(self, connection: ConnectionId, user: str) -> None:
        """Count what a flow carries as this user's."""
        identity = self._identity_of(connection)
        if self._stopped or not self._connections.is_taken(identity):
            return
        share = self._users.get(user)
        if share is None:
            share = self._users[user] = UserShare()
        self._connections.shares[identity] = share
        self._worker(identity).share(identity, share)

    def allocated(self, connection: ConnectionId) -> bool:
        """True while a flow has an allocation."""
        identity = self._identity_of(connection)
        return identity in self._connections.flows and self._worker(identity).allocated(identity)

    def carries(self, connection: ConnectionId) -> bool:
        """True for a flow that has an allocation, or media over CONNECT-UDP."""
        identity = self._identity_of(connection)
        return identity in self._connections.flows and self._worker(identity).carries(identity)

    def close(self, connection: ConnectionId, reason: CloseReason) -> None:
        """End a connection."""
        identity = self._identity_of(connection)
        if not self._connections.adoptions.close_when_taken(connection, reason) and self._is_known(identity):
            self._worker(identity).close(identity, REASONS.index(reason))

    def tap(self, connection: ConnectionId) -> Tap | None:
        """Copy a flow's datagrams. Returns None if there is no such flow."""
        identity = self._identity_of(connection)
        flow = self._connections.flows.get(identity)
        if flow is None or flow.lost or self._stopped:
            return None
        return FlowTap(self._worker(identity).tap(identity), flow)

    def hold(self, held: bool) -> None:
        """Accept nobody until told otherwise."""
        if not self._stopped:
            for worker in self._workers:
                worker.hold(held)

    def drain(self) -> None:
        """Accept nobody from now on."""
        for worker in self._workers:
            worker.unlisten()

    async def stop(self) -> None:
        """End all connections and let go of every descriptor."""
        if self._stopped:
            return
        self._stopped = True
        self._notices.stop()
        self._rotation.cancel()
        for worker in self._workers:
            worker.stop()
        for worker, thread in zip(self._workers, self._threads, strict=True):
            await asyncio.to_thread(thread.join)
            self._notices.read(worker)
            worker.let_go()
            self.loop.remove_reader(worker.event_fd)

    def turns(self) -> Sequence[int]:
        """How often each worker has gone round."""
        return [worker.turns for worker in self._workers]

    def snapshot(self) -> Snapshot:
        """All counters and flows as they are now."""
        return self._snapshots.take(self._notices.handshake_failures)

    # Numbers

    def _identity_of(self, connection: ConnectionId) -> int:
        return self._connections.adoptions.identity_of(connection)

    def _worker(self, identity: int) -> Worker:
        return self._workers[identity >> 56]

    def _is_known(self, identity: int) -> bool:
        if identity >> 56 >= len(self._workers):
            return False
        try:
            self._worker(identity).adoption_id(identity)
        except KeyError:
            return False
        return True


def _age_us(upstream: Upstream) -> int:
    return -1 if upstream.max_media_age_s is None else round(upstream.max_media_age_s * 1e6)


def _look_at(fd: int, upstream: Address) -> tuple[int, bytes]:
    """Make a UDP socket non-blocking. Returns its source port, and where to connect it to.

    Takes no descriptor of its own. Raises OSError.
    """
    udp = socket.socket(fileno=fd)
    try:
        udp.setblocking(False)
        return udp.getsockname()[1], target_of(udp, upstream)
    finally:
        udp.detach()


_Rules = tuple[bool, bool, bool, int]
_NO_RULES: _Rules = (False, False, False, -1)


def _rules(upstream: Upstream) -> _Rules:
    """What an upstream asks of a worker: releases, asks, follows, and how old media may grow in microseconds."""
    follows = upstream.alternates is not None
    return upstream.releases_allocations, upstream.asks_for_users, follows, _age_us(upstream)
