"""ClientHellos that are made up (RFC 8446 section 4.1.2)."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

X25519 = b"\0\x1d"
TLS_1_3 = b"\x03\x04"
CHANGE_CIPHER_SPEC = b"\x14\x03\x03\0\1\1"


def extension(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2) + len(value).to_bytes(2) + value


def build_client_hello(extensions: bytes | None) -> bytes:
    """A whole message; without a list of extensions if that is None."""
    suites = b"\x13\x01\xc0\x2b\xc0\x2f"
    body = b"\x03\x03" + bytes(32) + b"\0" + len(suites).to_bytes(2) + suites + b"\1\0"
    if extensions is not None:
        body += len(extensions).to_bytes(2) + extensions
    return b"\1" + len(body).to_bytes(3) + body


def hello_without_key(more: bytes = b"", key: bytes = b"") -> bytes:
    """One of TLS 1.3 that offers a group and no key for it: the server asks again (section 4.1.4)."""
    return build_client_hello(
        extension(43, b"\2" + TLS_1_3)
        + extension(10, b"\0\2" + X25519)
        + extension(13, b"\0\4\x04\x03\x08\x04")
        + extension(51, len(key).to_bytes(2) + key)
        + more
    )


def hello_with_early_data(*, with_key: bool) -> bytes:
    """One that says that early data follows (section 4.2.10), which a server without such tickets skips."""
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    return hello_without_key(extension(42, b""), X25519 + len(public).to_bytes(2) + public if with_key else b"")


def record(data: bytes, kind: int = 22) -> bytes:
    """In clear."""
    return bytes([kind]) + b"\x03\x03" + len(data).to_bytes(2) + data
