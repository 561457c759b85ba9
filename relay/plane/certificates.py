"""TLS as both planes have it: protocols, ciphers, certificates and their names, reasons of failed handshakes."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from relay.errors import OperatorError
from relay.plane.api import HandshakeFailure

# h2 is never offered: the hand-over to aiohttp is HTTP/1.1. RFC 7443 has the STUN names.
ALPN_PROTOCOLS = ["http/1.1", "stun.turn", "stun.nat-discovery"]
# Forward secrecy and AEAD only; TLS 1.3 brings its own.
TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

# OpenSSL's reasons, by what an operator would do about them.
HANDSHAKE_FAILURES = {
    "UNSUPPORTED_PROTOCOL": HandshakeFailure.UNSUPPORTED_PROTOCOL,
    "TLSV1_ALERT_PROTOCOL_VERSION": HandshakeFailure.UNSUPPORTED_PROTOCOL,
    "NO_SHARED_CIPHER": HandshakeFailure.NO_SHARED_CIPHER,
    "HTTP_REQUEST": HandshakeFailure.PLAIN_HTTP,
    "HTTPS_PROXY_REQUEST": HandshakeFailure.PLAIN_HTTP,
    "STUN_IN_CLEAR": HandshakeFailure.PLAIN_STUN,
    "PROXY_HEADER": HandshakeFailure.PROXY_HEADER,
    "CLIENT_HELLO_TOO_LONG": HandshakeFailure.HELLO_TOO_LONG,
    "CLIENT_HELLO_IN_TOO_MANY_RECORDS": HandshakeFailure.HELLO_TOO_LONG,
    "WRONG_VERSION_NUMBER": HandshakeFailure.NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": HandshakeFailure.NOT_TLS,
    "UNKNOWN_PROTOCOL": HandshakeFailure.NOT_TLS,
    "TLSV1_ALERT_UNKNOWN_CA": HandshakeFailure.CERTIFICATE_REFUSED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": HandshakeFailure.CERTIFICATE_REFUSED,
    "SSLV3_ALERT_BAD_CERTIFICATE": HandshakeFailure.CERTIFICATE_REFUSED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": HandshakeFailure.CERTIFICATE_REFUSED,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": HandshakeFailure.CERTIFICATE_REFUSED,
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files of a PEM chain and its key."""

    chain: Path
    private_key: Path


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A PEM chain and its key, as ``read_certificate`` has read them from ``files``.

    ``names`` are the DNS names of the leaf in lower case. Several certificates may share names: one RSA and one ECDSA
    serve side by side. A plane never reads ``files``: they may have changed, and then this one still serves.
    ``staple`` is an OCSP response in DER for clients that ask for it, or empty.
    """

    files: Certificate
    chain: bytes
    private_key: bytes = field(repr=False)
    names: frozenset[str]
    staple: bytes = b""


# A chain has some kilobytes, and a certificate for many names some tens of them. A larger file is another one.
MAX_FILE_BYTES = 1024 * 1024


def read_certificate(files: Certificate) -> ServerCertificate:
    """Read a certificate and its key, and see that a server can use them together.

    Raises OperatorError, which names the file and what was expected.
    """
    chain = _read(files.chain, "certificate")
    names = _names_of(_parse_chain(files.chain, chain)[0], files.chain)
    certificate = ServerCertificate(files, chain, _read(files.private_key, "private key"), names)
    load_certificate(new_context(), certificate)
    return certificate


def read_certificates(pairs: Sequence[Certificate]) -> list[ServerCertificate]:
    """Read all of them. Raises OperatorError with one line for each that cannot be used."""
    certificates: list[ServerCertificate] = []
    mistakes: list[str] = []
    for files in pairs:
        try:
            certificates.append(read_certificate(files))
        except OperatorError as error:
            mistakes.append(str(error))
    if mistakes:
        raise OperatorError("\n".join(mistakes))
    return certificates


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise OperatorError(f"{what} {path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise OperatorError(f"{what} {path}: expected at most {MAX_FILE_BYTES} bytes")
    return content


def _parse_chain(path: Path, chain: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(chain)
    except ValueError:
        raise OperatorError(f"certificate {path}: no PEM certificate in it") from None


def _names_of(leaf: x509.Certificate, path: Path) -> frozenset[str]:
    """The DNS names in lower case, or the common name where there are none. Raises OperatorError."""
    try:
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = alternatives.get_values_for_type(x509.DNSName)
    except ValueError as error:
        raise OperatorError(f"certificate {path}: its extensions cannot be read: {error}") from None
    except x509.ExtensionNotFound:
        names = [str(attribute.value) for attribute in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return frozenset(name.lower() for name in names)


def new_context() -> ssl.SSLContext:
    """A server's context with the protocols and ciphers of both planes, and no certificate yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(TLS12_CIPHERS)
    context.set_alpn_protocols(ALPN_PROTOCOLS)
    return context


def load_certificate(context: ssl.SSLContext, certificate: ServerCertificate) -> None:
    """Give a context a certificate and its key. Raises OperatorError, which names the file and what was expected."""
    files = certificate.files
    try:
        with _as_file(certificate.chain) as chain, _as_file(certificate.private_key) as private_key:
            # The callback keeps OpenSSL from asking for a pass phrase on the terminal.
            context.load_cert_chain(chain, private_key, password=lambda: b"")
    except ssl.SSLError as error:
        raise OperatorError(
            f"private key {files.private_key}: expected the unencrypted PEM key of {files.chain}"
            f" ({error.reason or 'unreadable'})"
        ) from None


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """The path of a file in memory: Python's TLS reads certificates from files only."""
    fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
