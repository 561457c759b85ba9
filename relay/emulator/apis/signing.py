"""Signatures of the APIs, as public samples have them: what is signed, and how.

::

    Authorization: HmacSHA512 <api key>:<nonce>:<base64 of the signature>
    Date: Fri, 27 Nov 2026 12:00:00 GMT

The string to sign has nine fields. Each of them, the body too, is followed by a newline. ``verifying`` is the server's
side. Pure: time and nonce are arguments.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import uuid
from dataclasses import dataclass

ALGORITHM = "HmacSHA512"
DEFAULT_PORTS = {"https": 443, "wss": 443, "http": 80, "ws": 80}
# The fields of the string to sign, in their order, by the names that errors use.
FIELDS = ("method", "scheme", "host:port", "path", "content-type", "api key", "nonce", "date", "body")


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What of a request goes into its signature. The query does not, and is here for explanations only."""

    method: str
    scheme: str
    host: str
    path: str
    content_type: str = ""
    body: bytes = b""
    query: str = ""


def fields_of(request: SignedRequest, key: str, nonce: str, date: str) -> dict[str, bytes]:
    """The fields of the string to sign, by name, in their order."""
    text = (
        request.method.upper(),
        request.scheme.lower(),
        with_port(request.host, request.scheme),
        request.path,
        request.content_type.partition(";")[0].strip(),
        key,
        nonce,
        date,
    )
    return dict(zip(FIELDS, (*(each.encode("utf-8", "surrogateescape") for each in text), request.body), strict=True))


def string_to_sign(request: SignedRequest, key: str, nonce: str, date: str) -> bytes:
    """What the signature is made of."""
    return b"".join(value + b"\n" for value in fields_of(request, key, nonce, date).values())


def signature_of(text: bytes, secret: str) -> str:
    """The signature of a string to sign, in base64."""
    return base64.b64encode(hmac.digest(secret.encode(), text, hashlib.sha512)).decode("ascii")


def sign(request: SignedRequest, key: str, secret: str, *, nonce: str, date: str) -> dict[str, str]:
    """The two headers that make a request a signed one. ``new_nonce`` and ``http_date`` make the last two arguments."""
    signature = signature_of(string_to_sign(request, key, nonce, date), secret)
    return {"Authorization": f"{ALGORITHM} {key}:{nonce}:{signature}", "Date": date}


def new_nonce() -> str:
    """A nonce: a random UUID."""
    return str(uuid.uuid4())


def http_date(now: float) -> str:
    """A time in seconds since 1970 as HTTP writes it."""
    return email.utils.formatdate(now, usegmt=True)


def with_port(host: str, scheme: str) -> str:
    """The host with its port, which is part of the string to sign even if it is the scheme's own."""
    host = host.strip().lower()
    has_port = ":" in host.rpartition("]")[2]
    port = DEFAULT_PORTS.get(scheme.lower())
    return host if has_port or port is None else f"{host}:{port}"
