"""Templates to HTML, the headers of each answer, and the files that the pages load.

A page loads nothing from elsewhere and has no script or style of its own text, so the policy allows neither.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from relay.errors import PeerError

FOLDER = Path(__file__).parent / "static"
ROOT = "/portal/"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Without an origin in requests of our own, forms could not be told from those of others.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
# A page has what one user may see, so nobody keeps it.
PRIVATE = {**_SECURITY, "Cache-Control": "no-store"}
# The address of a file has the file's digest.
_FOREVER = {**_SECURITY, "Cache-Control": "public, max-age=31536000, immutable"}


class PageError(PeerError):
    """A request that is answered with a page that says why nothing was done."""

    def __init__(self, status: int, title: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.title = title
        self.headers = dict(headers or {})


def not_found() -> PageError:
    """There is no such thing, or it belongs to another firm, which is the same for who asks."""
    return PageError(404, "Not found", "There is no such thing here, or it belongs to another firm.")


class Assets:
    """The files of ``static``, read once. Addresses have a digest, so that browsers keep them for good."""

    def __init__(self) -> None:
        self._bodies = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}
        self._digests = {name: hashlib.sha256(body).hexdigest()[:16] for name, body in self._bodies.items()}

    def url(self, name: str) -> str:
        """The address of a file."""
        return f"{ROOT}static/{self._digests[name]}/{name}"

    async def on_request(self, request: web.Request) -> web.Response:
        """A file, by name and digest."""
        name = request.match_info["name"]
        if self._digests.get(name) != request.match_info["digest"]:
            raise PageError(404, "Not found", "There is no such file.")
        content_type = _TYPES[Path(name).suffix]
        return web.Response(body=self._bodies[name], content_type=content_type, charset="utf-8", headers=_FOREVER)


@functools.cache
def bundled_assets() -> Assets:
    """Those of the package, which do not change."""
    return Assets()


class Pages:
    """Makes HTML of templates. Whatever a template shows is escaped."""

    def __init__(self, *, has_faults: bool = False) -> None:
        self._environment = _environment(has_faults)

    def render(
        self, template: str, context: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """An answer with a page."""
        text = self._environment.get_template(template).render(context)
        all_headers = {**PRIVATE, **(headers or {})}
        return web.Response(text=text, content_type="text/html", status=status, headers=all_headers)


@functools.cache
def _environment(has_faults: bool) -> Environment:
    """What the templates know. They are compiled once, however many portals a process has."""
    environment = Environment(
        loader=PackageLoader("relay.emulator.portal"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals |= {"asset": bundled_assets().url, "root": ROOT, "has_faults": has_faults}
    environment.filters |= {"time": _time, "iso": _iso, "segment": _segment, "size": _size, "span": _span}
    return environment


def see_other(url: str) -> web.Response:
    """Go on with a GET, so that reloading the page repeats nothing."""
    return web.Response(status=303, headers={**PRIVATE, "Location": url})


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _time(seconds: float) -> str:
    return f"{_moment(seconds):%Y-%m-%d %H:%M:%S} UTC"


def _iso(seconds: float) -> str:
    return f"{_moment(seconds):%Y-%m-%dT%H:%M:%SZ}"


def _segment(text: str) -> str:
    """A part of a path. Slashes are no separators in it."""
    return quote(text, safe="")


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.1f} KB" if count < 1024 * 1024 else f"{count / 1024 / 1024:.1f} MB"


def _span(seconds: float) -> str:
    """How long something lasted, for people."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
