"""The media of one connection: what the client says goes to the flow, what the upstream says to the client.

``Media`` is for the carriers whose client speaks with the upstream itself; ``session_media`` is for the one where
control does. Bytes of the client become units in ``carriers``, and the ``flow`` sends them. Units of the upstream pass
the ``downlink``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from relay.plane.api import (
    AllocateGranted,
    AllocateRequested,
    AllocationNamed,
    Carrier,
    CloseReason,
    DropReason,
    FlowSnapshot,
    Totals,
    Traffic,
    Upstream,
)
from relay.plane.endings import unread_detail
from relay.plane.reference.admission import MAX_ASKED_BYTES, Admission, is_to_ask, is_turn_datagram
from relay.plane.reference.allocation import ALLOCATE_SUCCESS, REFRESH_SUCCESS
from relay.plane.reference.allocation_watch import AllocationWatch
from relay.plane.reference.allowance import Allowance, UserAllowance
from relay.plane.reference.carriers import (
    Closing,
    Malformed,
    Oversize,
    Ping,
    Said,
    close_frame,
    is_websocket,
    new_framing,
    ping_frame,
    pong_frame,
)
from relay.plane.reference.downlink import Downlink
from relay.plane.reference.flow import Account, Flow, FlowSetup
from relay.plane.reference.naming import Naming
from relay.plane.reference.pings import Pings
from relay.plane.reference.schedule import Room, Schedule
from relay.plane.reference.tap import FlowTap
from relay.plane.reference.turn_flow import TurnFlow
from relay.quality.meter import Meter
from relay.quality.stream import Direction
from relay.wire.stun import HEADER_BYTES

if TYPE_CHECKING:
    from relay.plane.reference.connection import Connection
    from relay.plane.reference.plane import ReferencePlane

# Units forwarded before other connections have their turn, a millisecond or so: one read may bring 65,000.
MAX_UNITS_PER_TURN = 256


class Media:
    """From the first byte of media to the last. ``start`` comes first."""

    def __init__(self, plane: ReferencePlane, host: Connection, carrier: Carrier) -> None:
        self.carrier = carrier
        self.flow: Flow | None = None
        settings = plane.settings
        self._plane = plane
        self._host = host
        self._framing = new_framing(carrier)
        # What the client has said and has not been dealt with yet.
        self._said: deque[Said] = deque()
        self._closed = False
        self._admission = Admission()
        rates = settings.packets_per_second_per_flow, settings.bytes_per_second_per_flow
        self._account = Account(
            self._new_meter(Direction.UPLINK), plane.loop.time(), sent=Allowance(*rates), received=Allowance(*rates)
        )
        totals = self._account.totals
        self.downlink = Downlink(
            plane.loop,
            totals,
            Schedule(
                settings.max_media_age_s,
                Room(
                    settings.downlink_media_bytes,
                    settings.downlink_control_bytes,
                    settings.downlink_data_bytes,
                    settings.max_data_age_s,
                ),
                totals,
                self._framing.frame,
                from_peers=carrier is Carrier.CONNECT_UDP,
            ),
            self._new_meter(Direction.DOWNLINK),
            write=host.send_media,
            is_blocked=host.is_blocked,
            is_behind=lambda beside_data: host.is_behind(beside_data=beside_data),
            holds_data=host.holds_data,
        )
        self._pings: Pings | None = None
        # A session has none: control knows whether it has an allocation.
        self._watch: AllocationWatch | None = None

    def start(self, upstream: Upstream | None) -> None:
        """Open the flow, where there is one from the start. Raises OSError."""
        if upstream is not None:
            flow = self._open_flow(upstream)
            self._use(upstream, flow)
            self._watch = AllocationWatch(self._plane.loop, self._plane.settings, flow, self._begins, self._host.close)
        if is_websocket(self.carrier):
            self._pings = Pings(
                self._plane.loop,
                self._plane.settings.websocket_ping_s,
                lambda: self._say(ping_frame()),
                lambda: self._admission.asked is None,
                lambda: self._host.close(CloseReason.CLIENT_LOST, "no pong"),
            )

    def _open_flow(self, upstream: Upstream) -> Flow:
        settings = self._plane.settings
        bounds_users = settings.packets_per_second_per_user or settings.bytes_per_second_per_user
        naming = Naming() if bounds_users and not upstream.asks_for_users else None
        setup = self._flow_setup(self._on_downlink, naming)
        return Flow(upstream, setup) if self.carrier is Carrier.CONNECT_UDP else TurnFlow(upstream, setup)

    def _flow_setup(self, deliver: Callable[[float, bytes], None], naming: Naming | None = None) -> FlowSetup:
        plane = self._plane
        return FlowSetup(
            plane.loop,
            self._account,
            plane.ports,
            silence_s=plane.settings.upstream_silence_s,
            rto_s=plane.settings.initial_rto_s,
            deliver=deliver,
            fail=self._on_upstream_lost,
            on_named=self._on_named,
            naming=naming,
        )

    def _use(self, upstream: Upstream, flow: Flow) -> None:
        self.flow = flow
        age, own = self._plane.settings.max_media_age_s, upstream.max_media_age_s
        self.downlink.schedule.max_age_s = age if own is None else own

    def _new_meter(self, direction: Direction) -> Meter:
        settings = self._plane.settings
        return Meter(round(settings.playout_deadline_s * 1e6), settings.payload_clocks, direction)

    # Uplink

    @property
    def busy(self) -> bool:
        """True while something that the client has said waits. Its end is dealt with after that."""
        return bool(self._said) or self._admission.asked is not None

    def feed(self, plain: bytes) -> None:
        """Take plain bytes of the client."""
        if self._pings is not None and plain:
            self._pings.on_heard()
        self._said.extend(self._framing.feed(plain))
        self._go_on()
        if self._watch is not None and not self._closed:
            self._watch.on_part()

    def _begins(self) -> bool:
        """True while a first unit is not whole."""
        return self._framing.pending > 0 and not self._account.totals.uplink_packets and self._admission.asked is None

    def unfinished(self) -> str:
        """What the log says of a client that ends at this point, if anything."""
        return self._framing.unfinished()

    def _go_on(self) -> None:
        arrived = time.monotonic()
        for _ in range(MAX_UNITS_PER_TURN):
            if self._closed:
                return
            if not self._said or self._admission.asked is not None:
                break
            self._on_said(arrived, self._said.popleft())
        if self._closed:
            return
        self._host.pause_reading(self.busy)
        if self._admission.asked is not None:
            return
        if self._said:
            self._plane.loop.call_soon(self._go_on)
        elif (fault := self._framing.fault) is not None:
            self._host.close(CloseReason.BROKEN_FRAME, fault.detail, farewell=fault.farewell)
        else:
            self._host.on_caught_up()

    def _on_said(self, arrived: float, said: Said) -> None:
        if isinstance(said, bytes):
            self._on_unit(arrived, said)
        elif isinstance(said, Ping):
            self._say(pong_frame(said.payload))
        elif isinstance(said, Closing):
            detail = "websocket close" if said.code is None else f"websocket close {said.code}"
            self._host.close(CloseReason.CLIENT_CLOSED, detail, farewell=close_frame(said.code))
        elif isinstance(said, Malformed):
            self._account.totals.drop(DropReason.UPLINK_MALFORMED)
        elif isinstance(said, Oversize):
            self._account.totals.drop(DropReason.UPLINK_OVERSIZE)
        else:
            self._on_text(said.text)

    def _on_unit(self, arrived: float, unit: bytes) -> None:
        assert self.flow is not None
        asks = self.flow.upstream.asks_for_users
        if asks and self.carrier is Carrier.CONNECT_UDP and not is_turn_datagram(unit):
            self._account.totals.drop(DropReason.UPLINK_MALFORMED)
        elif not asks or not is_to_ask(unit):
            self.flow.send(arrived, unit)
        elif len(unit) > MAX_ASKED_BYTES:
            self._account.totals.drop(DropReason.UPLINK_OVERSIZE, Traffic.CONTROL)
        else:
            self._admission.asked = unit
            self._await_control()
            self._plane.emit(AllocateRequested(self._host.identity, unit))

    def _on_text(self, text: str) -> None:
        raise AssertionError("text on a carrier that takes none")

    # Who may allocate

    def admit(self) -> None:
        """Forward the Allocate that waits, if one does."""
        if (request := self._take_asked()) is not None and self.flow is not None:
            self.flow.send(time.monotonic(), request)
            self._go_on()

    def refuse(self, response: bytes) -> None:
        """Answer the Allocate that waits, if one does."""
        if self._take_asked() is not None:
            self._deliver(time.monotonic(), response)
            self._go_on()

    def answer(self, response: bytes) -> None:
        """Answer the Allocate that was granted, if one was."""
        if self._admission.take_granted():
            self._on_control_spoke()
            self._deliver(time.monotonic(), response)

    def _take_asked(self) -> bytes | None:
        request = self._admission.take_asked()
        if request is not None:
            self._on_control_spoke()
        return request

    def _on_control_spoke(self) -> None:
        if not self._admission.is_waiting:
            self._host.set_deadline(None)

    def _await_control(self) -> None:
        self._host.set_deadline(self._plane.settings.control_timeout_s, self._host.on_control_timeout)

    def _on_named(self, name: bytes) -> None:
        self._plane.emit(AllocationNamed(self._host.identity, name.decode(errors="replace")))

    def share(self, user: UserAllowance) -> None:
        """Count what the flow carries as this user's."""
        self._account.user = user

    def _on_downlink(self, arrived: float, unit: bytes) -> None:
        """Deliver a unit of the upstream; control has to know first of what grants or brings back an allocation."""
        assert self.flow is not None
        kind = unit[0] << 8 | unit[1] if len(unit) >= HEADER_BYTES else 0
        grants = kind == ALLOCATE_SUCCESS or (kind == REFRESH_SUCCESS and self.flow.allocation.brought_back)
        if self._closed or not grants or not self.flow.upstream.asks_for_users:
            self._deliver(arrived, unit)
        elif self._admission.granted:
            # One at a time waits, and no server grants two.
            self._account.totals.drop(DropReason.DOWNLINK_DUPLICATE, Traffic.CONTROL)
        else:
            self._admission.granted = True
            self._await_control()
            self._plane.emit(AllocateGranted(self._host.identity, unit))

    # Downlink

    def _deliver(self, arrived: float, unit: bytes) -> None:
        if self._closed:
            return
        if self.downlink.deliver(arrived, unit):
            self._host.sample_link(arrived)
        else:
            self._on_slow_client()

    def _say(self, frame: bytes) -> None:
        if not self._closed and not self.downlink.say(frame):
            self._on_slow_client()

    def _on_slow_client(self) -> None:
        self._host.close(CloseReason.SLOW_CLIENT, unread_detail(self.downlink.schedule.waiting_bytes))

    def _on_upstream_lost(self, reason: CloseReason, detail: str) -> None:
        self._host.close(reason, detail)

    # For control

    def tap(self) -> FlowTap | None:
        """Copy the datagrams of the flow, if there is one; the tap before it ends."""
        flow = self.flow
        if flow is None or not flow.is_open:
            return None
        if flow.tap is not None:
            flow.tap.end()
        flow.tap = FlowTap(self._host.client, self._host.server_name, flow.upstream)
        return flow.tap

    def describe(self, now: float) -> FlowSnapshot | None:
        """The flow as it is now, if there is one."""
        flow, account, downlink = self.flow, self._account, self.downlink
        if flow is None:
            return None
        totals = Totals()
        totals.add(account.totals)
        clock = time.monotonic()
        return FlowSnapshot(
            self._host.identity,
            self._host.client,
            self._host.server_name,
            self.carrier,
            flow.upstream,
            now - account.opened_at,
            now - flow.heard_at,
            totals,
            username=account.username,
            client_certificate=self._host.client_certificate,
            allocated=flow.allocated,
            queued_bytes=downlink.schedule.waiting_bytes,
            queue_age_s=downlink.schedule.oldest_age(clock),
            queue_delay=downlink.delays.latency(),
            link=self._host.sample_link(clock),
            uplink_rtcp=account.meter.rtcp,
            downlink_rtcp=downlink.meter.rtcp,
            streams=(*account.meter.streams(round(clock * 1e6)), *downlink.meter.streams(round(clock * 1e6))),
        )

    @property
    def totals(self) -> Totals:
        """What has been counted."""
        return self._account.totals

    def close(self) -> tuple[int, bytes] | None:
        """End; if the flow leaves an allocation to control, (fd, request)."""
        self._closed = True
        self._said.clear()
        self._admission.clear()
        if self._pings is not None:
            self._pings.close()
        if self._watch is not None:
            self._watch.close()
        self.downlink.close()
        return None if self.flow is None else self.flow.leave()
