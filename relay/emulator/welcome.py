"""The page at ``/`` of every host: what this host is, what it serves, and where that knowledge comes from."""

from __future__ import annotations

from html import escape

from aiohttp import web

from relay.emulator.http.site import Site, name_in
from relay.emulator.marks import Mark
from relay.emulator.names import HostRole

_STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
:root { color-scheme: light dark; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .25rem .75rem .25rem 0; vertical-align: top; border-bottom: 1px solid #8886; }
@media (max-width: 40rem) { td, th { display: block; border: 0; padding: 0; } tr { display: block; margin: .75rem 0; } }
"""
# What a role is, and the page to begin with, if it has one.
ROLES = {
    HostRole.EMULATOR: ("softphone in the browser", "/softphone/"),
    HostRole.PORTAL: ("admin portal", "/portal/"),
    HostRole.CTI: ("CTI API: a WebSocket whose messages are signed", "/api"),
    HostRole.MANAGEMENT: ("Management API", "/external/apis"),
    HostRole.CALL_DATA: ("Call Data API", "/v2/calls"),
    HostRole.AUDIT: ("audit API", "/audit/v1"),
    HostRole.LOGIN: ("login and settings", "/rest/v1"),
    HostRole.RECORDING: ("recording upload", "/recordings/v1"),
    HostRole.SIGNALING: ("signaling by socket.io", "/socket.io/"),
    HostRole.MEDIA: ("TURN host: STUN and TURN over UDP, TCP and TLS; nothing over HTTP", ""),
}
# For people and programs: the one endpoint that a click can ask.
DESCRIPTION = "/openapi.json"
# For people: a link. The others are for programs.
_PAGES = {HostRole.PORTAL, HostRole.EMULATOR}


class Welcome:
    """Answers ``/``."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def register(self) -> None:
        """Serve the page."""
        # Without a role of its own, so that every host answers.
        self._site.app.router.add_get("/", self._page)

    async def _page(self, request: web.Request) -> web.Response:
        name = name_in(request.host)
        served = self._site.names.roles(name) or frozenset()
        if "application/json" in request.headers.get("Accept", ""):
            return web.json_response({"host": name, "roles": sorted(served), "emulated": True})
        text = _render(name, [role for role in ROLES if role in served], self._site)
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'"}
        return web.Response(text=text, content_type="text/html", headers=headers)


def _render(name: str, roles: list[HostRole], site: Site) -> str:
    listed = "".join(f"<li>{_role(role)}</li>" for role in roles)
    rows = "".join(
        f"<tr><td>{each.method} {_path(each.path)}</td><td>{escape(each.summary)}</td><td>{each.mark}</td></tr>"
        for each in site.endpoints
        if each.role in roles
    )
    marks = " ".join(f"<b>{mark}</b>: {escape(mark.sentence)}" for mark in Mark)
    table = f"<h2>Endpoints</h2><p>{marks}</p><table>{rows}</table>" if rows else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(name)} (emulated)</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{escape(name)}</h1><p>An emulation for developers, not the vendor's service. This host is:</p>"
        f"<ul>{listed}</ul>{table}</html>"
    )


def _path(path: str) -> str:
    shown = f"<code>{escape(path)}</code>"
    return f'<a href="{path}">{shown}</a>' if path == DESCRIPTION else shown


def _role(role: HostRole) -> str:
    text, path = ROLES[role]
    if role in _PAGES:
        return f'<a href="{path}">{escape(text)}</a>'
    return f"{escape(text)}: <code>{escape(path)}</code>" if path else escape(text)
