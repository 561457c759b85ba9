"""Certificates of clients (mutual TLS), on every plane: which are good, whose they are, and no way around them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from relay.addresses import Address
from relay.ca.certificates import Issuer
from relay.errors import OperatorError
from relay.plane.api import Closed, CloseReason, TurnOpened
from relay.plane.certificates import HandshakeFailure, read_certificates
from relay.plane.client_certificates import ClientAuthorities, ClientCertificates, name_of, strictest
from relay.plane.reference.hello import MAX_CLIENT_CHAIN_BYTES
from tests.support.benches.plane import PLANES, Bench, MakePlane, exchange, http_stream, only_flow, plane_bench
from tests.support.certificates_made import DAY, NOW, authority, files_in, signed, write_pair
from tests.support.client_certificates import FOR_CLIENTS, Made, for_client, showing, trusted
from tests.support.messages import HELLO
from tests.support.peers.tls_client import TlsClient

ON_PLANES = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())
VERSIONS = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"]
)
ASKED = pytest.mark.parametrize("asks", [ClientCertificates.OPTIONAL, ClientCertificates.REQUIRED])
NAME = "desk-17.firm.example"
GET = b"GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n"


@contextlib.asynccontextmanager
async def asking(make: MakePlane, folder: Path, asks: ClientCertificates, *issuers: Issuer) -> AsyncIterator[Bench]:
    """A plane that asks for certificates at the address of the bench."""
    async with plane_bench(make, folder) as bench:
        bench.plane.trust_clients(trusted(*issuers))
        bench.server = await bench.plane.listen(Address("127.0.0.1", 0), asks=asks)
        yield bench


def with_certificate(
    bench: Bench, made: Made | None, *above: x509.Certificate, version: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    return showing(bench.authority, bench.certificate.chain.parent, made, *above, version=version)


async def call(bench: Bench, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> tuple[TlsClient, str]:
    """A client whose flow carries packets, and whose certificate it is as control was told."""
    client = await TlsClient.open(bench.server, context, session=session)
    await client.send(HELLO)
    await exchange(bench, client, await bench.upstream.expect(HELLO))
    return client, (await bench.event(TurnOpened)).client_certificate


async def get_in(
    bench: Bench, context: ssl.SSLContext, session: ssl.SSLSession | None = None, name: str = "relay.test"
) -> None:
    """Raises ssl.SSLError or OSError if it does not. In TLS 1.3 its own handshake is done before it is judged."""
    client = await TlsClient.open(bench.server, context, name, session=session)
    with contextlib.closing(client.socket):
        await client.receive()


async def refused(
    bench: Bench, context: ssl.SSLContext, session: ssl.SSLSession | None = None, name: str = "relay.test"
) -> Closed:
    """The end of a client that does not get in."""
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await get_in(bench, context, session, name)
    closed = await bench.event(Closed, lambda one: one.reason is CloseReason.HANDSHAKE_FAILED)
    assert closed.client_certificate == ""
    return closed


# ---- Who gets in


@ON_PLANES
@VERSIONS
@ASKED
async def test_a_good_certificate(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, asks: ClientCertificates
) -> None:
    """Its name goes with the connection from the beginning to the end."""
    issuer = authority()
    async with asking(make, tmp_path, asks, authority(name="another"), issuer) as bench:
        context = with_certificate(bench, for_client(issuer, NAME, "another.test"), version=version)
        client, told = await call(bench, context)
        assert told == NAME
        assert only_flow(bench).client_certificate == NAME
        client.abort()
        closed = await bench.closed()
        assert (closed.client_certificate, closed.reason) == (NAME, CloseReason.CLIENT_CLOSED)
        assert closed.flow is not None
        assert closed.flow.client_certificate == NAME
        client = await TlsClient.open(bench.server, context)
        opened, stream = await http_stream(bench, client, GET)
        stream.close()
        assert opened.client_certificate == NAME
        client.abort()


@ON_PLANES
async def test_openssl_as_a_client(make: MakePlane, tmp_path: Path) -> None:
    issuer = authority()
    files = write_pair(files_in(tmp_path, "client"), for_client(issuer, common_name="A. Keller"))
    async with asking(make, tmp_path, ClientCertificates.REQUIRED, issuer) as bench:
        client = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", str(bench.server), "-CAfile", bench.authority.ca_certificate),
            *("-servername", "relay.test", "-cert", files.chain, "-key", files.private_key),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert client.stdin is not None
            client.stdin.write(HELLO)
            await bench.upstream.expect(HELLO)
            assert (await bench.event(TurnOpened)).client_certificate == "A. Keller"
        finally:
            client.kill()
            await client.communicate()


@ON_PLANES
@VERSIONS
@ASKED
async def test_without_a_certificate(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, asks: ClientCertificates
) -> None:
    async with asking(make, tmp_path, asks, authority()) as bench:
        context = with_certificate(bench, None, version=version)
        if asks is ClientCertificates.OPTIONAL:
            client, told = await call(bench, context)
            assert told == only_flow(bench).client_certificate == ""
            client.abort()
        else:
            assert (await refused(bench, context)).handshake_failure is HandshakeFailure.CLIENT_CERTIFICATE_MISSING
            failures = bench.plane.snapshot().handshake_failures
            assert failures == {HandshakeFailure.CLIENT_CERTIFICATE_MISSING: 1}


def below(issuer: Issuer) -> Issuer:
    """An authority that another one has signed."""
    return Issuer(*signed(issuer, common_name="in between", extensions=[x509.BasicConstraints(ca=True, path_length=0)]))


def bad_certificates(issuer: Issuer) -> dict[str, tuple[Made, list[x509.Certificate], HandshakeFailure]]:
    """Certificates that are not good for this authority, what their clients show with them, and what is wrong."""
    stranger = authority(name="somebody else")
    namesake, between = authority(), below(issuer)
    servers = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    untrusted = HandshakeFailure.CLIENT_CERTIFICATE_UNTRUSTED
    return {
        "of somebody else": (for_client(stranger, NAME), [], untrusted),
        "with its authority": (for_client(stranger, NAME), [stranger.certificate], untrusted),
        "of a namesake": (for_client(namesake, NAME), [], untrusted),
        "signed by itself": ((stranger.certificate, stranger.key), [], untrusted),
        "one in between is missing": (for_client(between, NAME), [], untrusted),
        "too far below": (
            for_client(between, NAME),
            [between.certificate],
            HandshakeFailure.CLIENT_CERTIFICATE_INVALID,
        ),
        "expired": (for_client(issuer, NAME, end=NOW - DAY), [], HandshakeFailure.CLIENT_CERTIFICATE_EXPIRED),
        "not yet valid": (
            for_client(issuer, NAME, begin=NOW + DAY),
            [],
            HandshakeFailure.CLIENT_CERTIFICATE_NOT_YET_VALID,
        ),
        "for servers": (signed(issuer, NAME, extensions=[servers]), [], HandshakeFailure.CLIENT_CERTIFICATE_PURPOSE),
    }


@ON_PLANES
@VERSIONS
@ASKED
@pytest.mark.parametrize("kind", list(bad_certificates(authority())))
async def test_certificates_that_are_refused(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, asks: ClientCertificates, kind: str
) -> None:
    """Also where a client may have none: one that it shows must be good."""
    issuer = authority()
    made, above, failure = bad_certificates(issuer)[kind]
    async with asking(make, tmp_path, asks, issuer) as bench:
        closed = await refused(bench, with_certificate(bench, made, *above, version=version))
        assert closed.handshake_failure is failure
        if kind == "expired":
            assert closed.detail == "certificate has expired"
        good, told = await call(bench, with_certificate(bench, for_client(issuer, NAME), version=version))
        assert told == NAME
        good.abort()


@ON_PLANES
async def test_one_without_a_purpose_is_for_all(make: MakePlane, tmp_path: Path) -> None:
    issuer = authority()
    async with asking(make, tmp_path, ClientCertificates.REQUIRED, issuer) as bench:
        client, told = await call(bench, with_certificate(bench, signed(issuer, NAME)))
        assert told == NAME
        client.abort()


@ON_PLANES
async def test_an_authority_is_trusted_itself(make: MakePlane, tmp_path: Path) -> None:
    """Those above it need not be known."""
    between = below(authority())
    async with asking(make, tmp_path, ClientCertificates.REQUIRED, between) as bench:
        client, told = await call(bench, with_certificate(bench, for_client(between, NAME)))
        assert told == NAME
        client.abort()


@ON_PLANES
async def test_without_authorities_nobody_is_good(make: MakePlane, tmp_path: Path) -> None:
    issuer = authority()
    async with asking(make, tmp_path, ClientCertificates.REQUIRED, issuer) as bench:
        bench.plane.trust_clients(None)
        closed = await refused(bench, with_certificate(bench, for_client(issuer, NAME)))
        assert closed.handshake_failure is HandshakeFailure.CLIENT_CERTIFICATE_UNTRUSTED
        closed = await refused(bench, with_certificate(bench, None))
        assert closed.handshake_failure is HandshakeFailure.CLIENT_CERTIFICATE_MISSING


@ON_PLANES
async def test_each_listener_asks_for_itself(make: MakePlane, tmp_path: Path) -> None:
    issuer = authority()
    async with plane_bench(make, tmp_path) as bench:
        bench.plane.trust_clients(trusted(issuer))
        strict = await bench.plane.listen(Address("127.0.0.1", 0), asks=ClientCertificates.REQUIRED)
        context = with_certificate(bench, for_client(issuer, NAME))
        client, told = await call(bench, context)
        assert told == ""  # it was not asked
        client.abort()
        bench.server = strict
        await refused(bench, with_certificate(bench, None))
        client, told = await call(bench, context)
        assert told == NAME
        client.abort()


@ON_PLANES
async def test_any_certificate_of_the_relay_asks(make: MakePlane, tmp_path: Path) -> None:
    """The name that a client asks for chooses the relay's certificate, and nothing else."""
    issuer = authority()
    async with asking(make, tmp_path, ClientCertificates.REQUIRED, issuer) as bench:
        other = bench.authority.issue("other.test")
        bench.plane.set_certificates(read_certificates([bench.certificate, other]))
        context = with_certificate(bench, for_client(issuer, NAME))
        client = await TlsClient.open(bench.server, context, "other.test")
        await client.send(HELLO)
        await bench.upstream.expect(HELLO)
        opened = await bench.event(TurnOpened)
        assert (opened.server_name, opened.client_certificate) == ("other.test", NAME)
        client.abort()
        await refused(bench, with_certificate(bench, None), name="other.test")


