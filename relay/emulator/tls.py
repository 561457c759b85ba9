"""The certificate of the emulator's hosts, from an authority of its own that is kept in the folder.

The authority can vouch only for the vendor's domains and this machine, so trusting it costs little.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from relay import writing
from relay.ca.certificates import Issuer, certificate_pem, key_pem, new_authority, new_key, sign_server
from relay.catalog import Catalog, Service
from relay.emulator.http.site import Names
from relay.errors import OperatorError

AUTHORITY_LIFETIME = datetime.timedelta(days=365)
# Clients refuse certificates of more than 398 days. Made anew at every start.
CERTIFICATE_LIFETIME = datetime.timedelta(days=90)
# An authority with less time left than this is replaced at a start.
RENEW_BEFORE = datetime.timedelta(days=7)
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
KEY_MODE = 0o600


@dataclass(frozen=True)
class TlsFiles:
    """What clients must trust, and what servers show."""

    ca: Path
    chain: Path
    key: Path


def prepare(folder: Path, catalog: Catalog, addresses: list[str]) -> TlsFiles:
    """Make or reuse the authority, and a fresh certificate for the vendor's names, localhost and ``addresses``.

    Raises OperatorError if the folder cannot be used.
    """
    now = datetime.datetime.now(datetime.UTC)
    files = TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")
    issuer = _read(folder, now) or _create(folder, catalog, addresses, now)
    key = new_key()
    names = [*catalog.domains, *_services(catalog), "localhost", "*.localhost", *addresses]
    certificate = sign_server(issuer, key.public_key(), names, CERTIFICATE_LIFETIME, now)
    writing.replace(files.key, key_pem(key), mode=KEY_MODE)
    writing.replace(files.chain, certificate_pem(certificate) + certificate_pem(issuer.certificate))
    return files


def _services(catalog: Catalog) -> list[str]:
    """The vendor's hosts that are not TURN hosts. For these the relay's web proxy looks for a certificate with their
    own names: without one it would open a tunnel to the real host.
    """
    return [host.name for host in catalog.hosts if host.service is not Service.MEDIA]


def _read(folder: Path, now: datetime.datetime) -> Issuer | None:
    """The authority in the folder, if it is there and lasts."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OperatorError(f"{folder}/ca.pem and ca.key: {error}; delete both, and new ones are made") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise OperatorError(f"{folder}/ca.key: not the key of ca.pem; delete both, and new ones are made")
    return Issuer(certificate, key) if certificate.not_valid_after_utc - now > RENEW_BEFORE else None


def authority(folder: Path) -> Issuer:
    """The authority that ``prepare`` has left in the folder. Raises OperatorError."""
    issuer = _read(folder, datetime.datetime.now(datetime.UTC))
    if issuer is None:
        raise OperatorError(f"{folder}/ca.pem: missing, or about to end; start the emulator again")
    return issuer


def _create(folder: Path, catalog: Catalog, addresses: list[str], now: datetime.datetime) -> Issuer:
    outside = tuple(ipaddress.ip_network(address) for address in addresses)
    networks = (*LOOPBACK, *(each for each in outside if not each.network_address.is_loopback))
    issuer = new_authority(
        "cloud9-relay emulator CA",
        AUTHORITY_LIFETIME,
        now,
        permitted=(*catalog.apexes, "localhost"),
        permitted_networks=networks,
    )
    writing.replace(folder / "ca.key", key_pem(issuer.key), mode=KEY_MODE)
    writing.replace(folder / "ca.pem", certificate_pem(issuer.certificate))
    return issuer


def server_context(files: TlsFiles, names: Names) -> ssl.SSLContext:
    """The context of the TLS port. A name that does not exist in the vendor's cloud is refused by an alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.chain, files.key)

    def on_name(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int | None:
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME if name and names.roles(name) is None else None

    context.sni_callback = on_name
    return context
