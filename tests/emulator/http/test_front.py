"""The connections of HTTP: silent ones end, and do not shut out others."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from relay.emulator.http import front
from tests.support.benches.cloud import CloudClient, running_cloud


async def connect(client: CloudClient, said: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(client.cloud.http.host, client.cloud.http.port)
    writer.write(said)
    return reader, writer


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: local"])
async def test_a_connection_without_a_request_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(front, "KEEPALIVE_TIMEOUT_S", 0.2)
    async with running_cloud(tmp_path) as client:
        reader, writer = await connect(client, said)
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


async def test_idle_connections_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "max_connections", lambda: 3)
    async with running_cloud(tmp_path) as client:
        idle = [await connect(client) for _ in range(5)]
        assert (await client.ask("GET", "/openapi.json"))[0] == 200
        async with asyncio.timeout(30):
            assert await idle[0][0].read() == b""
        for _, writer in idle:
            writer.close()


async def test_if_all_connections_are_busy_the_next_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "max_connections", lambda: 1)
    async with running_cloud(tmp_path) as client:
        # Its body is awaited.
        head = b"POST /rest/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        reader, busy = await connect(client, head + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(30):
            assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
            refused, writer = await connect(client)
            assert await refused.read() == b""
            busy.write(b"{}")
            assert await reader.readline() == b"\r\n"
            assert b"422" in await reader.readline()
        writer.close()
        busy.close()


def test_descriptors_are_left_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 1000))
    assert front.max_connections() == 50
