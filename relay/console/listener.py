"""How programs for operators ask the admin listener: over HTTP, HTTPS or a unix socket; with the token, if any."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp

from relay.addresses import UNIX
from relay.errors import OperatorError

# Where a relay listens unless it is told otherwise.
DEFAULT_URL = "http://127.0.0.1:9443"
# On a unix socket the listener answers to this name, as everywhere.
_LOCAL = "http://localhost"
WITHOUT_TOKEN = "the token is missing or wrong: set RELAY_ADMIN_TOKEN, or use --token-file"  # noqa: S105


class AdminListener:
    """Where it is. ``open`` gives a client for it; ``url_of`` the address of a path there."""

    def __init__(self, url: str = DEFAULT_URL, token: str = "", ca: Path | None = None) -> None:
        """``url`` may also be ``unix:`` and a path. Raises OperatorError for a text or a file that cannot be used."""
        if not url.startswith(("http://", "https://", UNIX)):
            raise OperatorError(f"--url {url}: expected an address such as {DEFAULT_URL}, or unix:/path/of/a/socket")
        if not (token.isascii() and token.isprintable()):
            raise OperatorError("the token of the admin listener: expected printable ASCII")
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._trust = None if ca is None else _trust(ca)

    @property
    def is_unix(self) -> bool:
        """True if it is a unix socket."""
        return self._url.startswith(UNIX)

    def open(self, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
        """A client, to be closed. Needs a running loop."""
        connector: aiohttp.BaseConnector
        if self.is_unix:
            connector = aiohttp.UnixConnector(self._url.removeprefix(UNIX))
        else:
            connector = aiohttp.TCPConnector(ssl=True if self._trust is None else self._trust)
        return aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=timeout)

    def url_of(self, path: str) -> str:
        """What to ask the client for."""
        return f"{_LOCAL if self.is_unix else self._url}{path}"

    def shown(self, path: str) -> str:
        """The same for people."""
        return f"{self._url}{path}" if not self.is_unix else f"{self._url} {path}"


def _trust(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        why = error if isinstance(error, ssl.SSLError) else error.strerror or error
        raise OperatorError(f"--ca {ca}: {why}") from None
