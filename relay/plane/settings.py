"""What control tells a plane of its bounds and deadlines. A change counts for new connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from relay.addresses import IpNetwork
from relay.plane.networks import ClientNetworks
from relay.turn.transactions import RTO_S


@dataclass(frozen=True, slots=True)
class PlaneSettings:
    """Source addresses and networks, then bounds (listed again as Bounds in compiled/engine.pxd).

    For a number of connections or handshakes, 0 means "no bound".
    """

    # The source of UDP towards upstreams, for each family; None lets the route decide.
    source_ipv4: str | None = None
    source_ipv6: str | None = None
    # Networks of clients. Only these are served, all if there are none; and of them those not that are denied.
    allowed_clients: tuple[IpNetwork, ...] = ()
    denied_clients: tuple[IpNetwork, ...] = ()
    # The bounds on one source do not count for these: a web proxy brings a whole firm from one address.
    exempt_clients: tuple[IpNetwork, ...] = ()
    # A handshake takes two round trips; ten seconds is what a slow proxy may add.
    handshake_timeout_s: float = 10.0
    first_bytes_timeout_s: float = 10.0
    # A flow holds a UDP socket, and without an allocation it carries nothing. An Allocate takes a second, with a 401
    # and a fresh port in between. Over CONNECT-UDP a flow also stays for two minutes after media of the other side.
    allocation_timeout_s: float = 30.0
    # If control does not answer TurnOpened, AllocateRequested, AllocateGranted or UpstreamLost within this time, the
    # connection ends. Control answers within a turn of its loop, and policy within four seconds.
    control_timeout_s: float = 5.0
    # A client whose upstream answers nothing for this long is closed, so that it comes back to a healthy one. Only the
    # requests count that every TURN server answers; after half of the time the flow asks something itself.
    upstream_silence_s: float = 4.0
    # A request that the upstream leaves unanswered for this long is sent again (RFC 8489 section 6.2.1, RTO).
    initial_rto_s: float = RTO_S
    # While the process has this many descriptors in use, newcomers wait: the others are for control. 0: all are used.
    max_descriptors: int = 0
    max_connections: int = 20_000
    # A source is an IPv4 address, or the network (/64) of an IPv6 address.
    max_connections_per_source: int = 0
    # So many connections may begin a handshake in a second, and as many at once. Those of one source that are too fast
    # are closed. Those of all wait, except adopted ones, which are closed, too.
    handshakes_per_second: int = 0
    handshakes_per_second_per_source: int = 0
    # A flow carries at most this much in a second, each way. What comes beyond is dropped.
    packets_per_second_per_flow: int = 0
    bytes_per_second_per_flow: int = 0
    # All flows that control has given one user (``Plane.share``) carry at most this much together, each way.
    packets_per_second_per_user: int = 0
    bytes_per_second_per_user: int = 0
    # Media (RTCP, too) that has waited for its client for longer is dropped, the oldest first. A jitter buffer would
    # drop it too.
    max_media_age_s: float = 0.2
    # No more of it waits than this, RTCP included, and the oldest media is dropped first. A burst of 200 KB fits.
    downlink_media_bytes: int = 256 * 1024
    # STUN of the upstream is not dropped, so a client that reads nothing at all is closed at this bound. What a far
    # peer sends as control takes at most half of it, and 16 KiB a second; the rest waits as data.
    downlink_control_bytes: int = 64 * 1024
    # Data that comes when this much waits is dropped: SCTP sends faster until something is lost. 10 Mbit/s bring this
    # much in 200 ms. That is the round trip of a slow path, and a queue of one round trip keeps it busy.
    downlink_data_bytes: int = 256 * 1024
    # Data that has waited for longer is dropped, the oldest first: SCTP has sent it again by then
    # (RFC 9260 section 16, RTO.Min).
    max_data_age_s: float = 1.0
    # WebSocket pings are sent at this interval: proxies cut a tunnel that is idle for 60 s, and TCP's keep-alive does
    # not count for them. A client that has answered two pings with nothing, not even a pong, is gone.
    websocket_ping_s: float = 20.0
    # A packet counts as missing if it is later than the fastest packets of its stream by more than this. Jitter
    # buffers hold about as much.
    playout_deadline_s: float = 0.06
    # Clocks of payload types that RFC 3551 does not fix. The clocks of all others are guessed.
    payload_clocks: Mapping[int, int] = field(default_factory=dict)

    def networks(self) -> ClientNetworks:
        """The lists of networks, to judge clients by."""
        return ClientNetworks(self.allowed_clients, self.denied_clients, self.exempt_clients)
