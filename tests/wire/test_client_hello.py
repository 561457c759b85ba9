"""What is read of a ClientHello: those of OpenSSL, made-up ones, and broken ones."""

from __future__ import annotations

import ssl

import pytest

from relay.wire.client_hello import ClientHello, parse_client_hello
from tests.support.peers.client_hello import build_client_hello, extension

RECORD_HEAD_BYTES = 5


def hello_of(server_name: str | None, protocols: list[str]) -> bytes:
    """The first message of OpenSSL's client."""
    context = ssl.create_default_context()
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(protocols)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()[RECORD_HEAD_BYTES:]


@pytest.mark.parametrize("name", [None, "relay.test", "a" * 63 + ".test"])
@pytest.mark.parametrize("protocols", [[], ["h2"], ["http/1.1", "stun.turn"]])
def test_what_openssl_says(name: str | None, protocols: list[str]) -> None:
    expected = tuple(protocol.encode() for protocol in protocols) or None
    assert parse_client_hello(hello_of(name, protocols)) == ClientHello((name or "").encode(), expected)


def test_without_extensions() -> None:
    assert parse_client_hello(build_client_hello(None)) == ClientHello()


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (extension(0, b"\0\x04\x01\0\x01a"), ClientHello()),  # a name of another kind
        (extension(16, b"\0\0"), ClientHello(protocols=())),
        (extension(16, b"\0\x03\x02h2") + extension(0, b"\0\x04\0\0\x01a"), ClientHello(b"a", (b"h2",))),
        (extension(99, b"x" * 300), ClientHello()),
    ],
)
def test_odd_extensions(extensions: bytes, expected: ClientHello) -> None:
    assert parse_client_hello(build_client_hello(extensions)) == expected


def test_every_beginning_of_one() -> None:
    """A value, or None: nothing else comes of a message that is cut off."""
    whole = hello_of("relay.test", ["http/1.1"])
    for size in range(len(whole)):
        parse_client_hello(whole[:size])
    assert parse_client_hello(whole[:-1]) is None


@pytest.mark.parametrize("broken", [extension(0, b"\0\x09\0\0\x01a"), extension(16, b"\0\x03\x09h2"), b"\0\x10\0\x09a"])
def test_broken_extensions(broken: bytes) -> None:
    assert parse_client_hello(build_client_hello(broken)) is None
