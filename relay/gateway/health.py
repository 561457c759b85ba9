"""Watches the upstreams: a Binding each second, now and then a whole Allocate, and their names looked up again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import time
from collections.abc import Awaitable, Callable

import structlog

from relay.addresses import Address, RelayPolicy
from relay.client.turn import open_turn_udp
from relay.config import Health as HealthSettings
from relay.config import Media as MediaSettings
from relay.config import UpstreamServer
from relay.errors import UpstreamError
from relay.gateway.lookups import Lookup
from relay.gateway.resolve import ResolveError, ResolveFailure, Resolver
from relay.gateway.upstreams import Health, RiseAndFall, Upstreams, UpstreamState
from relay.tasks import Tasks
from relay.turn.credentials import rest_password, rest_username

log = structlog.get_logger()

# The name under which the probe asks, where only the shared secret is known; and how long that name is good.
PROBE_USER = "relay-health"
PROBE_CREDENTIAL_S = 120
# A name that was not found is asked for again so soon: at boot a resolver may come up after us.
RESOLVE_AGAIN_S = 5.0

OnProbe = Callable[[UpstreamState], None]


def credentials_for(settings: UpstreamServer, username: str, unix_time: float) -> tuple[str, str]:
    """User name and password for an upstream; of ``username``'s own if the shared secret is known.

    Without a name of its own, ``username`` is made for the moment.
    """
    if settings.secret is not None:
        name = username or rest_username(PROBE_USER, int(unix_time) + PROBE_CREDENTIAL_S)
        return name, rest_password(settings.secret.get_secret_value(), name)
    password = "" if settings.password is None else settings.password.get_secret_value()
    return settings.username or "", password


class HealthMonitor:
    """One task for each upstream. ``on_probe`` is called after each probe, changed or not."""

    def __init__(self, upstreams: Upstreams, on_probe: OnProbe, lookup: Lookup) -> None:
        self._upstreams = upstreams
        self._lookup = lookup
        self._on_probe = on_probe
        self._tasks = Tasks()
        self._running: list[asyncio.Task[None]] = []
        self._hurry: dict[UpstreamState, asyncio.Event] = {}

    def configure(self, settings: HealthSettings, media: MediaSettings) -> None:
        """Watch the upstreams as they are now, with these settings."""
        for task in self._running:
            task.cancel()
        self._hurry = {state: asyncio.Event() for state in self._upstreams}
        self._running = []
        # What a name resolves to is judged; a literal address is the operator's own word.
        resolver = Resolver(RelayPolicy(media.allowed_networks), self._lookup)
        for state, hurry in self._hurry.items():
            watch = _Watch(state, settings, media, resolver, on_probe=self._on_probe, hurry=hurry)
            self._running.append(self._tasks.start(watch.run(), f"health {state.name}"))

    def suspect(self, state: UpstreamState) -> None:
        """A flow found this upstream gone: probe it now."""
        if (hurry := self._hurry.get(state)) is not None:
            hurry.set()

    async def stop(self) -> None:
        """Watch nothing any more."""
        await self._tasks.cancel()


def _is_our_own(error: UpstreamError) -> bool:
    """True if we have no descriptor to ask with: that says nothing about an upstream, nor about its running calls."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in {errno.EMFILE, errno.ENFILE}


class _Watch:
    """Watches one upstream until it is cancelled."""

    def __init__(
        self,
        state: UpstreamState,
        settings: HealthSettings,
        media: MediaSettings,
        resolver: Resolver,
        *,
        on_probe: OnProbe,
        hurry: asyncio.Event,
    ) -> None:
        self._state = state
        self._settings = settings
        self._media = media
        self._resolver = resolver
        self._on_probe = on_probe
        self._hurry = hurry
        self._resolve_at = self._allocate_at = 0.0

    async def run(self) -> None:
        """Probe round after round, the first at once; ``hurry`` ends a pause."""
        loop = asyncio.get_running_loop()
        while True:
            jitter = random.uniform(1 - self._settings.jitter, 1 + self._settings.jitter)  # noqa: S311
            next_round = loop.time() + self._settings.interval_s * jitter
            self._hurry.clear()
            await self._round(loop.time())
            self._on_probe(self._state)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_round):
                    await self._hurry.wait()

    async def _round(self, now: float) -> None:
        state, settings = self._state, self._settings
        if not state.settings.address.is_literal and now >= self._resolve_at:
            self._resolve_at = now + settings.resolve_interval_s
            await self._resolve()
        if state.address is None:
            self._resolve_at = min(self._resolve_at, now + RESOLVE_AGAIN_S)
            return
        await self._probe(state.binding, self._bind(state.address))
        if state.allocate is not None and now >= self._allocate_at:
            self._allocate_at = now + settings.allocate_interval_s
            await self._probe(state.allocate, self._allocate(state.address))
            if not state.allocate.settled:  # rise and fall count rounds then
                self._allocate_at = now

    async def _probe(self, judged: RiseAndFall, probe: Awaitable[None]) -> None:
        before = self._state.health
        cause = ""
        try:
            await probe
            judged.on_success()
        except UpstreamError as error:
            if _is_our_own(error):
                return
            cause = str(error)
            # ICMP says that nobody listens there: that is no lost packet.
            judged.on_failure(certain=isinstance(error.__cause__, ConnectionRefusedError))
        self._log_change(before, cause)

    def _log_change(self, before: Health, cause: str) -> None:
        state = self._state
        if state.health is before:
            return
        if state.health is Health.UP:
            log.info("upstream up", upstream=state.name, address=str(state.address))
        else:
            log.warning("upstream down", upstream=state.name, address=str(state.address), cause=cause)

    def _source(self, upstream: Address) -> Address | None:
        """Probe from where media is sent: another source may take another way."""
        host = self._media.source_of_version(6 if upstream.is_ipv6 else 4)
        return None if host is None else Address(host, 0)

    async def _bind(self, address: Address) -> None:
        source = self._source(address)
        async with await open_turn_udp(address, timeout_s=self._settings.timeout_s, local_address=source) as turn:
            # Not the loop's clock: that of uvloop counts whole milliseconds.
            started = time.perf_counter()
            await turn.binding()
            self._state.on_rtt(time.perf_counter() - started)

    async def _allocate(self, address: Address) -> None:
        username, password = credentials_for(self._state.settings, "", time.time())
        source = self._source(address)
        turn = await open_turn_udp(
            address, username, password, timeout_s=self._settings.timeout_s, local_address=source
        )
        async with turn:  # releases the allocation
            await turn.allocate()

    async def _resolve(self) -> None:
        """Look the name up; what may not be relayed to is not taken, and a failure leaves the last address."""
        state, wanted = self._state, self._state.settings.address
        try:
            permitted = await self._resolver.resolve(*wanted)
        except ResolveError as error:
            if error.failure is ResolveFailure.DESTINATION_IP_PROHIBITED:
                addresses = ", ".join(error.refused)
                log.warning("upstream address refused", upstream=state.name, name=wanted.host, addresses=addresses)
                state.address = None
            else:
                log.warning("upstream name not resolved", upstream=state.name, name=wanted.host, cause=str(error))
            return
        if state.address not in permitted:
            state.address = permitted[0]
