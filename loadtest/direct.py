"""HTTP to exactly the host that was checked: no proxy of the environment and no redirect leads a request elsewhere."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from relay.errors import UpstreamError

# The relay's metrics have some hundred lines, and an answer about a fault a few.
MAX_ANSWER_BYTES = 1024 * 1024
MAX_WORDS = 300


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and its errors. urllib's own would also follow redirects, and ask the environment for proxies."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


_OPENER = _opener()


def ask(method: str, url: str, *, timeout_s: float, body: dict[str, Any] | None = None) -> str:
    """The text of an answer; ``body`` is sent as JSON. Raises UpstreamError, also for a redirect."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)  # noqa: S310
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            content: bytes = answer.read(MAX_ANSWER_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            raise UpstreamError(f"{method} {url}: {_refusal(error)}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise UpstreamError(f"{method} {url}: {getattr(error, 'reason', None) or error}") from None
    return content.decode("utf-8", "replace")


def _refusal(error: urllib.error.HTTPError) -> str:
    location = error.headers.get("Location")
    if location is not None:
        return (
            f"{error.code} leads to {location[:MAX_WORDS]!r}, and a load test does not follow; "
            "expected the URL that answers itself"
        )
    return f"{error.code} {error.read(MAX_ANSWER_BYTES).decode('utf-8', 'replace')[:MAX_WORDS]}"
