"""Whom the admin listener refuses: counted by reason, and logged with a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from relay.gateway.lines import Lines
from relay.gateway.signaling.http_rules import CONNECTION

# For each reason. Anyone who reaches the listener can cause these.
LINES_PER_S = 1.0


class AdminRefusal(StrEnum):
    """Why the listener refused: a label of metrics and a word of the log, so the set is closed."""

    HOST = "host"  # a name that is not one of its own
    ORIGIN = "origin"  # a page of somebody else
    TOKEN_MISSING = "token_missing"  # noqa: S105
    TOKEN_WRONG = "token_wrong"  # noqa: S105
    TOO_MANY_TOKENS = "too_many_tokens"  # to check in this second
    TOO_MANY_CONNECTIONS = "too_many_connections"
    REQUEST_TIMEOUT = "request_timeout"  # no whole request in time
    BAD_REQUEST = "bad_request"  # that cannot be read


class AdminRefusals(Collector):
    """``counts`` are from the start. Prometheus reads them here."""

    def __init__(self) -> None:
        self.counts: Counter[AdminRefusal] = Counter()
        self._lines = Lines(LINES_PER_S)

    def note(self, reason: AdminRefusal, connection: str, client: str, path: str = "") -> None:
        """Count a refusal, and log it."""
        self.counts[reason] += 1
        if reason is AdminRefusal.TOKEN_MISSING:
            return  # a browser asks without one first
        told = {"connection": connection, "client": client, "path": path, "reason": reason.value}
        self._lines.info("admin request refused", reason, **{key: value for key, value in told.items() if value})

    def note_request(self, reason: AdminRefusal, request: web.BaseRequest) -> None:
        """The same for a request that has been read."""
        self.note(reason, request.get(CONNECTION, ""), request.remote or "", request.path)

    def describe(self) -> Iterable[Metric]:
        """Nothing, as in RelayCollector."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of refusals."""
        text = "Requests and connections that the admin listener refused."
        family = CounterMetricFamily("relay_admin_refusals_total", text, labels=["reason"])
        for reason in AdminRefusal:
            family.add_metric([reason.value], self.counts[reason])
        yield family
