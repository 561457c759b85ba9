"""What all probes share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from relay.addresses import Address
from relay.client.connect import Proxy
from relay.doctor.plan import Kind, Plan, Site
from relay.doctor.seen import NameSeen, ProxySeen

# Connections that are being opened at once. More would look like a scan to a firewall, and each is a handshake here.
AT_ONCE = 16


class Context:
    """The plan, and what the first probes have found: proxies, and the addresses of names that were looked up."""

    def __init__(self, plan: Plan, proxy: ProxySeen, names: Mapping[str, NameSeen]) -> None:
        self.plan = plan
        self.proxy = proxy
        self.slots = asyncio.Semaphore(AT_ONCE)
        self._names = names

    def is_known(self, name: str) -> bool:
        """False for a name that was looked up in vain."""
        seen = self._names.get(name)
        return seen is None or bool(seen.addresses)

    def located(self, name: str, address: Address) -> Address:
        """The address with what DNS says of the name, if it was asked. So no connection waits for DNS again."""
        seen = self._names.get(name)
        return Address(seen.addresses[0], address.port) if seen is not None and seen.addresses else address

    def server_of(self, site: Site, proxy: Proxy | None) -> Address:
        """What to connect to, or what to ask a proxy for."""
        if proxy is None:
            return self.located(site.name, site.address)
        if self.plan.kind is Kind.EMULATOR and proxy.address not in self.plan.proxy.knows_names:
            return site.address
        return site.tunnel

    def relay_server(self, proxy: Proxy | None) -> Address:
        """The same for the relay of the plan."""
        relay = self.plan.relay
        assert relay is not None
        if proxy is None:
            return self.located(relay.name, relay.address)
        return relay.address
