"""The change as rules: nftables, squid, Zscaler and Palo Alto, from the catalog, for just what does not pass.

The catalog's own functions write them wherever they can. What is here is the part around: a whole rule, not a list.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from relay.catalog import Catalog, Format, Network, Ports, Protocol, render_allowlist


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule in the form of one product. ``where`` says where it goes."""

    product: str
    where: str
    text: str


def for_udp(catalog: Catalog, ports: Sequence[Ports], regions: Iterable[str | None]) -> tuple[Rule, ...]:
    """Let UDP out to the media networks of these regions, or to all if none of them has a network of its own."""
    wanted = set(regions)
    networks = tuple(each for each in catalog.networks if each.region in wanted) or catalog.networks
    return _by_network(replace(catalog, networks=networks, ports=tuple(ports)))


def for_server(catalog: Catalog, host: str, port: int, place: str) -> tuple[Rule, ...]:
    """Let TCP out to one server, at a literal address; no rules for a name: these products want addresses here."""
    try:
        network = Network(ipaddress.ip_network(host), place, None)
    except ValueError:
        return ()
    return _by_network(replace(catalog, networks=(network,), ports=(Ports(Protocol.TCP, port, port, place),)))


def for_names(catalog: Catalog) -> tuple[Rule, ...]:
    """Let the vendor's names through a web proxy, and not into TLS inspection."""
    zscaler = render_allowlist(catalog, Format.ZSCALER)
    squid = render_allowlist(catalog, Format.SQUID)
    entries = render_allowlist(catalog, Format.PALO_ALTO_EDL)
    return (
        Rule("squid", "conf.d, before your own deny rules", f"{squid}http_access allow CONNECT cloud9 cloud9_ports\n"),
        Rule("Zscaler", "a custom URL category that URL filtering allows", zscaler),
        Rule("Palo Alto", "an external dynamic list of the type URL, in an allow rule", entries),
    )


def past_inspection(catalog: Catalog, names: Sequence[str] = ()) -> tuple[Rule, ...]:
    """Leave the TLS of the vendor's names, or of these, as it is."""
    zscaler = "".join(f"{name}\n" for name in names) or render_allowlist(catalog, Format.ZSCALER)
    squid = [f"acl cloud9_names ssl::server_name {name}" for name in names or [f".{one}" for one in catalog.apexes]]
    steps = ["acl cloud9_step1 at_step SslBump1", "ssl_bump peek cloud9_step1", "ssl_bump splice cloud9_names"]
    entries = "".join(f"{name}/\n" for name in names) or render_allowlist(catalog, Format.PALO_ALTO_EDL)
    return (
        Rule("squid", "before your own ssl_bump rules", "\n".join([*squid, *steps, ""])),
        Rule("Zscaler", "a custom URL category in an SSL inspection rule with the action Do Not Inspect", zscaler),
        Rule("Palo Alto", "an external dynamic list of the type URL, in a no-decrypt rule", entries),
    )


def _by_network(narrowed: Catalog) -> tuple[Rule, ...]:
    return (
        Rule("nftables", "nft -f; it adds to the chain that your own chain jumps to: jump cloud9", _nftables(narrowed)),
        Rule("Palo Alto", "the command line, in configure mode; put in your zones", _palo_alto(narrowed)),
        Rule("Zscaler", "a firewall filtering rule that allows", _zscaler(narrowed)),
    )


def _nftables(narrowed: Catalog) -> str:
    """The catalog's own rules, added to what the chain has: the catalog's file would replace it, and it is whole."""
    chain = "inet filter cloud9"
    lines = [line.strip() for line in render_allowlist(narrowed, Format.NFTABLES).splitlines()]
    rules = [f"add rule {chain} {line}" for line in lines if line.startswith(("ip daddr", "ip6 daddr"))]
    return "".join(f"{line}\n" for line in ["add table inet filter", f"add chain {chain}", *rules])


def _palo_alto(narrowed: Catalog) -> str:
    lines, addresses, services = [], [], []
    for each in narrowed.networks:
        name = f"cloud9-{each.network.network_address}-{each.network.prefixlen}".replace(":", "-").replace(".", "-")
        lines.append(f"set address {name} ip-netmask {each.network}")
        addresses.append(name)
    for ports in narrowed.ports:
        name = f"cloud9-{ports.protocol}-{ports}"
        lines.append(f"set service {name} protocol {ports.protocol} port {ports}")
        services.append(name)
    rule = "set rulebase security rules cloud9"
    lines += [
        f"{rule} from any to any source any destination [ {' '.join(addresses)} ]",
        f"{rule} application any service [ {' '.join(services)} ] action allow",
    ]
    return "".join(f"{line}\n" for line in lines)


def _zscaler(narrowed: Catalog) -> str:
    services = ", ".join(f"{ports.protocol.upper()} destination ports {ports}" for ports in narrowed.ports)
    groups = "".join(f"{each.network}\n" for each in narrowed.networks)
    return f"Network service: {services}\nDestination IPv4 group:\n{groups}"
