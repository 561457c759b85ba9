"""The whole catalog for other programs: as JSON, which is also a valid catalog file, and as CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from relay.catalog.model import Catalog

COLUMNS = ("kind", "value", "service", "region", "status", "note", "as_of")


def as_json(catalog: Catalog, hosts_only: bool) -> str:
    """The tree that ``relay.catalog.load`` reads, or with ``hosts_only`` just ``as_of`` and ``hosts``."""
    tree = as_tree(catalog)
    return json.dumps({key: tree[key] for key in ("as_of", "hosts")} if hosts_only else tree, indent=2) + "\n"


def as_tree(catalog: Catalog) -> dict[str, Any]:
    """The contents of a file with this catalog. Regions that are None are left out."""
    return {
        "as_of": catalog.as_of,
        "domains": list(catalog.domains),
        "ports": [vars(ports) for ports in catalog.ports],
        "networks": [_present({**vars(network), "network": str(network.network)}) for network in catalog.networks],
        "hosts": [_present(vars(host)) for host in catalog.hosts],
    }


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def as_csv(catalog: Catalog, hosts_only: bool) -> str:
    """One row for each domain, host, network and range of ports, after a header. ``note`` is the place or the use."""
    hosts = [("host", host.name, host.service, host.region, host.status, "") for host in catalog.hosts]
    domains = [("domain", domain, "", "", "", "") for domain in catalog.domains]
    networks = [("network", str(each.network), "media", each.region, "", each.place) for each in catalog.networks]
    ports = [("ports", f"{each.protocol}/{each}", "", "", "", each.use) for each in catalog.ports]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((*row, catalog.as_of) for row in (hosts if hosts_only else [*domains, *hosts, *networks, *ports]))
    return text.getvalue()
