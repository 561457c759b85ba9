"""Checks of the web proxy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from relay.doctor import rules
from relay.doctor.checks.base import Check, Remedy, areas_of
from relay.doctor.pac import NO_ENGINE
from relay.doctor.plan import Plan
from relay.doctor.report import Actor, Area, Item, Status
from relay.doctor.seen import DIRECT, Failure, ProxySource, Seen, SiteSeen, Step

_LOGIN, _GATEWAY = 407, frozenset({502, 503, 504})
BY_TCP = tuple(area for area in Area if area is not Area.VOICE_UDP)


class ProxySetting(Check):
    """Somebody says which web proxy is to be used, and the answer can be used.

    **Tested:** the option `--proxy`, a PAC file (`--pac`), the variables `https_proxy`, `all_proxy` and `no_proxy`,
    and WPAD in the search domains of this machine, the first that is there. A PAC file is asked for every host,
    with limits on time and memory. WPAD by DHCP is not tested: it needs rights that a desk does not have.

    **Why:** the client detects its proxy in this way. A PAC file that loops or throws stops it before any
    connection. Of an answer with several proxies the client takes only the first.

    **Change:** mend the PAC file, or the setting. `relay allowlist --format pac` writes a PAC file for the vendor's
    hosts.
    """

    code = "PROXY-SETTING"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One, about the source."""
        found = seen.proxy
        if found.source is ProxySource.NONE:
            yield self.item("no proxy", BY_TCP, Status.OK, "connections are direct", decides=False)
            return
        subject = f"{found.source} {found.where}".strip()
        if NO_ENGINE in found.faults:
            yield self.item(subject, BY_TCP, Status.NOT_TESTED, NO_ENGINE)
        elif found.faults:
            status = Status.WARNING if any(found.ways.values()) else Status.FAILED
            yield self.item(subject, BY_TCP, status, "; ".join(found.faults))
        else:
            answers = ", ".join(dict.fromkeys(found.answers.values()))
            yield self.item(subject, BY_TCP, Status.OK, answers, decides=False)

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The setting is to be mended."""
        return Remedy(
            Actor.DESKTOP, f"Mend the setting: {bad[0].subject}. `relay allowlist --format pac` writes a PAC file."
        )


class _OfTunnels(Check):
    """What checks of tunnels have in common: an item for each site that is reached through a proxy."""

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each site whose way is a proxy, if this check can say anything of it."""
        for site in seen.sites:
            if site.way == DIRECT:
                continue
            areas = areas_of(plan, site.site)
            failure = site.failure if site.failure is not None and site.failure.step is Step.PROXY else None
            if failure is None:
                yield self.item(site.site, areas, Status.OK, site.way)
            elif self._is_ours(failure):
                yield self._bad(site, areas, failure)

    @abstractmethod
    def _is_ours(self, failure: Failure) -> bool:
        """Whether this check is about that failure."""

    def _bad(self, site: SiteSeen, areas: tuple[Area, ...], failure: Failure) -> Item:
        return self.item(site.site, areas, Status.FAILED, failure.text)


class ProxyReachable(_OfTunnels):
    """The web proxy answers.

    **Tested:** a TCP connection to the proxy, and a CONNECT over it.

    **Why:** without it nothing by TCP works: no login, no signaling, no voice over the web proxy.

    **Change:** let this machine connect to the proxy's port, or correct the proxy's name in the setting.
    """

    code = "PROXY-REACHABLE"

    def _is_ours(self, failure: Failure) -> bool:
        return failure.status == 0

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The proxy is to be reached."""
        where = next((way for way in _ways(seen)), "the web proxy")
        return Remedy(Actor.WEB_PROXY, f"Let this machine reach {where}, or correct the setting that names it.")


class ProxyLogin(_OfTunnels):
    """The web proxy accepts this user.

    **Tested:** a CONNECT with the name and the password that were given, by Basic. A proxy that offers only NTLM or
    Negotiate is reported as not tested.

    **Why:** a proxy that wants a login answers 407 to a client that has none. The client shows this as "no
    connection".

    **Change:** give the doctor the user and the password as the client has them (`--proxy-login FILE`). Or exempt
    the vendor's names from the login at the proxy: clients that cannot log in by themselves need that.
    """

    code = "PROXY-LOGIN"

    def _is_ours(self, failure: Failure) -> bool:
        return failure.status == _LOGIN

    def _bad(self, site: SiteSeen, areas: tuple[Area, ...], failure: Failure) -> Item:
        offered = ", ".join(failure.logins) or "nothing"
        if failure.logins and "basic" not in failure.logins:
            return self.item(site.site, areas, Status.NOT_TESTED, f"the proxy offers only {offered}, not Basic")
        return self.item(site.site, areas, Status.FAILED, f"{failure.text} (it offers: {offered})")

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """A login is to be given, or the names exempted."""
        change = "Give name and password (--proxy-login), or let the vendor's names through without a login."
        return Remedy(Actor.WEB_PROXY, change, rules.for_names(plan.catalog)[:1])


class ProxyRefuses(_OfTunnels):
    """The web proxy opens tunnels to the vendor's hosts.

    **Tested:** a CONNECT for every host that exists. Any answer but 200, 407 and those of a gateway is a refusal.

    **Why:** URL filters know the vendor's names by category. New hosts, and wildcards that match only one label,
    are where allow-lists fail: `*.xhoot.com` does not cover `so.use1.prod1.xhoot.com` in every product.

    **Change:** allow the names, in the form that the product has for any depth.
    """

    code = "PROXY-REFUSES"

    def _is_ours(self, failure: Failure) -> bool:
        return failure.status not in {0, _LOGIN} | _GATEWAY

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The names are to be allowed."""
        change = "Allow CONNECT to the vendor's names, at any depth, on port 443."
        return Remedy(Actor.WEB_PROXY, change, rules.for_names(plan.catalog))


class ProxyCannotReach(_OfTunnels):
    """The web proxy itself reaches the vendor's hosts.

    **Tested:** whether the proxy answers a CONNECT with 502, 503 or 504: it would open the tunnel, and cannot.

    **Why:** the proxy has a firewall, a resolver and perhaps a parent proxy of its own.

    **Change:** let the proxy look up the vendor's names and connect to them on TCP 443.
    """

    code = "PROXY-CANNOT-REACH"

    def _is_ours(self, failure: Failure) -> bool:
        return failure.status in _GATEWAY

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The way from the proxy on is to be opened."""
        change = "Let the web proxy look up the vendor's names, and connect to them on TCP 443."
        return Remedy(Actor.FIREWALL, change)


def _ways(seen: Seen) -> Iterator[str]:
    return (site.way.removeprefix("through ") for site in seen.sites if site.way != DIRECT)
