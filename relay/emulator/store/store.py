"""A database of the emulator: opened by URL, brought up to date, and used through sessions that read or write.

What a block of ``writing`` has done is on disk when the block ends. It survives a killed process, and with SQLite also
a power failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import sqlite3
import tempfile
import time
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util import CommandError
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from relay.emulator.store.tables import AuditEntry
from relay.errors import OperatorError

# SQLite's own memory has one connection, in which a second transaction cannot begin, or several that lock each other
# out. So this is a file that is deleted at the end, in the memory of Linux where there is such a folder.
IN_MEMORY = ":memory:"
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108
MIGRATIONS = Path(__file__).parent / "migrations"
# Writers of SQLite wait for each other this long. One write takes milliseconds.
BUSY_TIMEOUT_S = 10.0
# Connections to PostgreSQL: enough for a laptop, and a tenth of what the server allows by default.
POOL_SIZE = 10
# Who waits this long for a connection, or for an answer of PostgreSQL, is told to come back. Clients wait little
# longer.
POOL_TIMEOUT_S = 10.0
QUERY_TIMEOUT_S = 10.0
# Two processes that start at once must not both migrate. The number is ours alone: "c9 emulator" in ASCII, cut short.
_MIGRATION_LOCK = 0x6339656D
_FIRST_FILL_LOCK = _MIGRATION_LOCK + 1
_TAKE_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_READ_ONLY = "relay_read_only"
# Alembic tells each step at the level of information. An operator wants to know only of trouble.
logging.getLogger("alembic").setLevel(logging.WARNING)


def database_url(database: str) -> str:
    """SQLAlchemy's URL of what an operator names: the path of a file, or ``postgresql://…``.

    Raises OperatorError for any other scheme.
    """
    scheme, separator, rest = database.partition("://")
    if not separator:
        return f"sqlite+aiosqlite:///{Path(database).absolute()}"
    if scheme in {"postgresql", "postgres", "postgresql+asyncpg"}:
        return f"postgresql+asyncpg://{rest}"
    raise OperatorError(
        f"store {scheme}://…: expected :memory:, the path of a file, or postgresql://user@host/database"
    )


def is_file(database: str) -> bool:
    """True if an operator names the path of a file."""
    return database != IN_MEMORY and "://" not in database


# alembic keeps the migration that runs in a global variable, so two stores of a process must not migrate at once.
_MIGRATING: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()


class Store:
    """The database. ``open`` it, use ``reading`` and ``writing``, and ``close`` it."""

    def __init__(self, engine: AsyncEngine, shown: str, folder: contextlib.ExitStack) -> None:
        self._engine = engine
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        # SQLite has one writer. Waiting here is fair and cheap; waiting in SQLite is neither.
        self._writer: asyncio.Lock | None = asyncio.Lock() if engine.dialect.name == "sqlite" else None
        self.shown = shown
        self._folder = folder

    @classmethod
    async def open(cls, database: str) -> Self:
        """Open and migrate. Raises OperatorError if the database cannot be used."""
        with contextlib.ExitStack() as folder:
            store = cls(*_engine_for(database, folder), folder.pop_all())
        try:
            if store._writer is not None:
                await asyncio.to_thread(_try_file, str(store._engine.url.database))
            await store._migrate()
        except (SQLAlchemyError, sqlite3.Error, OSError, CommandError) as error:
            await store.close()
            cause = (str(getattr(error, "orig", None) or error).strip() or type(error).__name__).splitlines()[0]
            raise OperatorError(f"store {store.shown}: {cause}") from error
        except BaseException:
            await store.close()
            raise
        return store

    async def _migrate(self) -> None:
        migrating = _MIGRATING.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        async with migrating, self._engine.begin() as connection:
            if self._writer is None:
                await connection.execute(_TAKE_LOCK, {"key": _MIGRATION_LOCK})
            await connection.run_sync(_upgrade)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()
        self._folder.close()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session that sees one state of the database."""
        async with self._sessions() as session:
            await session.connection(execution_options={_READ_ONLY: True})
            yield session

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A session whose changes are on disk when the block ends, or are all undone if it raises.

        Keep the block short: with SQLite, one block at a time runs.
        """
        async with self._writer or contextlib.nullcontext(), self._sessions.begin() as session:
            yield session

    @contextlib.asynccontextmanager
    async def filling(self) -> AsyncIterator[AsyncSession]:
        """The same for rows that must be made only once: no other process is in such a block at the same time."""
        async with self.writing() as session:
            # A writer of SQLite is alone already.
            if self._writer is None:
                await session.execute(_TAKE_LOCK, {"key": _FIRST_FILL_LOCK})
            yield session


def _engine_for(database: str, folder: contextlib.ExitStack) -> tuple[AsyncEngine, str]:
    """The engine, and what to call it. What it needs for a database in memory is added to ``folder``."""
    shown = ""
    if database == IN_MEMORY:
        parent = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
        made = tempfile.TemporaryDirectory(prefix="cloud9-emulator-", dir=parent, ignore_cleanup_errors=True)
        database, shown = f"{folder.enter_context(made)}/emulator.db", IN_MEMORY
    url = database_url(database)
    options: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": POOL_TIMEOUT_S}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": BUSY_TIMEOUT_S}
    else:
        options["pool_pre_ping"] = True
        options["connect_args"] = {"timeout": QUERY_TIMEOUT_S, "command_timeout": QUERY_TIMEOUT_S}
    try:
        shown = shown or make_url(url).render_as_string(hide_password=True)
        engine = create_async_engine(url, **options)
    except (ArgumentError, ValueError) as error:
        raise OperatorError(f"store: not a database URL: {error}") from None
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    return engine, shown


def _try_file(path: str) -> None:
    """Open the file once. If it cannot be opened, aiosqlite leaves a thread behind that outlives the event loop."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version")


def audit(session: AsyncSession, firm_id: str, actor: str, action: str, target: str, **details: Any) -> None:
    """Note in the same transaction who did what. ``details`` must not hold secrets."""
    entry = AuditEntry(
        at=time.time(), firm_id=firm_id, actor=actor, action=action, object=target, details=dict(details)
    )
    session.add(entry)


def _upgrade(connection: Connection) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _prepare_sqlite(engine: AsyncEngine) -> None:
    """Make SQLite durable, and make its transactions begin where SQLAlchemy says so."""

    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, record: object) -> None:
        # Otherwise the driver would begin transactions by itself, only before some statements.
        connection.isolation_level = None
        cursor = connection.cursor()
        # Readers do not wait for the writer, and a commit waits for the disk.
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A writer takes its lock at once. A reader that becomes a writer could fail without having waited.
        read_only = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def is_unavailable(error: BaseException) -> bool:
    """True if the database is gone, hangs, or has too much to do: the same request may be sent again later."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    # The driver tells some of it without SQLAlchemy around it. PoolTimeout is no builtin TimeoutError.
    return isinstance(error, PoolTimeout | TimeoutError | ConnectionError)


def is_full(error: BaseException) -> bool:
    """True if the disk has no room, for a file or for the database."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    cause = error.orig if isinstance(error, DBAPIError) else None
    return isinstance(cause, sqlite3.OperationalError) and "is full" in str(cause)
