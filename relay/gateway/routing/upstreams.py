"""The upstreams as the gateway knows them: settings, addresses, health and load."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from relay.addresses import Address
from relay.config import HealthSettings, UpstreamServer
from relay.plane import api

# A new round-trip time counts an eighth, as in TCP (RFC 6298).
RTT_GAIN = 1 / 8


class Health(StrEnum):
    """What is known of an upstream."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class RiseAndFall:
    """Health from a row of successes or failures; a single one does not change what is known, except the first."""

    def __init__(self, settings: HealthSettings) -> None:
        self.settings = settings
        self.health = Health.UNKNOWN
        self._row = 0
        self._fresh = True

    @property
    def settled(self) -> bool:
        """True if the last probe agrees with what is known. If not, the next probes should come soon."""
        return not self._fresh and self.health is (Health.UP if self._row > 0 else Health.DOWN)

    def begin_anew(self) -> None:
        """From now on another address is judged: its first success counts at once, as the very first one did."""
        self._row, self._fresh = 0, True

    def on_success(self) -> bool:
        """A probe was answered. Returns True if that changed the health."""
        reached = self._fresh or self._row + 1 >= self.settings.rise
        self._row, self._fresh = max(self._row, 0) + 1, False
        return self._become(Health.UP, reached)

    def on_failure(self, *, certain: bool = False) -> bool:
        """A probe was lost; ``certain``: refused, which needs no row. Returns True if that changed the health."""
        self._row = min(self._row, 0) - 1
        return self._become(Health.DOWN, certain or -self._row >= self.settings.fall)

    def _become(self, health: Health, reached: bool) -> bool:
        changed = reached and self.health is not health
        if changed:
            self.health = health
        if reached:
            self._fresh = False
        return changed


@dataclass
class Load:
    """What an upstream carries. Flows go on after a reload, so it belongs to the name, whatever its address is now."""

    flows: int = 0


class UpstreamState:
    """One upstream. It is healthy if it answers, and serves an Allocate where we have credentials for it.

    A name may have several addresses: ``address`` is the one that new flows go to, ``addresses`` are all.
    """

    def __init__(self, settings: UpstreamServer, health: HealthSettings) -> None:
        self.settings = settings
        self.probe = settings.probe or health.probe
        self.address: Address | None = settings.address if settings.address.is_literal else None
        self.addresses: tuple[Address, ...] = () if self.address is None else (self.address,)
        # Whether it answers at all, and whether it serves an Allocate; None if that is not asked.
        self.life = RiseAndFall(health)
        self.allocate = RiseAndFall(health) if self._allocates else None
        self.rtt_s: float | None = None
        self.load = Load()
        # Addresses that new flows have left because they did not answer.
        self._dead: set[Address] = set()

    @property
    def flows(self) -> int:
        """How many flows go to the upstream of this name, now."""
        return self.load.flows

    @flows.setter
    def flows(self, count: int) -> None:
        self.load.flows = count

    @property
    def name(self) -> str:
        """Its name in configuration, metrics and logs."""
        return self.settings.name

    @property
    def _allocates(self) -> bool:
        return self.probe in {"auto", "allocate"} and bool(self.settings.username or self.settings.secret)

    @property
    def health(self) -> Health:
        """Both probes taken together. What is not probed is taken to be up."""
        if self.address is None or self.life.health is Health.DOWN:
            return Health.DOWN
        if self.probe == "none":
            return Health.UP
        if self.allocate is not None and self.allocate.health is Health.DOWN:
            return Health.DOWN
        return self.life.health

    def configure(self, settings: UpstreamServer, health: HealthSettings) -> None:
        """Take new settings for the same address; what is known of it stays, except for credentials that changed."""
        same = (settings.probe or health.probe) == self.probe and _credentials(settings) == _credentials(self.settings)
        self.settings = settings
        if not same:
            self.probe = settings.probe or health.probe
            self.allocate = RiseAndFall(health) if self._allocates else None
        if self.probe == "none":
            self.life = RiseAndFall(health)
        self.life.settings = health
        if self.allocate is not None:
            self.allocate.settings = health

    # Addresses

    def take(self, addresses: Sequence[Address]) -> bool:
        """The name has these addresses now. If the one in use is gone, the next is probed anew.

        Returns True if new flows have moved from one address to another.
        """
        self.addresses = tuple(addresses)
        self._dead.intersection_update(addresses)
        if self.address in self.addresses:
            return False
        before = self.address
        self.address = next((one for one in addresses if one not in self._dead), None) or next(iter(addresses), None)
        self._begin_anew()
        return before is not None and self.address is not None

    def switch(self, address: Address) -> None:
        """New flows go to another address of the name, because this one does not answer."""
        if self.address is not None:
            self._dead.add(self.address)
        self._dead.discard(address)
        self.address = address
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.rtt_s = None
        self.life.begin_anew()
        if self.allocate is not None:
            self.allocate.begin_anew()

    def others(self, avoid: Collection[Address] = ()) -> list[Address]:
        """Addresses of the name that flows do not go to now, live ones first."""
        others = [one for one in self.addresses if one != self.address and one not in avoid]
        return sorted(others, key=lambda one: one in self._dead)

    def is_down(self, address: Address) -> bool:
        """True if probes have found this address dead. They do not ask addresses that only a 300 has led to."""
        return address in self._dead or (address == self.address and self.health is Health.DOWN)

    def on_rtt(self, seconds: float) -> None:
        """Take a probe's round-trip time."""
        self.rtt_s = seconds if self.rtt_s is None else self.rtt_s + RTT_GAIN * (seconds - self.rtt_s)

    def for_plane(self, address: Address | None = None) -> api.Upstream:
        """What the plane needs to know of it, for a flow to ``address``, or to the one that new flows go to."""
        address = address or self.address
        assert address is not None
        return api.Upstream(self.name, address, self.settings.secret is not None)


def _credentials(settings: UpstreamServer) -> tuple[object, ...]:
    return settings.username, settings.password, settings.secret


class Upstreams:
    """All of them, by name."""

    def __init__(self) -> None:
        self._states: dict[str, UpstreamState] = {}
        # By name, for all upstreams that there ever were: an operator writes few of them.
        self._loads: dict[str, Load] = {}

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
                state.load = self._loads.setdefault(settings.name, state.load)
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
