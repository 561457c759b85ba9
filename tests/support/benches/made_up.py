"""A relay that is made up: calls whose figures count up as they are told to, read by the real gateway parts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from relay.addresses import Address
from relay.config import CaptureSettings, EntitlementSettings, HealthSettings, UpstreamServer
from relay.gateway.admin.capture import Captures
from relay.gateway.admin.listener import Admin
from relay.gateway.admin.view import View
from relay.gateway.calls.calls import Calls
from relay.gateway.calls.ids import CallIds
from relay.gateway.calls.records import Records
from relay.gateway.calls.store import CallStore
from relay.gateway.entitlement.verdicts import Entitlement
from relay.gateway.routing.upstreams import Upstreams
from relay.plane.api import (
    Carrier,
    ClientLink,
    Closed,
    CloseReason,
    ConnectionId,
    DropReason,
    FlowSnapshot,
    Latency,
    Snapshot,
    Totals,
    Traffic,
    Upstream,
)
from relay.quality.stream import Direction, RtpStream

PACKETS_PER_S = 50
# Its flows have no packets.
NO_CAPTURES = Captures(lambda _: None, CaptureSettings())
UPSTREAM = Upstream("use1-stun1", Address("192.0.2.7", 3478))


def stream(direction: Direction = Direction.DOWNLINK, ssrc: int = 1, **figures: int) -> RtpStream:
    """A stream of nothing yet, or of what is said of it."""
    nothing = dict.fromkeys((one.name for one in dataclasses.fields(RtpStream)), 0)
    given = {**nothing, "clock_hz": 8000, **figures, "direction": direction, "ssrc": ssrc, "pauses": ()}
    return RtpStream(**given)  # type: ignore[arg-type]


def went_on(one: RtpStream, packets: int, *, lost: int = 0, late: int = 0, jitter_us: int = 500) -> RtpStream:
    """The same stream after this many more packets, of which some never came and others came late."""
    return dataclasses.replace(
        one,
        packets=one.packets + packets - lost,
        expected=one.expected + packets,
        late=one.late + late,
        missing_runs=one.missing_runs + lost + late,
        jitter_us=jitter_us,
    )


@dataclass
class MadeUpCall:
    """One flow. ``talk`` lets it go on; what does not change is as it was given."""

    connection: ConnectionId
    username: str = "trader"
    server_name: str = "desk.relay.test"
    upstream: Upstream = UPSTREAM
    client: Address = Address("10.1.2.3", 50000)  # noqa: RUF009
    age_s: float = 0.0
    streams: dict[Direction, RtpStream] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    queue_us: dict[int, int] = field(default_factory=dict)
    rtt_us: int = 400

    def talk(
        self,
        seconds: float = 5.0,
        *,
        lost: int = 0,
        late: int = 0,
        jitter_us: int = 500,
        queue_us: int = 256,
        drops: int = 0,
        directions: Iterable[Direction] = Direction,
    ) -> None:
        """Send on; ``lost`` and ``late`` are on the downlink, the uplink is clean."""
        self.age_s += seconds
        packets = round(seconds * PACKETS_PER_S)
        for direction in directions:
            one = self.streams.get(direction) or stream(direction, self.connection % 2**32)
            down = direction is Direction.DOWNLINK
            self.streams[direction] = went_on(
                one, packets, lost=lost if down else 0, late=late if down else 0, jitter_us=jitter_us if down else 300
            )
            if down:
                self.totals.downlink_packets += packets - lost
                self.totals.downlink_bytes += 182 * (packets - lost)
            else:
                self.totals.uplink_packets += packets
                self.totals.uplink_bytes += 182 * packets
        self.queue_us[queue_us] = self.queue_us.get(queue_us, 0) + packets
        for _ in range(drops):
            self.totals.drop(DropReason.DOWNLINK_OLD, Traffic.MEDIA)

    def snapshot(self) -> FlowSnapshot:
        """As the plane would tell of it."""
        totals = Totals()
        totals.add(self.totals)
        return FlowSnapshot(
            self.connection,
            self.client,
            self.server_name,
            Carrier.TURN,
            self.upstream,
            self.age_s,
            heard_s=0.01,
            totals=totals,
            username=self.username,
            queue_delay=Latency(sorted(self.queue_us.items()), sum(us * count for us, count in self.queue_us.items())),
            link=ClientLink(self.rtt_us, self.rtt_us // 4, 0, 0),
            uplink_rtcp=2,
            downlink_rtcp=3,
            streams=list(self.streams.values()),
        )

    def closed(self, reason: CloseReason = CloseReason.CLIENT_CLOSED, detail: str = "") -> Closed:
        """Its end."""
        last = self.snapshot()
        return Closed(self.connection, reason, self.client, self.server_name, last.totals, last, detail)


def nobody_asked() -> Entitlement:
    """Entitlement of a relay that asks for nobody's name."""
    return Entitlement(EntitlementSettings(), lambda _: True)


class MadeUpRelay:
    """Calls, upstreams and what reads them. ``use1`` has two upstreams of which one is down, ``euc1`` has one."""

    def __init__(self, store: CallStore | None = None) -> None:
        """``store`` keeps what has ended; the test starts and stops it."""
        self.ids = CallIds("test")
        self.store = store
        self.flows: list[MadeUpCall] = []
        self.gone = Totals()
        self.upstreams = Upstreams()
        names = (("use1-stun1", "use1"), ("use1-stun2", "use1"), ("euc1-stun1", "euc1"))
        servers = [
            UpstreamServer(name=name, region=region, address=Address("192.0.2.7", 3478 + number))
            for number, (name, region) in enumerate(names)
        ]
        self.upstreams.configure(servers, HealthSettings())
        for state in self.upstreams:
            if state.name == "use1-stun2":
                state.life.on_failure(certain=True)
            else:
                state.life.on_success()
                state.on_rtt(0.0123)
        self.calls = Calls(self.snapshot, self.upstreams.region_of, ids=self.ids)
        self.records = Records(None)
        self.view = View(
            self.snapshot,
            self.calls,
            self.upstreams,
            self.records,
            lambda: False,
            entitlement=nobody_asked(),
            store=store,
        )

    def call(self, connection: int = 1, **given: object) -> MadeUpCall:
        """One more call."""
        made = MadeUpCall(ConnectionId(connection), **given)  # type: ignore[arg-type]
        self.flows.append(made)
        return made

    def end(self, call: MadeUpCall, reason: CloseReason = CloseReason.CLIENT_CLOSED) -> None:
        """Take a call away, as the plane does."""
        self.flows.remove(call)
        self.gone.add(call.totals)
        ended = self.calls.on_closed(call.closed(reason))
        if self.store is not None and ended is not None:
            self.store.write(functools.partial(self.view.stored, ended))

    def id(self, connection: int) -> str:
        """The id of a call."""
        return self.ids.id_of(ConnectionId(connection))

    def snapshot(self) -> Snapshot:
        """The plane as it is now."""
        totals = Totals()
        totals.add(self.gone)
        for call in self.flows:
            totals.add(call.totals)
        flows = [call.snapshot() for call in self.flows]
        return Snapshot(len(flows), flows, totals, len(flows), {}, {})

    @contextlib.asynccontextmanager
    async def served(self, at: Address = Address("127.0.0.1", 0)) -> AsyncIterator[Address]:  # noqa: B008
        """The admin listener's address while the block runs."""
        admin = Admin(self.view, NO_CAPTURES)
        address = await admin.listen(at)
        try:
            yield address
        finally:
            await admin.stop()
