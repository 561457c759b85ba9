"""The TLS sessions of the reference plane without a socket, and certificates that cannot be used."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from relay.demo.authority import Authority
from relay.errors import OperatorError
from relay.plane.certificates import Certificate, read_certificate
from relay.plane.reference.tls import ServerContexts, TlsSession


def test_nothing_is_kept_of_what_comes_behind_close_notify(tmp_path: Path) -> None:
    """The connection may live on for the response to a request; OpenSSL would take nothing, and all would pile up."""
    authority = Authority(tmp_path)
    server = TlsSession(ServerContexts([read_certificate(authority.issue("relay.test"))]))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.client_context().wrap_bio(incoming, outgoing, server_hostname="relay.test")
    while not server.established:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        server.receive(outgoing.read())
        incoming.write(server.take_output())
    client.write(b"last")
    with contextlib.suppress(ssl.SSLError):
        client.unwrap()
    assert server.receive(outgoing.read()) == b"last"
    assert server.client_closed
    for _ in range(10):
        assert server.receive(bytes(100_000)) == b""
    assert server._incoming.pending == 0
    assert server.send(b"response")


def test_half_a_hello_takes_no_tls(tmp_path: Path) -> None:
    """A session takes 40 KiB, and a client that begins a hello may take all its time."""
    authority = Authority(tmp_path)
    server = TlsSession(ServerContexts([read_certificate(authority.issue("relay.test"))]))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.client_context().wrap_bio(incoming, outgoing, server_hostname="relay.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    for byte in hello[:-1]:
        server.receive(bytes([byte]))
    assert server._session is None
    assert (server.server_name, server.alpn, server.version) == ("", None, "")
    assert server.close() == b""
    server.receive(hello[-1:])
    assert server.server_name == "relay.test"


def test_certificate_whose_names_cannot_be_read(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = Authority(tmp_path).issue("relay.test")
    good = x509.load_pem_x509_certificate(issued.chain.read_bytes())
    broken = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"no ASN.1")
    builder = x509.CertificateBuilder(
        good.issuer, good.subject, key.public_key(), 1, good.not_valid_before_utc, good.not_valid_after_utc
    )
    made = builder.add_extension(broken, critical=False).sign(key, hashes.SHA256())
    path = tmp_path / "broken.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(OperatorError, match=r"broken\.pem: its extensions cannot be read"):
        read_certificate(Certificate(path, path))
