"""The contract between the control plane, which decides, and the data plane, which carries.

Verbs go down (``Plane``), events come up in batches through one callback. Nothing in either direction happens once
per packet: control sees a connection when it opens, when it asks for something, and when it closes.

A connection id is never used again, so a verb that comes too late for its connection does nothing.

Comments say where ``compiled/`` lists an enumeration again, in the same order. tests/plane/test_numbers.py compares.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NewType, Protocol

from relay.addresses import Address, RelayPolicy
from relay.plane.client_certificates import ClientAuthorities, ClientCertificates
from relay.plane.settings import PlaneSettings
from relay.plane.taps import Tap
from relay.quality.stream import RtpStream

if TYPE_CHECKING:
    from relay.plane.certificates import HandshakeFailure, ServerCertificate

ConnectionId = NewType("ConnectionId", int)

# This much of a user name is shown, because the client chooses it.
MAX_USERNAME_CHARACTERS = 128


class Carrier(StrEnum):
    """How media is framed on the client's side."""  # listed again as CARRIER_* in compiled/leaves/carriage.pxd

    TURN = "turn"  # the stream of RFC 8656 section 12.5
    WEBSOCKET = "websocket"  # sub-protocol turn: one STUN or ChannelData message in each binary message
    SESSION = "session"  # sub-protocol media.v1: control holds the allocation; channel number and data in each message
    CONNECT_UDP = "connect-udp"  # RFC 9298: one datagram in each capsule, as it is


class CloseReason(StrEnum):
    """Why a connection ended: a label of metrics and a word of the log, so the set is closed."""

    # Listed again as REASON_* in compiled/engine.pxd. A word has at most 31 characters (close_words).
    # The client's side
    CLIENT_CLOSED = "client_closed"
    CLIENT_LOST = "client_lost"  # reset, silent for longer than TCP waits, or answers no WebSocket ping
    HANDSHAKE_FAILED = "handshake_failed"
    TLS_BROKEN = "tls_broken"  # a bad record after a good handshake
    TLS_FLOOD = "tls_flood"  # records that carry no data (new keys, empty ones), more than a client needs
    FIRST_BYTES_TIMEOUT = "first_bytes_timeout"
    FIRST_BYTES_UNKNOWN = "first_bytes_unknown"
    NO_ALLOCATION = "no_allocation"  # a flow that has had none for too long; others need its UDP socket
    BROKEN_FRAME = "broken_frame"
    SLOW_CLIENT = "slow_client"  # does not read what must not be dropped
    RESUMED = "resumed"  # came back on another connection
    # The upstream's side
    UPSTREAM_UNREACHABLE = "upstream_unreachable"  # ICMP: nobody listens there; or our kernel opens no UDP socket to it
    UPSTREAM_SILENT = "upstream_silent"
    NO_UPSTREAM = "no_upstream"
    # Ours
    HTTP_CLOSED = "http_closed"
    NETWORK_REFUSED = "network_refused"  # by the lists of networks
    TOO_MANY_CONNECTIONS = "too_many_connections"
    TOO_MANY_HANDSHAKES = "too_many_handshakes"  # in a second
    TOO_MANY_FLOWS = "too_many_flows"  # without an allocation, of one source
    NO_DESCRIPTORS = "no_descriptors"
    NO_MEMORY = "no_memory"  # it is short, so control begins nothing new
    CONTROL_TIMEOUT = "control_timeout"  # control did not answer within ``control_timeout_s``, or takes no messages
    NOT_ENTITLED = "not_entitled"  # refused: by policy, or a session's Allocate by its upstream (4xx, also 440)
    DRAINING = "draining"
    STOPPED = "stopped"


