"""The emulator's state in Debian's PostgreSQL instead of SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Executable, delete, select, update
from sqlalchemy.exc import DBAPIError

from relay.emulator import fixtures
from relay.emulator.http import site
from relay.emulator.store import Store, tables
from relay.emulator.store.seeding import seed, turn_secret
from relay.emulator.store.store import POOL_SIZE, audit
from relay.errors import OperatorError
from tests.support.benches.cloud import PASSWORD, running_cloud
from tests.support.peers.postgresql import hung, needs_postgresql, open_postgresql

pytestmark = needs_postgresql


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with open_postgresql() as url:
        yield url


async def test_two_processes_that_start_at_once_make_one_schema_and_fill_it_once(server: str) -> None:
    first, second = await asyncio.gather(Store.open(server), Store.open(server))
    filled = await asyncio.gather(seed(first, fixtures.bundled()), seed(second, fixtures.bundled()))
    assert sorted(filled) == [False, True]
    assert await turn_secret(first) == await turn_secret(second)
    async with first._engine.connect() as connection:
        found = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), tables.Row.metadata)
        )
    assert found == []
    await first.close()
    await second.close()


async def test_many_writers_at_once_lose_nothing(server: str) -> None:
    store = await Store.open(server)

    async def write(number: int) -> None:
        async with store.writing() as session:
            audit(session, "crowd", "anna", "tested", str(number))

    await asyncio.gather(*(write(number) for number in range(40)))
    async with store.reading() as session:
        wanted = select(tables.AuditEntry.object).where(tables.AuditEntry.firm_id == "crowd")
        assert sorted(map(int, await session.scalars(wanted))) == list(range(40))
    await store.close()


async def test_the_database_refuses_to_change_the_audit(server: str) -> None:
    store = await Store.open(server)
    async with store.writing() as session:
        audit(session, "kept", f"key:{'k' * 63}", "tested", "thing")

    async def tamper(change: Executable) -> None:
        async with store.writing() as session:
            await session.execute(change)

    for change in (update(tables.AuditEntry).values(actor="nobody"), delete(tables.AuditEntry)):
        with pytest.raises(DBAPIError, match="only added"):
            await tamper(change)
    async with store.reading() as session:
        wanted = select(tables.AuditEntry.actor).where(tables.AuditEntry.firm_id == "kept")
        assert (await session.scalars(wanted)).all() == [f"key:{'k' * 63}"]
    await store.close()


async def test_a_cloud_remembers_its_users_over_a_restart(server: str, tmp_path: Path) -> None:
    async with running_cloud(tmp_path, database=server) as client:
        token = (await client.login("dora"))["token"]
        secret = client.cloud.turn_secret
    async with running_cloud(tmp_path, database=server) as client:
        status, settings, _ = await client.ask("GET", "/rest/v1/settings", token=token)
        assert (status, settings["voiceViaWebProxy"]) == (200, True)
        assert client.cloud.turn_secret == secret


async def test_a_server_that_hangs_is_told_to_clients(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here the deadline of the whole answer comes before the one of a query.
    monkeypatch.setattr(site, "ANSWER_TIMEOUT_S", 1.0)
    async with running_cloud(tmp_path, database=server) as client:
        token = (await client.login("dora"))["token"]
        async with hung(server):
            answers = await asyncio.gather(
                *(client.ask("GET", "/rest/v1/settings", token=token) for _ in range(POOL_SIZE + 5)),
                client.ask("POST", "/rest/v1/login", json={"user": "dora", "password": PASSWORD}),
            )
        for status, body, headers in answers:
            assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "too_slow", "5")

        async def answers_again() -> bool:
            return (await client.ask("GET", "/rest/v1/settings", token=token))[0] == 200

        async with asyncio.timeout(60):
            while not await answers_again():
                pass


async def test_no_name_of_a_user_is_a_failure(server: str, tmp_path: Path) -> None:
    async with running_cloud(tmp_path, database=server) as client:
        for name in ("\ud800", "\u202e", "%", "é" * 127):
            wanted = {"user": name, "password": "x"}
            status, body, _ = await client.ask("POST", "/rest/v1/login", json=wanted)
            assert status in {401, 422}, (name.encode("utf-8", "replace"), body)


async def test_a_database_that_does_not_exist(server: str) -> None:
    with pytest.raises(OperatorError, match='database "nowhere" does not exist'):
        await Store.open(server.replace("/postgres", "/nowhere"))
