"""The vendor's network requirements as versioned data: hosts, domains, networks and ports, and files made of them.

``model`` has the values. ``files`` reads and checks them. ``changes`` compares two versions. ``allowlists`` writes the
formats that firewalls and proxies read (``by_name``, ``by_network``, ``data``, ``pac``). There are no sockets here: no
host is looked up.
"""

from relay.catalog.allowlists import Format, render_allowlist
from relay.catalog.changes import Change, compare
from relay.catalog.files import bundled, load, load_version, parse
from relay.catalog.model import Catalog, Host, Network, Ports, Protocol, Service, Status
from relay.catalog.pac import render_pac

__all__ = [
    "Catalog",
    "Change",
    "Format",
    "Host",
    "Network",
    "Ports",
    "Protocol",
    "Service",
    "Status",
    "bundled",
    "compare",
    "load",
    "load_version",
    "parse",
    "render_allowlist",
    "render_pac",
]
