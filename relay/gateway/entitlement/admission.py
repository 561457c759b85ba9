"""Between the data plane, which reads the user name in an Allocate, and ``verdicts``, which knows what he may.

Who may not gets a STUN error, and a second later the end of the connection. RFC 8489 section 9.2.5 has an error
without MESSAGE-INTEGRITY end the transaction at once over TCP, and browsers take it as it is; but some clients wait for
one that is authentic, as they would over UDP. The relay can sign its refusal only where it knows the upstream's shared
secret; so the end of the connection tells them.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass, field

from relay.gateway.entitlement.verdicts import Entitlement, Verdict
from relay.gateway.flows import Wanted
from relay.gateway.upstreams import UpstreamState
from relay.plane.api import AllocateRequested, Carrier, CloseReason, ConnectionId, Plane
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
    parse_message,
)

# A client that understands its refusal is gone by then; others learn it from the end of the connection.
REFUSED_CLOSE_S = 1.0


@dataclass(slots=True)
class _Flow:
    """What is known of a flow that may ask. ``closing`` is set once it has been refused, with the last ``refusal``."""

    client: str
    region: str
    secret: str = field(repr=False)
    refusal: bytes = b""
    closing: asyncio.TimerHandle | None = None


class Admission:
    """Answers the AllocateRequested of a plane: ``admit``, or ``refuse`` and ``close``."""

    def __init__(self, plane: Plane, entitlement: Entitlement) -> None:
        self._plane = plane
        self._entitlement = entitlement
        self._flows: dict[ConnectionId, _Flow] = {}

    def on_begun(self, wanted: Wanted, upstream: UpstreamState | None) -> None:
        """A flow begins; without an upstream of ours, as over CONNECT-UDP, it has no region."""
        if wanted.carrier is Carrier.SESSION:
            return
        secret = None if upstream is None else upstream.settings.secret
        self._flows[wanted.connection] = _Flow(
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
            # Over CONNECT-UDP a client sends again what it has no authentic answer to.
            self._plane.refuse(requested.connection, flow.refusal)
            return
        request = _parse(requested.request)
        username = _username(request)
        if not username and self._entitlement.asks_for_users:
            self._refuse(requested, flow, request, self._entitlement.bad_request(flow.region, flow.client))
            return
        then = functools.partial(self._settle, requested, flow, request)
        self._entitlement.ask(username, flow.region, flow.client, then)

    def _settle(self, requested: AllocateRequested, flow: _Flow, request: Message | None, verdict: Verdict) -> None:
        if self._flows.get(requested.connection) is not flow:
            return  # it has ended meanwhile
        if verdict.admitted:
            verdict = self._entitlement.grant(requested.connection, verdict, provisional=True)
        if not verdict.admitted:
            self._refuse(requested, flow, request, verdict)
            return
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

    def stop(self) -> None:
        """Close nobody any more."""
        for flow in self._flows.values():
            if flow.closing is not None:
                flow.closing.cancel()


def _transaction_id(message: bytes) -> bytes:
    return message[8 : 8 + TRANSACTION_ID_BYTES]


def _parse(request: bytes) -> Message | None:
    try:
        return parse_message(request)
    except StunError:
        return None


def _username(request: Message | None) -> str:
    try:
        return "" if request is None else request.text(AttributeType.USERNAME) or ""
    except StunError:
        return ""


def build_refusal(raw: bytes, request: Message | None, verdict: Verdict, secret: str = "") -> bytes:
    """The STUN error for the Allocate ``raw``; ``request`` is the same parsed, None if it cannot be.

    Signed with the key of the client if the upstream's shared secret is known and the request is signed with it, too.
    """
    error = verdict.error
    assert error is not None
    transaction_id = _transaction_id(raw)
    attributes = [(AttributeType.ERROR_CODE, build_error_code(*error))]
    kind, key = _integrity(request, secret)
    return build_message(
        Method.ALLOCATE, MessageClass.ERROR, transaction_id, attributes, integrity_key=key, integrity_kind=kind
    )


def _integrity(request: Message | None, secret: str) -> tuple[int, bytes | None]:
    """Attribute and key that an answer owes; no key if it is not known, or the client has not shown that he has it."""
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
