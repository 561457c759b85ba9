"""Logins: opaque tokens, of which the database holds only a hash, with an end."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator.http.errors import unauthorized
from relay.emulator.store import Store, tables

# A working day and more. The vendor's is unknown.
LIFETIME_S = 12 * 3600.0
# A user with more clients than this loses the oldest login.
MAX_PER_USER = 20
# Databases bound the values of one query; this is far below any bound.
_HASHES_A_QUERY = 500

Kind = Literal["client", "portal"]


@dataclass(frozen=True)
class Principal:
    """Who holds a token. ``voice_via_web_proxy`` is the setting as it was at the login."""

    user_id: str
    firm_id: str
    role: str
    region: str
    name: str
    voice_via_web_proxy: bool
    expires_at: float
    token_hash: str


def hash_token(token: str) -> str:
    """What the database holds of a token: it has 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class Tokens:
    """Opens, finds and closes logins."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def open(
        self, user: tables.User, kind: Kind, *, client_version: str = "", lifetime_s: float = LIFETIME_S
    ) -> tuple[str, float]:
        """A new login of a user. Returns the token and when it ends.

        ``user`` is the row that was checked. Raises ApiError 401 if its password has changed since, or if the user has
        been disabled: whoever ends a user's logins must not miss one that is about to be made.
        """
        token = secrets.token_urlsafe(32)
        now = self._clock()
        session = tables.LoginSession(
            token_hash=hash_token(token),
            user_id=user.user_id,
            kind=kind,
            created_at=now,
            expires_at=now + lifetime_s,
            client_version=client_version,
        )
        logins, users = tables.LoginSession, tables.User
        # PostgreSQL holds back changes of the row until this login is there. A writer of SQLite is alone.
        unchanged = select(users.voice_via_web_proxy).with_for_update(key_share=True)
        unchanged = unchanged.where(users.user_id == user.user_id, users.password_hash == user.password_hash)
        async with self._store.writing() as write:
            voice = await write.scalar(unchanged.where(users.enabled))
            if voice is None:
                message = "The password was changed, or the user was disabled, during the login."
                raise unauthorized(message, where="body", scheme="Login")
            session.voice_via_web_proxy = voice
            await write.execute(delete(logins).where(logins.expires_at <= now))
            mine = select(logins.token_hash).where(logins.user_id == user.user_id, logins.kind == kind)
            oldest = (await write.scalars(mine.order_by(logins.created_at.desc()).offset(MAX_PER_USER - 1))).all()
            if oldest:
                await write.execute(delete(logins).where(logins.token_hash.in_(oldest)))
            write.add(session)
        return token, session.expires_at

    async def find(self, token: str, kind: Kind) -> Principal | None:
        """Who holds the token. None if nobody does, it has ended, or its user was disabled."""
        async with self._store.reading() as read:
            return await self.find_in(read, hash_token(token), kind)

    async def find_in(self, session: AsyncSession, token_hash: str, kind: Kind) -> Principal | None:
        """The same by the token's hash, as it is in a transaction that goes on."""
        logins, users = tables.LoginSession, tables.User
        wanted = (
            select(logins, users)
            .join(users, users.user_id == logins.user_id)
            .where(logins.token_hash == token_hash, logins.kind == kind, users.enabled)
        )
        found = (await session.execute(wanted)).first()
        if found is None or found.LoginSession.expires_at <= self._clock():
            return None
        login, user = found.LoginSession, found.User
        return Principal(
            user_id=user.user_id,
            firm_id=user.firm_id,
            role=user.role,
            region=user.region,
            name=user.name,
            voice_via_web_proxy=login.voice_via_web_proxy,
            expires_at=login.expires_at,
            token_hash=login.token_hash,
        )

    async def holds(self, session: AsyncSession, who: Principal) -> bool:
        """True while this login of a client has not ended, in a transaction that is to write for it."""
        return await self.find_in(session, who.token_hash, "client") is not None

    async def still_open(self, hashes: Collection[str]) -> set[str]:
        """Those of these logins that have not ended."""
        logins, users = tables.LoginSession, tables.User
        found: set[str] = set()
        async with self._store.reading() as read:
            for some in _in_parts(list(hashes)):
                wanted = (
                    select(logins.token_hash)
                    .join(users, users.user_id == logins.user_id)
                    .where(logins.token_hash.in_(some), logins.expires_at > self._clock(), users.enabled)
                )
                found.update(await read.scalars(wanted))
        return found

    async def close(self, token_hash: str) -> None:
        """End a login."""
        async with self._store.writing() as write:
            await write.execute(delete(tables.LoginSession).where(tables.LoginSession.token_hash == token_hash))


def _in_parts(hashes: list[str]) -> Iterator[list[str]]:
    for begin in range(0, len(hashes), _HASHES_A_QUERY):
        yield hashes[begin : begin + _HASHES_A_QUERY]


class Bearer:
    """The security of endpoints for clients that have logged in. Returns a Principal."""

    name = "login"
    scheme: Mapping[str, Any] = {"type": "http", "scheme": "bearer", "description": "The token of POST /rest/v1/login"}

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def check(self, request: web.Request, body: bytes) -> Principal:
        """Who asks. Raises ApiError 401."""
        header = request.headers.get("Authorization", "")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthorized("A token is required.", expected="Authorization: Bearer TOKEN, from POST /rest/v1/login")
        principal = await self._tokens.find(token.strip(), "client")
        if principal is None:
            raise unauthorized("The token is unknown or has ended.", expected="a token of a new login")
        return principal