# What a WebSocket client is told (RFC 6455 section 7.4), with the reason's word as text. For a broken frame, code and
# text say what is wrong with it. A client that closes first gets its own code back.
#
# Other reasons have no Close frame. Most of these clients are gone, do not read, or never spoke WebSocket. A few may
# still read: one whose first message, or whose session's ``open``, does not come in time (FIRST_BYTES_TIMEOUT), one
# that does not close after ``closed`` (CLIENT_CLOSED), and one that sends empty records (TLS_FLOOD).
CLOSE_CODES: Mapping[CloseReason, int] = MappingProxyType(
    {
        CloseReason.UPSTREAM_UNREACHABLE: 1013,
        CloseReason.UPSTREAM_SILENT: 1013,
        CloseReason.NO_UPSTREAM: 1013,
        CloseReason.NO_DESCRIPTORS: 1013,
        CloseReason.NO_MEMORY: 1013,
        CloseReason.CONTROL_TIMEOUT: 1011,
        CloseReason.NOT_ENTITLED: 1008,
        CloseReason.NO_ALLOCATION: 1008,
        CloseReason.RESUMED: 1000,
        CloseReason.DRAINING: 1001,
        CloseReason.STOPPED: 1001,
    }
)


class Traffic(StrEnum):
    """What a packet is, by its first bytes (RFC 7983, RFC 5761): the order in which a slow client gets it."""

    # Listed again as TRAFFIC_* in compiled/leaves/schedule.pxd.
    CONTROL = "control"  # STUN, and what sets DTLS up: first, and never dropped by age
    RTCP = "rtcp"
    MEDIA = "media"
    DATA = "data"  # what DTLS carries (WebRTC's data channels), and everything of an unknown kind: last


class DropReason(StrEnum):
    """Why a packet was not forwarded."""  # listed again as DROP_* in compiled/engine.pxd

    DOWNLINK_FULL = "downlink_full"  # more waits than a flow may hold
    DOWNLINK_OLD = "downlink_old"  # waited for its client until it was worth nothing
    DOWNLINK_DUPLICATE = "downlink_duplicate"  # a second answer to one STUN request
    DOWNLINK_MALFORMED = "downlink_malformed"  # neither STUN nor ChannelData; over CONNECT-UDP, not media
    DOWNLINK_RATE = "downlink_rate"  # more in this second than a flow may carry
    DOWNLINK_USER_RATE = "downlink_user_rate"  # more in this second than all flows of its user may carry
    UPLINK_MALFORMED = "uplink_malformed"  # over CONNECT-UDP: not media by its first byte (RFC 7983)
    UPLINK_RATE = "uplink_rate"  # more in this second than a flow may carry; or an Allocate, and too many wait
    UPLINK_USER_RATE = "uplink_user_rate"  # more in this second than all flows of its user may carry
    UPLINK_OVERSIZE = "uplink_oversize"  # longer than the path to the upstream carries whole
    UPLINK_FULL = "uplink_full"  # the UDP socket, or the queue of its link, has no room
    UPLINK_REFUSED = "uplink_refused"  # our own kernel did not send it: a packet filter, no route, a link that is down


