"""Snapshots: what the workers have counted and measured, read while they go on."""

from __future__ import annotations

import functools
import struct
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, overload

from relay.plane.api import (
    MAX_USERNAME_CHARACTERS,
    ClientLink,
    CloseReason,
    FlowSnapshot,
    Latency,
    Snapshot,
    Totals,
)
from relay.plane.certificates import HandshakeFailure
from relay.plane.compiled.connections import Flow
from relay.plane.compiled.numbers import DROPS, REASONS, TRAFFICS
from relay.quality.stream import Direction, RtpStream

if TYPE_CHECKING:
    from relay._fastpath import Worker, _Figures, _Histogram

# FlowRecord of the data dictionary: number, age, time since the upstream was heard, and the counters.
_RECORD = struct.Struct(f"=Qqqq{5 + len(DROPS) + len(TRAFFICS)}Q")
_Record = tuple[int, ...]

# For a flow that ended while a snapshot was read.
_NOTHING_KNOWN: _Figures = (b"", 0, 0, ([], 0), None, 0, [], 0, [])


class Snapshots:
    """Reads the workers of one plane."""

    def __init__(self, workers: Sequence[Worker], flows: dict[int, Flow]) -> None:
        self._workers = workers
        self._flows = flows

    def take(self, handshake_failures: Counter[HandshakeFailure]) -> Snapshot:
        """All counters and flows as they are now."""
        connections = accepted = 0
        closed: Counter[CloseReason] = Counter()
        for worker in self._workers:
            live, taken, reasons = worker.figures()
            connections += live
            accepted += taken
            closed.update({REASONS[reason]: count for reason, count in enumerate(reasons) if count})
        totals = Totals()
        records, delays = [], []
        for worker in self._workers:
            copied, counters, waited = worker.flows()
            records.append(copied)
            delays.append(waited)
            totals.add(totals_of(counters))
        uplink, downlink = (_latency_of(one) for one in zip(*(w.histograms() for w in self._workers), strict=True))
        return Snapshot(
            connections,
            _Flows(self._flows.copy(), b"".join(records), self._figures_of),
            totals,
            accepted,
            dict(closed),
            dict(handshake_failures),
            uplink,
            downlink,
            _latency_of(delays),
        )

    def flow_at_end(self, worker: Worker, identity: int) -> FlowSnapshot | None:
        """The flow of a connection that has ended, if it had one."""
        flow = self._flows.get(identity)
        if flow is None:
            return None
        return _describe(flow, _RECORD.unpack(worker.record(identity)), self._figures_of(identity))

    def _figures_of(self, identity: int) -> _Figures:
        # Once control has read the end of a flow, the worker frees it at any moment.
        known = self._workers[identity >> 56].flow(identity) if identity in self._flows else None
        return known or _NOTHING_KNOWN


class _Flows(Sequence[FlowSnapshot]):
    """The flows of a snapshot: their counters are copied at once, the rest is read when somebody looks at it.

    It does not keep the plane alive. When the plane has gone, nothing is left to be read.
    """

    def __init__(self, known: dict[int, Flow], records: bytes, figures_of: Callable[[int], _Figures]) -> None:
        self._known = known
        self._records = records
        self._figures_of = weakref.WeakMethod(figures_of)

    @functools.cached_property
    def _flows(self) -> list[tuple[Flow, _Record]]:
        known = self._known
        return [(known[record[0]], record) for record in _RECORD.iter_unpack(self._records) if record[0] in known]

    def __len__(self) -> int:
        return len(self._flows)

    @overload
    def __getitem__(self, index: int) -> FlowSnapshot: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FlowSnapshot]: ...
    def __getitem__(self, index: int | slice) -> FlowSnapshot | Sequence[FlowSnapshot]:
        figures_of = self._figures_of() or _forgotten
        if isinstance(index, slice):
            return [_describe(flow, record, figures_of(record[0])) for flow, record in self._flows[index]]
        flow, record = self._flows[index]
        return _describe(flow, record, figures_of(record[0]))


def _forgotten(_identity: int) -> _Figures:
    return _NOTHING_KNOWN


def _describe(flow: Flow, record: _Record, figures: _Figures) -> FlowSnapshot:
    _, age_us, heard_us, allocated_us, *counters = record
    name, queued, oldest_us, (delays, waited_us), link, uplink_rtcp, uplink, downlink_rtcp, downlink = figures
    return FlowSnapshot(
        flow.connection,
        flow.client,
        flow.server_name,
        flow.carrier,
        flow.upstream,
        age_us / 1e6,
        heard_us / 1e6,
        totals_of(counters),
        username=name.decode(errors="replace")[:MAX_USERNAME_CHARACTERS],
        client_certificate=flow.client_certificate,
        allocated=allocated_us > 0,
        queued_bytes=queued,
        queue_age_s=oldest_us / 1e6,
        queue_delay=Latency(delays, waited_us),
        link=None if link is None else ClientLink(*link),
        uplink_rtcp=uplink_rtcp,
        downlink_rtcp=downlink_rtcp,
        streams=(
            *(RtpStream(Direction.UPLINK, *stream) for stream in uplink),
            *(RtpStream(Direction.DOWNLINK, *stream) for stream in downlink),
        ),
    )


def _latency_of(histograms: Sequence[_Histogram]) -> Latency:
    counts: Counter[int] = Counter()
    for buckets, _ in histograms:
        counts.update(dict(buckets))
    return Latency(sorted(counts.items()), sum(sum_us for _, sum_us in histograms))


def totals_of(counters: Sequence[int]) -> Totals:
    """The counters of a worker or of a connection, in the order of the data dictionary."""
    first_dropped = 5 + len(DROPS)
    drops = {reason: count for reason, count in zip(DROPS, counters[5:first_dropped], strict=True) if count}
    dropped = {traffic: count for traffic, count in zip(TRAFFICS, counters[first_dropped:], strict=True) if count}
    uplink_packets, uplink_bytes, downlink_packets, downlink_bytes, retransmissions = counters[:5]
    return Totals(uplink_packets, uplink_bytes, downlink_packets, downlink_bytes, retransmissions, drops, dropped)
