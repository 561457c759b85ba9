"""Static files of the emulator's pages: read once, with a strict policy for the browser, and not sent twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from relay.emulator.http.site import Site
from relay.emulator.names import HostRole

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS: Mapping[str, str] = {
    # No inline script and style, no frame of another page, and no connection to anything but this origin.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The browser asks each time, and is answered 304 while the file is the same.
    "Cache-Control": "no-cache",
}


class File:
    """One file; ``on_request`` is a handler of GET."""

    def __init__(self, path: Path, headers: Mapping[str, str] = HEADERS) -> None:
        self._body = path.read_bytes()
        self._type = _TYPES[path.suffix]
        self._etag = hashlib.sha256(self._body).hexdigest()[:32]
        self._headers = dict(headers)

    async def on_request(self, request: web.Request) -> web.Response:
        """The file, or 304 for a browser that has it."""
        response = web.Response(body=self._body, content_type=self._type, charset="utf-8", headers=self._headers)
        response.etag = self._etag
        if any(tag.value in {self._etag, "*"} for tag in request.if_none_match or ()):
            response.body = None
            response.set_status(304)
        return response


def serve_folder(site: Site, role: HostRole, prefix: str, folder: Path, headers: Mapping[str, str] = HEADERS) -> None:
    """Serve each page, script, style and icon below a folder at its path after the prefix, such as ``/portal/files``.

    ``index.html`` is what the prefix itself and a slash answers. Other files, such as licences, are not served.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix in _TYPES:
            name = path.relative_to(folder).as_posix()
            site.route(role, "GET", f"{prefix}/{'' if name == 'index.html' else name}", File(path, headers).on_request)
