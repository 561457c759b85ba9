"""Why a TURN host did not pass on a datagram."""

from __future__ import annotations

from enum import StrEnum


class Drop(StrEnum):
    """The reasons. The server itself has the first group, a host on real sockets also the second."""

    MALFORMED = "malformed"  # neither ChannelData nor a STUN message that a client may send
    NO_ALLOCATION = "no_allocation"
    NO_CHANNEL = "no_channel"  # the number is not bound, or not any longer
    NOT_PERMITTED = "not_permitted"  # no permission for the peer's address
    OVERSIZE = "oversize"
    RATE_LIMITED = "rate_limited"  # this source has had its share of answers

    REFUSED = "refused"  # the socket was full, or there is no route
    REQUEST_FLOOD = "request_flood"  # too many requests wait already
    SLOW_CLIENT = "slow_client"  # too much waits already for a client over TCP
    PAUSED = "paused"  # somebody has switched the host off for a while