class PauseCause(StrEnum):
    """Why newcomers wait for a while before they are accepted."""

    HANDSHAKES = "handshakes"  # as many have begun in this second as may
    DESCRIPTORS = "descriptors"  # the process, or the machine, has none left for them
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a flow goes: a UDP TURN server by name and literal address."""

    name: str
    address: Address
    # Hand the socket of a client that vanished to control, which can release its allocation.
    releases_allocations: bool = False
    # If set, it replaces ``PlaneSettings.max_media_age_s`` for the flows of this upstream.
    max_media_age_s: float | None = None
    # Report each Allocate of a user (AllocateRequested), and forward it when control has admitted it; report each one
    # that the upstream has granted or brought back (AllocateGranted), and let control answer it.
    asks_for_users: bool = False
    # Where it may send the client on to (300 Try Alternate). With None the client gets that answer itself.
    alternates: RelayPolicy | None = None


@dataclass(slots=True)
class Totals:
    """Counters of one flow or of a plane. A packet counts where it is forwarded; bytes are UDP payload.

    Both ways count what passes between client and upstream. What the relay asks on its own account is not counted, and
    neither are the answers: the STUN that control speaks for a session, and what a flow asks of a silent upstream.
    ``retransmissions`` are requests sent again: they are part of the uplink packets, except those of a session, which
    are the relay's own. ``drops`` (by reason) and ``drops_by_traffic`` count the same packets, with two exceptions:
    malformed packets are of no kind, and of some nobody kept the kind (only ICMP told of them, or they were too long
    for a capsule).
    """

    uplink_packets: int = 0
    uplink_bytes: int = 0
    downlink_packets: int = 0
    downlink_bytes: int = 0
    retransmissions: int = 0
    drops: dict[DropReason, int] = field(default_factory=dict)
    drops_by_traffic: dict[Traffic, int] = field(default_factory=dict)

    def drop(self, reason: DropReason, traffic: Traffic | None = None) -> None:
        """Count one packet that was not forwarded."""
        self.drops[reason] = self.drops.get(reason, 0) + 1
        if traffic is not None:
            self.drops_by_traffic[traffic] = self.drops_by_traffic.get(traffic, 0) + 1

    def add(self, other: Totals) -> None:
        """Add another's counters to these."""
        self.uplink_packets += other.uplink_packets
        self.uplink_bytes += other.uplink_bytes
        self.downlink_packets += other.downlink_packets
        self.downlink_bytes += other.downlink_bytes
        self.retransmissions += other.retransmissions
        for reason, count in other.drops.items():
            self.drops[reason] = self.drops.get(reason, 0) + count
        for traffic, count in other.drops_by_traffic.items():
            self.drops_by_traffic[traffic] = self.drops_by_traffic.get(traffic, 0) + count


@dataclass(frozen=True, slots=True)
class Latency:
    """How long packets took: a histogram of microseconds that only counts up.

    ``buckets`` are (end, count), the end exclusive, in rising order, empty ones left out.
    """

    buckets: Sequence[tuple[int, int]] = ()
    sum_us: int = 0

    @property
    def count(self) -> int:
        """How many packets."""
        return sum(count for _, count in self.buckets)


@dataclass(frozen=True, slots=True)
class ClientLink:
    """What TCP says of the way to the client (tcp(7), TCP_INFO), read at most once a second."""

    rtt_us: int
    rtt_variation_us: int
    retransmits: int  # segments, from the connection's start
    unsent_bytes: int


