"""TLS as both planes have it: protocols, ciphers, certificates and their names, reasons of failed handshakes."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import NameOID

from relay.errors import OperatorError
from relay.plane.api import Certificate, HandshakeFailure

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


def certificate_names(certificate: Certificate) -> frozenset[str]:
    """The DNS names of the leaf in lower case, or its common name where there are none. Raises OperatorError."""
    try:
        leaf = x509.load_pem_x509_certificates(certificate.chain.read_bytes())[0]
    except OSError as error:
        raise OperatorError(f"certificate {certificate.chain}: {error.strerror}") from None
    except (ValueError, IndexError):
        raise OperatorError(f"certificate {certificate.chain}: no PEM certificate in it") from None
    try:
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = alternatives.get_values_for_type(x509.DNSName)
    except ValueError as error:
        raise OperatorError(f"certificate {certificate.chain}: its extensions cannot be read: {error}") from None
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


def load_certificate(context: ssl.SSLContext, certificate: Certificate) -> None:
    """Give a context a certificate and its key. Raises OperatorError, which names the file and what was expected."""
    try:
        certificate.private_key.read_bytes()
    except OSError as error:
        raise OperatorError(f"private key {certificate.private_key}: {error.strerror}") from None
    try:
        # The callback keeps OpenSSL from asking for a pass phrase on the terminal.
        context.load_cert_chain(certificate.chain, certificate.private_key, password=lambda: b"")
    except ssl.SSLError as error:
        raise OperatorError(
            f"private key {certificate.private_key}: expected the unencrypted PEM key of {certificate.chain}"
            f" ({error.reason or 'unreadable'})"
        ) from None


def check_certificates(certificates: Sequence[Certificate]) -> None:
    """Load each certificate with its key, and forget both. Raises OperatorError, which says what is wrong."""
    for certificate in certificates:
        certificate_names(certificate)
        load_certificate(new_context(), certificate)
