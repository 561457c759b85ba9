"""Handshakes of TLS take turns, and who does not begin one holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.emulator import handshakes
from relay.emulator.handshakes import Handshakes
from relay.emulator.http import front
from tests.support.benches.cloud import running_cloud

RECORD = b"\x16\x03\x01\x02\x00" + bytes(512)


@contextlib.contextmanager
def connected(said: bytes = RECORD) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client that has said something, and the server's end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    accepted.setblocking(False)
    with client, accepted:
        client.sendall(said)
        yield client, accepted


async def test_one_begins_in_each_turn_of_the_loop() -> None:
    loop, taking, turn, counts = asyncio.get_running_loop(), Handshakes(), 0, True

    def count() -> None:
        nonlocal turn
        turn += 1
        if counts:
            loop.call_soon(count)

    async def began(accepted: socket.socket) -> int:
        await taking.turn(accepted)
        assert accepted.recv(1000) == RECORD
        return turn

    loop.call_soon(count)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connected())[1] for _ in range(20)]
        async with asyncio.timeout(10):
            turns = await asyncio.gather(*(began(each) for each in crowd))
    counts = False
    assert len(set(turns)) == 20


@pytest.mark.parametrize("begin", [b"\x16", RECORD[:5], RECORD[:-1]])
async def test_half_a_record_takes_no_turn(begin: bytes) -> None:
    taking = Handshakes()
    with connected(begin) as (client, accepted), connected() as (_, other):
        waiting = asyncio.create_task(taking.turn(accepted))
        async with asyncio.timeout(10):
            for _ in range(3):
                await taking.turn(other)
            assert not waiting.done()
            client.sendall(RECORD[len(begin) :])
            await waiting


@pytest.mark.parametrize("said", [b"", b"\x16\x03", RECORD[:100]])
async def test_who_goes_before_the_first_record_is_let_go(said: bytes) -> None:
    with connected(said) as (client, accepted):
        client.close()
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                # Half a record is for the handshake to refuse.
                await Handshakes().turn(accepted)
                assert len(said) > 5


async def test_who_says_nothing_has_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "HANDSHAKE_TIMEOUT_S", 0.05)
    taking = Handshakes()
    with connected(b"") as (_, silent), connected() as (_, other):
        with pytest.raises(TimeoutError):
            await taking.turn(silent)
        await taking.turn(other)


async def test_silent_clients_of_https_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "max_connections", lambda: 3)
    async with running_cloud(tmp_path) as client, asyncio.timeout(30):
        silent = [await asyncio.open_connection(*client.cloud.tls) for _ in range(4)]
        assert await silent[0][0].read() == b""
        assert (await client.ask("GET", "/openapi.json", secure=True))[0] == 200
        waits = asyncio.create_task(silent[3][0].read())
        await client.cloud.stop()
        assert await waits == b""
        for _, writer in silent:
            writer.close()