# ---- How much a client may show


def long_certificate(issuer: Issuer, size: int) -> Made:
    """One that is somewhat longer than this, because it has many names."""
    count = size // 34 + 1
    return for_client(issuer, *(f"desk-{number:04}.{'floor' * 4}.test" for number in range(count)))


@ON_PLANES
@VERSIONS
@pytest.mark.parametrize("kind", ["one long", "many"])
async def test_a_chain_that_is_too_long(make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, kind: str) -> None:
    """It is refused as it begins, or soon after: nobody gets more memory by claiming a longer one."""
    issuer = authority()
    above: list[x509.Certificate] = []
    if kind == "one long":
        made = long_certificate(issuer, 3 * MAX_CLIENT_CHAIN_BYTES)
    else:
        made, above = for_client(issuer, NAME), [long_certificate(issuer, 4000)[0] for _ in range(9)]
    async with asking(make, tmp_path, ClientCertificates.OPTIONAL, issuer) as bench, bench_call(bench) as other:
        closed = await refused(bench, with_certificate(bench, made, *above, version=version))
        assert closed.handshake_failure is HandshakeFailure.CLIENT_CERTIFICATE_TOO_LONG
        assert closed.detail == "client certificate chain too long"
        await exchange(bench, *other)


@contextlib.asynccontextmanager
async def bench_call(bench: Bench) -> AsyncIterator[tuple[TlsClient, Address]]:
    """Another client's call, which notices nothing."""
    async with bench.flow(HELLO) as flow:
        await bench.event(TurnOpened)
        yield flow


