"""The service that the relay's policy ``http`` asks who may place calls, and the reason for a user who may not.

*Voice via Web Proxy* is a setting of each user. A change counts from the user's next login (documented), so what counts
is the setting as it was at the latest login that is still in use.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator.http.endpoints import Call, Endpoint, Security
from relay.emulator.http.errors import unauthorized
from relay.emulator.marks import Mark
from relay.emulator.names import HostRole, UserRole
from relay.emulator.store import Store
from relay.emulator.store.tables import LoginSession, User

SETTING = "Voice via Web Proxy"
# The kind of a softphone's login session. The portal's have another.
CLIENT = "client"
# Calls of one user at once. A board has dozens of lines, and a browser may ask for two allocations for each.
CALLS_AT_ONCE = 64
# The relay's bound for names is 508 bytes, which are at most as many characters.
MAX_NAME_CHARACTERS = 508
# More administrators than this are not listed for a user who needs one.
MAX_ADMINISTRATORS = 5


@dataclass(frozen=True)
class Standing:
    """What decides whether a user has voice through the relay. ``at_login`` is None for who is not logged in."""

    exists: bool = False
    enabled: bool = False
    setting: bool = False
    at_login: bool | None = None

    @property
    def allowed(self) -> bool:
        """True if the user may place calls through the relay."""
        return self.enabled and self.at_login is True

    @property
    def reason(self) -> str:
        """What is so, and what has to be done by whom if that is not enough."""
        if not self.exists:
            return "There is no such user."
        if not self.enabled:
            return "The user is disabled. An administrator of the firm can enable them, in the portal."
        if self.at_login is None:
            return "The user is not logged in: log in with a client first."
        if self.at_login:
            later = "" if self.setting else " It is off since: from the next login on, calls are refused."
            return f"{SETTING} was on at the latest login.{later}"
        if self.setting:
            return f"{SETTING} is on, but was off at the latest login: log out, and log in again."
        return (
            f"{SETTING} is off. An administrator of the firm can switch it on, in the portal. "
            "After that, log out, and log in again."
        )


async def standing_of(session: AsyncSession, user_id: str, now: float) -> Standing:
    """What is known of a user. Any text may be asked for."""
    # PostgreSQL takes no NUL, and no name that a client invents may be a failure of this service.
    if not user_id or len(user_id) > MAX_NAME_CHARACTERS or not user_id.isprintable():
        return Standing()
    user = await session.get(User, user_id)
    if user is None:
        return Standing()
    at_login = await session.scalar(
        select(LoginSession.voice_via_web_proxy)
        .where(LoginSession.user_id == user_id, LoginSession.kind == CLIENT, LoginSession.expires_at > now)
        .order_by(LoginSession.created_at.desc())
        .limit(1)
    )
    return Standing(exists=True, enabled=user.enabled, setting=user.voice_via_web_proxy, at_login=at_login)


class Question(BaseModel):
    """What the relay asks. A user's name is taken as it comes, because clients make up names."""

    model_config = ConfigDict(extra="ignore")

    user: str = Field(description="The name in the client's Allocate, without the expiry of a time-limited name.")
    region: str = Field(default="", description="The region of the upstream.")
    client: str = Field(default="", description="The address of the client.")


class Verdict(BaseModel):
    """What the relay reads are ``allowed`` and ``calls``. ``reason`` is for people."""

    allowed: bool
    calls: int = Field(ge=1, description="How many calls the user may have at once.")
    reason: str


class Administrator(BaseModel):
    """Someone who can change the setting."""

    name: str
    email: str


class Explanation(BaseModel):
    """What a softphone shows a user whose calls are refused."""

    allowed: bool
    setting: str = Field(default=SETTING, description="The name of the setting that decides.")
    now: bool = Field(description="What it is set to now. It counts from the next login.")
    at_login: bool | None = Field(description="What it was at the latest login. It counts until the next login.")
    reason: str = Field(description="What is so, and what has to be done by whom, in one or two sentences.")
    administrators: list[Administrator] = Field(description="Who of the user's firm can change the setting.")


class ServiceToken:
    """The bearer token that the relay's configuration carries (``entitlement.token``)."""

    name = "serviceToken"
    scheme: Mapping[str, Any] = {"type": "http", "scheme": "bearer", "description": "entitlement.token of relay.toml"}

    def __init__(self, token: str) -> None:
        self._expected = b"Bearer " + token.encode()

    async def check(self, request: web.Request, body: bytes) -> None:
        """Raises ApiError 401."""
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._expected):
            message = "The token is not the relay's." if given else "There is no token."
            raise unauthorized(message, expected="Bearer, and entitlement.token of the relay.toml that was written")


class VoiceEntitlement:
    """Answers the relay, and users."""

    def __init__(
        self, store: Store, token: str, *, calls: int = CALLS_AT_ONCE, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._calls = calls
        self._clock = clock
        self._token = ServiceToken(token)

    async def standing(self, user_id: str) -> Standing:
        """What is known of a user."""
        async with self._store.reading() as session:
            return await standing_of(session, user_id, self._clock())

    async def explain(self, user_id: str) -> Explanation:
        """Why this user has voice through the relay or not, and who can change it."""
        async with self._store.reading() as session:
            standing = await standing_of(session, user_id, self._clock())
            found = await administrators_of(session, user_id) if standing.exists else []
        return Explanation(
            allowed=standing.allowed,
            now=standing.setting,
            at_login=standing.at_login,
            reason=standing.reason,
            administrators=found,
        )

    def for_relay(self) -> Endpoint:
        """What ``entitlement.url`` points at."""
        return Endpoint(
            HostRole.EMULATOR,
            "GET",
            "/entitlement/v1/voice",
            Mark.INVENTED,
            "May this user place calls through the relay?",
            self._on_question,
            query=Question,
            answer=Verdict,
            security=self._token,
            description=f"For the relay's policy `http`. {SETTING} counts as it was at the user's latest login.",
        )

    def for_users(self, security: Security, user_of: Callable[[Any], str]) -> Endpoint:
        """The same for a user who is logged in. ``user_of`` finds the user's id in what the security returns."""

        async def on_request(call: Call) -> Explanation:
            return await self.explain(user_of(call.caller))

        return Endpoint(
            HostRole.LOGIN,
            "GET",
            "/rest/v1/voice",
            Mark.INVENTED,
            "May I place calls through the relay, and if not, who can change that?",
            on_request,
            answer=Explanation,
            security=security,
        )

    async def _on_question(self, call: Call) -> Verdict:
        standing = await self.standing(call.query.user)
        return Verdict(allowed=standing.allowed, calls=self._calls, reason=standing.reason)


async def administrators_of(session: AsyncSession, user_id: str) -> list[Administrator]:
    """The enabled administrators of this user's firm, at most five."""
    own_firm = select(User.firm_id).where(User.user_id == user_id).scalar_subquery()
    found = await session.execute(
        select(User.name, User.email)
        .where(User.firm_id == own_firm, User.role == UserRole.ADMIN, User.enabled)
        .order_by(User.name)
        .limit(MAX_ADMINISTRATORS)
    )
    return [Administrator(name=name, email=email) for name, email in found]
