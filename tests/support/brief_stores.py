"""Makes the emulator's databases cheap: hundreds of tests open an empty one and fill it.

alembic reads its scripts anew for each of them, works out the same statements, and takes a tenth of a second. Here it
does so for the first one of a process. Others that are empty get the tables as SQLite tells them. And the passwords of
the fixtures have hashes that take next to nothing to make and to check, where real ones are slow by design.
"""

from __future__ import annotations

import functools

from argon2 import PasswordHasher
from sqlalchemy import Connection

from relay.emulator.store import seeding, store

migrate = store._upgrade

# The least that the library takes. How much it was is in the hash, so a check takes no more.
_HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
_made: list[str] = []


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name != "sqlite" or _tables(connection):
        migrate(connection)
    elif _made:
        for statement in _made:
            connection.exec_driver_sql(statement)
    else:
        migrate(connection)
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        _made.extend([*_tables(connection), f"INSERT INTO alembic_version VALUES ('{version}')"])


def _tables(connection: Connection) -> list[str]:
    """The statements that make what is there: tables and indexes, but not those that SQLite makes by itself."""
    found = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
    return [sql for name, sql in found if not name.startswith("sqlite_")]


@functools.cache
def _hash(password: str) -> str:
    return _HASHER.hash(password)


def shorten() -> None:
    """From now on, in this process."""
    store._upgrade = _upgrade
    seeding.hash_password = _hash  # type: ignore[attr-defined]
