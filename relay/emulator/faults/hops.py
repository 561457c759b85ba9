"""All hops of one emulator: starts them, and gives the other parts of the cloud what they ask."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from relay.addresses import Address
from relay.ca.certificates import Issuer
from relay.emulator.claims import chosen_by
from relay.emulator.faults.board import FaultBoard
from relay.emulator.faults.cloud_hop import HTTPS, CloudHop, Resolver
from relay.emulator.faults.service import FaultService
from relay.emulator.faults.udp_hop import Line, UdpHop, Waiting
from relay.emulator.faults.web_proxy import WebProxy
from relay.emulator.http.site import Site
from relay.emulator.turn.hosts import TurnHosts


class FaultHops:
    """The board, its API, and the hops. ``turn`` is None if another process of the same cloud runs the TURN hosts."""

    def __init__(self, site: Site, turn: TurnHosts | None) -> None:
        self.board = FaultBoard(site.names.catalog)
        self.cloud = CloudHop(self.board, site.names.catalog, lambda: turn or ())
        self.web_proxy: WebProxy | None = None
        self.lines: dict[str, UdpHop] = {}
        self._waiting = Waiting()
        self._names = site.names
        self._turn = turn
        self._udp_port: int | None = None
        self._fronts: Callable[[], tuple[Address, Address]]
        FaultService(self.board).register(site)
        site.intercepts.append(self.cloud.intercept)
        site.names.missing = self.cloud.is_missing

    async def start(
        self,
        *,
        udp_hop_port: int | None,
        web_proxy: Address | None,
        issuer: Issuer,
        trust: ssl.SSLContext,
        fronts: Callable[[], tuple[Address, Address]],
    ) -> None:
        """Start the bad lines and the bad web proxy, those that are wanted. Raises OperatorError.

        ``fronts`` are the emulator's own addresses, of TLS and of plain HTTP, once it listens.
        """
        self._udp_port, self._fronts = udp_hop_port, fronts
        with chosen_by("--udp-hop-port"):
            self.follow_hosts()
        if web_proxy is not None:
            resolver = Resolver(self._names, front=self._front, turn=self._turn_addresses)
            self.web_proxy = WebProxy(self.board, resolver, issuer, trust)
            with chosen_by("--bad-web-proxy"):
                await self.web_proxy.start(web_proxy)

    async def stop(self) -> None:
        """Stop all of it. May be repeated."""
        if self.web_proxy is not None:
            await self.web_proxy.close()
        while self.lines:
            self.lines.popitem()[1].close()
        self.board.close()

    def follow_hosts(self) -> None:
        """A line for each TURN host that runs, and for no other. Raises OperatorError if one cannot be bound."""
        if self._turn is None or self._udp_port is None:
            return
        for host in self._turn:
            if host.running and host.name not in self.lines:
                line = UdpHop(Line(host.name, host.region, host.address), self.board, waiting=self._waiting)
                line.start(Address(host.address.host, self._udp_port))
                self.lines[host.name] = line
            elif not host.running and host.name in self.lines:
                self.lines.pop(host.name).close()

    def udp_port(self, host: str) -> int | None:
        """The port at which desks reach a TURN host over UDP. None: its own."""
        line = self.lines.get(host)
        return None if line is None else line.address.port

    def _front(self, port: int) -> Address:
        tls, http = self._fronts()
        return tls if port == HTTPS else http

    def _turn_addresses(self, name: str) -> tuple[Address, Address] | None:
        host = None if self._turn is None or name not in self._turn else self._turn[name]
        return None if host is None else (host.address, host.tls_address or host.address)
