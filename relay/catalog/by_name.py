"""Allow-lists by name, for web proxies and URL filters. Each has its own rule for wildcards."""

from __future__ import annotations

from collections.abc import Iterable

from relay.catalog.model import Catalog


def zscaler(catalog: Catalog, hosts_only: bool) -> str:
    """Lines for a custom URL category. A leading dot covers up to five labels. There are no ``*`` and no comments."""
    return _lines(_hosts(catalog) if hosts_only else [f".{apex}" for apex in catalog.apexes])


def palo_alto_edl(catalog: Catalog, hosts_only: bool) -> str:
    """An external dynamic list of the type URL. Each entry ends with a slash. There are no comments.

    Without the slash ``*.xhoot.com`` would also match ``a.xhoot.com.evil.example``. In PAN-OS ``*`` is one label or
    more. In other products that read such lists it is exactly one, so all domains are listed.
    """
    return _lines(f"{name}/" for name in (_hosts(catalog) if hosts_only else catalog.domains))


def squid(catalog: Catalog, hosts_only: bool) -> str:
    """A file for squid's conf.d. A leading dot covers any depth, and squid warns of entries inside another."""
    names = _hosts(catalog) if hosts_only else [f".{apex}" for apex in catalog.apexes]
    ports = sorted({str(ports) for ports in catalog.ports if ports.protocol.value == "tcp"})
    return _lines(
        [
            f"# Cloud9 network requirements as of {catalog.as_of}: names only; use them before your own deny rules:",
            "#   http_access allow CONNECT cloud9 cloud9_ports",
            *(f"acl cloud9 dstdomain {name}" for name in names),
            *(f"acl cloud9_ports port {port}" for port in ports),
        ]
    )


def _hosts(catalog: Catalog) -> list[str]:
    return [host.name for host in catalog.hosts]


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
