"""What a firm owns, and the rules that more than one page needs. Everything is looked up by firm as well as by name.

A line has no owner: it is a firm's own if one of its users has it. Members of other firms are only counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from sqlalchemy import Select, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator import fixtures
from relay.emulator.names import UserRole
from relay.emulator.portal.pages import not_found
from relay.emulator.store.tables import Firm, Group, Line, LineMember, LoginSession, User

# What one firm can have. A large floor has 1,000 users with some lines each; beyond that somebody runs a script.
MAX_USERS = 2000
MAX_LINES = 5000
MAX_GROUPS = 200
MAX_KEYS = 100

MAX_PASSWORD = 128
PASSWORD_RULE = f"8 to {MAX_PASSWORD} characters"

Name = Annotated[fixtures.Text, Field(description="1 to 128 characters")]
Region = Annotated[fixtures.Region, Field(description=", ".join(fixtures.REGIONS))]
# As NIST's SP 800-63B has it: long enough, and no other rules. The fixtures may have shorter ones, for a laptop.
Password = Annotated[str, Field(min_length=8, max_length=MAX_PASSWORD, description=PASSWORD_RULE)]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def is_name(text: str) -> bool:
    """True for what can be the name of a user, a line, a key or a recording. Anything else is not looked up."""
    return _NAME.fullmatch(text) is not None


async def firm_of(session: AsyncSession, firm_id: str) -> Firm:
    """A firm that is known to exist."""
    return await session.get_one(Firm, firm_id)


async def user_of(session: AsyncSession, firm_id: str, user_id: str) -> User:
    """A user of this firm. Raises PageError 404."""
    user = await session.get(User, user_id) if is_name(user_id) else None
    if user is None or user.firm_id != firm_id:
        raise not_found()
    return user


async def names_of(session: AsyncSession, firm_id: str) -> dict[str, str]:
    """The firm's users: names by id, in the order of their names."""
    found = await session.execute(select(User.user_id, User.name).where(User.firm_id == firm_id).order_by(User.name))
    return dict(found.all())


async def groups_of(session: AsyncSession, firm_id: str) -> list[Group]:
    """The firm's groups, in the order of their names."""
    found = await session.scalars(select(Group).where(Group.firm_id == firm_id).order_by(Group.name))
    return list(found.all())


async def is_last_admin(session: AsyncSession, user: User) -> bool:
    """True if nobody could administer the firm without this user."""
    if user.role != UserRole.ADMIN or not user.enabled:
        return False
    others = select(func.count()).select_from(User)
    others = others.where(User.firm_id == user.firm_id, User.role == UserRole.ADMIN, User.enabled)
    return not await session.scalar(others.where(User.user_id != user.user_id))


async def end_logins(session: AsyncSession, user_id: str, *, except_for: str = "") -> None:
    """End all logins of a user, of clients and of the portal, except the one with this hash."""
    logins = delete(LoginSession).where(LoginSession.user_id == user_id)
    await session.execute(logins.where(LoginSession.token_hash != except_for))


@dataclass(frozen=True)
class FirmLine:
    """A line as one firm sees it."""

    line: Line
    # The firm's own members, and their roles.
    own: dict[str, str]
    # The roles of members of other firms.
    others: tuple[str, ...]


async def line_of(session: AsyncSession, firm_id: str, number: str) -> FirmLine:
    """A line that a user of this firm has. Raises PageError 404."""
    line = await session.get(Line, number) if is_name(number) else None
    if line is None:
        raise not_found()
    members = select(LineMember.user_id, LineMember.role, User.firm_id).join(User, User.user_id == LineMember.user_id)
    found = (await session.execute(members.where(LineMember.number == number).order_by(User.name))).all()
    own = {row.user_id: row.role for row in found if row.firm_id == firm_id}
    if not own:
        raise not_found()
    return FirmLine(line, own, tuple(row.role for row in found if row.firm_id != firm_id))


def numbers_of(firm_id: str) -> Select[str]:
    """The numbers of the firm's lines, as a query."""
    members = select(LineMember.number).join(User, User.user_id == LineMember.user_id)
    return members.where(User.firm_id == firm_id).distinct()
