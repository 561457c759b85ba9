"""Clients that show a certificate: who signs these, the file that a relay reads, and what they connect with."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from relay.ca.certificates import Issuer, certificate_pem
from relay.demo.authority import Authority
from relay.plane.client_certificates import ClientAuthorities
from tests.support.certificates_made import files_in, signed, write_pair, write_whole

Made = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
FOR_CLIENTS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])


def for_client(issuer: Issuer, *names: str, extensions: Sequence[x509.ExtensionType] = (), **given: Any) -> Made:
    """A client's certificate for these DNS names, as ``certificates_made.signed`` makes it."""
    return signed(issuer, *names, extensions=[FOR_CLIENTS, *extensions], **given)


def trusted(*issuers: Issuer) -> ClientAuthorities:
    """These as a plane takes them."""
    return ClientAuthorities(Path("clients.pem"), tuple(one.certificate.public_bytes(Encoding.DER) for one in issuers))


def write_authorities(path: Path, *issuers: Issuer) -> Path:
    """Replace a file of authorities by these."""
    write_whole(path, b"".join(certificate_pem(one.certificate) for one in issuers))
    return path


def showing(
    trust: Authority,
    folder: Path,
    made: Made | None = None,
    *above: x509.Certificate,
    version: ssl.TLSVersion | None = None,
) -> ssl.SSLContext:
    """What a client connects with: it trusts the relay, and shows this certificate and those above it, or none."""
    context = trust.client_context()
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if made is not None:
        files = write_pair(files_in(folder / "clients", str(made[0].serial_number)), made, *above)
        context.load_cert_chain(files.chain, files.private_key)
    return context
