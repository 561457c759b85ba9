"""What Python's ``ssl`` does not tell of a ClientHello (RFC 8446 section 4.1.2): server name and protocols."""

from __future__ import annotations

from typing import NamedTuple

MESSAGE_HEAD_BYTES = 4
SERVER_NAME, ALPN = 0, 16
_HOST_NAME = 0


class ClientHello(NamedTuple):
    """What a client asks for. ``server_name`` may be empty. ``protocols`` is None without ALPN."""

    server_name: bytes = b""
    protocols: tuple[bytes, ...] | None = None


def parse_client_hello(message: bytes) -> ClientHello | None:
    """Read a whole message with its head. Returns None for a broken one, which TLS will refuse."""
    try:
        rest = message[MESSAGE_HEAD_BYTES + 2 + 32 :]  # after version and random bytes
        for length_bytes in (1, 2, 1):  # session id, cipher suites, compression
            _, rest = _take(rest, length_bytes)
        extensions = dict(_extensions(_take(rest, 2)[0])) if rest else {}
        return ClientHello(_server_name(extensions.get(SERVER_NAME)), _protocols(extensions.get(ALPN)))
    except ValueError:
        return None


def _take(data: bytes, length_bytes: int) -> tuple[bytes, bytes]:
    """A value that comes after its length, and what follows it. Raises ValueError if it is cut off."""
    end = length_bytes + int.from_bytes(data[:length_bytes])
    if len(data) < max(end, length_bytes):
        raise ValueError("cut off")
    return data[length_bytes:end], data[end:]


def _extensions(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        kind = int.from_bytes(data[:2])
        value, data = _take(data[2:], 2)
        found.append((kind, value))
    return found


def _server_name(value: bytes | None) -> bytes:
    """RFC 6066 section 3: a list with one name in it."""
    if value is None:
        return b""
    names, _ = _take(value, 2)
    if names[:1] != bytes([_HOST_NAME]):
        return b""
    return _take(names[1:], 2)[0]


def _protocols(value: bytes | None) -> tuple[bytes, ...] | None:
    """RFC 7301 section 3.1."""
    if value is None:
        return None
    names, found = _take(value, 2)[0], []
    while names:
        name, names = _take(names, 1)
        found.append(name)
    return tuple(found)
