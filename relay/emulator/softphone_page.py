"""The softphone page, a browser client at ``/softphone/``. Its files are in ``web/softphone``: see ``app.js``."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from relay.emulator.http.files import HEADERS, File, serve_folder
from relay.emulator.http.site import Site
from relay.emulator.names import HostRole

PREFIX = "/softphone"
FOLDER = Path(__file__).parent / "web" / "softphone"
# The dashboard's helpers, which both pages use.
_DASHBOARD = Path(__file__).parent.parent / "web"
SHARED = ("dom.js", "theme.js")
# The page asks for the microphone and for nothing else.
_HEADERS = {**HEADERS, "Permissions-Policy": "microphone=(self), camera=(), geolocation=()"}


def register(site: Site) -> None:
    """Serve the page and its files."""
    serve_folder(site, HostRole.EMULATOR, PREFIX, FOLDER, _HEADERS)
    for name in SHARED:
        site.route(HostRole.EMULATOR, "GET", f"{PREFIX}/shared/{name}", File(_DASHBOARD / name, _HEADERS).on_request)
    site.route(HostRole.EMULATOR, "GET", PREFIX, _with_slash)


async def _with_slash(_: web.Request) -> web.Response:
    # The page's own URLs are relative, so the slash counts.
    return web.Response(status=308, headers={"Location": f"{PREFIX}/"})