@ON_PLANES
@VERSIONS
async def test_a_long_certificate_that_is_short_enough(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """The session ticket has it, and with that the next ClientHello is not too long."""
    issuer = authority()
    made = long_certificate(issuer, MAX_CLIENT_CHAIN_BYTES - 2500)
    assert 10_000 < len(made[0].public_bytes(serialization.Encoding.DER)) < MAX_CLIENT_CHAIN_BYTES - 3
    async with asking(make, tmp_path, ClientCertificates.REQUIRED, issuer) as bench:
        context = with_certificate(bench, made, version=version)
        first, told = await call(bench, context)
        session = first.tls.session
        second, again = await call(bench, context, session)
        assert second.tls.session_reused
        assert told == again
        assert told.startswith("desk-0000.")
        first.abort()
        second.abort()


# ---- Sessions that are resumed


@ON_PLANES
@VERSIONS
@ASKED
async def test_a_resumed_session_has_the_name(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, asks: ClientCertificates
) -> None:
    issuer = authority()
    async with asking(make, tmp_path, asks, issuer) as bench:
        context = with_certificate(bench, for_client(issuer, NAME), version=version)
        first, _ = await call(bench, context)
        for _ in range(3):
            again, told = await call(bench, context, first.tls.session)
            assert (again.tls.session_reused, told) == (True, NAME)
            again.abort()
        first.abort()


@ON_PLANES
@VERSIONS
async def test_a_session_of_a_listener_that_asks_for_less(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """It would bring in a client that nobody has asked for its certificate."""
    issuer = authority()
    async with plane_bench(make, tmp_path) as bench:
        bench.plane.trust_clients(trusted(issuer))
        strict = await bench.plane.listen(Address("127.0.0.1", 0), asks=ClientCertificates.REQUIRED)
        optional = await bench.plane.listen(Address("127.0.0.1", 0), asks=ClientCertificates.OPTIONAL)
        context = with_certificate(bench, None, version=version)
        for easy in (bench.server, optional):
            bench.server = easy
            client, told = await call(bench, context)
            session = client.tls.session
            assert session is not None
            assert told == ""
            client.abort()
            await bench.closed()
            bench.server = strict
            closed = await refused(bench, context, session)
            assert closed.handshake_failure is HandshakeFailure.CLIENT_CERTIFICATE_MISSING
        # The other way round the client is asked again.
        shows = with_certificate(bench, for_client(issuer, NAME), version=version)
        client, _ = await call(bench, shows)
        bench.server = optional
        again, told = await call(bench, shows, client.tls.session)
        assert (again.tls.session_reused, told) == (False, NAME)
        client.abort()
        again.abort()


@ON_PLANES
@VERSIONS
async def test_other_authorities_end_sessions(make: MakePlane, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A reload that changes them: running calls go on, and nobody comes back whose authority is trusted no longer."""
    old, new = authority(name="old"), authority(name="new")
    async with asking(make, tmp_path, ClientCertificates.REQUIRED, old) as bench:
        context = with_certificate(bench, for_client(old, "old.test"), version=version)
        client = await TlsClient.open(bench.server, context)
        await client.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        await exchange(bench, client, flow)
        session = client.tls.session
        bench.plane.trust_clients(trusted(new))
        closed = await refused(bench, context, session)
        assert closed.handshake_failure is HandshakeFailure.CLIENT_CERTIFICATE_UNTRUSTED
        await exchange(bench, client, flow)
        assert only_flow(bench).client_certificate == "old.test"
        await bench.event(TurnOpened)
        other, told = await call(bench, with_certificate(bench, for_client(new, "new.test"), version=version))
        assert told == "new.test"
        bench.plane.trust_clients(trusted(new, old))
        again, told = await call(bench, context, session)
        assert (again.tls.session_reused, told) == (False, "old.test")
        for one in (client, other, again):
            one.abort()


@ON_PLANES
async def test_other_certificates_of_the_relay_keep_the_authorities(make: MakePlane, tmp_path: Path) -> None:
    issuer = authority()
    async with asking(make, tmp_path, ClientCertificates.REQUIRED, issuer) as bench:
        bench.plane.set_certificates(read_certificates([bench.authority.issue("relay.test", "more.test")]))
        client, told = await call(bench, with_certificate(bench, for_client(issuer, NAME)))
        assert told == NAME
        client.abort()
        await refused(bench, with_certificate(bench, None))


@ON_PLANES
async def test_authorities_that_cannot_be_used_change_nothing(make: MakePlane, tmp_path: Path) -> None:
    issuer = authority()
    async with asking(make, tmp_path, ClientCertificates.REQUIRED, issuer) as bench:
        with pytest.raises(OperatorError):
            bench.plane.trust_clients(ClientAuthorities(Path("clients.pem"), (b"this is no DER",)))
        client, told = await call(bench, with_certificate(bench, for_client(issuer, NAME)))
        assert told == NAME
        client.abort()


@ON_PLANES
@VERSIONS
async def test_a_session_does_not_outlive_its_certificate(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    issuer = authority()
    async with asking(make, tmp_path, ClientCertificates.REQUIRED, issuer) as bench:
        # On a slow machine the first may end before the handshake does.
        for seconds in (2, 8, 32):
            end = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(seconds=seconds)
            context = with_certificate(bench, for_client(issuer, NAME, end=end), version=version)
            try:
                client, _ = await call(bench, context)
            except (ssl.SSLError, ConnectionError):
                await bench.closed()
                continue
            break
        # No event tells of it.
        left = end + datetime.timedelta(seconds=1.1) - datetime.datetime.now(datetime.UTC)
        await asyncio.sleep(max(0.0, left.total_seconds()))
        closed = await refused(bench, context, client.tls.session)
        assert closed.handshake_failure is HandshakeFailure.CLIENT_CERTIFICATE_EXPIRED
        # The call goes on.
        assert only_flow(bench).client_certificate == NAME
        client.abort()


# ---- Whose it is


def der_of(made: Made) -> bytes:
    return made[0].public_bytes(serialization.Encoding.DER)


def test_names() -> None:
    issuer = authority()

    def name(*alternatives: x509.GeneralName, common_name: str | None = "A. Keller") -> str:
        extensions: list[x509.ExtensionType] = [FOR_CLIENTS]
        if alternatives:
            extensions.append(x509.SubjectAlternativeName(alternatives))
        return name_of(der_of(signed(issuer, common_name=common_name, extensions=extensions)))

    email = x509.RFC822Name("a.keller@firm.example")
    uri = x509.UniformResourceIdentifier("spiffe://firm.example/desk/17")
    assert name(email, x509.DNSName("desk-17.test")) == "a.keller@firm.example"
    assert name(x509.DNSName("desk-17.test"), email) == "desk-17.test"
    assert name(x509.RegisteredID(x509.ObjectIdentifier("1.2.3")), uri) == "spiffe://firm.example/desk/17"
    assert name(x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))) == name() == "A. Keller"
    assert name(common_name="Jörg Müller") == "Jörg Müller"


def test_a_name_cannot_forge_a_line_and_is_cut() -> None:
    issuer = authority()
    assert name_of(der_of(for_client(issuer, common_name="one\nlevel=info \x1b[2J"))) == "one\\nlevel=info \\x1b[2J"
    long = x509.SubjectAlternativeName([x509.DNSName("x" * 300)])
    assert name_of(der_of(for_client(issuer, extensions=[long]))) == "x" * 128


def test_one_without_a_name_goes_by_its_fingerprint() -> None:
    made = for_client(authority())
    assert name_of(der_of(made)) == f"sha256:{made[0].fingerprint(hashes.SHA256()).hex()}"
    assert name_of(b"this is no DER").startswith("sha256:")


def test_the_strictest() -> None:
    none, optional, required = ClientCertificates
    assert strictest([]) is strictest([none]) is none
    assert strictest([none, optional]) is optional
    assert strictest([required, optional, none]) is required
