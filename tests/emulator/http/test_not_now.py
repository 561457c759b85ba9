"""The database or the disk fails: clients are told to come back, and the log has a line, not a stack trace."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from relay.emulator.login.tokens import Tokens
from relay.emulator.store import store
from tests.support.benches.cloud import running_cloud


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OperationalError("SELECT", {}, sqlite3.OperationalError("disk I/O error")), 503),
        (OperationalError("SELECT", {}, sqlite3.OperationalError("database or disk is full")), 507),
        (DBAPIError("SELECT", {}, Exception("terminated"), connection_invalidated=True), 503),
        (PoolTimeout("QueuePool limit"), 503),
        (TimeoutError(), 503),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), 503),
        (OSError(errno.ENOSPC, "no space"), 507),
        (OSError(errno.EIO, "broken"), 500),
        (DBAPIError("SELECT", {}, Exception("a mistake of ours")), 500),
    ],
)
async def test_what_fails_outside_of_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def fail(*_: object) -> None:
        raise error

    async with running_cloud(tmp_path) as client:
        token = (await client.login())["token"]
        monkeypatch.setattr(Tokens, "find", fail)
        got, body, headers = await client.ask("GET", "/rest/v1/settings", token=token)
        assert got == status
        assert ("Retry-After" in headers) == (status == 503)
        assert "SELECT" not in body["error"]["message"]


async def test_who_waits_too_long_for_a_connection_is_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "POOL_SIZE", 1)
    monkeypatch.setattr(store, "POOL_TIMEOUT_S", 0.2)
    async with running_cloud(tmp_path) as client:
        token = (await client.login())["token"]
        async with asyncio.timeout(30), client.cloud.store.reading():
            status, body, headers = await client.ask("GET", "/rest/v1/settings", token=token)
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "busy", "5")
        assert (await client.ask("GET", "/rest/v1/settings", token=token))[0] == 200
