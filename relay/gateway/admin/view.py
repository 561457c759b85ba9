"""What operators see of a relay: calls, upstreams and counters as plain values. docs/api.md names the fields."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from relay import __version__
from relay.gateway.balancers import BalancerTotals
from relay.gateway.calls.call import Call
from relay.gateway.calls.calls import BANDS, SLICE, WINDOW_S, Calls, EndedCall, rounded, whole
from relay.gateway.calls.database import StoredCall
from relay.gateway.calls.ids import normal
from relay.gateway.calls.records import Records, iso
from relay.gateway.calls.store import CallStore
from relay.gateway.calls.windows import Heard, Window, Windows
from relay.gateway.cluster.cluster import Cluster
from relay.gateway.entitlement.verdicts import Entitlement
from relay.gateway.routing.flows import Tally
from relay.gateway.routing.upstreams import Health, Upstreams, UpstreamState
from relay.gateway.web_proxy.web_proxy import WebProxyTotals
from relay.plane.api import Carrier, ConnectionId, FlowSnapshot, Snapshot, Totals
from relay.quality import emodel
from relay.quality.stream import RtpStream
from relay.quality.window import codec_of

Json = dict[str, Any]

# Calls in the summary: one screen.
WORST_SHOWN = 20
ENDED_SHOWN = 20
# The last two minutes of MOS in a row of the list.
TRAIL_WINDOWS = 24
# Rates over less than this say more about the moment of asking than about the traffic.
MIN_RATE_INTERVAL_S = 0.5
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    uplink_packets: int
    downlink_packets: int


class View:
    """Reads plane, calls and upstreams when it is asked."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        calls: Calls,
        upstreams: Upstreams,
        records: Records,
        draining: Callable[[], bool],
        *,
        entitlement: Entitlement,
        store: CallStore | None = None,
        tally: Tally | None = None,
        web_proxy: WebProxyTotals | None = None,
        balancers: BalancerTotals | None = None,
        cluster: Cluster | None = None,
        memory_is_short: Callable[[], bool] = lambda: False,
    ) -> None:
        """Without a ``store`` nothing is kept. ``tally``, ``web_proxy`` and ``balancers`` stay zero if not given."""
        self.snapshot = snapshot
        self.calls = calls
        self.upstreams = upstreams
        self.records = records
        self.draining = draining
        self.memory_is_short = memory_is_short
        self.entitlement = entitlement
        self.store = store or CallStore()
        self.tally = tally or Tally()
        self.web_proxy = web_proxy or WebProxyTotals()
        self.balancers = balancers or BalancerTotals()
        self.cluster = cluster
        self._reading: _Reading | None = None
        self._rates = {"uplink": 0.0, "downlink": 0.0}

    # The whole relay

    def summary(self) -> Json:
        """The relay on one page."""
        now, snapshot, calls = time.time(), self.snapshot(), self.calls
        bands, unscored = calls.mos_bands()
        mos_by_upstream = calls.mos_by_upstream()
        upstreams = [describe_upstream(state, mos_by_upstream.get(state.name)) for state in self.upstreams]
        return {
            "at": round(now, 3),
            # When the windows were made. A new value means that there are new windows.
            "looked_at": round(calls.history[-1].at, 3) if calls.history else None,
            "version": __version__,
            "draining": self.draining(),
            "connections": snapshot.connections,
            "flows": len(snapshot.flows),
            "carriers": _by_carrier(snapshot),
            "sessions_parked": self.tally.parked,
            "calls": len(calls),
            "calls_unscored": unscored,
            "calls_unwatched": calls.unwatched,
            "mos_bands": [
                {"name": name, "mos_from": least, "calls": count}
                for (name, least), count in zip(BANDS, bands, strict=True)
            ],
            "packets_per_s": self._packets_per_s(now, snapshot.totals),
            "drops": {reason.value: count for reason, count in snapshot.totals.drops.items() if count},
            "drops_by_traffic": {
                traffic.value: count for traffic, count in snapshot.totals.drops_by_traffic.items() if count
            },
            "drops_last_minute": self._drops_last_minute(now, snapshot.totals),
            "regions": _regions(upstreams),
            "upstreams": upstreams,
            "worst": [self.describe_call(call) for call in calls.worst(WORST_SHOWN)],
            "ended_badly": [describe_ended(ended) for ended in calls.ended_badly(ENDED_SHOWN)],
            "records": {"written": self.records.written, "lost": self.records.lost},
            "kept": {"written": self.store.written, "lost": self.store.lost, "trouble": self.store.trouble},
            "entitlement": {
                "policy": self.entitlement.policy,
                "trouble": self.entitlement.trouble,
                "calls": self.entitlement.calls,
                "verdicts": {outcome.value: count for outcome, count in self.entitlement.counts.items()},
            },
        }

    def _packets_per_s(self, now: float, totals: Totals) -> dict[str, float]:
        reading = _Reading(now, totals.uplink_packets, totals.downlink_packets)
        if self._reading is None and self.calls.history:
            # Take the look before the last one, because the last may have been a moment ago.
            past = self.calls.history[max(0, len(self.calls.history) - 2)]
            self._reading = _Reading(past.at, past.uplink_packets, past.downlink_packets)
        before = self._reading or reading
        elapsed_s = now - before.at
        if not 0 <= elapsed_s < MIN_RATE_INTERVAL_S:
            elapsed_s = max(elapsed_s, MIN_RATE_INTERVAL_S)  # the clock was set back
            self._rates = {
                "uplink": round(max(0, reading.uplink_packets - before.uplink_packets) / elapsed_s, 1),
                "downlink": round(max(0, reading.downlink_packets - before.downlink_packets) / elapsed_s, 1),
            }
            self._reading = reading
        self._reading = self._reading or reading
        return self._rates

    def _drops_last_minute(self, now: float, totals: Totals) -> dict[str, int]:
        before = next((one.drops for one in self.calls.history if one.at >= now - MINUTE_S), {})
        grown = {reason.value: count - before.get(reason, 0) for reason, count in totals.drops.items()}
        return {reason: count for reason, count in grown.items() if count}

    def history(self) -> Json:
        """The last half hour in columns, a value for each look. A rate is over the time since the look before."""
        moments = list(self.calls.history)
        pairs = list(pairwise(moments))
        return {
            "at": [round(later.at, 3) for _, later in pairs],
            "calls": [later.calls for _, later in pairs],
            "uplink": [_rate(later.uplink_packets - one.uplink_packets, later.at - one.at) for one, later in pairs],
            "downlink": [
                _rate(later.downlink_packets - one.downlink_packets, later.at - one.at) for one, later in pairs
            ],
        }

    # Flows

    async def flows(self, limit: int, match: str = "") -> Json:
        """The worst flows that match, worst first, those without a score last; ``total`` is how many match."""
        wanted, found = match.casefold(), list[tuple[float, FlowSnapshot]]()
        flows = self.snapshot().flows
        for start in range(0, len(flows), SLICE):
            some = flows[start : start + SLICE]
            found += [(self._score(flow), flow) for flow in some if not wanted or wanted in self._words_of(flow)]
            await asyncio.sleep(0)
        worst = heapq.nsmallest(limit, found, key=lambda one: one[0])
        rows: list[Json] = []
        for start in range(0, len(worst), SLICE):
            rows += [self.describe_flow(flow) for _, flow in worst[start : start + SLICE]]
            await asyncio.sleep(0)
        return {"total": len(found), "flows": rows}

    def _score(self, flow: FlowSnapshot) -> float:
        call = self.calls.get(flow.connection)
        return math.inf if call is None else call.mos

    def _words_of(self, flow: FlowSnapshot) -> str:
        words = (
            *(flow.client, flow.username, flow.client_certificate, flow.server_name),
            *(flow.upstream.name, self._region_of(flow), flow.carrier),
        )
        return " ".join(map(str, (self.calls.ids.id_of(flow.connection), *words))).casefold()

    def _region_of(self, flow: FlowSnapshot) -> str:
        return self.upstreams.region_of(flow.upstream.name)

    async def call(self, wanted: str) -> Json | None:
        """The same as ``flow``, also for calls that ended before. Raises CallsUnavailable."""
        if (found := await self.flow(wanted)) is not None:
            return found
        stored = await self.store.get(normal(wanted))
        return None if stored is None else _told_of(stored)

    async def flow(self, wanted: str) -> Json | None:
        """All that is known of one flow, by its id. None if there is no such flow, and none has ended lately."""
        connection = self.calls.ids.connection_of(wanted)
        if connection is None:
            return None
        if (ended := self.calls.get_ended(connection)) is not None:
            return {**self._describe_ended_flow(ended), "windows": _columns(ended.call.started_at, ended.call.windows)}
        call = self.calls.get(connection)
        flow = await self._find(connection) if call is None or call.flow is None else call.flow
        if flow is None:
            return None
        windows = None if call is None else _columns(call.started_at, call.windows)
        return {**self.describe_flow(flow), **self._details(flow, call), "ended": None, "windows": windows}

    def stored(self, ended: EndedCall) -> StoredCall:
        """What is kept of a flow that has ended. Another thread may ask: nothing of this changes any more."""
        host, username = ended.flow.client.host, ended.flow.username
        return StoredCall(
            ended.id,
            ended.call.started_at,
            ended.ended_at,
            username,
            host,
            describe_ended(ended),
            self._describe_ended_flow(ended),
            ended.call.windows.pack(),
        )

    def _describe_ended_flow(self, ended: EndedCall) -> Json:
        call, flow = ended.call, ended.flow
        return {
            **describe_flow(flow, call.region, call, ended.id),
            **self._details(flow, call),
            "ended": _describe_end(ended),
        }

    async def _find(self, connection: ConnectionId) -> FlowSnapshot | None:
        flows = self.snapshot().flows
        for start in range(0, len(flows), SLICE):
            for flow in flows[start : start + SLICE]:
                if flow.connection == connection:
                    return flow
            await asyncio.sleep(0)
        return None

    def describe_flow(self, flow: FlowSnapshot) -> Json:
        """One row of the list."""
        call, id_ = self.calls.get(flow.connection), self.calls.ids.id_of(flow.connection)
        return describe_flow(flow, self._region_of(flow), call, id_)

    def describe_call(self, call: Call) -> Json:
        """The same for a call, as it was at the last look."""
        assert call.flow is not None
        return describe_flow(call.flow, call.region, call, call.id)

    def _details(self, flow: FlowSnapshot, call: Call | None) -> Json:
        """What the list does not have, apart from the windows."""
        link = flow.link
        return {
            "started_at": iso(time.time() - flow.age_s if call is None else call.started_at),
            "streams": [_describe_stream(stream) for stream in flow.streams],
            "rtcp": {"uplink": flow.uplink_rtcp, "downlink": flow.downlink_rtcp},
            "drops_by_traffic": {
                traffic.value: count for traffic, count in flow.totals.drops_by_traffic.items() if count
            },
            "queued_bytes": flow.queued_bytes,
            "queue_age_ms": round(flow.queue_age_s * 1000, 3),
            "link": None
            if link is None
            else {
                "rtt_ms": round(link.rtt_us / 1000, 3),
                "rtt_variation_ms": round(link.rtt_variation_us / 1000, 3),
                "retransmits": link.retransmits,
                "unsent_bytes": link.unsent_bytes,
            },
            "whole_call": None if call is None else {"uplink": whole(call.uplink), "downlink": whole(call.downlink)},
            "window_s": WINDOW_S,
            "assumptions": assumptions(flow.streams, self.calls.playout_deadline_ms),
        }


