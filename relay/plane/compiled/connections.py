"""What Python remembers of the workers' connections: flows, which of them are sessions, and which were adopted."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.addresses import Address
from relay.plane.api import Carrier, CloseReason, ConnectionId, Upstream
from relay.plane.source_ports import ALLOCATION_LIFETIME_S, SourcePorts

if TYPE_CHECKING:
    from relay._fastpath import UserShare

# Far above the workers' own numbers, which carry the number of the worker in the top byte.
FIRST_ADOPTION_ID = 1 << 60


@dataclass(slots=True)
class Flow:
    """What is known of a flow: whose it is, and where its media goes.

    When control moves a session to another upstream, Python counts the move at once. The worker learns of it from a
    command. Until it takes the command it may still say something about the upstream before, or end the connection::

        Python   ── flow 1 ──┬── flow 2 ───────────────── flow 1 is lost? too late ──▶
                             │ move                       ▲
                             └────── command ────────┐    │ notice
        worker   ── flow 1 ────────────────── lost ──│────┘
                                                     └── flow 2 ──▶

    So each notice carries the number of moves that its worker had heard of. Python drops what is said about an
    upstream that the session has left. At an end the worker leaves the socket of the newest upstream that it knew, and
    ``before`` leads back to that flow. The chain stays short: ``follow`` cuts it where the worker has caught up.
    """

    connection: ConnectionId
    client: Address
    server_name: str
    carrier: Carrier
    upstream: Upstream
    port: int
    client_certificate: str = ""
    # A session's: how often it has moved, whether its upstream is lost, and the flow before the last move.
    moves: int = 0
    lost: bool = False
    before: Flow | None = None

    def follow(self, before: Flow | None, moves_of_worker: int) -> None:
        """Make this the flow after a move. The worker has heard of this many moves so far."""
        self.before = before
        self.moves = 1
        if before is not None:
            self.moves += before.moves
            if moves_of_worker == before.moves:
                before.before = None

    def after(self, moves: int) -> Flow:
        """The flow of a worker that has heard of this many moves."""
        flow = self
        while flow.moves > moves and flow.before is not None:
            flow = flow.before
        return flow

    def rest_port(self, ports: SourcePorts, now: float) -> None:
        """Keep other flows away from its port: it may have left an allocation there."""
        ports.rest(self.port, self.upstream.address, now + ALLOCATION_LIFETIME_S)


class Adoptions:
    """The ids of adopted connections. Control gets an id at once; the worker's own number comes with a notice."""

    def __init__(self) -> None:
        self._ids = itertools.count(FIRST_ADOPTION_ID + 1)
        self._identities: dict[int, int] = {}
        self._known_as: dict[int, int] = {}  # and back
        # Connections that no worker has taken yet, and why they are to be closed already.
        self._waiting: dict[int, CloseReason | None] = {}

    def new_id(self) -> ConnectionId:
        """The id of one more adopted connection."""
        return ConnectionId(next(self._ids))

    def await_worker(self, adoption_id: int) -> None:
        """The connection is on its way to a worker."""
        self._waiting[adoption_id] = None

    def close_when_taken(self, connection: ConnectionId, reason: CloseReason) -> bool:
        """Remember to close a connection that no worker has taken yet. Returns False for any other."""
        if connection not in self._waiting:
            return False
        self._waiting[connection] = reason
        return True

    def on_taken(self, adoption_id: int, identity: int) -> CloseReason | None:
        """A worker has taken the connection. Returns why it is to be closed already, if it is."""
        self._identities[adoption_id], self._known_as[identity] = identity, adoption_id
        return self._waiting.pop(adoption_id)

    def identity_of(self, connection: ConnectionId) -> int:
        """The worker's number of a connection."""
        return self._identities.get(connection, connection)

    def connection_of(self, identity: int) -> ConnectionId:
        """The id under which control knows a connection of a worker."""
        return ConnectionId(self._known_as.get(identity, identity))

    def forget(self, identity: int) -> None:
        """The connection has ended."""
        self._identities.pop(self._known_as.pop(identity, 0), None)


class Connections:
    """All connections that Python remembers, by their workers' numbers."""

    def __init__(self) -> None:
        self.flows: dict[int, Flow] = {}
        # Connections that are sessions, from before their first upstream.
        self.sessions: set[int] = set()
        # Whose certificate a client has shown, of those that have.
        self.client_certificates: dict[int, str] = {}
        # What the user of each flow may carry. Without a flow that has it, it is forgotten.
        self.shares: dict[int, UserShare] = {}
        self.adoptions = Adoptions()

    def is_taken(self, identity: int) -> bool:
        """True for a connection that carries media already."""
        return identity in self.flows or identity in self.sessions

    def forget(self, identity: int) -> Flow | None:
        """The connection has ended. Returns its flow, if it had one."""
        self.sessions.discard(identity)
        self.client_certificates.pop(identity, None)
        self.shares.pop(identity, None)
        self.adoptions.forget(identity)
        return self.flows.pop(identity, None)
