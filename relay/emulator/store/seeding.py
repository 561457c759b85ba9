"""Fixtures into an empty database."""

from __future__ import annotations

import asyncio
import secrets
import time

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator.fixtures import Fixtures
from relay.emulator.store import tables
from relay.emulator.store.passwords import hash_password
from relay.emulator.store.store import Store

# The name of a setting, not a secret.
TURN_SECRET_NAME = "turn_secret"  # noqa: S105


async def seed(store: Store, fixtures: Fixtures) -> bool:
    """Fill the database, unless it has firms already. Returns True if it was filled."""
    async with store.reading() as session:
        if await _has_firms(session):
            return False
    regions = {firm.id: firm.region for firm in fixtures.firms}
    hashes = await asyncio.to_thread(_hashes, fixtures)
    async with store.filling() as session:
        # Another process may have been faster.
        if await _has_firms(session):
            return False
        session.add_all(tables.Firm(firm_id=f.id, name=f.name, region=f.region) for f in fixtures.firms)
        await session.flush()
        session.add_all(tables.Group(group_id=g.id, firm_id=g.firm, name=g.name) for g in fixtures.groups)
        await session.flush()
        session.add_all(
            tables.User(
                user_id=user.id,
                firm_id=user.firm,
                group_id=user.group,
                name=user.name,
                email=user.email,
                extension=user.extension,
                password_hash=hashes[user.id],
                role=user.role,
                region=user.region or regions[user.firm],
                voice_via_web_proxy=user.voice_via_web_proxy,
                enabled=True,
            )
            for user in fixtures.users
        )
        await session.flush()
        await _add_lines(session, fixtures)
        _add_keys(session, fixtures)
    return True


async def _has_firms(session: AsyncSession) -> bool:
    return bool(await session.scalar(select(func.count()).select_from(tables.Firm)))


def _hashes(fixtures: Fixtures) -> dict[str, str]:
    """The hash of each user. Users of one password share it, or a thousand of them would take half a minute."""
    by_password: dict[str, str] = {}
    found = {}
    for user in fixtures.users:
        if user.password_hash is not None:
            found[user.id] = user.password_hash.get_secret_value()
        elif user.password is not None:
            password = user.password.get_secret_value()
            if password not in by_password:
                by_password[password] = hash_password(password)
            found[user.id] = by_password[password]
    return found


async def _add_lines(session: AsyncSession, fixtures: Fixtures) -> None:
    session.add_all(
        tables.Line(number=line.number, kind=line.kind, label=line.label, region=line.region) for line in fixtures.lines
    )
    await session.flush()
    session.add_all(
        tables.LineMember(number=line.number, user_id=user, role=line.role_of(user))
        for line in fixtures.lines
        for user in line.members
    )
    session.add_all(
        tables.Button(user_id=b.user, position=b.position, label=b.label, line=b.line, dial=b.dial)
        for b in fixtures.buttons
    )


def _add_keys(session: AsyncSession, fixtures: Fixtures) -> None:
    session.add_all(
        tables.ApiKey(
            api_key=key.key,
            secret=key.secret.get_secret_value(),
            firm_id=key.firm,
            name=key.name,
            networks=[str(network) for network in key.networks],
            apis=list(key.apis),
            enabled=True,
            created_at=time.time(),
        )
        for key in fixtures.api_keys
    )


async def turn_secret(store: Store) -> str:
    """The secret that the TURN servers and the login share. It is made once for each database."""
    async with store.filling() as session:
        setting = await session.get(tables.Setting, TURN_SECRET_NAME)
        if setting is None:
            setting = tables.Setting(name=TURN_SECRET_NAME, value=secrets.token_urlsafe(32))
            session.add(setting)
        return setting.value
