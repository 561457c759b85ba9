"""Between the data plane, which reads the user name in an Allocate, and ``verdicts``, which knows what a user may do.

An Allocate goes on to the upstream if its user may call, and takes no place yet. Once the upstream has granted it, the
user is known to be who they say, and the call gets its place. If other calls of the same user have taken all places
meanwhile, it is answered 486 in place of the grant and ends at once; the plane leaves the allocation to be released.
Errors of the upstream change nothing: if the connection has a call already, that call keeps its place.

A user who may not call gets a STUN error, and the connection ends a second later. RFC 8489 section 9.2.5 says that over
TCP an error without MESSAGE-INTEGRITY ends the transaction at once, and browsers accept it. Other clients wait for an
authentic one, as they would over UDP. The relay can sign its refusal only if it knows the upstream's shared secret, so
those clients learn it from the end of the connection. In its SOFTWARE is the id by which the log knows the connection.
"""

from __future__ import annotations

import asyncio
import functools
import unicodedata
from dataclasses import dataclass, field
from typing import NamedTuple

from relay.gateway.calls.ids import CallIds
from relay.gateway.entitlement.verdicts import Entitlement, Verdict
from relay.gateway.routing.flows import Wanted
from relay.gateway.routing.upstreams import UpstreamState
from relay.plane.api import (
    AllocateGranted,
    AllocateRequested,
    AllocationNamed,
    Carrier,
    CloseReason,
    ConnectionId,
    Plane,
)
from relay.turn.credentials import long_term_key, rest_password
from relay.wire.stun import (
    INTEGRITY_DIGESTS,
    TRANSACTION_ID_BYTES,
    AttributeType,
    Message,
    MessageClass,
    Method,
    StunError,
    build_error_code,
    build_message,
    message_type,
    parse_message,
    split_message_type,
)

# A client that understands its refusal is gone by then. Others learn it from the end of the connection.
REFUSED_CLOSE_S = 1.0
# Allocates of one connection whose answer may still come. Clients send two or three, and each has up to 2 KiB.
MAX_ASKED = 8
# RFC 8489 section 14.3: USERNAME has fewer than 509 bytes.
MAX_USERNAME_BYTES = 508
_REFRESH = message_type(Method.REFRESH, MessageClass.REQUEST).to_bytes(2)
# No answer comes after this: a request is sent again for 39.5 s (RFC 8489 section 6.2.1).
ASKED_S = 60.0


class _Asked(NamedTuple):
    """An Allocate that was admitted. The request is kept because a refusal may have to be signed with its key."""

    verdict: Verdict
    request: bytes
    until: float


@dataclass(slots=True)
class _Flow:
    """What is known of a flow that may ask. ``closing`` is set once it has been refused, with the last ``refusal``."""

    id: str
    client: str
    region: str
    secret: str = field(repr=False)
    refusal: bytes = b""
    closing: asyncio.TimerHandle | None = None
    # The verdict on the call that was granted last: a Refresh may bring that call back.
    granted: Verdict | None = None
    # By transaction id, the oldest first.
    asked: dict[bytes, _Asked] = field(default_factory=dict, repr=False)

    def may_ask(self, now: float, transaction_id: bytes, user: str) -> bool:
        """Whether the answer to this Allocate would tell who was granted: two users must not share an id."""
        for known in [known for known, asked in self.asked.items() if asked.until <= now]:
            del self.asked[known]
        before = self.asked.get(transaction_id)
        return len(self.asked) < MAX_ASKED if before is None else before.verdict.user == user