def assumptions(streams: Sequence[RtpStream], playout_deadline_ms: float) -> list[str]:
    """What a score assumes, because the relay cannot see it."""
    said = [
        "The voice is encrypted and stays so: only RTP headers are read, and RTCP is counted.",
        f"The codec is not seen. {_codecs(streams)}",
        "The one-way delay is not seen. The score counts half of the client's TCP round trip, "
        f"{playout_deadline_ms:g} ms of jitter buffer and {emodel.PACKETISATION_MS:g} ms of packetisation, "
        "and nothing for the way beyond the upstream.",
        "The uplink is judged as it comes from the client, the downlink as it leaves to the client. "
        "What networks do to them after that is not seen.",
    ]
    unknown = sorted({stream.payload_type for stream in streams if not stream.clock_hz})
    if unknown:
        types = ", ".join(map(str, unknown))
        said.append(f"No clock is known for payload type {types}: it has no jitter, no late packets and no score.")
    return said


def _codecs(streams: Iterable[RtpStream]) -> str:
    said = []
    for payload_type in sorted({stream.payload_type for stream in streams}):
        codec = codec_of(payload_type)
        own = ", our own values" if codec.provisional else ""
        said.append(
            f"Payload type {payload_type} is assumed to be {codec.name} (Ie {codec.ie:g}, Bpl {codec.bpl:g}{own})."
        )
    return " ".join([*said, "The MOS scale is narrowband: 4.4 is the best score."])


