"""Which faults are on, at which hop, and until when. Hops ask it for each packet or request, and hear of changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from relay.catalog import Catalog, Service
from relay.emulator.faults.kinds import BadSetting, FaultSetting, Hop, Kind, complete, regions_of, with_known_target
from relay.timer import DeadlineTimer

log = structlog.get_logger()

# More at a time than anyone can keep in mind, and few enough to be looked through for a packet.
MAX_FAULTS = 64


@dataclass(frozen=True)
class Fault:
    """A fault that is on. ``until`` is a time of the loop's clock, or None: until it is taken off."""

    hop: Hop
    kind: Kind
    setting: FaultSetting
    until: float | None = None

    @property
    def target(self) -> str | None:
        """The region or host that it is limited to."""
        return self.setting.target


class FaultBoard:
    """The faults of one emulator. A hop, a kind and a target have one fault at most: a second one replaces it."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._loop = asyncio.get_running_loop()
        self._faults: dict[tuple[Hop, Kind, str | None], Fault] = {}
        self._by_place: dict[tuple[Hop, Kind], list[Fault]] = {}
        self._timer = DeadlineTimer(self._on_deadline)
        self._listeners: list[Callable[[], None]] = []
        self._changed = asyncio.Event()

    @property
    def active(self) -> list[Fault]:
        """All that are on, the oldest first."""
        return list(self._faults.values())

    @property
    def regions(self) -> list[str]:
        """The regions that a fault may be limited to."""
        return regions_of(self._catalog)

    @property
    def hosts(self) -> list[str]:
        """The hosts that a fault may be limited to."""
        return sorted(host.name for host in self._catalog.hosts)

    @property
    def turn_hosts(self) -> list[str]:
        """Those of them that desks reach over UDP."""
        return sorted(host.name for host in self._catalog.hosts if host.service is Service.MEDIA)

    def find(self, hop: Hop, kind: Kind, *targets: str) -> Fault | None:
        """The fault that concerns one who goes by these names, such as a host and its region; None if there is none."""
        for fault in self._by_place.get((hop, kind), ()):
            if fault.target is None or fault.target in targets:
                return fault
        return None

    def remaining_s(self, fault: Fault) -> float | None:
        """How long it will be on."""
        return None if fault.until is None else max(0.0, fault.until - self._loop.time())

    # Changes

    def put(self, hop: Hop, kind: Kind, setting: FaultSetting) -> Fault:
        """Turn a fault on. Raises BadSetting for what cannot be, and then nothing has changed."""
        setting = with_known_target(self._catalog, kind, complete(hop, kind, setting))
        key = (hop, kind, setting.target)
        if key not in self._faults and len(self._faults) >= MAX_FAULTS:
            raise BadSetting("board", f"{MAX_FAULTS} faults are on.", "a DELETE of one first")
        until = None if setting.seconds is None else self._loop.time() + setting.seconds
        fault = self._faults[key] = Fault(hop, kind, setting, until)
        log.info("fault on", hop=hop, kind=kind, target=setting.target, seconds=setting.seconds)
        self._on_change()
        return fault

    def remove(self, hop: Hop, kind: Kind) -> int:
        """Take off the faults of this kind at this hop. Returns how many there were."""
        return self._remove([key for key in self._faults if key[:2] == (hop, kind)])

    def clear(self) -> int:
        """Take off all. Returns how many there were."""
        return self._remove(list(self._faults))

    def _remove(self, keys: list[tuple[Hop, Kind, str | None]]) -> int:
        for key in keys:
            fault = self._faults.pop(key)
            log.info("fault off", hop=fault.hop, kind=fault.kind, target=fault.target)
        if keys:
            self._on_change()
        return len(keys)

    def _on_deadline(self, now: float) -> None:
        self._remove([key for key, fault in self._faults.items() if fault.until is not None and fault.until <= now])

    def _on_change(self) -> None:
        self._by_place = {}
        for fault in self._faults.values():
            self._by_place.setdefault((fault.hop, fault.kind), []).append(fault)
        self._timer.set(min((fault.until for fault in self._faults.values() if fault.until is not None), default=None))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for listener in self._listeners:
            listener()

    # Who hears of changes

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call this after each change, from now on."""
        self._listeners.append(listener)

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    async def until_off(self, hop: Hop, kind: Kind, *targets: str) -> None:
        """Wait while such a fault is on."""
        while self.find(hop, kind, *targets) is not None:
            await self.changed()

    def close(self) -> None:
        """Turn off all, and wait for nothing."""
        self.clear()
        self._timer.cancel()
