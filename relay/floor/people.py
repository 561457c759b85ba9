"""Who can log in to a cloud: from its database, which may have other users than the fixtures of this start."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass

from sqlalchemy import func, select

from relay.emulator.fixtures import Fixtures
from relay.emulator.store import Store, tables
from relay.emulator.store.passwords import check_password

# More users than this are not listed: the table is for trying things out.
LISTED_USERS = 12


@dataclass(frozen=True)
class Person:
    """A user who can log in. ``password`` is None if we do not know it."""

    name: str
    password: str | None
    firm: str
    role: str
    voice_via_web_proxy: bool


@dataclass(frozen=True)
class People:
    """The first ``LISTED_USERS`` of a cloud, and how many there are."""

    listed: list[Person]
    count: int


async def people(store: Store, fixtures: Fixtures) -> People:
    """The users in the database. A password of the fixtures is shown if it is still theirs."""
    enabled = tables.User.enabled
    async with store.reading() as session:
        count = await session.scalar(select(func.count()).select_from(tables.User).where(enabled)) or 0
        # The rows were inserted in the order of the fixtures, but no database promises to keep it.
        known = [user.id for user in fixtures.users[:LISTED_USERS]]
        found = list(await session.scalars(select(tables.User).where(enabled, tables.User.user_id.in_(known))))
        found.sort(key=lambda user: known.index(user.user_id))
        rest = select(tables.User).where(enabled, tables.User.user_id.not_in(known)).order_by(tables.User.user_id)
        found += await session.scalars(rest.limit(LISTED_USERS - len(found)))
    listed = await asyncio.to_thread(_persons, found, fixtures)
    return People(listed, count)


def _persons(users: list[tables.User], fixtures: Fixtures) -> list[Person]:
    given = {user.id: user.password.get_secret_value() for user in fixtures.users if user.password is not None}
    # Users of one password share a hash, and a check takes 30 ms.
    check = functools.cache(check_password)
    return [
        Person(
            name=user.user_id,
            password=given[user.user_id]
            if user.user_id in given and check(user.password_hash, given[user.user_id])
            else None,
            firm=user.firm_id,
            role=user.role,
            voice_via_web_proxy=user.voice_via_web_proxy,
        )
        for user in users
    ]
