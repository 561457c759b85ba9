"""A temporary certificate authority for the demo and the tests: ECDSA P-256, valid for a day."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from relay.ca.certificates import certificate_pem, key_pem, new_authority, new_key, sign_server
from relay.plane.certificates import Certificate

LIFETIME = datetime.timedelta(days=1)


class Authority:
    """A CA whose files are in ``directory``. Clients must trust ``ca_certificate``."""

    def __init__(self, directory: Path) -> None:
        self.ca_certificate = directory / "ca.pem"
        self._directory = directory
        self._issuer = new_authority("cloud9-relay throw-away CA", LIFETIME, datetime.datetime.now(datetime.UTC))
        self.ca_certificate.write_bytes(certificate_pem(self._issuer.certificate))

    def issue(self, *names: str) -> Certificate:
        """A server certificate for these names and addresses. The first also names the files."""
        key = new_key()
        now = datetime.datetime.now(datetime.UTC)
        certificate = sign_server(self._issuer, key.public_key(), names, LIFETIME, now)
        stem = names[0].replace("*", "_").replace(":", "_")
        issued = Certificate(self._directory / f"{stem}.pem", self._directory / f"{stem}.key")
        issued.chain.write_bytes(certificate_pem(certificate) + certificate_pem(self._issuer.certificate))
        issued.private_key.touch(mode=0o600)
        issued.private_key.write_bytes(key_pem(key))
        return issued

    def client_context(self) -> ssl.SSLContext:
        """A client's context that trusts only this authority."""
        return ssl.create_default_context(cafile=str(self.ca_certificate))
