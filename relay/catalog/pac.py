"""The proxy auto-configuration file: hosts of the catalog go to the web proxy, everything else goes directly.

Old engines such as WinHTTP's JScript read it. So it is ECMAScript 3, without the helper functions, some of which ask
DNS.
"""

from __future__ import annotations

import json
import re
from string import Template

from relay.addresses import parse_address
from relay.catalog.model import Catalog
from relay.errors import OperatorError
from relay.name_patterns import WILDCARD

_SCHEMES = re.compile(r"(PROXY|HTTP|HTTPS|SOCKS|SOCKS4|SOCKS5) (\S+)")

_TEMPLATE = Template("""\
// Cloud9 through a web proxy: network requirements as of $as_of.
var proxy = $proxy;
// Any name with exactly one label before one of these.
var domains = $domains;
var hosts = $hosts;

function FindProxyForURL(url, host) {
    var name = host.toLowerCase().replace(/\\.$$/, "");
    var parent = name.substring(name.indexOf(".") + 1);
    if (hosts.hasOwnProperty(name) || (/^[a-z0-9-]+\\./.test(name) && domains.hasOwnProperty(parent))) {
        return proxy;
    }
    return "DIRECT";
}
""")


def render_pac(catalog: Catalog, proxy: str, *, hosts_only: bool = False) -> str:
    """The file's text, ASCII. ``proxy`` is ``host:port``, or directives such as ``HTTPS host:port; DIRECT``.

    With ``hosts_only`` the vendor's wildcards are left out. Raises OperatorError if ``proxy`` is not valid.
    """
    domains = [] if hosts_only else [domain.removeprefix(WILDCARD) for domain in catalog.domains]
    # Hosts that a domain covers need not be listed again.
    names = [host.name for host in catalog.hosts if hosts_only or not catalog.within_domains(host.name)]
    return _TEMPLATE.substitute(
        as_of=catalog.as_of,
        proxy=json.dumps(_directives(proxy)),
        domains=_set_of(domains),
        hosts=_set_of(names),
    )


def _set_of(names: list[str]) -> str:
    # Each on a line of its own, so that two versions are easy to compare.
    return "{" + ",".join(f"\n    {json.dumps(name)}: 1" for name in names) + "}"


def _directives(proxy: str) -> str:
    if " " not in proxy and ";" not in proxy:
        return f"PROXY {_server(proxy)}"
    return "; ".join(_directive(part.strip()) for part in proxy.split(";"))


def _directive(text: str) -> str:
    if text == "DIRECT":
        return text
    found = _SCHEMES.fullmatch(text)
    if found is None:
        raise OperatorError(f"proxy {text!r}: expected host:port, or directives such as 'PROXY host:3128; DIRECT'")
    return f"{found[1]} {_server(found[2])}"


def _server(text: str) -> str:
    try:
        address = parse_address(text)
    except ValueError as error:
        raise OperatorError(f"proxy {error}") from None
    if not address.port or ";" in address.host:
        raise OperatorError(f"proxy {text!r}: expected a server's port, 1 to 65535")
    return str(address)
