"""TLS that is rare or wrong, on every plane: odd names, foreign protocols, new keys, old sessions, bad certificates."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from relay.errors import OperatorError
from relay.plane.api import CloseReason, TurnOpened
from relay.plane.certificates import Certificate, HandshakeFailure, read_certificates
from relay.plane.compiled.plane import CompiledPlane
from relay.wire.channeldata import build_channel_data
from tests.support.benches.plane import (
    PLANES,
    Bench,
    MakePlane,
    bounds,
    exchange,
    forging_client,
    plane_bench,
    raw_client,
)
from tests.support.messages import HELLO
from tests.support.peers.forging_client import APPLICATION_DATA, HANDSHAKE
from tests.support.peers.tls_client import TlsClient

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

ALERT = 21
# RFC 8446 section 4.6.3: type 24, three bytes of length, and whether the other side must update its keys too.
KEY_UPDATE_REQUESTED = b"\x18\x00\x00\x01\x01"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@contextlib.asynccontextmanager
async def openssl_client(bench: Bench, *arguments: str | bytes) -> AsyncIterator[asyncio.subprocess.Process]:
    """``openssl s_client``; lines that begin with K, k or R are commands to it."""
    client = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-connect", str(bench.server), "-CAfile", bench.authority.ca_certificate, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            client.kill()
        await client.communicate()


async def say(client: asyncio.subprocess.Process, data: bytes) -> None:
    assert client.stdin is not None
    client.stdin.write(data)
    await client.stdin.drain()


async def hear(client: asyncio.subprocess.Process, data: bytes) -> None:
    assert client.stdout is not None
    await client.stdout.readuntil(data)


# ---- The handshake


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("offered", [["h2"], ["h2", "spdy/3.1"], ["http/1.1x", "STUN.turn"]])
async def test_a_client_that_offers_no_protocol_of_ours(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, offered: list[str]
) -> None:
    """It is refused (RFC 7301 section 3.2): else a client of another protocol would be answered."""
    async with plane_bench(make, tmp_path) as bench:
        context = bench.authority.client_context()
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(offered)
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            await TlsClient.open(bench.server, context)
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.HANDSHAKE_FAILED, "no application protocol")
        assert closed.handshake_failure is HandshakeFailure.OTHER


@pytest.mark.parametrize(("group", "served"), [("X25519", 1), ("prime256v1", 1), ("secp384r1", 1), ("secp521r1", 0)])
async def test_groups(make: MakePlane, tmp_path: Path, group: str, served: int) -> None:
    """Those that Mozilla recommends, on the plane that can choose: Python's TLS cannot."""
    async with plane_bench(make, tmp_path) as bench:
        context = bench.authority.client_context()
        # In TLS 1.2 the groups of a client also say which keys of certificates it takes.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.set_ecdh_curve(group)
        except ssl.SSLError:
            pytest.skip(f"this Python cannot choose {group}")
        if served or make is not PLANES["compiled"]:
            (await TlsClient.open(bench.server, context)).abort()
            return
        with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
            await TlsClient.open(bench.server, context)
        assert (await bench.closed()).reason is CloseReason.HANDSHAKE_FAILED


