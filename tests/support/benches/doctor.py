"""Plans of the doctor for what a test has started, and short limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relay import catalog
from relay.addresses import Address
from relay.catalog import Service, Status
from relay.doctor.plan import Credentials, Kind, Limits, Plan, ProxyPlan, RelaySite, Site, TurnSite
from relay.doctor.probes.context import Context
from relay.doctor.seen import ProxySeen, ProxySource
from relay.doctor.targets import trust_of
from tests.support.benches.gateway import SERVER_NAME, Relay
from tests.support.peers.coturn import PASSWORD, USERNAME

CATALOG = catalog.load()
# What a network can lose in a test is lost at once, and a busy machine may take long for all else.
LIMITS = Limits(probe_s=30.0, answer_s=5.0, voice_s=0.2, total_s=100.0)
CREDENTIALS = Credentials(USERNAME, PASSWORD)


def relay_plan(relay: Relay, upstream: Address | None = None, *, server: Address | None = None, **more: Any) -> Plan:
    """A plan for a relay, or for another server in its place."""
    ca = relay.authority.ca_certificate
    given: dict[str, Any] = {
        "kind": Kind.RELAY,
        "target": "a relay",
        "catalog": CATALOG,
        "trust": trust_of(ca),
        "expected": ca,
        "relay": RelaySite(server or relay.tls, SERVER_NAME, upstream),
        "limits": LIMITS,
        **more,
    }
    return Plan(**given)


def site_plan(ca: Path, *addresses: Address, service: Service = Service.API, name: str = "", **more: Any) -> Plan:
    """A plan with a site at each address; without ``name`` each is called as its address is."""
    sites = tuple(Site(name or address.host, service, "use1", Status.ACTIVE, address, address) for address in addresses)
    given: dict[str, Any] = {
        "kind": Kind.EMULATOR,
        "target": "a site",
        "catalog": CATALOG,
        "trust": trust_of(ca),
        "expected": ca,
        "sites": sites,
        "limits": LIMITS,
        **more,
    }
    return Plan(**given)


def udp_plan(*addresses: Address, **more: Any) -> Plan:
    """A plan with a TURN host at each address, each in a region of its own."""
    turn = tuple(TurnSite(f"host{number}", f"region{number}", one) for number, one in enumerate(addresses, 1))
    given: dict[str, Any] = {
        "kind": Kind.EMULATOR,
        "target": "TURN hosts",
        "catalog": CATALOG,
        "trust": trust_of(),
        "turn": turn,
        "limits": LIMITS,
        **more,
    }
    return Plan(**given)


def context_of(plan: Plan) -> Context:
    """For a probe alone: no proxy, and no names that were looked up."""
    return Context(plan, ProxySeen(ProxySource.NONE), {})


def by_setting(url: str, login: tuple[str, str] | None = None) -> ProxyPlan:
    """A web proxy that a setting names."""
    return ProxyPlan(url=url, login=login)
