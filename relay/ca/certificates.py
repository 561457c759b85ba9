"""Builds and signs X.509 certificates: ECDSA P-256, an authority at the root, and servers or clients directly below it.

There are no files and no clock: ``now`` is an argument, in UTC.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.addresses import IpNetwork

# If a clock was set back, or a client's is slow, a certificate must not be "not yet valid".
BACKDATED = datetime.timedelta(hours=1)
# RFC 5280 section 4.2.1.10: a constraint on DNS names does not restrict addresses, so all addresses are excluded.
_ALL_ADDRESSES: tuple[IpNetwork, ...] = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
_SERVER_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
_CLIENT_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])


@dataclass(frozen=True)
class Issuer:
    """An authority that can sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new key."""
    return ec.generate_private_key(ec.SECP256R1())


def new_authority(
    common_name: str,
    lifetime: datetime.timedelta,
    now: datetime.datetime,
    *,
    permitted: Sequence[str] = (),
    permitted_networks: Sequence[IpNetwork] = (),
    for_clients: bool = False,
) -> Issuer:
    """A root that signs only servers, or only clients, with no authority in between.

    ``permitted`` has domains such as ``xhoot.com``. The root can vouch only for names in them, and for addresses in
    ``permitted_networks``: verifiers refuse all others (RFC 5280, critical).
    """
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = _builder(name, name, key.public_key(), key.public_key(), now=now, until=now + lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    if permitted:
        builder = builder.add_extension(_SERVER_AUTH, critical=False)
        builder = builder.add_extension(_constraints(permitted, permitted_networks), critical=True)
    if for_clients:
        # OpenSSL and others take the purposes of an authority as a bound for what it signs. So this one cannot vouch
        # for a server.
        builder = builder.add_extension(_CLIENT_AUTH, critical=False)
    return Issuer(builder.sign(key, hashes.SHA256()), key)


def _constraints(domains: Sequence[str], networks: Sequence[IpNetwork]) -> x509.NameConstraints:
    excluded = () if networks else _ALL_ADDRESSES
    return x509.NameConstraints(
        permitted_subtrees=[
            *(x509.DNSName(domain) for domain in domains),
            *(x509.IPAddress(network) for network in networks),
        ],
        excluded_subtrees=[x509.IPAddress(network) for network in excluded] or None,
    )


def sign_server(
    issuer: Issuer,
    key: ec.EllipticCurvePublicKey,
    names: Sequence[str],
    lifetime: datetime.timedelta,
    now: datetime.datetime,
) -> x509.Certificate:
    """A server's certificate for names and addresses. It does not outlive its issuer.

    The names are only in subjectAltName. Because the subject is empty, this is critical (RFC 5280 section 4.2.1.6).
    """
    until = min(now + lifetime, issuer.certificate.not_valid_after_utc)
    builder = _builder(x509.Name([]), issuer.certificate.subject, key, issuer.key.public_key(), now=now, until=until)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(_SERVER_AUTH, critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=True)
    return builder.sign(issuer.key, hashes.SHA256())


def sign_client(
    issuer: Issuer,
    key: ec.EllipticCurvePublicKey,
    name: str,
    lifetime: datetime.timedelta,
    now: datetime.datetime,
) -> x509.Certificate:
    """A client's certificate. It does not outlive its issuer. Raises ValueError for a name that cannot be in one.

    The name is the common name and, if it is an email address, in subjectAltName as well.
    """
    until = min(now + lifetime, issuer.certificate.not_valid_after_utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(subject, issuer.certificate.subject, key, issuer.key.public_key(), now=now, until=until)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(_CLIENT_AUTH, critical=False)
    if "@" in name:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(name)]), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    *,
    now: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """The key as text (PKCS #8), encrypted if there is a passphrase."""
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        protection = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
