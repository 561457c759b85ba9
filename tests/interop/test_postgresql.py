"""The emulator's state in Debian's PostgreSQL instead of SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Executable, delete, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator import fixtures
from relay.emulator.http import site
from relay.emulator.http.errors import ApiError
from relay.emulator.portal import firms
from relay.emulator.store import Store, tables
from relay.emulator.store.seeding import seed, turn_secret
from relay.emulator.store.store import POOL_SIZE, audit
from relay.errors import OperatorError
from tests.support.benches.cloud import PASSWORD, running_cloud
from tests.support.benches.portal import ADMIN, TRADER, made_up_portal
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


async def waiters(store: Store) -> int:
    """How many transactions wait for another one."""
    async with store.reading() as session:
        return await session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")) or 0


async def test_two_administrators_cannot_disable_each_other(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()
    is_last_admin = firms.is_last_admin

    async def stop_the_first(session: AsyncSession, user: tables.User) -> bool:
        result = await is_last_admin(session, user)
        if not reached.is_set():
            reached.set()
            await go_on.wait()
        return result

    monkeypatch.setattr(firms, "is_last_admin", stop_the_first)
    async with made_up_portal(server) as portal:
        async with portal.store.writing() as session:
            (await session.get_one(tables.User, "anna")).role = "admin"
        async with portal.visitor(*TRADER) as anna, portal.visitor(*ADMIN) as admin, asyncio.TaskGroup() as tasks:
            off = {"enabled": "off"}
            first = tasks.create_task(anna.post("/portal/users/atlas-admin/enabled", off, on="/portal/profile"))
            await reached.wait()
            second = tasks.create_task(admin.post("/portal/users/anna/enabled", off, on="/portal/profile"))
            async with asyncio.timeout(5):
                while not second.done() and not await waiters(portal.store):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            go_on.set()
            assert ((await first).status, (await second).status) == (303, 401)
        async with portal.store.writing() as session:
            (await session.get_one(tables.User, "anna")).role = "user"
            (await session.get_one(tables.User, "atlas-admin")).enabled = True


async def test_a_login_and_a_new_password_take_turns(server: str) -> None:
    async with made_up_portal(server) as portal, asyncio.TaskGroup() as tasks:
        checked = await portal.user("anna")

        async def refused() -> None:
            with pytest.raises(ApiError, match="The password was changed"):
                await portal.tokens.open(checked, "client")

        async with portal.store.writing() as session:
            (await session.get_one(tables.User, "anna")).password_hash = "another"
            await session.flush()
            login = tasks.create_task(refused())
            async with asyncio.timeout(5):
                while not login.done() and not await waiters(portal.store):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        await login
        async with portal.store.writing() as session:
            (await session.get_one(tables.User, "anna")).password_hash = checked.password_hash
