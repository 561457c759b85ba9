"""TLS as both planes have it: protocols, ciphers, certificates and their names, reasons of failed handshakes.

``client_certificates`` has what clients show.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from relay.errors import OperatorError
from relay.plane.client_certificates import ClientAuthorities, ClientCertificates

# h2 is never offered: the hand-over to aiohttp is HTTP/1.1. RFC 7443 has the STUN names.
ALPN_PROTOCOLS = ["http/1.1", "stun.turn", "stun.nat-discovery"]
# Forward secrecy and AEAD only; TLS 1.3 brings its own.
TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class HandshakeFailure(StrEnum):
    """Why a TLS handshake did not come to its end: a label of metrics and a word of the log."""

    TIMEOUT = "timeout"
    CLIENT_CLOSED = "client_closed"
    NOT_TLS = "not_tls"
    PLAIN_HTTP = "plain_http"
    PLAIN_STUN = "plain_stun"  # TURN without TLS: the client was given turn: for a port of turns:
    PROXY_HEADER = "proxy_header"  # from a balancer, at an address where none is expected
    HELLO_TOO_LONG = "hello_too_long"  # more bytes, or records, than any ClientHello has
    UNSUPPORTED_PROTOCOL = "unsupported_protocol"
    NO_SHARED_CIPHER = "no_shared_cipher"
    CERTIFICATE_REFUSED = "certificate_refused"  # ours, by the client; those that follow are the client's own
    CLIENT_CERTIFICATE_MISSING = "client_certificate_missing"  # at a listener where one is required
    CLIENT_CERTIFICATE_UNTRUSTED = "client_certificate_untrusted"  # signed by nobody whom we trust for that
    CLIENT_CERTIFICATE_EXPIRED = "client_certificate_expired"
    CLIENT_CERTIFICATE_NOT_YET_VALID = "client_certificate_not_yet_valid"
    CLIENT_CERTIFICATE_PURPOSE = "client_certificate_purpose"  # made for something else, such as for servers
    CLIENT_CERTIFICATE_TOO_LONG = "client_certificate_too_long"  # with its chain
    CLIENT_CERTIFICATE_INVALID = "client_certificate_invalid"  # in any other way
    OTHER = "other"


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
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": HandshakeFailure.CLIENT_CERTIFICATE_MISSING,
    "CLIENT_CERTIFICATE_CHAIN_TOO_LONG": HandshakeFailure.CLIENT_CERTIFICATE_TOO_LONG,
}

# The same for a client's certificate that is not accepted, by OpenSSL's number (X509_V_ERR_... in x509_vfy.h).
_REFUSED_CERTIFICATES = {
    9: HandshakeFailure.CLIENT_CERTIFICATE_NOT_YET_VALID,
    10: HandshakeFailure.CLIENT_CERTIFICATE_EXPIRED,
    26: HandshakeFailure.CLIENT_CERTIFICATE_PURPOSE,
    # No authority of ours has signed it: none that is known (2, 20, 21), another one of the same name (7), itself (18),
    # or one that the client has brought with it (19).
    **dict.fromkeys((2, 7, 18, 19, 20, 21), HandshakeFailure.CLIENT_CERTIFICATE_UNTRUSTED),
}


def refusal_of(code: int) -> HandshakeFailure:
    """Why a client's certificate was not accepted, by OpenSSL's number for it."""
    return _REFUSED_CERTIFICATES.get(code, HandshakeFailure.CLIENT_CERTIFICATE_INVALID)


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
    chain = read_file(files.chain, "certificate")
    names = _names_of(_parse_chain(files.chain, chain)[0], files.chain)
    certificate = ServerCertificate(files, chain, read_file(files.private_key, "private key"), names)
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


def read_file(path: Path, what: str) -> bytes:
    """The content of a small file. Raises OperatorError, which says ``what`` it is."""
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


def trust_clients(
    context: ssl.SSLContext, authorities: ClientAuthorities | None, asks: ClientCertificates = ClientCertificates.NONE
) -> None:
    """Have a context accept certificates of clients that these have signed, and ask for one or not.

    Without authorities no certificate is good. Raises OperatorError.
    """
    if authorities is not None:
        try:
            context.load_verify_locations(cadata="".join(map(ssl.DER_cert_to_PEM_cert, authorities.certificates)))
        except ssl.SSLError as error:  # whoever has read them would have refused them
            raise OperatorError(f"{authorities.path}: {error.reason or 'unreadable'}") from None
    # An authority that another one has signed is trusted itself: the one above it need not be in the file.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = _MODES[asks]


_MODES = {
    ClientCertificates.NONE: ssl.CERT_NONE,
    ClientCertificates.OPTIONAL: ssl.CERT_OPTIONAL,
    ClientCertificates.REQUIRED: ssl.CERT_REQUIRED,
}


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
