"""Prometheus metrics, read from the plane's snapshot and the upstreams when they are asked for.

Labels have few values, all known beforehand (upstream names come from the configuration), and every one is there
from the start, so that a rate over a rare reason has a zero to begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
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

from relay import __version__
from relay.gateway.upstreams import Health, Upstreams
from relay.plane.api import CloseReason, DropReason, HandshakeFailure, Latency, Snapshot


class RelayCollector(Collector):
    """Turns one snapshot into metrics."""

    def __init__(self, snapshot: Callable[[], Snapshot], upstreams: Upstreams, draining: Callable[[], bool]) -> None:
        self._snapshot = snapshot
        self._upstreams = upstreams
        self._draining = draining

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are checked when they are collected, once the plane runs."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of the relay, from one snapshot."""
        snapshot = self._snapshot()
        totals = snapshot.totals
        yield InfoMetricFamily("relay", "What runs here.", value={"version": __version__})
        yield _gauge("relay_draining", "1 while no new flows are taken.", float(self._draining()))
        yield _gauge("relay_connections", "Open TCP connections.", snapshot.connections)
        yield _counter("relay_connections_accepted", "TCP connections accepted.", snapshot.accepted)
        yield _by_reason("relay_connections_closed", "Connections ended.", "reason", CloseReason, snapshot.closed)
        failures = snapshot.handshake_failures
        yield _by_reason("relay_handshake_failures", "TLS handshakes failed.", "cause", HandshakeFailure, failures)
        yield _two_ways("relay_packets", "Packets forwarded.", totals.uplink_packets, totals.downlink_packets)
        yield _two_ways("relay_bytes", "UDP payload forwarded.", totals.uplink_bytes, totals.downlink_bytes)
        yield _by_reason("relay_drops", "Packets not forwarded.", "reason", DropReason, totals.drops)
        yield _counter("relay_retransmissions", "STUN requests sent again.", totals.retransmissions)
        yield _latency("uplink", snapshot.uplink_latency)
        yield _latency("downlink", snapshot.downlink_latency)
        yield from self._collect_upstreams()

    def _collect_upstreams(self) -> Iterator[Metric]:
        labels = ["upstream", "region"]
        flows = GaugeMetricFamily("relay_flows", "Flows, by upstream.", labels=labels)
        up = GaugeMetricFamily("relay_upstream_up", "1 if the upstream answers its probes.", labels=labels)
        rtt = GaugeMetricFamily("relay_upstream_rtt_seconds", "Smoothed round trip of the probe.", labels=labels)
        for state in self._upstreams:
            values = [state.name, state.settings.region]
            flows.add_metric(values, state.flows)
            up.add_metric(values, float(state.health is Health.UP))
            if state.rtt_s is not None:
                rtt.add_metric(values, state.rtt_s)
        yield from (flows, up, rtt)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _two_ways(name: str, text: str, uplink: float, downlink: float) -> Metric:
    family = CounterMetricFamily(name, text, labels=["direction"])
    family.add_metric(["uplink"], uplink)
    family.add_metric(["downlink"], downlink)
    return family


# What a relay may add is 0.3 ms at the median and 2 ms at the 99th percentile; a listener hears some tens of them.
LATENCY_BUCKETS_US = (50, 100, 200, 300, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 1_000_000)


def _latency(direction: str, latency: Latency) -> Metric:
    counts = [(end, sum(count for until, count in latency.buckets if until <= end)) for end in LATENCY_BUCKETS_US]
    buckets = [(str(end / 1e6), float(count)) for end, count in counts]
    buckets.append(("+Inf", float(latency.count)))
    return HistogramMetricFamily(
        f"relay_{direction}_seconds", f"Time of {direction} packets in the relay.", buckets, latency.sum_us / 1e6
    )


_Reason = TypeVar("_Reason", bound=StrEnum)


def _by_reason(name: str, text: str, label: str, reasons: type[_Reason], counts: Mapping[_Reason, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for reason in reasons:
        family.add_metric([reason.value], counts.get(reason, 0))
    return family


class Metrics:
    """The registry of one gateway; no globals, so that several run in one process."""

    def __init__(self, collector: RelayCollector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)