async def test_a_client_that_offers_ours_among_others(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        context = bench.authority.client_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        client = await TlsClient.open(bench.server, context)
        assert client.tls.selected_alpn_protocol() == "http/1.1"
        client.abort()


@pytest.mark.parametrize("name", [b"a b", b"relay.test\n", b"\x01\x7f", b"..", b"*", b"x" * 255, b"x." * 127 + b"y"])
async def test_odd_server_names(make: MakePlane, tmp_path: Path, name: bytes) -> None:
    """Names of ASCII are only names: control hears them, and the first certificate serves."""
    async with plane_bench(make, tmp_path) as bench, openssl_client(bench, "-servername", name) as client:
        await say(client, HELLO)
        await bench.upstream.expect(HELLO)
        assert (await bench.event(TurnOpened)).server_name.rstrip(".") == name.decode().rstrip(".")


@pytest.mark.parametrize("name", [b"\xff\xfe", b"relay.test\xff", "börse.test".encode()])
async def test_server_names_that_are_not_ascii(make: MakePlane, tmp_path: Path, name: bytes) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (other, at_other):
        async with openssl_client(bench, "-servername", name) as client:
            await hear(client, b"alert")
            closed = await bench.closed()
        assert (closed.reason, closed.handshake_failure) == (CloseReason.HANDSHAKE_FAILED, HandshakeFailure.OTHER)
        await exchange(bench, other, at_other)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_goes_on_in_a_second_connection(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """A ticket is good at every worker, so a second connection may land where it likes."""
    async with plane_bench(make, tmp_path) as bench:
        context = bench.authority.client_context()
        context.maximum_version = version
        first = await TlsClient.open(bench.server, context)
        await first.send(HELLO)
        flow = await bench.upstream.expect(HELLO)
        await exchange(bench, first, flow)
        opened = await bench.event(TurnOpened)
        session = first.tls.session
        assert session is not None
        assert not first.tls.session_reused
        first.abort()
        wanted = {worker_of(opened), 1 - worker_of(opened)} if workers_of(bench) == 2 else {worker_of(opened)}
        tried = 0
        while wanted:
            second = await TlsClient.open(bench.server, context, session=session)
            assert second.tls.session_reused
            await second.send(HELLO)
            await exchange(bench, second, await bench.upstream.expect(HELLO))
            opened = await bench.event(TurnOpened)
            assert opened.server_name == "relay.test"
            wanted.discard(worker_of(opened))
            second.abort()
            tried += 1
            assert tried < 200, "connections land on one worker only"


def worker_of(opened: TurnOpened) -> int:
    return opened.connection >> 56


def workers_of(bench: Bench) -> int:
    return len(bench.plane._workers) if isinstance(bench.plane, CompiledPlane) else 1


async def test_a_session_allows_no_early_data(make: MakePlane, tmp_path: Path) -> None:
    """Early data (0-RTT) could be sent a second time by somebody else."""
    async with plane_bench(make, tmp_path) as bench, openssl_client(bench, "-tls1_3") as client:
        frame = build_channel_data(0x4001, b"ping")
        await say(client, HELLO)
        bench.upstream.send(await bench.upstream.expect(HELLO), frame)
        # With this it has the session's ticket, too. What it has to say of that comes when it ends.
        await hear(client, frame)
        await say(client, b"Q\n")
        await hear(client, b"Max Early Data: 0\n")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("first_name", "second_name"),
    [("one.test", "other.test"), (None, "other.test"), ("one.test", None), ("one.test", "ONE.test")],
    ids=["other", "named later", "named at first", "same"],
)
async def test_a_session_under_another_name(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, first_name: str | None, second_name: str | None
) -> None:
    """RFC 6066 section 3: TLS 1.2 shakes hands in full. Control hears the name that is asked for now, whatever version.

    OpenSSL would go on with the session, and tell the name that it began with.
    """
    same = (first_name or "").lower() == (second_name or "").lower()
    async with plane_bench(make, tmp_path) as bench:
        context = bench.authority.client_context()
        context.check_hostname = False
        context.minimum_version = context.maximum_version = version
        first = await TlsClient.open(bench.server, context, first_name)
        await first.send(HELLO)
        await exchange(bench, first, await bench.upstream.expect(HELLO))
        assert (await bench.event(TurnOpened)).server_name == (first_name or "")
        session = first.tls.session
        assert session is not None
        first.abort()
        # Twice: a handshake that was begun anew leaves the planes as they were.
        for _ in range(2):
            client = TlsClient(await raw_client(bench, b""), context, second_name, session)
            await client.shake_hands()
            await client.send(HELLO)
            await exchange(bench, client, await bench.upstream.expect(HELLO))
            assert (await bench.event(TurnOpened)).server_name == (second_name or "").lower()
            if version is ssl.TLSVersion.TLSv1_2:
                assert client.tls.session_reused is same
            client.abort()


# ---- Behind the handshake


async def test_key_updates_keep_the_call(make: MakePlane, tmp_path: Path) -> None:
    frame = build_channel_data(0x4001, b"alive and well..")
    async with plane_bench(make, tmp_path) as bench, openssl_client(bench, "-servername", "relay.test") as client:
        await say(client, HELLO)
        flow = await bench.upstream.expect(HELLO)
        for command, heard in 3 * [(b"K\n", b"KEYUPDATE\n"), (b"k\n", b"KEYUPDATE\n")]:
            await say(client, command)
            await hear(client, heard)
            await say(client, frame)
            await bench.upstream.expect(frame)
            bench.upstream.send(flow, frame)
            await hear(client, frame)
        assert not bench.plane.snapshot().closed


async def test_a_key_update_in_two_halves_is_none(make: MakePlane, tmp_path: Path) -> None:
    """Nothing can be said to a client in the middle of one: it is closed with the next packet."""
    frame = build_channel_data(0x4001, b"ping")
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (other, at_other):
        client = await forging_client(bench, ssl.TLSVersion.TLSv1_3, tmp_path)
        await client.send_wire(client.forge(APPLICATION_DATA, HELLO))
        flow = await bench.upstream.expect(HELLO)
        await client.send_wire(client.forge(HANDSHAKE, KEY_UPDATE_REQUESTED[:4]))
        await exchange(bench, other, at_other)
        while len(bench.plane.snapshot().flows) == 2:
            bench.upstream.send(flow, frame)
            await exchange(bench, other, at_other)
        assert (await bench.closed()).reason is CloseReason.TLS_BROKEN
        client.abort()


async def test_a_key_update_of_a_client_that_does_not_read(make: MakePlane, tmp_path: Path) -> None:
    """Its answer waits behind what waits already; the call goes on when the client does."""
    settings = bounds(max_media_age_s=3600)
    async with plane_bench(make, tmp_path, settings) as bench:
        client = await forging_client(bench, ssl.TLSVersion.TLSv1_3, tmp_path)
        await client.send_wire(client.forge(APPLICATION_DATA, HELLO))
        flow = await bench.upstream.expect(HELLO)
        frames: list[bytes] = []
        while not bench.plane.snapshot().flows[0].queued_bytes:
            frames.append(build_channel_data(0x4001, len(frames).to_bytes(4) * 300))
            bench.upstream.send(flow, frames[-1])
            await asyncio.sleep(0.001)
        await client.send_wire(client.forge(HANDSHAKE, KEY_UPDATE_REQUESTED))
        await asyncio.sleep(0.05)  # for what must not happen
        assert not bench.plane.snapshot().closed
        for frame in frames:
            assert await client.receive_unit() == frame
        assert not bench.plane.snapshot().closed
        client.abort()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    "records",
    [(APPLICATION_DATA, b"", 1), (APPLICATION_DATA, b"", 1000), (ALERT, b"\x01\x5a", 1000), (ALERT, b"\x02\x50", 1)],
    ids=["one empty record", "empty records", "warnings", "fatal alert"],
)
async def test_records_that_say_nothing(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, records: tuple[int, bytes, int]
) -> None:
    """One does no harm. A flood of them, or an alert that ends the session, ends the connection."""
    kind, data, count = records
    async with plane_bench(make, tmp_path) as bench:
        client = await forging_client(bench, version, tmp_path)
        await client.send_wire(client.forge(APPLICATION_DATA, HELLO))
        await bench.upstream.expect(HELLO)
        with contextlib.suppress(ConnectionError):
            await client.send_wire(b"".join(client.forge(kind, data) for _ in range(count)))
            await client.send_wire(client.forge(APPLICATION_DATA, HELLO))
        if count == 1 and kind == APPLICATION_DATA:
            await bench.upstream.expect(HELLO)
        else:
            # OpenSSL itself takes four warnings in a row, and calls the fifth broken.
            flooded = kind == APPLICATION_DATA
            assert (await bench.closed()).reason is (CloseReason.TLS_FLOOD if flooded else CloseReason.TLS_BROKEN)
        client.abort()