class TurnAdmission:
    """Answers AllocateRequested (``admit`` or ``refuse``) and AllocateGranted (``answer``) of a plane.

    A user who is proven shares with all of their flows what one user may carry (``share``).
    """

    def __init__(self, plane: Plane, entitlement: Entitlement, ids: CallIds) -> None:
        self._plane = plane
        self._entitlement = entitlement
        self._ids = ids
        self._flows: dict[ConnectionId, _Flow] = {}

    def on_begun(self, wanted: Wanted, upstream: UpstreamState | None) -> None:
        """A flow begins. Over CONNECT-UDP it may have no configured upstream, and then no region."""
        if wanted.carrier is Carrier.SESSION:
            return
        secret = None if upstream is None else upstream.settings.secret
        self._flows[wanted.connection] = _Flow(
            self._ids.id_of(wanted.connection),
            wanted.client,
            "" if upstream is None else upstream.settings.region,
            "" if secret is None else secret.get_secret_value(),
        )

    def on_closed(self, connection: ConnectionId) -> None:
        """A connection has ended: its place is free."""
        flow = self._flows.pop(connection, None)
        if flow is not None and flow.closing is not None:
            flow.closing.cancel()
        self._entitlement.release(connection)

    def on_requested(self, requested: AllocateRequested) -> None:
        """Decide at once, or when the policy has been asked."""
        flow = self._flows.get(requested.connection)
        if flow is None:
            return
        if flow.refusal and _transaction_id(requested.request) == _transaction_id(flow.refusal):
            # Over CONNECT-UDP a client sends a request again until it has an authentic answer.
            self._plane.refuse(requested.connection, flow.refusal)
            return
        request = _parse(requested.request)
        if requested.request[:2] == _REFRESH:
            # It would take the allocation to another connection, and leave the call's place behind on this one.
            self._refuse(requested, flow, request, self._entitlement.mobility(flow.region, flow.client, flow.id))
            return
        username = _username(request)
        if not username and self._entitlement.asks_for_users:
            self._refuse(requested, flow, request, self._bad_request(flow))
            return
        then = functools.partial(self._settle, requested, flow, request)
        self._entitlement.ask(username, flow.region, flow.client, flow.id, then)

    def _bad_request(self, flow: _Flow) -> Verdict:
        return self._entitlement.bad_request(flow.region, flow.client, flow.id)

    def _settle(self, requested: AllocateRequested, flow: _Flow, request: Message | None, verdict: Verdict) -> None:
        if self._flows.get(requested.connection) is flow:  # otherwise it has ended meanwhile
            then = functools.partial(self._on_room, requested, flow, request)
            self._entitlement.ask_for_room(requested.connection, verdict, then)

    def _on_room(self, requested: AllocateRequested, flow: _Flow, request: Message | None, verdict: Verdict) -> None:
        if self._flows.get(requested.connection) is not flow:
            return
        now, transaction_id = asyncio.get_running_loop().time(), _transaction_id(requested.request)
        if verdict.admitted and not flow.may_ask(now, transaction_id, verdict.user):
            verdict = self._bad_request(flow)
        if not verdict.admitted:
            self._refuse(requested, flow, request, verdict)
            return
        flow.asked[transaction_id] = _Asked(verdict, requested.request, now + ASKED_S)
        if flow.closing is not None:  # another name than the one that was refused
            flow.closing.cancel()
            flow.closing = None
        self._plane.admit(requested.connection)

    def _refuse(self, requested: AllocateRequested, flow: _Flow, request: Message | None, verdict: Verdict) -> None:
        connection = requested.connection
        flow.refusal = build_refusal(requested.request, request, verdict, flow.secret)
        self._plane.refuse(connection, flow.refusal)
        if flow.closing is None:
            loop = asyncio.get_running_loop()
            flow.closing = loop.call_later(REFUSED_CLOSE_S, self._plane.close, connection, CloseReason.NOT_ENTITLED)

    def on_granted(self, granted: AllocateGranted) -> None:
        """Give the call its place, and the client its answer. If there is no place, end the connection."""
        connection = granted.connection
        flow = self._flows.get(connection)
        if flow is None:
            return
        asked = flow.asked.get(_transaction_id(granted.response))
        # A place may have gone to another call since this one was given up.
        wanted = flow.granted if _is_of_refresh(granted.response) else asked and asked.verdict
        then = functools.partial(self._on_place, granted, flow, asked, wanted)
        if wanted is None:  # the upstream asks for no credentials, so the request names nobody
            then(self._bad_request(flow))
        else:
            self._entitlement.ask_for_grant(connection, wanted, then)

    def _on_place(
        self, granted: AllocateGranted, flow: _Flow, asked: _Asked | None, wanted: Verdict | None, verdict: Verdict
    ) -> None:
        connection = granted.connection
        if self._flows.get(connection) is not flow:
            return
        if verdict.admitted:
            flow.granted = wanted
            if verdict.user:
                self._plane.share(connection, verdict.user)
            self._plane.answer(connection, granted.response)
            return
        request = None if asked is None else _parse(asked.request)
        self._plane.answer(connection, build_refusal(granted.response, request, verdict, flow.secret))
        # This one ends at once: the upstream would serve the client.
        self._plane.close(connection, CloseReason.NOT_ENTITLED)

    def on_named(self, named: AllocationNamed) -> None:
        """Nobody is asked for users here. Still all flows of one share what it may carry."""
        if user := self._entitlement.user_named(named.username):
            self._plane.share(named.connection, user)

    def stop(self) -> None:
        """Close no more connections."""
        for flow in self._flows.values():
            if flow.closing is not None:
                flow.closing.cancel()


def _transaction_id(message: bytes) -> bytes:
    return message[8 : 8 + TRANSACTION_ID_BYTES]


def _is_of_refresh(message: bytes) -> bool:
    return split_message_type(int.from_bytes(message[:2]))[0] == Method.REFRESH


def _parse(request: bytes) -> Message | None:
    try:
        return parse_message(request)
    except StunError:
        return None


def _username(request: Message | None) -> str:
    try:
        name = "" if request is None else request.text(AttributeType.USERNAME) or ""
    except StunError:
        return ""
    # Servers written in C read a name up to its first NUL, and some cut long names: one user could have any number of
    # names here. A valid name has no control characters (RFC 8265 section 3.4).
    good = len(name.encode()) <= MAX_USERNAME_BYTES and not any(unicodedata.category(one) == "Cc" for one in name)
    return name if good else ""


def build_refusal(raw: bytes, request: Message | None, verdict: Verdict, secret: str = "") -> bytes:
    """The STUN error for the request or grant ``raw``; ``request`` is the parsed request, None if it is malformed.

    It is signed with the client's key if the upstream's shared secret is known, and the request was signed with it too.
    """
    error = verdict.error
    assert error is not None
    transaction_id = _transaction_id(raw)
    attributes = [(AttributeType.ERROR_CODE, build_error_code(*error))]
    if verdict.connection:
        attributes.append((AttributeType.SOFTWARE, f"cloud9-relay {verdict.connection}".encode()))
    kind, key = _integrity(request, secret)
    method = Method.REFRESH if _is_of_refresh(raw) else Method.ALLOCATE
    return build_message(method, MessageClass.ERROR, transaction_id, attributes, integrity_key=key, integrity_kind=kind)


def _integrity(request: Message | None, secret: str) -> tuple[int, bytes | None]:
    """Attribute and key to sign an answer with. The key is None if it is unknown, or the client has not proved it."""
    kinds = [] if request is None else [kind for kind in INTEGRITY_DIGESTS if kind in request.integrity_offsets]
    if request is None or not kinds or not secret:
        return AttributeType.MESSAGE_INTEGRITY, None
    username = _username(request)
    try:
        realm = request.text(AttributeType.REALM) or ""
    except StunError:
        return kinds[-1], None
    key = long_term_key(username, realm, rest_password(secret, username))
    return kinds[-1], key if request.has_integrity(key, kinds[-1]) else None
