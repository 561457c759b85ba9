"""The reference plane: the contract of ``api`` on asyncio, obvious before it is fast.

It owns the listening sockets, the connections (``connection``) and through them the flows (``flow``).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
import weakref
from collections import Counter
from collections.abc import Sequence

from relay.addresses import Address
from relay.plane.api import (
    Carrier,
    Closed,
    CloseReason,
    ConnectionId,
    Event,
    EventSink,
    Snapshot,
    Totals,
    Upstream,
)
from relay.plane.certificates import HandshakeFailure, ServerCertificate
from relay.plane.client_certificates import ClientAuthorities, ClientCertificates
from relay.plane.listening import open_listeners
from relay.plane.reference.allowance import Allowance, UserAllowance
from relay.plane.reference.connection import Connection
from relay.plane.reference.delays import Delays
from relay.plane.reference.listener import Listener
from relay.plane.reference.media import Media
from relay.plane.reference.newcomers import Newcomers
from relay.plane.reference.reserve import Reserve
from relay.plane.reference.session_media import SessionMedia
from relay.plane.reference.tls import ServerContexts
from relay.plane.settings import PlaneSettings
from relay.plane.source_ports import SourcePorts
from relay.plane.taps import Tap
from relay.quality.meter import clock_table
from relay.tasks import Tasks


class ReferencePlane:
    """Runs on the loop that creates it; ``on_events`` is called on that loop too."""

    def __init__(
        self, settings: PlaneSettings, certificates: Sequence[ServerCertificate], on_events: EventSink
    ) -> None:
        """Raises OperatorError for a certificate that cannot be used, ValueError for a payload clock that cannot be."""
        clock_table(settings.payload_clocks)
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.ports = SourcePorts(settings)
        self._certificates = certificates
        self._authorities: ClientAuthorities | None = None
        self.contexts = ServerContexts(certificates)
        self._on_events = on_events
        self._events: list[Event] = []
        self._listeners: list[Listener] = []
        self._connections: dict[ConnectionId, Connection] = {}
        self._newcomers = Newcomers(settings, self.emit)
        # Those of users who have a flow.
        self._users: weakref.WeakValueDictionary[str, UserAllowance] = weakref.WeakValueDictionary()
        self._adoptions = Tasks()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped = False
        self._asked = 0
        self._accepted = 0
        self._ids = itertools.count(1)
        self._ended = Totals()
        self._ended_delays = Delays()
        self._closed: Counter[CloseReason] = Counter()
        self._handshake_failures: Counter[HandshakeFailure] = Counter()
        # Adopted connections whose transport is not there yet, and why they are to be closed already.
        self._adopting: dict[ConnectionId, CloseReason | None] = {}

    # Verbs

    async def listen(
        self,
        address: Address,
        given: Sequence[socket.socket] = (),
        asks: ClientCertificates = ClientCertificates.NONE,
    ) -> Address:
        """Accept clients on a literal address, port 0 for a free one, or on sockets that listen there already."""
        sockets = given or open_listeners(address, 1)
        welcome = functools.partial(self._welcome, asks)
        listeners = [Listener(self.loop, listening, welcome, self._newcomers) for listening in sockets]
        self._listeners += listeners
        return listeners[0].address

    def _welcome(self, asks: ClientCertificates, accepted: socket.socket, client: Address, reserve: Reserve) -> None:
        # Once the client has reset the connection, its socket no longer knows the address.
        connection = self._new_connection(client, asks, reserve=reserve)
        self._adoptions.start(self._connect(connection, accepted), "accept")

    def set_certificates(self, certificates: Sequence[ServerCertificate]) -> None:
        """Use these for new connections."""
        self.contexts = ServerContexts(certificates, self._authorities)
        self._certificates = certificates

    def trust_clients(self, authorities: ClientAuthorities | None) -> None:
        """Accept certificates of clients that these have signed."""
        self.contexts = ServerContexts(self._certificates, authorities)
        self._authorities = authorities

    def configure(self, settings: PlaneSettings) -> None:
        """Use these bounds from now on. Raises ValueError for an impossible payload clock, and keeps the old."""
        clock_table(settings.payload_clocks)
        self.settings = settings
        self._newcomers.configure(settings)
        self.ports.configure(settings)

    def new_id(self) -> ConnectionId:
        """The id of a connection that control has accepted."""
        return ConnectionId(next(self._ids))

    def adopt(
        self,
        fd: int,
        preread: bytes = b"",
        client: Address | None = None,
        asks: ClientCertificates = ClientCertificates.NONE,
        connection: ConnectionId | None = None,
    ) -> ConnectionId:
        """Take over an accepted TCP connection."""
        accepted = socket.socket(fileno=fd)
        adopted = self._new_connection(client or _peer_of(accepted), asks, preread, identity=connection)
        self._adopting[adopted.identity] = None
        self._adoptions.start(self._connect(adopted, accepted), "adopt")
        return adopted.identity

    async def _connect(self, connection: Connection, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await self.loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError as error:
            accepted.close()
            connection.connection_lost(error)
        reason = self._adopting.pop(connection.identity, None)
        if reason is not None:
            connection.close(reason)

    def attach(self, connection: ConnectionId, upstream: Upstream) -> None:
        """Start the flow of a connection that has reported TurnOpened."""
        if (known := self._connections.get(connection)) is not None:
            known.attach(upstream)

    def upgrade(self, connection: ConnectionId, response: bytes, carrier: Carrier, upstream: Upstream | None) -> None:
        """Take an HTTP connection back and go on as media. Raises ValueError for a session with an upstream."""
        if (upstream is None) is not (carrier is Carrier.SESSION):
            raise ValueError(f"{carrier}: expected {'no' if upstream else 'an'} upstream")
        if (known := self._connections.get(connection)) is not None:
            known.upgrade(response, carrier, upstream)

    def move(self, connection: ConnectionId, upstream: Upstream, fd: int = -1) -> None:
        """Have a session go on at this upstream."""
        left = None if fd < 0 else socket.socket(fileno=fd)
        if (session := self._session(connection)) is not None:
            session.move(upstream, left)
        elif left is not None:
            left.close()

    def tell(self, connection: ConnectionId, text: str) -> None:
        """Send the client of a session a text message."""
        if (session := self._session(connection)) is not None:
            session.tell(text)

    def request(self, connection: ConnectionId, message: bytes) -> None:
        """Send the upstream of a session a STUN message."""
        if (session := self._session(connection)) is not None:
            session.request(message)

    def admit(self, connection: ConnectionId) -> None:
        """Forward the Allocate that waits, and go on."""
        if (media := self._media(connection)) is not None:
            media.admit()

    def refuse(self, connection: ConnectionId, response: bytes) -> None:
        """Answer the Allocate that waits, and go on."""
        if (media := self._media(connection)) is not None:
            media.refuse(response)

    def answer(self, connection: ConnectionId, response: bytes) -> None:
        """Answer the Allocate that was granted."""
        if (media := self._media(connection)) is not None:
            media.answer(response)

    def share(self, connection: ConnectionId, user: str) -> None:
        """Count what a flow carries as this user's."""
        if (media := self._media(connection)) is None:
            return
        allowance = self._users.get(user)
        if allowance is None:
            rates = self.settings.packets_per_second_per_user, self.settings.bytes_per_second_per_user
            allowance = self._users[user] = UserAllowance(Allowance(*rates), Allowance(*rates))
        media.share(allowance)

    def allocated(self, connection: ConnectionId) -> bool:
        """True while a flow has an allocation."""
        media = self._media(connection)
        return media is not None and media.flow is not None and media.flow.allocated

    def carries(self, connection: ConnectionId) -> bool:
        """True for a flow that has an allocation, or media over CONNECT-UDP."""
        media = self._media(connection)
        flow = None if media is None else media.flow
        return flow is not None and (flow.allocation.ends_at is not None or flow.heard_media_at is not None)

    def _media(self, connection: ConnectionId) -> Media | None:
        known = self._connections.get(connection)
        return None if known is None else known.media

    def _session(self, connection: ConnectionId) -> SessionMedia | None:
        media = self._media(connection)
        return media if isinstance(media, SessionMedia) else None

    def close(self, connection: ConnectionId, reason: CloseReason) -> None:
        """End a connection."""
        if connection in self._adopting:
            self._adopting[connection] = reason
        elif (known := self._connections.get(connection)) is not None:
            known.close(reason)

    def tap(self, connection: ConnectionId) -> Tap | None:
        """Copy a flow's datagrams. Returns None if there is no such flow."""
        known = self._connections.get(connection)
        return None if known is None else known.tap()

    def hold(self, held: bool) -> None:
        """Accept nobody until told otherwise."""
        self._newcomers.held = held

    def drain(self) -> None:
        """Accept nobody from now on."""
        for listener in self._listeners:
            listener.close()

    async def stop(self) -> None:
        """End all connections and let go of every descriptor."""
        self._stopped = True
        self.drain()
        await self._adoptions.finish()
        for connection in list(self._connections.values()):
            connection.close(CloseReason.STOPPED)
        # Bounded: a closed connection is aborted after CLOSE_TIMEOUT_S.
        await self._idle.wait()
        self._deliver()

    def turns(self) -> Sequence[int]:
        """It has no threads: whoever asks shows that its loop turns."""
        self._asked += 1
        return [self._asked]

    def snapshot(self) -> Snapshot:
        """All counters and flows as they are now."""
        now = self.loop.time()
        flows = tuple(flow for c in self._connections.values() if (flow := c.snapshot(now)) is not None)
        totals = Totals()
        totals.add(self._ended)
        for flow in flows:
            totals.add(flow.totals)
        delays = Delays()
        delays.add(self._ended_delays)
        for connection in self._connections.values():
            if (of_flow := connection.delays()) is not None:
                delays.add(of_flow)
        return Snapshot(
            connections=len(self._connections),
            flows=flows,
            totals=totals,
            accepted=self._accepted,
            closed=dict(self._closed),
            handshake_failures=dict(self._handshake_failures),
            queue_delay=delays.latency(),
        )

    # Called by connections

    def _new_connection(
        self,
        client: Address,
        asks: ClientCertificates,
        preread: bytes = b"",
        reserve: Reserve | None = None,
        *,
        identity: ConnectionId | None = None,
    ) -> Connection:
        self._accepted += 1
        identity = identity or self.new_id()
        refused = self._newcomers.enter(self.loop.time(), identity, client.host)
        return Connection(self, identity, preread, reserve or Reserve(), client=client, refused=refused, asks=asks)

    def enter(self, connection: Connection) -> bool:
        """Enter a connection in the table. Returns False if the plane has stopped."""
        self._connections[connection.identity] = connection
        self._idle.clear()
        return not self._stopped

    def forget(self, connection: Connection) -> None:
        """The transport is gone: take the connection out of the table."""
        self._newcomers.leave(connection.identity)
        if self._connections.pop(connection.identity, None) is not None and not self._connections:
            self._idle.set()

    def on_closed(self, closed: Closed, delays: Delays) -> None:
        """Count the end of a connection and how long its packets waited, and report it."""
        self._ended.add(closed.totals)
        self._ended_delays.add(delays)
        self._closed[closed.reason] += 1
        self.emit(closed)

    def emit(self, event: Event) -> None:
        """Report an event in the next turn of the loop, together with others."""
        if not self._events:
            self.loop.call_soon(self._deliver)
        self._events.append(event)

    def _deliver(self) -> None:
        events, self._events = self._events, []
        # Counted as they are told, so that control can tell a balancer's check from a failure before anybody looks.
        closed = (one for one in events if isinstance(one, Closed))
        self._handshake_failures.update(one.handshake_failure for one in closed if one.handshake_failure is not None)
        if events:
            self._on_events(events)


def _peer_of(connected: socket.socket) -> Address:
    """The other end of a connection; nobody, if it has been reset."""
    try:
        return Address(*(connected.getpeername() or ("", 0))[:2])
    except OSError:
        return Address("", 0)
