"""What operators see of a cluster: the relays that are up, and whether Redis works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from relay.gateway.cluster.cluster import Cluster


def describe_cluster(cluster: Cluster | None) -> dict[str, Any]:
    """The cluster as ``/api/cluster`` has it. Each of ``relays`` is as it was a few seconds ago."""
    store = None if cluster is None else cluster.store
    if cluster is None or store is None:
        return {"configured": False, "up": False, "trouble": "", "id": None, "relays": []}
    relays = [asdict(relay) for relay in cluster.relays]
    return {"configured": True, "up": store.up, "trouble": store.cause, "id": cluster.identity, "relays": relays}


class ClusterCollector(Collector):
    """Metrics of a relay that shares its state. A relay alone has none of them."""

    def __init__(self, cluster: Cluster | None) -> None:
        self._cluster = cluster

    def describe(self) -> Iterable[Metric]:
        """Nothing, as in RelayCollector."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of the cluster."""
        cluster = self._cluster
        store = None if cluster is None else cluster.store
        if cluster is None or store is None:
            return
        text = "1 while Redis works, and limits count for all relays; 0 while they count for this relay alone."
        yield GaugeMetricFamily("relay_cluster_up", text, value=float(store.up))
        relays = GaugeMetricFamily("relay_cluster_relays", "Relays that are up, by what they do.", labels=["state"])
        draining = sum(relay.draining for relay in cluster.relays)
        relays.add_metric(["serving"], len(cluster.relays) - draining)
        relays.add_metric(["draining"], draining)
        yield relays
        failures = CounterMetricFamily(
            "relay_cluster_failures_total", "Questions that Redis did not answer as wanted.", labels=["failure"]
        )
        for failure, count in store.failures.items():
            failures.add_metric([failure.value], count)
        yield failures
        yield SummaryMetricFamily(
            "relay_cluster_answer_seconds", "How long Redis took to answer.", store.answers, store.seconds
        )
