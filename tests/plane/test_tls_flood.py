"""Records of TLS that carry no data, on every plane and in every state: a few do no harm, many end the connection."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.plane.api import CloseReason
from relay.plane.certificates import HandshakeFailure
from relay.plane.reference.hello import MAX_SILENT_RECORDS, SilentRecords
from tests.support.benches.plane import (
    PLANES,
    MakePlane,
    exchange,
    forging_client,
    http_stream,
    plane_bench,
    raw_client,
)
from tests.support.messages import HELLO
from tests.support.peers.client_hello import CHANGE_CIPHER_SPEC, build_client_hello, hello_with_early_data, record
from tests.support.peers.forging_client import APPLICATION_DATA, HANDSHAKE, ForgingClient

every_plane = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

ALERT = 21
WARNING = b"\x01\x5a"  # user_canceled
MANY = 2000
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

Silent = Callable[[ForgingClient], bytes]


def key_update(client: ForgingClient) -> bytes:
    return client.update_keys()


def key_update_requested(client: ForgingClient) -> bytes:
    return client.update_keys(requested=True)


def empty(client: ForgingClient) -> bytes:
    return client.forge(APPLICATION_DATA, b"")


def renegotiation(client: ForgingClient) -> bytes:
    return client.forge(HANDSHAKE, build_client_hello(None))


KINDS = [
    pytest.param(TLS_1_3, key_update, id="KeyUpdate"),
    pytest.param(TLS_1_3, key_update_requested, id="KeyUpdate, requested"),
    pytest.param(TLS_1_3, empty, id="empty, 1.3"),
    pytest.param(TLS_1_2, empty, id="empty, 1.2"),
    pytest.param(TLS_1_2, renegotiation, id="renegotiation"),
]


async def flood(client: ForgingClient, records: list[bytes]) -> None:
    with contextlib.suppress(ConnectionError):
        await client.send_wire(b"".join(records))


@every_plane
@pytest.mark.parametrize(("version", "silent"), KINDS)
@pytest.mark.parametrize("state", ["deciding", "media", "http"])
async def test_a_flood(make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, silent: Silent, state: str) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (other, at_other):
        client = await forging_client(bench, version, tmp_path)
        with contextlib.ExitStack() as streams:
            if state == "media":
                await client.send_wire(client.forge(APPLICATION_DATA, HELLO))
                await bench.upstream.expect(HELLO)
            elif state == "http":
                await client.send_wire(client.forge(APPLICATION_DATA, b"GET / HTTP/1.1\r\n"))
                streams.enter_context((await http_stream(bench, client, b""))[1])
            await flood(client, [silent(client) for _ in range(MANY)])
            closed = await bench.closed()
        assert closed.reason is CloseReason.TLS_FLOOD
        await exchange(bench, other, at_other)
        client.abort()


@every_plane
@pytest.mark.parametrize(("version", "silent"), [*KINDS, pytest.param(TLS_1_2, None, id="warnings")])
async def test_a_flood_with_data_between(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, silent: Silent | None
) -> None:
    """What OpenSSL counts in a row it forgets with each record of data; here nothing is forgotten so soon."""
    async with plane_bench(make, tmp_path) as bench:
        client = await forging_client(bench, version, tmp_path)
        await client.send_wire(client.forge(APPLICATION_DATA, HELLO))
        await bench.upstream.expect(HELLO)
        records: list[bytes] = []
        for _ in range(MANY):
            records.append(client.forge(ALERT, WARNING) if silent is None else silent(client))
            records.append(client.forge(APPLICATION_DATA, HELLO))
        await flood(client, records)
        assert (await bench.closed()).reason is CloseReason.TLS_FLOOD
        client.abort()


@every_plane
@pytest.mark.parametrize(("version", "silent"), KINDS)
@pytest.mark.parametrize("split", [False, True], ids=["at once", "byte by byte"])
async def test_a_few_do_no_harm(
    make: MakePlane, tmp_path: Path, version: ssl.TLSVersion, silent: Silent, split: bool
) -> None:
    """As many as may come at once, before data, between it, and in pieces."""
    async with plane_bench(make, tmp_path) as bench:
        client = await forging_client(bench, version, tmp_path)
        wire = [silent(client) for _ in range(MAX_SILENT_RECORDS - 2)]
        wire += [client.forge(APPLICATION_DATA, HELLO), silent(client), silent(client)]
        wire.append(client.forge(APPLICATION_DATA, HELLO))
        joined = b"".join(wire)
        for part in [joined[at : at + 1] for at in range(len(joined))] if split else [joined]:
            await client.send_wire(part)
        for _ in range(2):
            await bench.upstream.expect(HELLO)
        await asyncio.sleep(0)
        assert not bench.plane.snapshot().closed
        client.abort()


@every_plane
@pytest.mark.parametrize("with_key", [True, False], ids=["with a key", "asked again for one"])
@pytest.mark.parametrize("before", [b"", CHANGE_CIPHER_SPEC], ids=["in clear", "after ChangeCipherSpec"])
@pytest.mark.parametrize("size", [0, 1])
async def test_a_flood_of_early_data(make: MakePlane, tmp_path: Path, with_key: bool, before: bytes, size: int) -> None:
    """OpenSSL skips early data that was not accepted, 16 KiB of it, and of empty records as many as come."""
    loop = asyncio.get_running_loop()
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (other, at_other):
        with await raw_client(bench, record(hello_with_early_data(with_key=with_key))) as client:
            assert await loop.sock_recv(client, 65536)
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(client, before + record(bytes(size), APPLICATION_DATA) * 10 * MANY)
            closed = await bench.closed()
        assert closed.reason is CloseReason.HANDSHAKE_FAILED
        # Where the client was asked again, OpenSSL has its own bound.
        assert closed.handshake_failure is HandshakeFailure.HELLO_TOO_LONG or not with_key
        await exchange(bench, other, at_other)


def test_one_is_forgotten_each_second() -> None:
    records, now = SilentRecords(), 1000.0
    assert records.add(MAX_SILENT_RECORDS, now)
    for second in range(1, 4):
        assert records.add(0, now + second - 0.1)
        assert records.add(1, now + second)
    assert records.add(MAX_SILENT_RECORDS, now + 100)
    assert not records.add(1, now + 100.5)
