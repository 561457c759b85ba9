"""The vendor's network requirements as versioned data: hosts, domains, networks and ports; and what is made of them.

``model`` has the values, ``files`` reads and checks them, ``changes`` compares two versions, ``allowlists`` writes what
firewalls and proxies take, ``pac`` what browsers take. No sockets: whoever asks for an address of a host is elsewhere.
"""

from relay.catalog.files import bundled, load, parse
from relay.catalog.model import Catalog, Host, Network, Ports, Protocol, Service, Status
from relay.catalog.pac import render_pac

__all__ = [
    "Catalog",
    "Host",
    "Network",
    "Ports",
    "Protocol",
    "Service",
    "Status",
    "bundled",
    "load",
    "parse",
    "render_pac",
]
