"""Certificates of clients (mutual TLS) as both planes have them: who is asked for one, who may sign it, whose it is."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from relay.logs import printable

# This much of a client's name is shown, as of a user's name: others have chosen it.
MAX_NAME_CHARACTERS = 128


class ClientCertificates(StrEnum):
    """Whether a listener asks its clients for a certificate; each asks for more than the one before it."""

    # Listed again as ASK_* in compiled/leaves/contexts.pxd.
    NONE = "none"
    OPTIONAL = "optional"  # a client may have none, but one that it shows must be good
    REQUIRED = "required"


def strictest(asked: Iterable[ClientCertificates]) -> ClientCertificates:
    """The one that asks for most; NONE of nothing."""
    return max(asked, key=tuple(ClientCertificates).index, default=ClientCertificates.NONE)


@dataclass(frozen=True, slots=True)
class ClientAuthorities:
    """Who may sign the certificates of clients: their own certificates in DER, as they were read from ``path``."""

    path: Path
    certificates: tuple[bytes, ...]

    def digest(self) -> bytes:
        """32 bytes, others for other authorities."""
        return hashlib.sha256(b"".join(self.certificates)).digest()


def name_of(certificate: bytes) -> str:
    """Whose certificate (DER) it is: the first DNS name, email address or URI in subjectAltName, or the common name.

    It is escaped if it cannot be printed, and cut. A certificate without such a name, or with one that cannot be read,
    goes by its fingerprint (SHA-256): its authority has signed it all the same.
    """
    try:
        name = _name_in(x509.load_der_x509_certificate(certificate))
    except Exception:
        # What TLS accepts the library may refuse, in many ways: extensions against the rules, kinds of names.
        name = ""
    return printable(name or f"sha256:{hashlib.sha256(certificate).hexdigest()}")[:MAX_NAME_CHARACTERS]


def _name_in(certificate: x509.Certificate) -> str:
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            for one in extension.value:
                if isinstance(one, x509.DNSName | x509.RFC822Name | x509.UniformResourceIdentifier) and one.value:
                    return one.value
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def has_ended(certificate: bytes, now: datetime.datetime) -> bool:
    """True if a certificate (DER) is no longer valid at this time, in UTC."""
    return now > x509.load_der_x509_certificate(certificate).not_valid_after_utc
