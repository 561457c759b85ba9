"""Watches the upstreams: a question each second, now and then a whole Allocate, and their names looked up again.

Looking up and asking do not wait for each other: a resolver that hangs delays no probe. When an address of a name does
not answer, new flows go to another address of the same name that does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import structlog

from relay import deadlines
from relay.addresses import Address, RelayPolicy
from relay.config import HealthSettings, MediaSettings, UpstreamServer
from relay.gateway.routing.lookups import Lookup
from relay.gateway.routing.probe import Asker, Finding, ProbeVerdict
from relay.gateway.routing.resolve import ResolveError, ResolveFailure, Resolver
from relay.gateway.routing.rounds import go_round, spread
from relay.gateway.routing.upstreams import Health, RiseAndFall, Upstreams, UpstreamState
from relay.tasks import Tasks
from relay.turn.credentials import rest_password, rest_username
from relay.wire.stun import Method

log = structlog.get_logger()

# Where only the shared secret is known, the probe asks under this name, which is good for a day. That is usual for such
# names: the clocks of relay and upstream may differ, and a session renews its allocation with its name.
PROBE_USER = "relay-health"
PROBE_CREDENTIAL_S = 86_400
# A name that was not found, or whose addresses do not answer, is asked for again this soon. At boot the resolver may
# come up after us, and a server that has moved is found at its new address.
RESOLVE_AGAIN_S = 5.0
# Flows that lose their upstream suspect it, hundreds at once, and then it is probed before the next round. But probes
# begin no closer together than this share of their interval, or of a second if that is less, so that a row of failures
# takes some time.
SUSPECT_SHARE = 0.5
# An upstream that is down is asked this much sooner, so that it is up again within a second of its return: rise is two
# successes. Four questions a second are nothing to a server that lives, and cost one that does not nothing at all.
DOWN_SHARE = 1 / 4
# If our own link fails for a moment, that says nothing about an upstream. Links come back within seconds. An upstream
# that cannot be reached for longer is as good as down for this relay.
OURS_S = 10.0

OnProbe = Callable[[UpstreamState], None]

# What each ``health.probe`` asks with, in this order.
METHODS = {
    "auto": (Method.BINDING, Method.ALLOCATE),
    "binding": (Method.BINDING,),
    "allocate": (Method.ALLOCATE,),
}


def credentials_for(settings: UpstreamServer, username: str, unix_time: float) -> tuple[str, str]:
    """User name and password for an upstream.

    Where the shared secret is known, the password is made for ``username``; if it is empty, a name is made too, good
    for a day. Otherwise they are the configured ones.
    """
    if settings.secret is not None:
        name = username or rest_username(PROBE_USER, int(unix_time) + PROBE_CREDENTIAL_S)
        return name, rest_password(settings.secret.get_secret_value(), name)
    password = "" if settings.password is None else settings.password.get_secret_value()
    return settings.username or "", password


class HealthMonitor:
    """Two tasks for each upstream. ``on_probe`` is called after each probe, changed or not."""

    def __init__(self, upstreams: Upstreams, on_probe: OnProbe, lookup: Lookup) -> None:
        self._upstreams = upstreams
        self._lookup = lookup
        self._on_probe = on_probe
        self._tasks = Tasks()
        self._running: list[asyncio.Task[None]] = []
        self._watched: dict[UpstreamState, _Watch] = {}

    def configure(self, settings: HealthSettings, media: MediaSettings) -> None:
        """Watch the upstreams as they are now, with these settings."""
        for task in self._running:
            task.cancel()
        self._running = []
        # It judges what a name resolves to, and where a 300 leads. A literal address is the operator's own word.
        policy = RelayPolicy(media.allowed_networks)
        resolver = Resolver(policy, self._lookup)
        asker = Asker(settings.timeout_s, media.source_of_version(4), media.source_of_version(6), policy)
        self._watched = {
            state: _Watch(state, settings, asker, resolver, on_probe=self._on_probe) for state in self._upstreams
        }
        for state, watch in self._watched.items():
            if not state.settings.address.is_literal:
                self._running.append(self._tasks.start(watch.look_up(), f"lookup {state.name}"))
            self._running.append(self._tasks.start(watch.run(), f"health {state.name}"))

    def suspect(self, state: UpstreamState) -> None:
        """A flow found this upstream gone: probe it now, and see whether its name has moved."""
        if (watch := self._watched.get(state)) is not None:
            watch.hurry()

    async def stop(self) -> None:
        """End all watches."""
        await self._tasks.cancel()


class _Watch:
    """Watches one upstream until its tasks, ``run`` and ``look_up``, are cancelled."""

    def __init__(
        self,
        state: UpstreamState,
        settings: HealthSettings,
        asker: Asker,
        resolver: Resolver,
        *,
        on_probe: OnProbe,
    ) -> None:
        self._state = state
        self._settings = settings
        self._asker = asker
        self._resolver = resolver
        self._on_probe = on_probe
        self._hurried = asyncio.Event()
        self._look = asyncio.Event()
        # Set once there is an address to probe, or a lookup has found none.
        self._ready = asyncio.Event()
        if state.address is not None:
            self._ready.set()
        self._methods: Sequence[Method] = METHODS.get(state.probe, ())
        self._allocate_at = 0.0
        self._ours_since: float | None = None

    def hurry(self) -> None:
        """Do not wait for the next round."""
        self._hurried.set()
        self._look.set()

    # Probing

    async def run(self) -> None:
        """Probe round after round, the first at once; a suspicion ends a pause."""
        await self._ready.wait()
        if self._methods:
            await go_round(self._probe, self._pause, failure="probe failed", upstream=self._state.name)
        self._on_probe(self._state)

    async def _probe(self, began: float) -> None:
        self._hurried.clear()
        await self._round(began)
        self._on_probe(self._state)

    async def _pause(self, began: float) -> None:
        interval_s = self._settings.interval_s
        if self._state.health is Health.DOWN:
            interval_s = DOWN_SHARE * min(interval_s, 1.0)
        with contextlib.suppress(TimeoutError):
            async with deadlines.timeout_at(began + spread(interval_s, self._settings.jitter)):
                await self._hurried.wait()
                soonest = began + SUSPECT_SHARE * min(self._settings.interval_s, 1.0)
                await asyncio.sleep(soonest - asyncio.get_running_loop().time())

    async def _round(self, now: float) -> None:
        state = self._state
        if state.address is None:
            return
        before, address = state.health, state.address
        asks = state.allocate is not None and (now >= self._allocate_at or not state.life.settled)
        life, service = await asyncio.gather(self._ask_life(address), self._ask_service(address, asks))
        if state.address != address:
            return  # the name has moved meanwhile
        cause = self._judge(now, life, service)
        if state.health is not Health.UP and state.others() and await self._seek():
            cause = ""
        self._log_change(before, cause)
        if state.health is Health.DOWN is not before:
            self._look.set()

    async def _ask_life(self, address: Address) -> Finding:
        found = await self._asker.ask_life(address, self._methods)
        if found.answered is not None:
            # The request that it answers is sent first from now on.
            self._methods = sorted(self._methods, key=lambda one: one is not found.answered)
        return found

    async def _ask_service(self, address: Address, asks: bool = True) -> Finding | None:
        if not asks:
            return None
        username, password = credentials_for(self._state.settings, "", time.time())
        return await self._asker.ask_service(address, username, password)

    def _judge(self, now: float, life: Finding, service: Finding | None) -> str:
        """Count what was found. Returns why it is not good, or an empty text."""
        state = self._state
        if service is not None and service.verdict is ProbeVerdict.GOOD and life.verdict is not ProbeVerdict.GOOD:
            life = service  # a server that grants an allocation lives
        counted = self._judge_one(now, state.life, life)
        if life.rtt_s is not None and life.rtt_s <= self._settings.timeout_s:
            state.on_rtt(life.rtt_s)
        if service is not None and state.allocate is not None:
            counted = self._judge_one(now, state.allocate, service) or counted
            # Until it is settled it is asked in every round, so that rise and fall count rounds.
            self._allocate_at = now + self._settings.allocate_interval_s if state.allocate.settled else now
        return counted

    def _judge_one(self, now: float, judged: RiseAndFall, found: Finding) -> str:
        if found.verdict is ProbeVerdict.GOOD:
            self._ours_since = None
            judged.on_success()
            return ""
        if found.verdict is ProbeVerdict.EXHAUSTED or (found.verdict is ProbeVerdict.OURS and not self._lasts(now)):
            return ""
        if found.verdict is not ProbeVerdict.OURS:
            self._ours_since = None
        judged.on_failure(certain=found.verdict is ProbeVerdict.GONE)
        return found.cause

    def _lasts(self, now: float) -> bool:
        """True once our own machine has failed to ask for OURS_S: then the upstream is as good as down."""
        if self._ours_since is None:
            self._ours_since = now
        return now - self._ours_since >= OURS_S

    async def _seek(self) -> bool:
        """Go to another address of the name if one works. Returns True if one does."""
        state = self._state
        asking = [asyncio.ensure_future(self._works(one)) for one in state.others()]
        try:
            for answer in asyncio.as_completed(asking):
                found = await answer
                if found is not None and found in state.others():
                    self._switch(found)
                    return True
            return False
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _works(self, address: Address) -> Address | None:
        asks = self._state.allocate is not None
        life, service = await asyncio.gather(
            self._asker.ask_life(address, self._methods), self._ask_service(address, asks)
        )
        good = life if service is None else service
        return address if good.verdict is ProbeVerdict.GOOD else None

    def _switch(self, address: Address) -> None:
        state = self._state
        log.info("upstream address left", upstream=state.name, address=str(state.address), other=str(address))
        state.switch(address)
        state.life.on_success()
        if state.allocate is not None:
            state.allocate.on_success()

    def _log_change(self, before: Health, cause: str) -> None:
        state = self._state
        if state.health is before:
            return
        if state.health is Health.UP:
            log.info("upstream up", upstream=state.name, address=str(state.address))
        elif state.health is Health.DOWN:
            log.warning("upstream down", upstream=state.name, address=str(state.address), cause=cause)

    # Its name

    async def look_up(self) -> None:
        """Look the name up again and again: sooner while no address of it works, or when it is suspected."""
        await go_round(self._look_up_once, self._wait_to_look_up, failure="lookup failed", upstream=self._state.name)

    async def _look_up_once(self, _: float) -> None:
        self._look.clear()
        await self._resolve()

    async def _wait_to_look_up(self, looked: float) -> None:
        self._ready.set()
        works = self._state.address is not None and self._state.health is not Health.DOWN
        pause_s = self._settings.resolve_interval_s if works else RESOLVE_AGAIN_S
        with contextlib.suppress(TimeoutError):
            async with deadlines.timeout_at(looked + pause_s):
                await self._look.wait()
                await asyncio.sleep(looked + RESOLVE_AGAIN_S - asyncio.get_running_loop().time())

    async def _resolve(self) -> None:
        """Look up. Addresses that may not be relayed to are not taken. Without an answer the last ones stay."""
        state, wanted = self._state, self._state.settings.address
        before = state.address
        try:
            permitted = await self._resolver.resolve(*wanted)
        except ResolveError as error:
            if error.failure is ResolveFailure.DESTINATION_IP_PROHIBITED:
                addresses = ", ".join(error.refused)
                log.warning("upstream address refused", upstream=state.name, name=wanted.host, addresses=addresses)
                state.take(())
            else:
                log.warning("upstream name not resolved", upstream=state.name, name=wanted.host, cause=str(error))
            return
        if state.take(permitted):
            log.info("upstream moved", upstream=state.name, address=str(before), other=str(state.address))
        if state.address != before:
            self._allocate_at = 0.0
            self._hurried.set()
