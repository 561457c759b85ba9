"""Checks of sites: TCP, TLS, and HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relay.doctor import rules
from relay.doctor.checks.base import Check, Remedy, areas_of
from relay.doctor.plan import Kind, Plan
from relay.doctor.report import Actor, Item, Status
from relay.doctor.seen import DIRECT, Seen, SiteSeen, Step, TlsFault, TlsSeen, Untested

# Authorities of products that inspect TLS, as parts of the names of issuers, in lower case.
INSPECTORS = (
    *("zscaler", "netskope", "fortinet", "fortigate", "palo alto", "blue coat", "bluecoat", "symantec web security"),
    *("cisco umbrella", "forcepoint", "websense", "mcafee web gateway", "skyhigh", "check point", "sophos"),
    *("barracuda", "mitmproxy", "squid", "fiddler", "charles proxy", "inspection"),
)
# Statuses that the vendor's hosts have no reason to give, and proxies and portals of networks have.
PROXY_STATUSES = frozenset({407, 451, 511})


class Tcp443(Check):
    """TCP 443 is open to the hosts that are reached without a proxy.

    **Tested:** a TCP connection to every host that exists, if it is to be reached directly. Where a web proxy is
    the way, one host is tried directly as well, for information: that it fails is no fault.

    **Why:** signaling, APIs, the portal and "Voice via Web Proxy" need TCP 443.

    **Change:** let TCP 443 out to the vendor's names, or set up the web proxy on this machine. The vendor publishes
    no addresses for these hosts, so a firewall needs to know names.
    """

    code = "TCP-443"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each direct connection."""
        for site in seen.sites:
            if site.way != DIRECT or (site.failure is not None and site.failure.step is Step.NAME):
                continue
            failed = site.failure is not None and site.failure.step is Step.TCP
            areas = areas_of(plan, site.site)
            if seen.proxy.way_of(site.site) is not None:
                told = "is blocked, as it may be" if failed else "is open as well"
                yield self.item(f"{site.site} directly", areas, Status.OK, told, decides=False)
            elif failed and site.failure is not None:
                yield self.item(site.site, areas, Status.FAILED, site.failure.text)
            else:
                yield self.item(site.site, areas, Status.OK, _ms(site))

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The firewall, and for a relay its address."""
        relay = plan.relay
        if relay is not None and all(item.subject == relay.label for item in bad):
            address = relay.address
            found = None if isinstance(seen.names, Untested) else seen.names.get(relay.name)
            host = found.addresses[0] if found is not None and found.addresses else address.host
            made = rules.for_server(plan.catalog, host, address.port, "relay")
            return Remedy(Actor.FIREWALL, f"Let TCP {address.port} out to the relay {relay.label}.", made)
        change = "Let TCP 443 out to the vendor's names, or have this machine use the web proxy."
        return Remedy(Actor.FIREWALL, change, rules.for_names(plan.catalog))


class TlsHandshake(Check):
    """TLS handshakes are completed.

    **Tested:** a TLS handshake with every host that was reached. What is wrong with a certificate is not judged
    here.

    **Why:** a firewall that filters by server name lets TCP pass, and cuts the connection at the first message of
    TLS. A proxy that inspects may also fail here, for example with TLS 1.3.

    **Change:** let the names through in the firewall's filter for names, and exempt them from inspection.
    """

    code = "TLS-HANDSHAKE"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each site that came as far as TLS."""
        for site in _decisive(seen):
            if site.tls is not None:
                yield self.item(site.site, areas_of(plan, site.site), Status.OK, site.way)
            elif site.failure is not None and site.failure.step is Step.TLS:
                yield self.item(site.site, areas_of(plan, site.site), Status.FAILED, site.failure.text)

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """Whoever filters by name."""
        change = "Let TLS to these names pass, by the firewall's filter for names and by TLS inspection."
        return Remedy(Actor.FIREWALL, change, rules.for_names(plan.catalog))


class TlsInspected(Check):
    """Nobody on the way ends TLS.

    **Tested:** who has signed the certificate that each host shows. For an emulator, and for a relay with `--ca`,
    the authority is known. Certificates of public authorities carry a proof that they were logged (RFC 6962); one
    without it, at a host of the vendor's, was made by somebody in between. Names of inspecting products are known.

    **Why:** inspection ends TLS in a proxy, which then knows only HTTP: TURN over TLS cannot pass, and WebSocket
    passes only if the proxy has been told. It costs delay, and reads the signaling.

    **Change:** exempt the vendor's domains from TLS inspection.
    """

    code = "TLS-INSPECTED"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each certificate."""
        for site in _decisive(seen):
            if site.tls is None:
                continue
            areas = areas_of(plan, site.site)
            if not is_inspected(plan, site.tls):
                yield self.item(site.site, areas, Status.OK, f"signed by {site.tls.issuer}")
                continue
            refused = site.tls.fault is not None
            trust = "which this machine does not trust" if refused else "which this machine trusts"
            status = Status.FAILED if refused else Status.WARNING
            yield self.item(site.site, areas, status, f"signed by {site.tls.issuer}, {trust}")

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The proxy is to leave these names alone."""
        relay = plan.relay
        names = [relay.name] if relay is not None and all(item.subject == relay.label for item in bad) else []
        change = "Exempt these names from TLS inspection."
        return Remedy(Actor.WEB_PROXY, change, rules.past_inspection(plan.catalog, names))


