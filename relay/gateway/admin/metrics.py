"""Prometheus metrics, read from the plane's snapshot and the upstreams when Prometheus asks.

Labels have few values, all known beforehand (upstream names come from the configuration). Each value is there from the
start, so that the rate of a rare reason begins at zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from itertools import accumulate
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from relay import __version__, logs
from relay.gateway import descriptors
from relay.gateway.admin.view import View
from relay.gateway.balancers import BalancerTotals, Check, HeaderFault
from relay.gateway.calls.calls import Calls
from relay.gateway.calls.histograms import Histogram
from relay.gateway.certificates.client_ca import ClientCa
from relay.gateway.certificates.keeper import CertificateKeeper
from relay.gateway.certificates.stapling import Stapler
from relay.gateway.entitlement.verdicts import VerdictOutcome
from relay.gateway.routing.flows import FailoverOutcome, ResumeOutcome, Tally, UpgradeOutcome
from relay.gateway.routing.upstreams import Health
from relay.gateway.signaling.proxy import SignalingProxy
from relay.gateway.signaling.refusals import RefusalReason
from relay.gateway.web_proxy.http import ProxyOutcome
from relay.gateway.web_proxy.tunnel import TunnelEnd
from relay.gateway.web_proxy.web_proxy import WebProxyTotals
from relay.plane.api import (
    Carrier,
    CloseReason,
    DropReason,
    FlowSnapshot,
    Latency,
    PauseCause,
    Traffic,
)
from relay.plane.certificates import HandshakeFailure


class RelayCollector(Collector):
    """Turns one snapshot into metrics."""

    def __init__(self, view: View) -> None:
        self._view = view
        # What was shown last of counters from which checks are taken off.
        self._shown: dict[str, int] = {}

    def _grown(self, name: str, value: int) -> int:
        """A counter that never goes back: a check counts as a client until it ends, and only then is taken off."""
        self._shown[name] = max(value, self._shown.get(name, 0))
        return self._shown[name]

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are checked when they are first collected, once the plane runs."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of the relay, from one snapshot."""
        snapshot = self._view.snapshot()
        totals = snapshot.totals
        yield InfoMetricFamily("relay", "What runs here.", value={"version": __version__})
        yield _gauge(
            "relay_draining", "1 from the moment when the relay is told to stop.", float(self._view.draining())
        )
        yield _gauge("relay_connections", "Open TCP connections.", snapshot.connections)
        # The plane cannot tell a balancer's check from a client.
        checks = self._view.balancers.closed
        accepted = self._grown("accepted", snapshot.accepted - checks.total())
        yield _counter("relay_connections_accepted_total", "TCP connections accepted.", accepted)
        closed = {
            reason: self._grown(reason, snapshot.closed.get(reason, 0) - checks[reason]) for reason in CloseReason
        }
        yield _by_reason("relay_connections_closed_total", "Connections ended.", "reason", CloseReason, closed)
        failures = Counter(snapshot.handshake_failures)
        failures.subtract(self._view.balancers.failures)
        yield _by_reason(
            "relay_handshake_failures_total", "TLS handshakes failed.", "cause", HandshakeFailure, failures
        )
        yield _two_ways("relay_packets_total", "Packets forwarded.", totals.uplink_packets, totals.downlink_packets)
        yield _two_ways("relay_bytes_total", "UDP payload forwarded.", totals.uplink_bytes, totals.downlink_bytes)
        yield _by_reason("relay_drops_total", "Packets not forwarded, by reason.", "reason", DropReason, totals.drops)
        yield _by_reason(
            "relay_drops_by_traffic_total",
            "Packets not forwarded, by what they were.",
            "traffic",
            Traffic,
            totals.drops_by_traffic,
        )
        yield _counter("relay_retransmissions_total", "STUN requests sent again.", totals.retransmissions)
        yield _latency(
            "relay_uplink_latency_seconds", "Time that uplink packets spent in the relay.", snapshot.uplink_latency
        )
        yield _latency(
            "relay_downlink_latency_seconds",
            "Time that downlink packets spent in the relay.",
            snapshot.downlink_latency,
        )
        yield _latency("relay_queue_delay_seconds", "Time that packets waited for slow clients.", snapshot.queue_delay)
        yield from _collect_calls(self._view.calls)
        records = self._view.records
        yield _counter("relay_call_records_written_total", "Call records written to the file.", records.written)
        yield _counter("relay_call_records_lost_total", "Call records that were not written.", records.lost)
        store = self._view.store
        yield _counter("relay_calls_kept_total", "Ended calls that were kept for a search.", store.written)
        yield _counter("relay_calls_not_kept_total", "Ended calls that could not be kept.", store.lost)
        yield _counter("relay_log_lines_lost_total", "Log lines that nobody read in time.", logs.lines_lost())
        yield from _collect_web_proxy(self._view.web_proxy)
        yield from _collect_balancers(self._view.balancers)
        entitlement = self._view.entitlement
        text = "Decisions on who may place calls."
        yield _by_reason("relay_entitlement_verdicts_total", text, "verdict", VerdictOutcome, entitlement.counts)
        text = "1 while the list or the service of users cannot be read or asked."
        yield _gauge("relay_entitlement_trouble", text, float(bool(entitlement.trouble)))
        yield from self._collect_upstreams()
        yield self._collect_flows(snapshot.flows)
        yield from _collect_tally(self._view.tally)

    def _collect_flows(self, flows: Iterable[FlowSnapshot]) -> Metric:
        """Flows by upstream. Those that go elsewhere in the vendor's networks are counted together, without a name."""
        regions = {state.name: state.settings.region for state in self._view.upstreams} | {"": ""}
        counts = Counter((one.upstream.name if one.upstream.name in regions else "", one.carrier) for one in flows)
        labels = ["upstream", "region", "carrier"]
        family = GaugeMetricFamily("relay_flows", "Flows, by upstream and carrier.", labels=labels)
        for name, region in regions.items():
            for carrier in Carrier:
                family.add_metric([name, region, carrier.value], counts[name, carrier])
        return family

    def _collect_upstreams(self) -> Iterator[Metric]:
        labels = ["upstream", "region"]
        up = GaugeMetricFamily("relay_upstream_up", "1 if the upstream answers its probes.", labels=labels)
        rtt = GaugeMetricFamily("relay_upstream_rtt_seconds", "Smoothed round trip of the probe.", labels=labels)
        for state in self._view.upstreams:
            values = [state.name, state.settings.region]
            up.add_metric(values, float(state.health is Health.UP))
            if state.rtt_s is not None:
                rtt.add_metric(values, state.rtt_s)
        yield from (up, rtt)


