"""The dashboard's files as the admin listener serves them: these and no others; the page loads nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parent.parent.parent / "web"

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    # No inline script, no inline style, nobody else's frame, and no word to anybody but this listener.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for anew each time, and answered 304 while it is the same.
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
        """The file, or 304 for those who have it."""
        response = web.Response(body=self._body, content_type=self._type, charset="utf-8", headers=_HEADERS)
        response.etag = self._etag
        if any(tag.value in {self._etag, "*"} for tag in request.if_none_match or ()):
            response.body = None
            response.set_status(304)
        return response
