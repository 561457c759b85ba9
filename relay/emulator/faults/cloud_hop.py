"""Faults of the vendor's own hosts: a region that is down, a name that is gone, old credentials, a slow recorder."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterable
from typing import Protocol

from aiohttp import web

from relay import deadlines
from relay.addresses import Address
from relay.catalog import Catalog
from relay.emulator.faults.board import FaultBoard
from relay.emulator.faults.kinds import Hop, Kind
from relay.emulator.faults.web_proxy import Forbidden, NameNotFound
from relay.emulator.http.errors import ApiError
from relay.emulator.http.site import LOCALHOST_SUFFIX, Names, name_in
from relay.emulator.names import HostRole

# Before now: no clock of a laptop is wrong by this much towards itself.
EXPIRED_S = 60.0
RETRY_AFTER_S = 30
HTTPS = 443


class Pausable(Protocol):
    """A TURN host."""

    name: str
    region: str

    @property
    def paused(self) -> bool:
        """True while it is silent."""

    @paused.setter
    def paused(self, paused: bool) -> None: ...


class CloudHop:
    """What the other parts of the cloud ask the board."""

    def __init__(self, board: FaultBoard, catalog: Catalog, turn_hosts: Callable[[], Iterable[Pausable]]) -> None:
        self._board = board
        self._catalog = catalog
        self._turn_hosts = turn_hosts
        self._down: set[str] = set()
        board.on_change(self._pause_hosts)

    async def intercept(self, request: web.Request, role: HostRole | None) -> web.StreamResponse | None:
        """Answer, or hold up, a request to a host that has a fault. For ``Site.intercepts``."""
        host = self._catalog.find(name_in(request.host).removesuffix(LOCALHOST_SUFFIX))
        region = None if host is None else host.region
        if region is not None and self._board.find(Hop.CLOUD, Kind.REGION_DOWN, region) is not None:
            message = f"The region {region} is down. This is a fault on demand."
            expected = "a host of another region, or the request again when the fault is off"
            retry = {"Retry-After": str(RETRY_AFTER_S)}
            raise ApiError(503, "region_down", message, where="Host", expected=expected, headers=retry)
        slow = self._board.find(Hop.CLOUD, Kind.SLOW_RECORDER)
        if slow is not None and role is HostRole.RECORDING:
            # Not longer than the fault is on, if someone takes it off.
            with contextlib.suppress(TimeoutError):
                async with deadlines.timeout(slow.setting.answer_after_s):
                    await self._board.until_off(Hop.CLOUD, Kind.SLOW_RECORDER)
        return None

    def is_missing(self, name: str) -> bool:
        """True for a host of the catalog that does not exist now. For ``Names.missing``."""
        return self._board.find(Hop.CLOUD, Kind.NAME_NOT_FOUND, name) is not None

    def credentials_lifetime_s(self, usual: float) -> float:
        """How long TURN credentials last from now on. For ``Media.lifetime_s``."""
        return usual if self._board.find(Hop.CLOUD, Kind.EXPIRED_CREDENTIALS) is None else -EXPIRED_S

    def _pause_hosts(self) -> None:
        """The TURN hosts of a region that is down are silent. Others are left as they are."""
        down = {
            fault.target for fault in self._board.active if fault.kind is Kind.REGION_DOWN and fault.target is not None
        }
        for host in self._turn_hosts():
            if host.region in down ^ self._down:
                host.paused = host.region in down
        self._down = down


class Resolver:
    """Where the web proxy finds a host: the vendor's are on this machine, and so is everything that it may reach.

    ``front`` gives the emulator's address for a port, and ``turn`` a TURN host's addresses: TCP and TLS.
    """

    def __init__(
        self, names: Names, *, front: Callable[[int], Address], turn: Callable[[str], tuple[Address, Address] | None]
    ) -> None:
        self._names = names
        self._front = front
        self._turn = turn

    def __call__(self, host: str, port: int) -> Address:
        """The address of a name and port. Raises NameNotFound or Forbidden."""
        bare = host.lower().removesuffix(".").removesuffix(LOCALHOST_SUFFIX)
        if bare == "localhost":
            return Address("127.0.0.1", port)
        if _is_loopback(bare):
            return Address(bare, port)
        if not self._names.catalog.covers(bare):
            raise Forbidden
        if self._names.roles(bare) is None:
            raise NameNotFound
        turn = self._turn(bare)
        if turn is None:
            return self._front(port)
        tcp, tls = turn
        return tls if port == HTTPS else tcp


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
