"""Who may come in: networks of clients, how many connections there are, and how fast they begin.

A newcomer is judged when it is accepted or adopted, before TLS. The compiled twin is ``arrival.pxd``, with the leaves
``networks.pxd`` and ``sources.pxd``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relay.addresses import source_of
from relay.plane.api import AcceptPaused, CloseReason, ConnectionId
from relay.plane.endings import pause_of
from relay.plane.reference.listener import Gate
from relay.plane.settings import PlaneSettings

# Of how many sources the plane remembers that they came lately. Those with a connection are always known.
MAX_SOURCES = 32_768
# For this long nothing more is told of pauses: there may be hundreds in a second.
PAUSES_TOLD_S = 0.1
# Sums of fractions of a second are not exact.
_ROUNDING_S = 1e-6


@dataclass(slots=True)
class _Source:
    """One source, and when all its newcomers so far are earned, at the rate that it may have."""

    connections: int = 0
    earned_at: float = 0.0


class Newcomers(Gate):
    """Counts the connections that are inside, and judges those that come. ``tell`` hears when they have to wait."""

    def __init__(self, settings: PlaneSettings, tell: Callable[[AcceptPaused], None]) -> None:
        self._tell = tell
        self._told_at = -PAUSES_TOLD_S
        # The source of each connection that is inside; None for one that no bound on sources counts for.
        self._inside: dict[ConnectionId, str | None] = {}
        self._sources: dict[str, _Source] = {}
        # As in _Source, for newcomers of all sources.
        self._earned_at = 0.0
        self.configure(settings)

    def configure(self, settings: PlaneSettings) -> None:
        """Judge by these bounds from now on."""
        self._settings = settings
        self._networks = settings.networks()
        self.max_descriptors = settings.max_descriptors

    def on_paused(self, now: float, code: int) -> None:
        """Tell that newcomers wait, unless that was told just now."""
        if now - self._told_at >= PAUSES_TOLD_S:
            self._told_at = now
            self._tell(pause_of(code))

    def wait_s(self, now: float) -> float:
        """How long the next newcomer is to wait until it is accepted."""
        per_second = self._settings.handshakes_per_second
        return self._earned_at + 1 / per_second - 1 - _ROUNDING_S - now if per_second else 0.0

    def enter(self, now: float, connection: ConnectionId, host: str) -> CloseReason | None:
        """Count a newcomer. Returns why it is refused; it is inside all the same, until it leaves."""
        self._inside[connection] = None
        if self._networks.refuses(host):
            return CloseReason.NETWORK_REFUSED
        if 0 < self._settings.max_connections < len(self._inside):
            return CloseReason.TOO_MANY_CONNECTIONS
        if not self._networks.is_exempt(host):
            refused = self._enter_source(now, connection, source_of(host))
            if refused is not None:
                return refused
        return self._judge_pace(now)

    def _enter_source(self, now: float, connection: ConnectionId, name: str) -> CloseReason | None:
        bound, per_second = self._settings.max_connections_per_source, self._settings.handshakes_per_second_per_source
        if not bound and not per_second:
            return None
        source = self._sources.setdefault(name, _Source())
        if 0 < bound <= source.connections:
            return CloseReason.TOO_MANY_CONNECTIONS
        if per_second:
            earned_at = _take_one(source.earned_at, now, per_second)
            if earned_at is None:
                return CloseReason.TOO_MANY_HANDSHAKES
            source.earned_at = earned_at
        source.connections += 1
        self._inside[connection] = name
        if len(self._sources) > MAX_SOURCES:
            self._forget_unused(now)
        return None

    def _judge_pace(self, now: float) -> CloseReason | None:
        per_second = self._settings.handshakes_per_second
        if per_second:
            earned_at = _take_one(self._earned_at, now, per_second)
            if earned_at is None:
                return CloseReason.TOO_MANY_HANDSHAKES
            self._earned_at = earned_at
        return None

    def _forget_unused(self, now: float) -> None:
        for name in [name for name, one in self._sources.items() if not one.connections and one.earned_at <= now]:
            del self._sources[name]

    def leave(self, connection: ConnectionId) -> None:
        """A connection is gone. May be repeated."""
        name = self._inside.pop(connection, None)
        if name is not None:
            self._sources[name].connections -= 1


def _take_one(earned_at: float, now: float, per_second: int) -> float | None:
    """Take one of so many a second, of which as many may come at once. Returns when it is earned, None without one."""
    later = max(earned_at, now) + 1 / per_second
    return later if later <= now + 1 + _ROUNDING_S else None