# Classes of an upstream's answer; "failed" had no answer.
ANSWERS = ("1xx", "2xx", "3xx", "4xx", "5xx", "failed")


class SignalingCollector(Collector):
    """The signaling proxy's counters, without those of upstreams that are no longer configured."""

    def __init__(self, proxy: SignalingProxy) -> None:
        self._proxy = proxy

    def describe(self) -> Iterable[Metric]:
        """Nothing, as in RelayCollector."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of signaling."""
        proxy = self._proxy
        answers = CounterMetricFamily(
            "relay_signaling_requests_total", "Requests sent on.", labels=["upstream", "status_class"]
        )
        upgrades = CounterMetricFamily("relay_signaling_upgrades_total", "WebSockets opened.", labels=["upstream"])
        websockets = GaugeMetricFamily("relay_signaling_websockets", "WebSockets open.", labels=["upstream"])
        up = GaugeMetricFamily("relay_signaling_upstream_up", "1 if it takes connections.", labels=["upstream"])
        for upstream in proxy.pools:
            for answer in ANSWERS:
                answers.add_metric([upstream.url, answer], upstream.answers[answer])
            upgrades.add_metric([upstream.url], upstream.upgrades)
            websockets.add_metric([upstream.url], upstream.websockets)
            up.add_metric([upstream.url], float(upstream.health is Health.UP))
        yield from (answers, upgrades, websockets, up)
        text = "Requests answered by the relay itself."
        yield _by_reason("relay_signaling_refusals_total", text, "reason", RefusalReason, proxy.refusals)
        yield _counter(
            "relay_signaling_swallowed_upgrades_total",
            "WebSockets whose frames a middlebox swallowed.",
            proxy.watchdog_hits,
        )
        yield _gauge("relay_signaling_sessions", "socket.io sessions whose upstream is known.", len(proxy.affinity))


class PauseCollector(Collector):
    """How often newcomers had to wait, and how near the process is to its last descriptor."""

    def __init__(self, counts: Mapping[PauseCause, int]) -> None:
        self._counts = counts

    def describe(self) -> Iterable[Metric]:
        """Nothing, as in RelayCollector."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of waiting newcomers."""
        text = "Pauses of a tenth of a second or less in which clients wait to be accepted."
        yield _by_reason("relay_accept_pauses_total", text, "cause", PauseCause, self._counts)
        text = "File descriptors in use with which clients wait."
        yield _gauge("relay_descriptors_for_clients", text, descriptors.bound())


class CertificateCollector(Collector):
    """When certificates, clients' authorities and OCSP responses end, and whether the files can be used."""

    def __init__(self, keeper: CertificateKeeper, stapler: Stapler, client_ca: ClientCa) -> None:
        self._keeper = keeper
        self._stapler = stapler
        self._client_ca = client_ca

    def describe(self) -> Iterable[Metric]:
        """Nothing, as in RelayCollector."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of certificates."""
        text = "Time until the certificate for this name ends; below 0 after that."
        expiry = GaugeMetricFamily("relay_certificate_expiry_seconds", text, labels=["name"])
        for name, seconds in self._keeper.expiries_s().items():
            expiry.add_metric([name], seconds)
        yield expiry
        text = "Time until the stapled OCSP response for this name ends; 0 without one. Only names with a responder."
        staples = GaugeMetricFamily("relay_ocsp_staple_expiry_seconds", text, labels=["name"])
        for name, seconds in self._stapler.expiries_s().items():
            staples.add_metric([name], seconds)
        yield staples
        text = "Time until the first authority of clients' certificates ends (listen.client_ca), if there is one."
        authorities = GaugeMetricFamily("relay_client_ca_expiry_seconds", text)
        if (seconds_left := self._client_ca.expiry_s()) is not None:
            authorities.add_metric([], seconds_left)
        yield authorities
        text = "Certificates and authorities whose files cannot be used now. Older ones serve, if there are any."
        yield _gauge("relay_certificate_troubles", text, self._keeper.troubles + bool(self._client_ca.trouble))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _two_ways(name: str, text: str, uplink: float, downlink: float) -> Metric:
    family = CounterMetricFamily(name, text, labels=["direction"])
    family.add_metric(["uplink"], uplink)
    family.add_metric(["downlink"], downlink)
    return family


