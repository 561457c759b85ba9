"""Checks of DNS."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from relay.catalog import Service
from relay.doctor.checks.base import Check, Remedy, areas_of
from relay.doctor.plan import Kind, Plan, Site
from relay.doctor.report import Actor, Area, Item, Status
from relay.doctor.seen import NameSeen, Seen, Untested


class NameNotFound(Check):
    """DNS knows the names that this machine itself must look up.

    **Tested:** the name of every host of the catalog that exists, in DNS and /etc/hosts. Hosts that do not exist
    yet, or that are announced for the future, are not asked for, and never fail.

    **Why:** a client that sends voice over UDP, or has no web proxy, looks names up itself. Where a web proxy is
    the way, the proxy looks them up, and this machine need not know them.

    **Change:** let the resolver of this network forward the vendor's domains, or use one that does.
    """

    code = "NAME-NOT-FOUND"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each name that was looked up."""
        if isinstance(seen.names, Untested):
            return
        for name, found in seen.names.items():
            proxied = seen.proxy.way_of(name) is not None
            media = any(site.name == name and site.service is Service.MEDIA for site in plan.sites)
            areas = (*areas_of(plan, name), *((Area.VOICE_UDP,) if media else ())) or (Area.VOICE_PROXY,)
            if found.addresses:
                yield self.item(name, areas, Status.OK, ", ".join(found.addresses))
            elif proxied and not media:
                yield self.item(name, areas, Status.OK, "not known here; the web proxy looks it up", decides=False)
            else:
                needed = (Area.VOICE_UDP,) if proxied else areas
                yield self.item(name, needed, Status.FAILED, found.fault)

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The resolver is to be changed."""
        domains = ", ".join(sorted({name.subject.partition(".")[2] for name in bad}))
        return Remedy(Actor.NETWORK, f"Let this network's DNS resolver answer for names in {domains}.")


class NameWrong(Check):
    """DNS gives addresses where the vendor's hosts can be.

    **Tested:** an address of a host must be public. That of a media host must be in one of the catalog's networks.

    **Why:** some networks answer for names that they block with an address of their own, where a page says so. And
    where names lead elsewhere, firewall rules for the vendor's networks do not help.

    **Change:** take the vendor's domains off the list of names that the resolver redirects. If only networks
    differ, compare the catalog with the vendor's newest requirements: `relay catalog diff`.
    """

    code = "NAME-WRONG"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each name of the vendor's that has addresses. Other targets have addresses of any kind."""
        if isinstance(seen.names, Untested) or plan.kind is not Kind.LIVE:
            return
        for site in plan.sites:
            found = seen.names.get(site.name)
            if found is None or not found.addresses:
                continue
            yield self._judge_one(plan, site, found)

    def _judge_one(self, plan: Plan, site: Site, found: NameSeen) -> Item:
        media = site.service is Service.MEDIA
        areas = (Area.VOICE_UDP, *areas_of(plan, site.name)) if media else areas_of(plan, site.name)
        addresses = [ipaddress.ip_address(one.partition("%")[0]) for one in found.addresses]
        private = [str(one) for one in addresses if not one.is_global]
        if private:
            return self.item(site.name, areas, Status.FAILED, f"DNS says {', '.join(private)}, which is not public")
        if media and not any(one in each.network for one in addresses for each in plan.catalog.networks):
            told = ", ".join(map(str, addresses))
            return self.item(site.name, areas, Status.WARNING, f"{told} is in none of the vendor's networks")
        return self.item(site.name, areas, Status.OK)

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The resolver redirects, or the catalog is old."""
        if any(item.status is Status.FAILED for item in bad):
            return Remedy(Actor.NETWORK, "Take the vendor's domains off the names that this network's DNS redirects.")
        change = f"Compare the catalog (as of {plan.catalog.as_of}) with the vendor's newest requirements."
        return Remedy(Actor.FIREWALL, change)
