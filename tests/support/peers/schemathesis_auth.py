"""What schemathesis loads into its own process: it signs requests as the description says, or adds a token.

The secret and the token come from the environment.
"""

from __future__ import annotations

import os
import time
from typing import Any
from urllib.parse import urlsplit

import schemathesis

from relay.emulator.apis.signing import SignedRequest, http_date, new_nonce, sign

_NAMES = ("KEY", "SECRET", "TOKEN", "ENTITLEMENT")
KEY, SECRET, TOKEN, ENTITLEMENT = (os.environ[f"EMULATOR_{name}"] for name in _NAMES)


class _Signature:
    """For requests: called when the request is ready to be sent, with its body as bytes."""

    def __call__(self, request: Any) -> Any:
        url = urlsplit(request.url)
        body = request.body.encode() if isinstance(request.body, str) else request.body or b""
        content_type = request.headers.get("Content-Type", "")
        if isinstance(content_type, bytes):
            content_type = content_type.decode("latin-1")
        signed = SignedRequest(request.method, url.scheme, url.netloc, url.path, content_type, body)
        request.headers.update(sign(signed, KEY, SECRET, nonce=new_nonce(), date=http_date(time.time())))
        return request


class _Token:
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


# Its types do not say that the function has methods.
auth: Any = schemathesis.auth
auth.set_from_requests(_Signature()).apply_to(tag=["management", "call_data", "audit"]).apply_to(
    path="/emulator/v1/rejections"
)
auth.set_from_requests(_Token(TOKEN)).apply_to(tag=["recording", "login"])
auth.set_from_requests(_Token(ENTITLEMENT)).apply_to(path="/entitlement/v1/voice")


@schemathesis.serializer("application/offset+octet-stream")
def _serialize(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def filter_headers(_: Any, headers: Any) -> bool:
    """A server ignores headers that it does not know (RFC 9110, section 5.1), so these prove nothing."""
    return not headers or "x-schemathesis-unknown-property" not in headers
