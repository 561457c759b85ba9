"""The upstreams as the gateway knows them: settings, resolved address, health and load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum

from relay.addresses import Address
from relay.config import Health as HealthSettings
from relay.config import UpstreamServer
from relay.plane import api

# A new round-trip time counts an eighth, as in TCP (RFC 6298).
RTT_GAIN = 1 / 8


class Health(StrEnum):
    """What is known of an upstream."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class RiseAndFall:
    """Health from a row of successes or failures; a single one does not change what is known, but the first."""

    def __init__(self, settings: HealthSettings) -> None:
        self.settings = settings
        self.health = Health.UNKNOWN
        self._row = 0

    @property
    def settled(self) -> bool:
        """True if the last probe says what is known; else the next ones should not keep us waiting."""
        return self.health is (Health.UP if self._row > 0 else Health.DOWN)

    def on_success(self) -> bool:
        """A probe was answered; True if that changed the health."""
        self._row = max(self._row, 0) + 1
        return self._become(Health.UP, self.health is Health.UNKNOWN or self._row >= self.settings.rise)

    def on_failure(self, *, certain: bool = False) -> bool:
        """A probe was lost, or refused for ``certain``, which needs no row; True if that changed the health."""
        self._row = min(self._row, 0) - 1
        return self._become(Health.DOWN, certain or -self._row >= self.settings.fall)

    def _become(self, health: Health, reached: bool) -> bool:
        changed = reached and self.health is not health
        if changed:
            self.health = health
        return changed


class UpstreamState:
    """One upstream. It is healthy if it answers Binding, and Allocate where we have credentials for it."""

    def __init__(self, settings: UpstreamServer, health: HealthSettings) -> None:
        self.settings = settings
        self.address: Address | None = settings.address if settings.address.is_literal else None
        self.binding = RiseAndFall(health)
        self.allocate = RiseAndFall(health) if settings.username or settings.secret else None
        self.rtt_s: float | None = None
        self.flows = 0

    @property
    def name(self) -> str:
        """Its name in configuration, metrics and logs."""
        return self.settings.name

    @property
    def health(self) -> Health:
        """Both probes taken together."""
        if self.address is None or self.binding.health is Health.DOWN:
            return Health.DOWN
        if self.allocate is not None and self.allocate.health is Health.DOWN:
            return Health.DOWN
        return self.binding.health

    def configure(self, settings: UpstreamServer, health: HealthSettings) -> None:
        """Take new settings for the same address; what is known of it stays, but for credentials that changed."""
        if _credentials(settings) != _credentials(self.settings):
            self.allocate = RiseAndFall(health) if settings.username or settings.secret else None
        self.settings = settings
        self.binding.settings = health
        if self.allocate is not None:
            self.allocate.settings = health

    def on_rtt(self, seconds: float) -> None:
        """Take a probe's round-trip time."""
        self.rtt_s = seconds if self.rtt_s is None else self.rtt_s + RTT_GAIN * (seconds - self.rtt_s)

    def for_plane(self, max_media_age_s: float | None = None) -> api.Upstream:
        """What the plane needs to know of it, for a flow whose route has an age of its own, or None."""
        assert self.address is not None
        releases = self.settings.secret is not None
        return api.Upstream(self.name, self.address, releases, max_media_age_s)


def _credentials(settings: UpstreamServer) -> tuple[object, ...]:
    return settings.username, settings.password, settings.secret


class Upstreams:
    """All of them, by name."""

    def __init__(self) -> None:
        self._states: dict[str, UpstreamState] = {}

    def __iter__(self) -> Iterator[UpstreamState]:
        return iter(self._states.values())

    def get(self, name: str) -> UpstreamState | None:
        """The upstream of this name, or None."""
        return self._states.get(name)

    def configure(self, servers: Iterable[UpstreamServer], health: HealthSettings) -> None:
        """Take a new list; an upstream whose name and address are as before keeps what is known of it."""
        before, self._states = self._states, {}
        for settings in servers:
            state = before.get(settings.name)
            if state is None or state.settings.address != settings.address:
                state = UpstreamState(settings, health)
            state.configure(settings, health)
            self._states[settings.name] = state

    def region_of(self, name: str) -> str:
        """The region of the upstream of this name; empty if it is no longer configured."""
        state = self._states.get(name)
        return "" if state is None else state.settings.region

    @property
    def any_healthy(self) -> bool:
        """True if at least one is up."""
        return any(state.health is Health.UP for state in self)
