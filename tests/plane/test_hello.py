"""The first bytes of a connection, on every plane: how long a ClientHello may be, its records, and what is not TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest

from relay._fastpath import live_objects
from relay.plane.api import CloseReason
from relay.plane.certificates import HandshakeFailure
from relay.plane.reference.hello import MAX_HELLO_BYTES, MAX_HELLO_RECORDS
from tests.support.benches.plane import PLANES, MakePlane, exchange, plane_bench, raw_client
from tests.support.messages import HELLO
from tests.support.peers.client_hello import CHANGE_CIPHER_SPEC, hello_without_key, record
from tests.support.peers.tls_client import TlsClient

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

# What OpenSSL would allow, and take the memory for (CLIENT_HELLO_MAX_LENGTH).
CLAIMED_BYTES = 131_396
LONG_HEAD = b"\1" + CLAIMED_BYTES.to_bytes(3)
BARELY_TOO_LONG_HEAD = b"\1" + (MAX_HELLO_BYTES - 3).to_bytes(3)


@pytest.mark.parametrize(
    "wire",
    [
        record(LONG_HEAD + bytes(508)),
        record(LONG_HEAD),
        record(BARELY_TOO_LONG_HEAD),
        b"".join(record(bytes([one])) for one in LONG_HEAD),
        record(b"") + record(LONG_HEAD),
        # The length of the record is not that of the message.
        record(LONG_HEAD + bytes(508))[:9],
    ],
    ids=["half", "head", "barely", "head in four records", "behind an empty record", "half a record"],
)
@pytest.mark.parametrize("split", [False, True], ids=["at once", "byte by byte"])
async def test_a_long_hello_is_refused_before_it_has_come(
    make: MakePlane, tmp_path: Path, wire: bytes, split: bool
) -> None:
    """Its claim alone would take 128 KiB for as long as a handshake may take."""
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (other, at_other):
        with await raw_client(bench, b"") as client:
            with contextlib.suppress(ConnectionError):
                for part in [wire[at : at + 1] for at in range(len(wire))] if split else [wire]:
                    await asyncio.get_running_loop().sock_sendall(client, part)
            closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.HANDSHAKE_FAILED, "client hello too long")
        assert closed.handshake_failure is HandshakeFailure.HELLO_TOO_LONG
        await exchange(bench, other, at_other)


async def test_half_a_hello_takes_no_tls(make: MakePlane, tmp_path: Path) -> None:
    """A debug build counts the sessions of the compiled plane; those of the other are looked at in test_tls."""
    async with plane_bench(make, tmp_path) as bench:
        before = bench.plane.snapshot().accepted
        halves = [await raw_client(bench, record(b"\1\0\x02\0" + bytes(300))) for _ in range(20)]
        (await bench.connect()).abort()
        await bench.closed()
        assert bench.plane.snapshot().accepted == before + len(halves) + 1
        assert live_objects().get("sessions", 0) == 0
        for one in halves:
            one.close()
        for _ in halves:
            assert (await bench.closed()).handshake_failure is HandshakeFailure.CLIENT_CLOSED


@pytest.mark.parametrize("between", [b"", CHANGE_CIPHER_SPEC], ids=["at once", "behind ChangeCipherSpec"])
async def test_a_long_second_hello(make: MakePlane, tmp_path: Path, between: bytes) -> None:
    """A server of TLS 1.3 may ask for another one, and that is in clear, too."""
    async with plane_bench(make, tmp_path) as bench:
        with await raw_client(bench, record(hello_without_key())) as client:
            loop = asyncio.get_running_loop()
            assert (await loop.sock_recv(client, 1))[0] == 22  # HelloRetryRequest
            await loop.sock_sendall(client, between + record(LONG_HEAD + bytes(60)))
            assert (await bench.closed()).handshake_failure is HandshakeFailure.HELLO_TOO_LONG


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("pieces", [2, MAX_HELLO_RECORDS - 10])
async def test_a_hello_in_many_records(make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, pieces: int) -> None:
    """Some clients cut it, so that those on the way do not read the name."""
    async with plane_bench(make, tmp_path) as bench:
        context = bench.authority.client_context()
        context.minimum_version = context.maximum_version = version
        client = TlsClient(await raw_client(bench, b""), context, "relay.test")
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        message = client._outgoing.read()[5:]
        size = -(-len(message) // pieces)
        await client.send_wire(b"".join(record(message[at : at + size]) for at in range(0, len(message), size)))
        await client.shake_hands()
        await client.send(HELLO)
        await exchange(bench, client, await bench.upstream.expect(HELLO))
        client.abort()


@pytest.mark.parametrize("piece", [record(b""), record(b"\0"), CHANGE_CIPHER_SPEC], ids=["empty", "a byte", "ccs"])
async def test_too_many_records(make: MakePlane, tmp_path: Path, piece: bytes) -> None:
    """What OpenSSL itself refuses it refuses earlier; no client can have it go on for long."""
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (other, at_other):
        with await raw_client(bench, record(b"\1\0\x20\0") + piece * MAX_HELLO_RECORDS):
            assert (await bench.closed()).reason is CloseReason.HANDSHAKE_FAILED
        await exchange(bench, other, at_other)


async def test_a_hello_in_records_of_a_byte(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        wire = record(b"\1\0\x20\0") + record(b"\0") * MAX_HELLO_RECORDS
        with await raw_client(bench, wire):
            closed = await bench.closed()
        assert closed.detail == "client hello in too many records"
        assert closed.handshake_failure is HandshakeFailure.HELLO_TOO_LONG


@pytest.mark.parametrize("first", [bytes([one]) for one in range(256) if one != 22], ids=lambda first: first.hex())
async def test_one_byte_that_no_handshake_begins_with(make: MakePlane, tmp_path: Path, first: bytes) -> None:
    """The connection ends at once, not with the handshake's deadline; here that never comes."""
    async with plane_bench(make, tmp_path) as bench:
        with await raw_client(bench, first) as client:
            closed = await bench.closed()
            expected = HandshakeFailure.PLAIN_HTTP if first.isupper() else HandshakeFailure.NOT_TLS
            assert (closed.reason, closed.handshake_failure) == (CloseReason.HANDSHAKE_FAILED, expected)
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


async def test_many_records_right_behind_the_handshake(make: MakePlane, tmp_path: Path) -> None:
    """They come together with the client's last message, and are no part of the handshake."""
    async with plane_bench(make, tmp_path) as bench:
        client = TlsClient(await raw_client(bench, b""), bench.authority.client_context(), "relay.test")
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        await client.flush()
        while True:
            await client._fill()
            try:
                client.tls.do_handshake()
            except ssl.SSLWantReadError:
                continue
            break
        await client.send_wire(client._outgoing.read() + b"".join(client.record(HELLO) for _ in range(200)))
        for _ in range(200):
            await bench.upstream.expect(HELLO)
        client.abort()
