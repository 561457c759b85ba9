"""The database: opened, migrated, filled, and durable."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Executable, delete, select, update
from sqlalchemy.exc import DatabaseError, IntegrityError

from relay.emulator import fixtures
from relay.emulator.store import Store, tables
from relay.emulator.store.passwords import check_password
from relay.emulator.store.seeding import seed, turn_secret
from relay.emulator.store.store import audit, database_url
from relay.errors import OperatorError


def test_the_migrations_make_exactly_the_tables() -> None:
    async def differences() -> list[object]:
        store = await Store.open(":memory:")
        async with store._engine.connect() as connection:
            found = await connection.run_sync(
                lambda sync: compare_metadata(MigrationContext.configure(sync), tables.Row.metadata)
            )
        await store.close()
        return list(found)

    assert asyncio.run(differences()) == []


def test_fixtures_go_in_once(tmp_path: Path) -> None:
    async def twice() -> None:
        path = str(tmp_path / "e.db")
        store = await Store.open(path)
        assert await seed(store, fixtures.bundled())
        secret = await turn_secret(store)
        await store.close()
        store = await Store.open(path)
        assert not await seed(store, fixtures.bundled())
        assert await turn_secret(store) == secret
        async with store.reading() as session:
            anna = await session.get_one(tables.User, "anna")
            assert check_password(anna.password_hash, "trader")
            assert not check_password(anna.password_hash, "Trader")
            members = await session.scalars(select(tables.LineMember).where(tables.LineMember.user_id == "anna"))
            assert len(members.all()) == 6
        await store.close()

    asyncio.run(twice())


def test_a_block_that_raises_changes_nothing() -> None:
    async def fails() -> None:
        store = await Store.open(":memory:")

        async def write() -> None:
            async with store.writing() as session:
                session.add(tables.Firm(firm_id="f", name="F", region="use1"))
                await session.flush()
                session.add(tables.Group(group_id="g", firm_id="nobody", name="G"))

        with pytest.raises(IntegrityError):
            await write()
        async with store.reading() as session:
            assert (await session.scalars(select(tables.Firm))).all() == []
        await store.close()

    asyncio.run(fails())


def test_readers_and_writers_of_memory_do_not_meet_in_one_transaction() -> None:
    async def at_once() -> None:
        store = await Store.open(":memory:")
        async with store.reading() as one, store.reading() as other:
            assert (await one.scalars(select(tables.Firm))).all() == (await other.scalars(select(tables.Firm))).all()
        async with store.writing() as session:
            session.add(tables.Firm(firm_id="f", name="F", region="use1"))
            await session.flush()
            async with store.reading() as meanwhile:
                assert (await meanwhile.scalars(select(tables.Firm))).all() == []
        async with store.reading() as session:
            assert len((await session.scalars(select(tables.Firm))).all()) == 1
        await store.close()

    asyncio.run(at_once())


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    async def crowd() -> None:
        path = str(tmp_path / "e.db")
        stores = [await Store.open(path), await Store.open(path)]

        async def write(number: int) -> None:
            async with stores[number % 2].writing() as session:
                audit(session, "atlas", "anna", "tested", str(number))

        await asyncio.gather(*(write(number) for number in range(40)))
        async with stores[0].reading() as session:
            found = (await session.scalars(select(tables.AuditEntry.object))).all()
        assert sorted(map(int, found)) == list(range(40))
        for store in stores:
            await store.close()

    asyncio.run(crowd())


@pytest.mark.parametrize(
    ("database", "told"),
    [
        ("mysql://root@localhost/x", "store mysql://…: expected :memory:, the path of a file, or postgresql://"),
        ("/nowhere/at/all/e.db", "unable to open database file"),
        ("postgresql://nobody:hidden@127.0.0.1:1/none", "store postgresql+asyncpg://nobody:***@127.0.0.1:1/none"),
    ],
)
def test_a_database_that_cannot_be_used(database: str, told: str) -> None:
    with pytest.raises(OperatorError) as error:
        asyncio.run(Store.open(database))
    assert told in str(error.value)
    assert "hidden" not in str(error.value)


def test_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    file = tmp_path / "e.db"
    file.write_text("this is not a database, and it is long enough to be looked at as one\n" * 20)
    with pytest.raises(OperatorError, match="not a database"):
        asyncio.run(Store.open(str(file)))
    assert file.read_text().startswith("this is not")


def test_urls() -> None:
    assert database_url("/a/b.db") == "sqlite+aiosqlite:////a/b.db"
    assert database_url("postgres://u@h/d") == "postgresql+asyncpg://u@h/d"


def test_stores_that_open_at_once_do_not_meet() -> None:
    async def all_at_once() -> None:
        stores = await asyncio.gather(*(Store.open(":memory:") for _ in range(5)))
        for store in stores:
            async with store.reading() as session:
                assert (await session.scalars(select(tables.Firm))).all() == []
            await store.close()

    asyncio.run(all_at_once())


@pytest.mark.parametrize("change", [update(tables.AuditEntry).values(actor="nobody"), delete(tables.AuditEntry)])
async def test_the_database_refuses_to_change_the_audit(change: Executable) -> None:
    store = await Store.open(":memory:")
    async with store.writing() as session:
        audit(session, "atlas", "anna", "tested", "thing")

    async def tamper() -> None:
        async with store.writing() as session:
            await session.execute(change)

    with pytest.raises(DatabaseError, match="only added"):
        await tamper()
    async with store.reading() as session:
        assert (await session.scalars(select(tables.AuditEntry.actor))).all() == ["anna"]
    await store.close()
