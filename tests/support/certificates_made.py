"""Certificates that a test makes as it likes: any validity, any names, any extension, and their files."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from relay.ca.certificates import Issuer, certificate_pem, key_pem, new_authority, new_key
from relay.plane.certificates import Certificate

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)


def authority(days: float = 3650, now: datetime.datetime = NOW, name: str = "authority of a test") -> Issuer:
    """An authority that ends in so many days."""
    return new_authority(name, days * DAY, now)


def signed(
    issuer: Issuer,
    *names: str,
    begin: datetime.datetime = NOW - 30 * DAY,
    end: datetime.datetime = NOW + 367 * DAY,
    common_name: str | None = None,
    extensions: Sequence[x509.ExtensionType] = (),
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for these DNS names, with the names in subjectAltName alone unless there are none."""
    key = new_key()
    subject = [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    builder = x509.CertificateBuilder(
        issuer.certificate.subject, x509.Name(subject), key.public_key(), x509.random_serial_number(), begin, end
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, names))), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer.key, hashes.SHA256()), key


def write_pair(
    files: Certificate, made: tuple[x509.Certificate, ec.EllipticCurvePrivateKey], *above: x509.Certificate
) -> Certificate:
    """Replace both files, each whole, the certificate first."""
    certificate, key = made
    write_whole(files.chain, b"".join(map(certificate_pem, (certificate, *above))))
    write_whole(files.private_key, key_pem(key))
    return files


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by another one, as tools do that renew certificates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    beside.replace(path)


def files_in(folder: Path, stem: str) -> Certificate:
    """A pair of names of files."""
    return Certificate(folder / f"{stem}.pem", folder / f"{stem}.key")
