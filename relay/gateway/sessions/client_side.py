"""The client's side of one session: what the client is told, and what the log says of it."""

from __future__ import annotations

from dataclasses import replace

from relay.addresses import Address
from relay.gateway.calls.ids import CallIds
from relay.gateway.lines import Lines
from relay.gateway.sessions.allocation import SessionAllocation
from relay.gateway.sessions.returning import Tokens
from relay.plane.api import CloseReason, HttpOpened, Plane
from relay.turn.events import AllocationCreated
from relay.wire import media_v1
from relay.wire.media_v1 import Failed, Moved, Opened, RequestId, Resumed

# A client that was cut has this long to come back: two attempts of a slow proxy. After that the other side has hung up.
RESUME_WITHIN_S = 10.0


class ClientSide:
    """Tells the client of one connection. ``request_id`` is that of its open or resume, until it is answered."""

    def __init__(self, opened: HttpOpened, plane: Plane, tokens: Tokens, lines: Lines, ids: CallIds) -> None:
        self.opened = opened
        self.request_id: RequestId = None
        self._plane = plane
        self._tokens = tokens
        self._lines = lines
        # As the log knows its connection.
        self.id = ids.id_of(opened.connection)

    def take_request_id(self) -> RequestId:
        """The id of the message that is answered now. What is said later answers nothing."""
        request_id, self.request_id = self.request_id, None
        return request_id

    def tell(self, message: media_v1.RelayMessage) -> None:
        """Send the client a message."""
        self._plane.tell(self.opened.connection, media_v1.build_control(message))

    def tell_opened(self, allocation: SessionAllocation, created: AllocationCreated) -> None:
        """The upstream has granted what the client asked for."""
        token = self._tokens.new(self.opened.connection)
        mapped, name, request_id = created.mapped_address, allocation.upstream.name, self.take_request_id()
        told = Opened(created.relayed_address, mapped, name, token, RESUME_WITHIN_S, request_id)
        self.tell(replace(told, additional=created.additional_address))
        self.log("session opened", upstream=name, **allocation.relayed_addresses)

    def tell_moved(self, allocation: SessionAllocation, relayed: Address) -> None:
        """The call goes on at another upstream."""
        self.tell(Moved(relayed, allocation.upstream.name, allocation.turn.additional_address))

    def tell_resumed(self, allocation: SessionAllocation, relayed: Address) -> None:
        """The client has found its allocation again."""
        name, token = allocation.upstream.name, self._tokens.new(self.opened.connection)
        told = Resumed(relayed, name, token, RESUME_WITHIN_S, self.take_request_id())
        self.tell(replace(told, additional=allocation.turn.additional_address))
        self.log("session resumed", upstream=name, **allocation.relayed_addresses, channels=len(allocation.channels))

    def fail(self, code: int, reason: str, peer: Address | None = None, identity: RequestId = None) -> None:
        """Tell the client of an error."""
        self.tell(Failed(code, reason, peer, identity))

    def request(self, message: bytes) -> None:
        """Send the upstream a STUN message for this client."""
        self._plane.request(self.opened.connection, message)

    def carry_for(self, user: str) -> None:
        """Count what it carries as this user's, if it is known who that is."""
        if user:
            self._plane.share(self.opened.connection, user)

    def close(self, reason: CloseReason) -> None:
        """End the connection."""
        self._plane.close(self.opened.connection, reason)

    def log(self, event: str, **fields: object) -> None:
        """Write a line. Each code of a failure is a kind of its own: a client can cause one after the other."""
        self._lines.info(event, f"{event} {fields.get('code', '')}", connection=self.id, **fields)
