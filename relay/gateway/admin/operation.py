"""Metrics of how the relay is operated: its last configuration, and its limits, to be shown beside what is used."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from relay.config import Config


@dataclass
class Reloads:
    """When a configuration was taken last, in unix seconds, and whether the last one that was offered was."""

    taken_at: float = field(default_factory=time.time)
    succeeded: bool = True

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """A configuration is offered: it was taken unless the block raises."""
        self.succeeded = False
        yield
        self.taken_at, self.succeeded = time.time(), True


class OperationCollector(Collector):
    """Reads them when Prometheus asks."""

    def __init__(self, reloads: Reloads, config: Callable[[], Config]) -> None:
        self._reloads = reloads
        self._config = config

    def describe(self) -> Iterable[Metric]:
        """Nothing, as in RelayCollector."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of the operation."""
        text = "1 if the last configuration that was offered was taken."
        yield GaugeMetricFamily("relay_config_reload_success", text, value=float(self._reloads.succeeded))
        text = "When a configuration was taken last, in unix seconds."
        yield GaugeMetricFamily("relay_config_taken_timestamp_seconds", text, value=self._reloads.taken_at)
        limits = GaugeMetricFamily("relay_limit", 'Configured limits; 0 is "no bound".', labels=["limit"])
        config = self._config()
        limits.add_metric(["connections"], config.limits.connections)
        limits.add_metric(["web_proxy_connections"], config.web_proxy.connections)
        yield limits
