"""A catalog as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from relay.catalog.model import Catalog


def tables_of(catalog: Catalog) -> Iterator[Table]:
    """Ports and networks, domains, and hosts, in the order of the file."""
    ports = _table(f"Network requirements as of {catalog.as_of}", "ports", "for")
    for each in catalog.ports:
        ports.add_row(f"{each.protocol.upper()} {each}", each.use)
    yield ports

    networks = _table("", "network", "place", "region")
    for network in catalog.networks:
        networks.add_row(str(network.network), network.place, network.region or "")
    yield networks

    domains = _table("", "domain")
    for domain in catalog.domains:
        domains.add_row(domain)
    yield domains

    hosts = _table("", f"host ({len(catalog.hosts)})", "service", "region", "status")
    for host in catalog.hosts:
        hosts.add_row(host.name, host.service, host.region or "", host.status.replace("_", " "))
    yield hosts


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