class TlsCertificate(Check):
    """Certificates are valid.

    **Tested:** whether this machine accepts the certificate of each host: it is signed by an authority that is
    trusted here, it is for this name, and it has not expired. What an inspecting proxy has made is reported as
    TLS-INSPECTED instead.

    **Why:** a client refuses what its machine refuses.

    **Change:** depends on what is wrong: renew it at the server, install the authority on the desktop, correct the
    clock, or name the host as the certificate does. `*.xhoot.com` covers one label: `a.xhoot.com`, not
    `a.b.xhoot.com`.
    """

    code = "TLS-CERTIFICATE"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each certificate that nobody has put in between."""
        for site in _decisive(seen):
            if site.tls is None or (is_inspected(plan, site.tls) and site.tls.fault is TlsFault.UNTRUSTED):
                continue
            areas = areas_of(plan, site.site)
            if site.tls.fault is None:
                yield self.item(site.site, areas, Status.OK, f"valid until {site.tls.not_after.date()}")
            else:
                yield self.item(site.site, areas, Status.FAILED, _what_is_wrong(site.tls))

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """Who acts depends on whose server it is, and on what is wrong."""
        relay = plan.relay
        ours = relay is not None and all(item.subject == relay.label for item in bad)
        if all("not trusted" in item.detail for item in bad):
            return Remedy(Actor.DESKTOP, "Install the authority that has signed it on this machine.")
        who = Actor.RELAY if ours else Actor.VENDOR
        change = "Renew the certificate at the server, for this name. If this machine's clock is wrong, correct that."
        return Remedy(who, change)


class HttpAnswer(Check):
    """Hosts answer in HTTP.

    **Tested:** one request for `/` at every host that is not for media. Any answer counts. A status that proxies
    and the pages of networks give (407, 451, 511), or one that says that the host is not well (500 and above), is a
    warning.

    **Why:** a connection that is let through may still end in a page of somebody else's.

    **Change:** see who has sent the answer: its page says so in a browser.
    """

    code = "HTTP-ANSWER"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each site that came as far as HTTP."""
        for site in _decisive(seen):
            areas = areas_of(plan, site.site)
            if site.failure is not None and site.failure.step is Step.HTTP:
                yield self.item(site.site, areas, Status.FAILED, site.failure.text)
            elif site.http_status in PROXY_STATUSES or site.http_status >= 500:
                yield self.item(site.site, areas, Status.WARNING, f"answers {site.http_status}")
            elif site.http_status:
                yield self.item(site.site, areas, Status.OK, f"answers {site.http_status}")

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The proxy, if there is one, otherwise the server."""
        proxied = any(site.way != DIRECT for site in seen.sites)
        who = Actor.WEB_PROXY if proxied else Actor.VENDOR
        return Remedy(who, "Look at the answer of these hosts in a browser: its page says who has sent it.")


def is_inspected(plan: Plan, tls: TlsSeen) -> bool:
    """Whether somebody in between has made this certificate."""
    if tls.expected is not None:
        return not tls.expected
    known = any(word in tls.issuer.lower() for word in INSPECTORS)
    # Without a fault of its own: one that has expired, or is of another name, says less about who has signed it.
    return known or (plan.kind is Kind.LIVE and not tls.public and tls.fault in {None, TlsFault.UNTRUSTED})


def _what_is_wrong(tls: TlsSeen) -> str:
    if tls.fault is TlsFault.EXPIRED:
        return f"expired or not yet valid: it ends {tls.not_after:%Y-%m-%d %H:%M} UTC"
    if tls.fault is TlsFault.WRONG_NAME:
        return f"for other names: {', '.join(tls.names) or tls.subject}"
    if tls.fault is TlsFault.UNTRUSTED:
        return f"signed by {tls.issuer}, not trusted on this machine"
    return f"refused: {tls.fault_text}"


def _decisive(seen: Seen) -> Iterator[SiteSeen]:
    """Sites by the way that clients take."""
    return (site for site in seen.sites if (site.way == DIRECT) == (seen.proxy.way_of(site.site) is None))


def _ms(site: SiteSeen) -> str:
    return "" if site.tcp_ms is None else f"{site.tcp_ms:.0f} ms"
