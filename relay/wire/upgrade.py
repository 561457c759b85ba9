"""The upgrade of HTTP/1.1 (RFC 9110 section 7.8) before WebSocket and CONNECT-UDP: requests, 101s, the accept key."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from relay.errors import PeerError

# RFC 6455 section 1.3.
_ACCEPT_SALT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
WEBSOCKET_VERSION = "13"
KEY_BYTES = 16
# Our limit. Proxies add a few fields of their own, such as cookies.
MAX_HEAD_BYTES = 16 * 1024

Headers = Sequence[tuple[str, str]]


class UpgradeError(PeerError):
    """The answer is not HTTP, or not the upgrade that was asked for. ``status`` is 0 if there is none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Response:
    """The head of a response, ``size`` bytes.

    ``headers`` have names in lower case; several values of one name are joined. ``reason`` is safe to show: it is empty
    if it contains unprintable characters.
    """

    status: int
    reason: str
    size: int
    headers: Mapping[str, str] = field(repr=False)


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept that answers a Sec-WebSocket-Key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _ACCEPT_SALT, usedforsecurity=False).digest()).decode()


def is_key(key: str) -> bool:
    """True for the Base64 of 16 bytes, which a Sec-WebSocket-Key must be."""
    try:
        return len(base64.b64decode(key, validate=True)) == KEY_BYTES
    except ValueError:
        return False


def build_switching_protocols(protocol: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """The 101 that changes to ``protocol``."""
    return _build_head("HTTP/1.1 101 Switching Protocols", [*_upgrade(protocol), *headers])


def build_websocket_response(key: str, subprotocol: str | None) -> bytes:
    """The 101 for a Sec-WebSocket-Key. Without a sub-protocol its field is left out: an empty one breaks clients."""
    chosen = [] if subprotocol is None else [("Sec-WebSocket-Protocol", subprotocol)]
    return build_switching_protocols("websocket", [("Sec-WebSocket-Accept", accept_key(key)), *chosen])


def build_websocket_request(target: str, host: str, key: str, subprotocol: str, headers: Headers = ()) -> bytes:
    """A client's request: ``target`` is path and query, ``host`` includes the port if it is not 443."""
    fields = [
        ("Sec-WebSocket-Key", key),
        ("Sec-WebSocket-Version", WEBSOCKET_VERSION),
        ("Sec-WebSocket-Protocol", subprotocol),
        *headers,
    ]
    return _build_head(f"GET {target} HTTP/1.1", [("Host", host), *_upgrade("websocket"), *fields])


def build_connect_udp_request(target: str, host: str, headers: Headers = ()) -> bytes:
    """The request of RFC 9298 section 3.2."""
    fields = [("Host", host), *_upgrade("connect-udp"), ("Capsule-Protocol", "?1"), *headers]
    return _build_head(f"GET {target} HTTP/1.1", fields)


def parse_response(data: bytes) -> Response | None:
    """Read the head of a response, or None for "need more". Raises UpgradeError for anything else, or over 16 KiB."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0:
        if len(data) >= MAX_HEAD_BYTES or not data.startswith(b"HTTP/1."[: len(data)]):
            raise UpgradeError(f"did not answer in HTTP: {data[:20]!r}")
        return None
    status_line, *lines = data[:end].decode("latin-1").split("\r\n")
    version, _, rest = status_line.partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/1.") or len(status) != 3 or not status.isascii() or not status.isdigit():
        raise UpgradeError(f"did not answer in HTTP: {status_line[:40]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise UpgradeError(f"no header field: {line[:40]!r}", int(status))
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Response(int(status), reason if reason.isprintable() else "", end + 4, headers)


def check_upgrade(response: Response, protocol: str) -> None:
    """Raises UpgradeError if the response is not a 101 to this protocol."""
    if response.status != 101:
        raise UpgradeError(f"answered {response.status} {response.reason}, expected 101", response.status)
    if response.headers.get("upgrade", "").lower() != protocol or "upgrade" not in _tokens(response, "connection"):
        raise UpgradeError(f"answered 101, but not for {protocol}", 101)


def check_websocket(response: Response, key: str, subprotocol: str) -> None:
    """Raises UpgradeError if the response does not open what was asked for (RFC 6455 section 4.1)."""
    check_upgrade(response, "websocket")
    if response.headers.get("sec-websocket-accept", "") != accept_key(key):
        raise UpgradeError("Sec-WebSocket-Accept does not answer the key", 101)
    if response.headers.get("sec-websocket-extensions"):
        raise UpgradeError("an extension that was not asked for", 101)
    chosen = response.headers.get("sec-websocket-protocol", "")
    if chosen != subprotocol:
        raise UpgradeError(f"sub-protocol {chosen!r}, expected {subprotocol!r}", 101)


def _tokens(response: Response, name: str) -> set[str]:
    return {token.strip().lower() for token in response.headers.get(name, "").split(",")}


def _upgrade(protocol: str) -> Headers:
    return [("Connection", "Upgrade"), ("Upgrade", protocol)]


def _build_head(first: str, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers)]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a line break in a header field")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
