"""Which Host the admin listener answers. It has no authentication, so no page may reach it under a name of its own.

Any site can have its name resolve to this machine's address after its page is loaded (DNS rebinding). The browser then
lets the page read the answers to requests that have the site's name as Host. A literal address cannot be such a name.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from relay.gateway.admin.refusals import AdminRefusal, AdminRefusals
from relay.name_patterns import ANY, matches

# They tell nothing that must be hidden, and load balancers ask under names of their own.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@\s]+)(?::[0-9]{1,5})?")


def check_host(names: Collection[str], refusals: AdminRefusals) -> Middleware:
    """Answers requests for these names (``*.`` is one label or more, ``*`` all), localhost, this machine and addresses.

    All others get 421.
    """
    known = {"localhost", socket.gethostname().lower(), *names}

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        # A request without a Host, as in HTTP/1.0, is not from a browser.
        given = request.headers.getall(hdrs.HOST, [])
        if request.path in OPEN_PATHS or all(_is_known(one, known) for one in given):
            return await handler(request)
        refusals.note_request(AdminRefusal.HOST, request)
        text = "Host: expected an address, localhost, this machine's name, or a name of listen.admin_hosts\n"
        return web.Response(status=421, text=text, headers={hdrs.CACHE_CONTROL: "no-store"})

    return middleware


def _is_known(given: str, known: Collection[str]) -> bool:
    found = _HOST.fullmatch(given)
    if found is None:
        return False
    host = found[1].lower().removesuffix(".")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return any(name == ANY or matches(host, name) for name in known)
    return True