@dataclass(frozen=True, slots=True)
class FlowSnapshot:
    """One flow as it is now, or as it was at its end. Times in seconds; ``heard_s`` since the upstream's last packet.

    ``username`` comes from the client's last Allocate that had one, where it is in clear; its first 128 characters.
    ``client_certificate`` is whose certificate the client has shown, verified; empty without one.
    ``queued_bytes`` wait for the client, the oldest of them for ``queue_age_s``. They are never more than
    ``downlink_media_bytes``, ``downlink_control_bytes`` and ``downlink_data_bytes`` together. Bytes that TLS already
    has are not among them: they are at most one record of 1 KiB, or one longer unit. Packets that are too old leave
    when the next packet comes or goes. ``queue_delay`` says how long the packets waited that have left. RTCP is
    encrypted, so it is only counted.
    """

    connection: ConnectionId
    client: Address
    server_name: str
    carrier: Carrier
    upstream: Upstream
    age_s: float
    heard_s: float
    totals: Totals
    username: str = ""
    client_certificate: str = ""
    # The upstream has granted an allocation, and its lifetime has not passed.
    allocated: bool = False
    queued_bytes: int = 0
    queue_age_s: float = 0.0
    queue_delay: Latency = Latency()
    link: ClientLink | None = None
    uplink_rtcp: int = 0
    downlink_rtcp: int = 0
    streams: Sequence[RtpStream] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The plane as it is now; the totals count from its start and include connections that have ended.

    A plane that does not measure latency leaves it empty.
    """

    connections: int
    flows: Sequence[FlowSnapshot]
    totals: Totals
    accepted: int
    closed: Mapping[CloseReason, int]
    handshake_failures: Mapping[HandshakeFailure, int]
    uplink_latency: Latency = Latency()
    downlink_latency: Latency = Latency()
    queue_delay: Latency = Latency()


# Events


@dataclass(frozen=True, slots=True)
class TurnOpened:
    """A client speaks TURN. Nothing that it says is forwarded before ``attach``."""

    connection: ConnectionId
    client: Address
    server_name: str
    alpn: str | None
    client_certificate: str = ""  # as in FlowSnapshot


@dataclass(frozen=True, slots=True)
class HttpOpened:
    """A client speaks HTTP; its plain bytes travel over ``fd``, a stream socket that control owns from here."""

    connection: ConnectionId
    fd: int
    client: Address
    server_name: str
    tls_version: str
    client_certificate: str = ""


@dataclass(frozen=True, slots=True)
class AllocationOrphaned:
    """A flow ended and left an allocation behind. Control owns ``fd``, the flow's connected UDP socket.

    ``request`` is the client's last authenticated request: it names user, realm and nonce. A session's flow always
    leaves its socket, and the request is empty: control made the allocation, and may ``move`` a new connection onto it.
    """

    connection: ConnectionId
    fd: int
    upstream: Upstream
    request: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AllocateRequested:
    """An Allocate that names a user waits, and so does all that the client says after it: ``admit`` or ``refuse`` it.

    This happens only where the upstream ``asks_for_users``. An Allocate that is authenticated and names nobody waits as
    well, and so does a Refresh that takes over the allocation of another connection (RFC 8016). Over CONNECT-UDP only
    TURN passes then. The name is what the client claims, until the upstream has answered.
    """

    connection: ConnectionId
    request: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AllocateGranted:
    """The upstream has granted an allocation. Its answer waits: ``answer`` with this response, or with another.

    A Refresh is reported as well if it brings back an allocation that was given up, or that had run out as far as the
    plane knows. This happens only where the upstream ``asks_for_users``. Everything else goes on meanwhile.
    """

    connection: ConnectionId
    response: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AllocationNamed:
    """The upstream has granted an Allocate that named this user, and the client has the answer.

    This happens only where there are bounds on what one user carries, and not where the upstream ``asks_for_users``.
    """

    connection: ConnectionId
    username: str


@dataclass(frozen=True, slots=True)
class TextReceived:
    """The client of a session has sent a text: at most 64 KiB of UTF-8. ``wire.media_v1`` takes 8,192 characters."""

    connection: ConnectionId
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class StunReceived:
    """The upstream of a session has sent a STUN message that is not a copy of an earlier answer."""

    connection: ConnectionId
    message: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class UpstreamLost:
    """The upstream of a session is gone, and its socket closed. The client stays: ``move`` or ``close`` it.

    ``reason`` is UPSTREAM_SILENT or UPSTREAM_UNREACHABLE.
    """

    connection: ConnectionId
    reason: CloseReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AcceptPaused:
    """The plane accepts nobody for some milliseconds: newcomers wait in the kernel's queue, and connections go on.

    It is told at most ten times a second, by each worker.
    """

    cause: PauseCause
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Closed:
    """A connection ended. ``detail`` is for the log; ``flow`` is None if it never became one."""

    connection: ConnectionId
    reason: CloseReason
    client: Address
    server_name: str
    totals: Totals
    flow: FlowSnapshot | None = None
    detail: str = ""
    handshake_failure: HandshakeFailure | None = None
    client_certificate: str = ""


Event = (
    TurnOpened
    | HttpOpened
    | AllocateRequested
    | AllocateGranted
    | AllocationNamed
    | TextReceived
    | StunReceived
    | UpstreamLost
    | AllocationOrphaned
    | AcceptPaused
    | Closed
)
EventSink = Callable[[Sequence[Event]], None]


class Plane(Protocol):
    """The verbs. All but ``listen`` and ``stop`` return at once."""

    async def listen(
        self,
        address: Address,
        given: Sequence[socket.socket] = (),
        asks: ClientCertificates = ClientCertificates.NONE,
    ) -> Address:
        """Accept clients on a literal address, on a free port for port 0, or on sockets that listen there already.

        What is ``given`` does not block, and is the plane's from here. Returns the address. Raises OperatorError.
        """

    def set_certificates(self, certificates: Sequence[ServerCertificate]) -> None:
        """Use these for new connections, the first where no name matches. Raises OperatorError and keeps the old."""

    def trust_clients(self, authorities: ClientAuthorities | None) -> None:
        """Accept certificates of clients that these have signed, with None of nobody. Raises as ``set_certificates``.

        Sessions of TLS that began under others are not resumed where clients are asked for a certificate.
        """

    def configure(self, settings: PlaneSettings) -> None:
        """Use these bounds from now on; running connections keep the deadlines they have."""

    def new_id(self) -> ConnectionId:
        """The id of a connection that control has accepted, and may have the plane ``adopt``."""

    def adopt(
        self,
        fd: int,
        preread: bytes = b"",
        client: Address | None = None,
        asks: ClientCertificates = ClientCertificates.NONE,
        connection: ConnectionId | None = None,
    ) -> ConnectionId:
        """Take over a TCP connection that was accepted elsewhere, and the bytes already read from it.

        ``client`` is who it is from, a literal address, where that is not the other end of the socket. ``connection``
        is a ``new_id`` under which control knows it already; without one it gets a new one. Returns its id.
        """

    def attach(self, connection: ConnectionId, upstream: Upstream) -> None:
        """Start the flow of a connection that has reported TurnOpened."""

    def upgrade(self, connection: ConnectionId, response: bytes, carrier: Carrier, upstream: Upstream | None) -> None:
        """Take an HTTP connection back, send the response (a 101), and go on as media.

        A session has no upstream before ``move``; with any other carrier there is one from the start.
        """

    def move(self, connection: ConnectionId, upstream: Upstream, fd: int = -1) -> None:
        """Have a session go on at this upstream: from a fresh socket, or from one that an earlier flow has left.

        The plane owns ``fd`` from here, in every case, and closes the socket that the session had before.
        """

    def tell(self, connection: ConnectionId, text: str) -> None:
        """Send the client of a session a text message."""

    def request(self, connection: ConnectionId, message: bytes) -> None:
        """Send the upstream of a session a STUN message; a request is sent again until it is answered."""

    def admit(self, connection: ConnectionId) -> None:
        """Forward the Allocate that waits, and go on."""

    def refuse(self, connection: ConnectionId, response: bytes) -> None:
        """Answer the Allocate that waits with this STUN message, and go on."""

    def answer(self, connection: ConnectionId, response: bytes) -> None:
        """Give the client this STUN message for the Allocate that was granted."""

    def share(self, connection: ConnectionId, user: str) -> None:
        """Count what a flow carries from now on as this user's, together with all other flows of the user."""

    def allocated(self, connection: ConnectionId) -> bool:
        """True while a flow has an allocation that the upstream has granted and whose lifetime has not passed."""

    def carries(self, connection: ConnectionId) -> bool:
        """True for a flow that has an allocation, or over CONNECT-UDP has heard anything but STUN from its peer."""

    def close(self, connection: ConnectionId, reason: CloseReason) -> None:
        """End a connection; what is already written still leaves."""

    def tap(self, connection: ConnectionId) -> Tap | None:
        """Copy a flow's datagrams; at most 1 MiB waits. None without such a flow. A second tap ends the first."""

    def hold(self, held: bool) -> None:
        """Accept nobody until told otherwise, because memory is short: newcomers wait, and ``AcceptPaused`` tells."""

    def drain(self) -> None:
        """Accept nobody from now on; running connections stay."""

    async def stop(self) -> None:
        """End all connections and let go of every descriptor."""

    def turns(self) -> Sequence[int]:
        """How often each of its threads has gone round. One that works does so at least once a second; numbers wrap."""

    def snapshot(self) -> Snapshot:
        """All counters and flows as they are now."""