def describe_flow(flow: FlowSnapshot, region: str, call: Call | None, id_: str) -> Json:
    """One flow, with the quality of its last window; None where there is nothing to judge."""
    totals, window = flow.totals, None if call is None else call.window
    uplink, downlink = (Heard(), Heard()) if window is None else (window.uplink, window.downlink)
    return {
        "id": id_,
        "client": str(flow.client),
        "username": flow.username,
        "client_certificate": flow.client_certificate,
        "server_name": flow.server_name,
        "carrier": flow.carrier.value,
        "upstream": flow.upstream.name,
        "region": region,
        "age_s": round(flow.age_s, 3),
        "heard_s": round(flow.heard_s, 3),
        "mos": None if window is None else rounded(window.mos, 2),
        "uplink": {"packets": totals.uplink_packets, "bytes": totals.uplink_bytes, **_describe_heard(uplink)},
        "downlink": {"packets": totals.downlink_packets, "bytes": totals.downlink_bytes, **_describe_heard(downlink)},
        "queue_ms": None if window is None else rounded(window.queue_ms, 3),
        "rtt_ms": None if flow.link is None else round(flow.link.rtt_us / 1000, 3),
        "retransmissions": totals.retransmissions,
        "drops": {reason.value: count for reason, count in totals.drops.items() if count},
        "mos_trail": [] if call is None else [rounded(one.mos, 2) for one in call.windows.last(TRAIL_WINDOWS)],
    }


