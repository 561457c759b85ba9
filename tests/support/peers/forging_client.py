"""A TLS client that can also say what no TLS library would: handshake messages of its own making, as whole records."""

from __future__ import annotations

import hashlib
import hmac
import ssl
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from relay.addresses import Address
from tests.support.peers.tls_client import TlsClient

HANDSHAKE, APPLICATION_DATA = 22, 23
_VERSION = b"\x03\x03"  # as TLS 1.3 has it, too
_RANDOM = slice(11, 43)  # of the server, in the first bytes that it sends


class ForgingClient(TlsClient):
    """A client whose handshake is done: from there ``forge`` writes the records, and ``send`` must not be used."""

    _heard = b""

    @classmethod
    async def open_forging(
        cls, server: Address, context: ssl.SSLContext, version: ssl.TLSVersion, folder: Path
    ) -> ForgingClient:
        """Shake hands in this version, with AES-128-GCM or AES-256-GCM."""
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("ECDHE+AESGCM")
        secrets = folder / "secrets.log"
        context.keylog_filename = str(secrets)
        client = await cls.open(server, context, receive_buffer=4096)
        assert isinstance(client, ForgingClient)
        client._take_keys(secrets.read_text())
        return client

    async def _fill(self) -> None:
        before = self._incoming.pending
        await super()._fill()
        if len(self._heard) < _RANDOM.stop:
            peeked = self._incoming.read()
            self._heard += peeked[before:]
            self._incoming.write(peeked)

    def _take_keys(self, log: str) -> None:
        lines = (line.split() for line in log.splitlines() if not line.startswith("#"))
        secrets = {label: (bytes.fromhex(random), bytes.fromhex(secret)) for label, random, secret in lines}
        cipher = (self.tls.cipher() or ("", "", 0))[0]
        self._digest = hashlib.sha384 if cipher.endswith("SHA384") else hashlib.sha256
        size = self._key_bytes = 32 if "256" in cipher.partition("GCM")[0] else 16
        self._explicit_nonce = self.tls.version() == "TLSv1.2"
        if self._explicit_nonce:
            random, master = secrets["CLIENT_RANDOM"]
            block = self._prf(master, b"key expansion" + self._heard[_RANDOM] + random, 2 * size + 8)
            self._key, self._nonce = AESGCM(block[:size]), block[2 * size : 2 * size + 4] + bytes(8)
        else:
            _, self._secret = secrets["CLIENT_TRAFFIC_SECRET_0"]
            self._use_secret()
        # Finished was the first record under the keys of TLS 1.2; TLS 1.3 has other keys for it.
        self._written = int(self._explicit_nonce)

    def _hmac(self, key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, self._digest).digest()

    def update_keys(self, *, requested: bool = False) -> bytes:
        """The record of a KeyUpdate (RFC 8446 section 4.6.3); what is forged from now on has the next keys."""
        record = self.forge(HANDSHAKE, b"\x18\0\0\1" + bytes([requested]))
        self._secret = self._expand(self._secret, b"traffic upd", self._digest().digest_size)
        self._use_secret()
        return record

    def _use_secret(self) -> None:
        self._key = AESGCM(self._expand(self._secret, b"key", self._key_bytes))
        self._nonce, self._written = self._expand(self._secret, b"iv", 12), 0

    def _prf(self, secret: bytes, seed: bytes, size: int) -> bytes:
        """RFC 5246 section 5."""
        made, a = b"", seed
        while len(made) < size:
            a = self._hmac(secret, a)
            made += self._hmac(secret, a + seed)
        return made[:size]

    def _expand(self, secret: bytes, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label of RFC 8446 section 7.1; one block is enough."""
        info = size.to_bytes(2) + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
        return self._hmac(secret, info + b"\1")[:size]

    def forge(self, kind: int, data: bytes) -> bytes:
        """The record of this content type, encrypted."""
        number = self._written.to_bytes(8)
        self._written += 1
        nonce = bytes(a ^ b for a, b in zip(self._nonce, bytes(4) + number, strict=True))
        if self._explicit_nonce:
            head = bytes([kind]) + _VERSION
            sealed = self._key.encrypt(nonce, data, number + head + len(data).to_bytes(2))
            return head + (8 + len(sealed)).to_bytes(2) + number + sealed
        head = bytes([APPLICATION_DATA]) + _VERSION + (len(data) + 1 + 16).to_bytes(2)
        return head + self._key.encrypt(nonce, data + bytes([kind]), head)