# The relay may add 0.3 ms at the median and 2 ms at the 99th percentile. A listener notices some tens of milliseconds.
LATENCY_BUCKETS_US = (50, 100, 200, 300, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 1_000_000)


def _latency(name: str, text: str, latency: Latency) -> Metric:
    counts = [(end, sum(count for until, count in latency.buckets if until <= end)) for end in LATENCY_BUCKETS_US]
    buckets = [(str(end / 1e6), float(count)) for end, count in counts]
    buckets.append(("+Inf", float(latency.count)))
    return HistogramMetricFamily(name, text, buckets, latency.sum_us / 1e6)


def _collect_calls(calls: Calls) -> Iterator[Metric]:
    """Calls now, and histograms of all windows that could be judged."""
    yield _gauge("relay_calls", "Flows that carry RTP.", len(calls))
    windows = " in each window of 5 s of each call."
    mos = HistogramMetricFamily("relay_call_mos", "MOS-CQE of the worst stream" + windows, labels=["direction"])
    missing = HistogramMetricFamily("relay_call_missing_ratio", "Lost and late packets" + windows, labels=["direction"])
    jitter = HistogramMetricFamily("relay_call_jitter_seconds", "RFC 3550 jitter" + windows, labels=["direction"])
    for direction, histograms in calls.histograms.items():
        for family, histogram in (
            (mos, histograms.mos),
            (missing, histograms.missing_ratio),
            (jitter, histograms.jitter_s),
        ):
            family.add_metric([direction.value], _cumulative(histogram), histogram.sum)
    yield from (mos, missing, jitter)


def _collect_tally(tally: Tally) -> Iterator[Metric]:
    """What happened to the carriers other than TURN."""
    text = "Requests to leave HTTP."
    upgrades = CounterMetricFamily("relay_upgrades_total", text, labels=["carrier", "outcome"])
    for carrier in (Carrier.WEBSOCKET, Carrier.SESSION, Carrier.CONNECT_UDP):
        for outcome in UpgradeOutcome:
            upgrades.add_metric([carrier.value, outcome.value], tally.upgrades[carrier, outcome])
    yield upgrades
    text = "Sessions that came back, or did not."
    yield _by_reason("relay_session_resumptions_total", text, "outcome", ResumeOutcome, tally.resumptions)
    text = "Sessions that lost their upstream."
    yield _by_reason("relay_session_failovers_total", text, "outcome", FailoverOutcome, tally.failovers)
    yield _gauge("relay_sessions_parked", "Sessions whose client may still come back.", tally.parked)


def _collect_web_proxy(totals: WebProxyTotals) -> Iterator[Metric]:
    yield _gauge("relay_web_proxy_connections", "Connections of the web proxy, tunnels included.", totals.connections)
    yield _gauge("relay_web_proxy_tunnels", "Byte tunnels of the web proxy.", totals.tunnels)
    text = "Requests to the web proxy, by outcome."
    yield _by_reason("relay_web_proxy_requests_total", text, "outcome", ProxyOutcome, totals.outcomes)
    yield _by_reason("relay_web_proxy_tunnels_closed_total", "Byte tunnels ended.", "reason", TunnelEnd, totals.ends)
    yield _two_ways("relay_web_proxy_bytes_total", "Bytes through tunnels.", totals.bytes.up, totals.bytes.down)


def _collect_balancers(totals: BalancerTotals) -> Iterator[Metric]:
    yield _by_reason("relay_health_checks_total", "Health checks of balancers.", "check", Check, totals.checks)
    text = "Connections without a good PROXY header, where one is needed."
    yield _by_reason("relay_proxy_header_faults_total", text, "reason", HeaderFault, totals.faults)


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    ends = [*map(str, histogram.steps), "+Inf"]
    return list(zip(ends, map(float, accumulate(histogram.counts)), strict=True))


_Reason = TypeVar("_Reason", bound=StrEnum)


def _by_reason(name: str, text: str, label: str, reasons: type[_Reason], counts: Mapping[_Reason, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for reason in reasons:
        family.add_metric([reason.value], counts.get(reason, 0))
    return family


class Metrics:
    """The registry of one gateway; no globals, so that several run in one process."""

    def __init__(self, *collectors: Collector) -> None:
        self._registry = CollectorRegistry()
        for collector in collectors:
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)