def _describe_heard(heard: Heard) -> Json:
    return {
        "lost_percent": rounded(heard.lost_percent, 3),
        "late_percent": rounded(heard.late_percent, 3),
        "jitter_ms": rounded(heard.jitter_ms, 2),
        "r": rounded(heard.r, 1),
        "mos": rounded(heard.mos, 2),
    }


def _told_of(stored: StoredCall) -> Json:
    return {**stored.told, "windows": _columns(stored.started_at, Windows.unpack(stored.windows))}


def _columns(started_at: float, kept: Windows) -> Json:
    windows = list(kept)

    def column(value: Callable[[Window], float | None], digits: int) -> list[float | None]:
        return [rounded(value(window), digits) for window in windows]

    def direction(heard: Callable[[Window], Heard]) -> Json:
        return {
            "lost_percent": column(lambda window: heard(window).lost_percent, 3),
            "late_percent": column(lambda window: heard(window).late_percent, 3),
            "jitter_ms": column(lambda window: heard(window).jitter_ms, 2),
            "r": column(lambda window: heard(window).r, 1),
            "mos": column(lambda window: heard(window).mos, 2),
        }

    return {
        "at": [round(started_at + window.age_s, 1) for window in windows],
        "uplink": direction(lambda window: window.uplink),
        "downlink": direction(lambda window: window.downlink),
        "queue_ms": column(lambda window: window.queue_ms, 3),
        "rtt_ms": column(lambda window: window.rtt_ms, 3),
        "drops": [window.drops for window in windows],
    }


