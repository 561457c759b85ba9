"""300 Try Alternate (RFC 8489 section 10): an upstream names another address, and the flow goes on there.

The client could not follow by itself: it speaks TLS with the relay, and the address is one for UDP. So its Allocate is
sent again, to the alternate, and all that follows goes there. What was signed for the first server is answered 401 or
438 there, with the alternate's own nonce, as if the nonce had gone stale, and the client goes on from that.
ALTERNATE-DOMAIN has the name for a certificate; over UDP there is none to check.
"""

from __future__ import annotations

from dataclasses import replace

from relay.plane.api import Upstream
from relay.wire.stun import StunError, parse_message

# So often a flow is sent on: more is a loop.
MAX_HOPS = 3
TRY_ALTERNATE = 300


def redirected(upstream: Upstream, answer: bytes) -> Upstream | None:
    """Where an answer to Allocate leads; None if it does not, or nobody may be sent there."""
    if upstream.alternates is None:
        return None
    try:
        message = parse_message(answer)
        error, alternate = message.error, message.alternate_server
    except StunError:
        return None
    if error is None or error.code != TRY_ALTERNATE or alternate is None:
        return None
    return replace(upstream, address=alternate) if upstream.alternates.permits(alternate.host) else None