async def test_renegotiation_is_refused_and_the_call_goes_on(make: MakePlane, tmp_path: Path) -> None:
    """The client gets a warning; ``openssl`` takes it to heart and leaves, and another call has noticed nothing."""
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (other, at_other):
        async with openssl_client(bench, "-servername", "relay.test", "-tls1_2") as client:
            await say(client, HELLO)
            await bench.upstream.expect(HELLO)
            await say(client, b"R\n")
            await hear(client, b"RENEGOTIATING")
            await hear(client, b"no renegotiation")
            assert (await bench.closed()).reason in {CloseReason.TLS_BROKEN, CloseReason.CLIENT_CLOSED}
        hello = b"\x01\x00\x00\x29\x03\x03" + bytes(32) + b"\0\0\x02\xc0\x2b\x01\0"
        forging = await forging_client(bench, ssl.TLSVersion.TLSv1_2, tmp_path)
        await forging.send_wire(forging.forge(APPLICATION_DATA, HELLO))
        await bench.upstream.expect(HELLO)
        for _ in range(3):
            await forging.send_wire(forging.forge(HANDSHAKE, hello) + forging.forge(APPLICATION_DATA, HELLO))
            await bench.upstream.expect(HELLO)
        forging.abort()
        await exchange(bench, other, at_other)