def _describe_stream(stream: RtpStream) -> Json:
    return {
        "direction": stream.direction.value,
        "ssrc": f"{stream.ssrc:08x}",
        "payload_type": stream.payload_type,
        "clock_hz": stream.clock_hz or None,
        "packets": stream.packets,
        "expected": stream.expected,
        "lost": stream.lost,
        "late": stream.late if stream.clock_hz else None,
        "duplicates": stream.duplicates,
        "reordered": stream.reordered,
        "restarts": stream.restarts,
        "stalls": stream.stalls,
        "jitter_ms": round(stream.jitter_us / 1000, 2) if stream.clock_hz else None,
        "longest_pause_ms": round(stream.longest_pause_us / 1000, 1),
        "idle_s": round(stream.idle_us / 1e6, 1),
    }


def _describe_end(ended: EndedCall) -> Json:
    return {"at": iso(ended.ended_at), "reason": ended.reason.value, "detail": ended.detail}


def describe_ended(ended: EndedCall) -> Json:
    """One row of the calls that ended."""
    flow = ended.flow
    return {
        "id": ended.id,
        "client": str(flow.client),
        "username": flow.username,
        "client_certificate": flow.client_certificate,
        "server_name": flow.server_name,
        "started_at": iso(ended.call.started_at),
        "upstream": flow.upstream.name,
        "region": ended.call.region,
        "age_s": round(flow.age_s, 3),
        "mos_min": rounded(ended.mos_min, 2),
        "uplink": whole(ended.call.uplink),
        "downlink": whole(ended.call.downlink),
        **{f"ended_{key}" if key == "at" else key: value for key, value in _describe_end(ended).items()},
    }


def describe_upstream(state: UpstreamState, mos: float | None = None) -> Json:
    """One upstream; ``mos`` is the mean of its calls."""
    return {
        "name": state.name,
        "region": state.settings.region,
        "address": None if state.address is None else str(state.address),
        "health": state.health.value,
        "rtt_ms": None if state.rtt_s is None else round(state.rtt_s * 1000, 3),
        "flows": state.flows,
        "mos": rounded(mos, 2),
    }


def _regions(upstreams: Iterable[Json]) -> list[Json]:
    """The regions. A region is up while one of its upstreams is."""
    found: dict[str, Json] = {}
    for upstream in upstreams:
        region = found.setdefault(
            upstream["region"], {"name": upstream["region"], "health": "down", "upstreams": 0, "up": 0, "flows": 0}
        )
        region["upstreams"] += 1
        region["up"] += upstream["health"] == Health.UP
        region["flows"] += upstream["flows"]
        if upstream["health"] == Health.UP or (upstream["health"], region["health"]) == (Health.UNKNOWN, Health.DOWN):
            region["health"] = upstream["health"]
    return list(found.values())


def _by_carrier(snapshot: Snapshot) -> dict[str, int]:
    counts = Counter(flow.carrier for flow in snapshot.flows)
    return {carrier.value: counts[carrier] for carrier in Carrier}


def _rate(count: int, elapsed_s: float) -> float | None:
    return round(count / elapsed_s, 1) if elapsed_s > 0 and count >= 0 else None
