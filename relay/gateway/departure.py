"""How a relay goes: first balancers learn of it, then it accepts nobody, and what is left at the end is closed.

Connections are closed one after the other. Otherwise their clients would all come back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from relay import deadlines
from relay.config import LimitsSettings
from relay.gateway.admin.listener import Admin
from relay.gateway.http.site import Site
from relay.gateway.listening import Listening
from relay.gateway.proxied import ProxiedListeners
from relay.gateway.routing.flows import Flows
from relay.gateway.web_proxy.web_proxy import WebProxy
from relay.plane.api import CloseReason, Plane

log = structlog.get_logger()

# A relay takes some hundred logins a second without disturbing its calls. A floor of 300 desks with four connections
# each then comes back at 240 a second. systemd waits for it: TimeoutStopSec in relay.service.
SPREAD_S = 5.0
# A few connections need not take so long: 50 a second disturb nobody.
MAX_PAUSE_S = 0.02
# After a handover nobody is in a hurry. What becomes something else is counted here a moment later than there, so one
# look is not enough.
QUIET_LOOK_S = 0.5
QUIET_LOOKS = 2


@dataclass
class Departure:
    """The parts of a gateway that have to do with its end. ``limits`` gives those that count now."""

    plane: Plane
    flows: Flows
    site: Site
    admin: Admin
    listening: Listening
    proxied: ProxiedListeners
    web_proxy: WebProxy
    limits: Callable[[], LimitsSettings]
    begun: bool = False

    async def be_lame_duck(self) -> None:
        """Answer health checks with 503, and serve newcomers all the same, for ``lame_duck_s``."""
        self.begun = True
        self.site.let_go()
        if lame_duck_s := self.limits().lame_duck_s:
            log.info("lame duck", seconds=lame_duck_s)
            await asyncio.sleep(lame_duck_s)

    async def drain(self) -> None:
        """Take no new flows, and wait until the running ones have ended, for at most ``drain_timeout_s``."""
        self.flows.draining = True
        self.listening.close()
        self.plane.drain()
        self.proxied.drain()
        self.web_proxy.drain()
        timeout_s = self.limits().drain_timeout_s
        log.info("draining", flows=len(self.flows), timeout_s=timeout_s)
        with contextlib.suppress(TimeoutError):
            async with deadlines.timeout(timeout_s):
                await self.flows.wait_ended()

    async def close_rest(self) -> None:
        """Close what a drain has left, spread over some seconds."""
        connections = [*self.flows.connections(), *self.site.connections()]
        endings: list[Callable[[], object]] = [
            functools.partial(self.plane.close, connection, CloseReason.DRAINING) for connection in connections
        ]
        endings += self.web_proxy.endings()
        if endings:
            log.info("closing what is left", connections=len(endings))
        await close_spread(endings)

    async def hand_over(self) -> None:
        """Another process accepts now: serve who has connected until all calls end, at most ``handover_timeout_s``.

        Who has just connected still gets a flow. HTTP connections end with their next response.
        """
        self.listening.close()
        self.plane.drain()
        self.proxied.drain()
        self.web_proxy.unlisten()
        await self.admin.hand_over()
        self.site.let_go()
        timeout_s = self.limits().handover_timeout_s
        log.info("handed over", flows=len(self.flows), timeout_s=timeout_s)
        with contextlib.suppress(TimeoutError):
            async with deadlines.timeout(timeout_s):
                await wait_quiet(self._is_busy)

    def _is_busy(self) -> bool:
        """Whether there are connections that are neither HTTP nor tunnels."""
        totals = self.web_proxy.totals
        undecided = len(self.proxied) + totals.connections - totals.tunnels
        others = self.plane.snapshot().connections - len(self.site.connections())
        return len(self.flows) > 0 or undecided > 0 or others > 0


async def close_spread(endings: Sequence[Callable[[], object]]) -> None:
    """Call each, in order, at equal distances: all within ``SPREAD_S``."""
    loop = asyncio.get_running_loop()
    begin, pause = loop.time(), min(MAX_PAUSE_S, SPREAD_S / max(1, len(endings)))
    for number, end in enumerate(endings, 1):
        end()
        await asyncio.sleep(begin + number * pause - loop.time())


async def wait_quiet(is_busy: Callable[[], bool]) -> None:
    """Wait until nothing is busy, however long that takes."""
    quiet = 0
    while quiet < QUIET_LOOKS:
        await asyncio.sleep(QUIET_LOOK_S)
        quiet = 0 if is_busy() else quiet + 1