# ---- Certificates


def self_signed(folder: Path, stem: str, key: PrivateKey, pass_phrase: bytes | None = None) -> Certificate:
    """A certificate for relay.test that signs itself, for clients that do not ask who signed."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relay.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("relay.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    written = Certificate(folder / f"{stem}.pem", folder / f"{stem}.key")
    written.chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    locked = serialization.BestAvailableEncryption(pass_phrase) if pass_phrase else serialization.NoEncryption()
    written.private_key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )
    return written


async def key_served(bench: Bench, ciphers: str) -> object:
    """The public key that a TLS 1.2 client of these ciphers is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    client = await TlsClient.open(bench.server, context)
    shown = client.tls.getpeercert(binary_form=True)
    client.abort()
    assert shown is not None
    return x509.load_der_x509_certificate(shown).public_key()


@pytest.mark.parametrize("order", [1, -1], ids=["rsa first", "ecdsa first"])
async def test_rsa_and_ecdsa_side_by_side(make: MakePlane, tmp_path: Path, order: int) -> None:
    keys = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
    both = [self_signed(tmp_path, "rsa", keys[0]), self_signed(tmp_path, "ecdsa", keys[1])]
    async with plane_bench(make, tmp_path) as bench:
        bench.plane.set_certificates(read_certificates(both[::order]))
        assert await key_served(bench, "ECDHE+AESGCM+aRSA") == keys[0].public_key()
        assert await key_served(bench, "ECDHE+AESGCM+aECDSA") == keys[1].public_key()


async def test_one_kind_of_key_only(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
            await key_served(bench, "ECDHE+AESGCM+aRSA")
        assert (await bench.closed()).handshake_failure is HandshakeFailure.NO_SHARED_CIPHER


async def test_certificates_that_cannot_be_used_change_nothing(make: MakePlane, tmp_path: Path) -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    good, locked = self_signed(tmp_path, "good", key), self_signed(tmp_path, "locked", key, b"secret")
    wrong = Certificate(good.chain, self_signed(tmp_path, "other", other).private_key)
    text = tmp_path / "text"
    text.write_bytes(b"this is no PEM\n")
    missing = tmp_path / "missing"
    bad = [locked, wrong, Certificate(text, good.private_key), Certificate(good.chain, text)]
    bad += [Certificate(missing, good.private_key), Certificate(good.chain, missing)]
    async with plane_bench(make, tmp_path) as bench:
        for certificate in bad:
            for certificates in ([certificate], [good, certificate]):
                with pytest.raises(OperatorError):
                    bench.plane.set_certificates(read_certificates(certificates))
        (await bench.connect("relay.test")).abort()


async def test_a_key_of_another_certificate_changes_nothing(make: MakePlane, tmp_path: Path) -> None:
    """``read_certificate`` lets none through; the planes look themselves."""
    async with plane_bench(make, tmp_path) as bench:
        good, other = read_certificates([bench.authority.issue(name) for name in ("good.test", "other.test")])
        for bad in (replace(good, private_key=other.private_key), replace(good, chain=b"", private_key=b"")):
            with pytest.raises(OperatorError):
                bench.plane.set_certificates([good, bad])
        (await bench.connect("relay.test")).abort()


async def test_certificates_serve_when_their_files_are_gone(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        certificates = read_certificates([bench.certificate])
        bench.certificate.chain.unlink()
        bench.certificate.private_key.unlink()
        bench.plane.set_certificates(certificates)
        (await bench.connect("relay.test")).abort()


async def test_the_whole_chain_is_shown(make: MakePlane, tmp_path: Path) -> None:
    """Without what is between a server's certificate and the root, clients could not verify it."""
    async with plane_bench(make, tmp_path) as bench, openssl_client(bench, "-showcerts") as client:
        for shown in x509.load_pem_x509_certificates(bench.certificate.chain.read_bytes()):
            await hear(client, shown.public_bytes(serialization.Encoding.PEM))
