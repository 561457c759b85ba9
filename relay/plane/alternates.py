"""300 Try Alternate (RFC 8489 section 10): an upstream names another address, and the flow goes on there.

The client could not follow by itself: it speaks TLS with the relay, and the address is one for UDP. So its Allocate is
sent again, to the alternate, and everything after it goes there too. The alternate answers 401 or 438 to a request that
was signed for the first server, and adds a nonce of its own. To the client that looks as if its nonce had gone stale,
and it goes on from there. ALTERNATE-DOMAIN names a certificate to check; over UDP there is no certificate.
"""

from __future__ import annotations

from dataclasses import replace

from relay.plane.api import Upstream
from relay.wire.stun import StunError, parse_message

# A flow, a session or a probe is sent on this often at most: more is a loop, or the operator's mistake.
MAX_HOPS = 3
TRY_ALTERNATE = 300


def redirected(upstream: Upstream, answer: bytes) -> Upstream | None:
    """Where an answer to Allocate leads. Returns None if it leads nowhere, or to where flows may not go."""
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
