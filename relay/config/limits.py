"""What clients may take of the relay, and how long it waits for clients, for upstreams, and for calls when it stops.

A bound of the data plane with the same name in ``relay.plane.settings.PlaneSettings`` reaches it by that name. The
others are listed in ``relay.gateway.app.plane_settings``.
"""

from __future__ import annotations

from pydantic import Field

from relay.config.values import MAX_COUNT, Count, Seconds, Section


class LimitsSettings(Section):
    """``[limits]``. For a number of connections or sessions, 0 means "no bound"."""

    # 20,000 connections take two to five descriptors each. The unit file allows 131,072.
    connections: Count = Field(default=20_000, ge=0, le=MAX_COUNT)
    # Off, because behind a web proxy a whole firm comes from one address.
    connections_per_source: Count = Field(default=0, ge=0, le=MAX_COUNT)
    # Sessions (/media) of one source address (IPv6: of one /64), including those whose client was cut and may come
    # back. Behind a web proxy a floor of 300 desks has one address. Each desk gets four: two calls, and two that were
    # cut.
    sessions_per_source: Count = Field(default=1200, ge=0, le=MAX_COUNT)
    # The same for one user, from all addresses; the upstream has proven who it is. Where the whole floor shares one
    # user name, this is one session for each of its 300 desks and some to spare. Where each desk has its own name, 16
    # are enough.
    sessions_per_user: Count = Field(default=400, ge=0, le=MAX_COUNT)
    # From the TCP connection until TLS is set up.
    handshake_timeout_s: Seconds = 10.0
    # After that, until the client has said which protocol it speaks.
    first_bytes_timeout_s: Seconds = 10.0
    # A flow holds a UDP socket. A client that works gets its allocation within seconds.
    allocation_timeout_s: Seconds = 30.0
    # A flow's upstream counts as gone when it leaves requests unanswered, and sends nothing else, for this long. Then
    # the flow is closed; a session is moved to another upstream.
    upstream_silence_s: Seconds = 4.0
    # After SIGTERM running calls have this long. Most calls of a trading floor are shorter.
    drain_timeout_s: float = Field(default=30.0, strict=True, ge=0, le=86_400)
