"""Basic authentication of the web proxy's users (RFC 7617, RFC 9110 section 11.7). No I/O."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Mapping

from pydantic import SecretStr

CHALLENGE = 'Basic realm="cloud9-relay", charset="UTF-8"'
# A name and a password of 128 characters each, in base64, and some room.
_MAX_CREDENTIALS = 2048


class BasicAuth:
    """The users; without any, everybody may pass. It keeps no passwords, but digests under a key made at the start."""

    def __init__(self, users: Mapping[str, SecretStr]) -> None:
        self._key = secrets.token_bytes(32)
        self._digests = {_composed(name): self._digest(secret.get_secret_value()) for name, secret in users.items()}
        # For unknown names: comparing with this takes as long as for a known one.
        self._nobody = secrets.token_bytes(32)

    @property
    def required(self) -> bool:
        """True if there are users."""
        return bool(self._digests)

    def permits(self, header: str | None) -> bool:
        """True for a Proxy-Authorization that names a user and the right password."""
        # Every reading is checked, so that the time tells nothing.
        known = [self._knows(reading) for reading in _readings(header)]
        return any(known)

    @staticmethod
    def name_of(header: str | None) -> str:
        """The name in a Proxy-Authorization; empty if it has none."""
        readings = _readings(header)
        return _composed(readings[-1].partition(":")[0]) if readings else ""

    def _knows(self, credentials: str) -> bool:
        name, colon, password = credentials.partition(":")
        same = hmac.compare_digest(self._digests.get(_composed(name), self._nobody), self._digest(password))
        return same and bool(colon)

    def _digest(self, password: str) -> bytes:
        return hashlib.blake2b(_composed(password).encode("utf-8"), key=self._key, digest_size=32).digest()


def _readings(header: str | None) -> list[str]:
    """Name and password, as Latin-1 and, if they can be, as UTF-8."""
    if header is None or len(header) > _MAX_CREDENTIALS:
        return []
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return []
    try:
        credentials = base64.b64decode(encoded.strip(), validate=True)
    except ValueError:  # not Base64, or not even ASCII
        return []
    # Clients that ignore the charset of the challenge send Latin-1. Bytes that are valid as both may mean either.
    readings = [credentials.decode("latin-1")]
    with contextlib.suppress(UnicodeDecodeError):
        readings.append(credentials.decode("utf-8"))
    return readings


def _composed(text: str) -> str:
    """The text in NFC, as RFC 8265 asks: some systems decompose characters that others compose."""
    return unicodedata.normalize("NFC", text)
