"""The vendor's network requirements as versioned data: hosts, domains, networks and ports; and what is made of them.

``model`` has the values, ``files`` reads and checks them, ``changes`` compares two versions, ``allowlists`` chooses
among what firewalls and proxies take (``by_name``, ``by_network``, ``data``, ``pac``). No sockets: nobody here asks for
the address of a host.
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
