"""Which clients are served, what they may take of the relay, and how long it waits: for clients, for upstreams, and for
calls when it stops.

A bound of the data plane with the same name in ``relay.plane.settings.PlaneSettings`` reaches it by that name. The
others are listed in ``relay.gateway.plane_bounds``.
"""

from __future__ import annotations

from pydantic import Field

from relay.config.values import MAX_COUNT, MAX_MEMORY_BYTES, MAX_RATE, Count, Flag, Networks, Seconds, Section


class AccessSettings(Section):
    """``[access]``: networks of clients. A client is judged by its address, before TLS, wherever it comes in."""

    # Only these are served. Without any, all are: clients come from wherever the firm's people are.
    allow: Networks = ()
    # These are not served, not even those that ``allow`` has.
    deny: Networks = ()


class LimitsSettings(Section):
    """``[limits]``. For a number of anything, 0 means "no bound".

    A source is an IPv4 address, or the network (/64) of an IPv6 address.
    """

    # 20,000 connections take two to four descriptors each. The unit file allows 131,072.
    connections: Count = Field(default=20_000, ge=0, le=MAX_COUNT)
    # Half of them: one source cannot take all. Behind one address of a web proxy or NAT these are 2,500 desks, with
    # four connections each; a firm with more lists that address in ``exempt_networks``.
    connections_per_source: Count = Field(default=10_000, ge=0, le=MAX_COUNT)
    # For clients in these networks no bound on one source counts, neither here nor in ``web_proxy``: a web proxy brings
    # a whole firm from one address.
    exempt_networks: Networks = ()
    # TLS handshakes that begin in a second, and as many at once. More clients wait before their handshake. Each takes
    # half a millisecond of a core, so these take half of one. A relay that takes over all 20,000 clients of another
    # one has them within 20 s.
    handshakes_per_second: Count = Field(default=1000, ge=0, le=MAX_RATE)
    # More from one source are closed. A floor of 500 desks behind one address comes back within a second after a blip,
    # and whoever floods takes at most half of what there is.
    handshakes_per_second_per_source: Count = Field(default=500, ge=0, le=MAX_RATE)
    # Flows of one source that have no allocation yet: each holds a UDP socket, and a client that works has its
    # allocation within a second. These are 300 desks behind one address that call at the same moment, with three flows
    # each.
    unallocated_flows_per_source: Count = Field(default=1000, ge=0, le=MAX_COUNT)
    # Sessions (/media) of one source address (IPv6: of one /64), including those whose client was cut and may come
    # back. Behind a web proxy a floor of 300 desks has one address. Each desk gets four: two calls, and two that were
    # cut.
    sessions_per_source: Count = Field(default=1200, ge=0, le=MAX_COUNT)
    # The same for one user, from all addresses; the upstream has proven who it is. Where the whole floor shares one
    # user name, this is one session for each of its 300 desks and some to spare. Where each desk has its own name, 16
    # are enough.
    sessions_per_user: Count = Field(default=400, ge=0, le=MAX_COUNT)
    # Sessions that one source opens in a second, and as many at once: 500 desks that come back after a blip. Each takes
    # a millisecond of Python, which also answers signaling and the web proxy.
    session_opens_per_second_per_source: Count = Field(default=500, ge=0, le=MAX_RATE)
    # What one flow carries in a second, each way; what comes beyond is dropped. A call sends 50 packets a second, and a
    # shared screen or a data channel of 10 Mbit/s some 1,000. This is ten times that, and far below what one core
    # carries, so that no flow takes the turn of others.
    packets_per_second_per_flow: Count = Field(default=10_000, ge=0, le=MAX_COUNT)
    # 100 Mbit/s.
    bytes_per_second_per_flow: Count = Field(default=12_500_000, ge=0, le=MAX_COUNT * 1000)
    # What all flows of one user carry in a second, each way; what comes beyond is dropped. The upstream has proven who
    # the user is. These are ten flows at their own bound, or 2,000 calls, and about what one core carries. A floor of
    # 300 desks that shares one user name sends a quarter of this.
    packets_per_second_per_user: Count = Field(default=100_000, ge=0, le=MAX_COUNT)
    # 1 Gbit/s.
    bytes_per_second_per_user: Count = Field(default=125_000_000, ge=0, le=MAX_COUNT * 1000)
    # When memory becomes short, newcomers wait and new calls are refused, so that running ones go on. Limits of the
    # service or the container (cgroup v2) and stalls (PSI) are noticed without being told here.
    watch_memory: Flag = True
    # A limit for this process, for machines that have neither; at 90 % of it memory is short. A connection takes 43 KiB
    # during its handshake, and a call 18 KiB.
    memory_bytes: Count = Field(default=0, ge=0, le=MAX_MEMORY_BYTES)
    # From the TCP connection until TLS is set up.
    handshake_timeout_s: Seconds = 10.0
    # After that, until the client has said which protocol it speaks.
    first_bytes_timeout_s: Seconds = 10.0
    # A flow holds a UDP socket. A client that works gets its allocation within seconds.
    allocation_timeout_s: Seconds = 30.0
    # A flow's upstream counts as gone when it leaves requests unanswered, and sends nothing else, for this long. Then
    # the flow is closed; a session is moved to another upstream.
    upstream_silence_s: Seconds = 4.0
    # After SIGTERM newcomers are still served for this long, while health checks are answered 503. So a balancer sends
    # them elsewhere before the port closes. haproxy leaves a server after three failed checks, 2 s apart: 6 s, and some
    # to spare. 0 closes the port at once.
    lame_duck_s: float = Field(default=8.0, strict=True, ge=0, le=3600)
    # After that running calls have this long. Most calls of a trading floor are shorter.
    drain_timeout_s: float = Field(default=30.0, strict=True, ge=0, le=86_400)
    # After "relay upgrade" the process before serves its calls for this long, and then drains. Nobody waits for it, so
    # this is longer than almost any call. Only its memory is needed meanwhile.
    handover_timeout_s: float = Field(default=14_400.0, strict=True, ge=0, le=86_400)
