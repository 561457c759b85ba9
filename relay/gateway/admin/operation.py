"""Metrics of how the relay is operated: its last configuration, its limits beside what is used, and its memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from relay.config import Config
from relay.gateway.memory.watch import MemoryWatch


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


class MemoryCollector(Collector):
    """Whether memory is short, and how near it is to that."""

    def __init__(self, memory: MemoryWatch) -> None:
        self._memory = memory

    def describe(self) -> Iterable[Metric]:
        """Nothing, as in RelayCollector."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of memory."""
        text = "1 while memory is short: newcomers wait, and nothing new is begun."
        yield GaugeMetricFamily("relay_memory_pressure", text, value=float(self._memory.short))
        fullest = self._memory.fullest
        text = "Memory used of the limit that is nearest to being reached; 0 without any limit."
        yield GaugeMetricFamily("relay_memory_used_bytes", text, value=fullest.used_bytes if fullest else 0)
        text = "This limit; 0 without any."
        yield GaugeMetricFamily("relay_memory_limit_bytes", text, value=fullest.limit_bytes if fullest else 0)
