"""The dashboard's files, as the admin listener serves them. The page loads nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parent.parent.parent / "web"

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    # No inline script and style, no frame of another page, and no connection to anything but this listener.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The browser asks each time, and is answered 304 while the file is the same.
    "Cache-Control": "no-cache",
}


def routes() -> Iterator[web.RouteDef]:
    """``/`` and each file by its path below ``relay/web``."""
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in _TYPES:
            name = path.relative_to(FOLDER).as_posix()
            yield web.get("/" if name == "index.html" else f"/{name}", _File(path).on_request)


class _File:
    """One file, read once."""

    def __init__(self, path: Path) -> None:
        self._body = path.read_bytes()
        self._type = _TYPES[path.suffix]
        self._etag = hashlib.sha256(self._body).hexdigest()[:32]

    async def on_request(self, request: web.Request) -> web.Response:
        """The file, or 304 for a browser that has it."""
        response = web.Response(body=self._body, content_type=self._type, charset="utf-8", headers=_HEADERS)
        response.etag = self._etag
        if any(tag.value in {self._etag, "*"} for tag in request.if_none_match or ()):
            response.body = None
            response.set_status(304)
        return response
