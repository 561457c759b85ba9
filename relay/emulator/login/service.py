"""The endpoints of the login."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections.abc import Callable
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.catalog import Service
from relay.emulator.http.endpoints import Call, Endpoint, Handler, read_body
from relay.emulator.http.errors import ApiError, unauthorized
from relay.emulator.http.site import Names, Site
from relay.emulator.lines import MemberRole
from relay.emulator.login import models
from relay.emulator.login.client_logs import MAX_UPLOAD_BYTES, TYPES, ClientLogs
from relay.emulator.login.media import Media
from relay.emulator.login.throttle import Throttle
from relay.emulator.login.tokens import Bearer, Principal, Tokens
from relay.emulator.marks import Mark
from relay.emulator.names import HostRole
from relay.emulator.store import Store, tables
from relay.emulator.store.passwords import check_password, nobodys_hash
from relay.emulator.store.store import audit

# A check takes 19 MiB and 30 ms of a core. Two at a time leave the loop its share of two cores.
MAX_CHECKS_AT_ONCE = 2
# Beyond this many waiting, a login storm is told to come back rather than kept waiting for longer than clients do.
MAX_CHECKS_WAITING = 500


class Passwords:
    """Checks passwords in threads, a few at a time, and slows down who guesses. Portal and login share it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._throttle = Throttle()
        self._checking = asyncio.Semaphore(MAX_CHECKS_AT_ONCE)
        self._waiting = 0
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._clock = clock

    async def check(self, name: str, address: str, user: tables.User | None, password: str) -> bool:
        """True if the password is the user's. Raises ApiError 429 for who guesses, and 503 in a storm."""
        if self._waiting >= MAX_CHECKS_WAITING:
            message = "Too many logins at once."
            raise ApiError(503, "busy", message, expected="another attempt in 5 s", headers={"Retry-After": "5"})
        self._waiting += 1
        try:
            # One at a time of a name: many guesses at once gain nothing, and many right passwords just wait.
            async with self._turn_of(name.lower()):
                self._check_wait(name, address)
                async with self._checking:
                    right = await asyncio.to_thread(_is_right, user, password)
                if right and user is not None:
                    self._throttle.succeeded(name)
                    return True
                self._throttle.failed(self._clock(), name, address)
                return False
        finally:
            self._waiting -= 1

    def _check_wait(self, name: str, address: str) -> None:
        if (wait := self._throttle.wait(self._clock(), name, address)) > 0:
            after = str(math.ceil(wait))
            message = f"Too many failed logins. Try again in {after} s."
            raise ApiError(
                429, "too_many_failures", message, expected=f"a pause of {after} s", headers={"Retry-After": after}
            )

    def _turn_of(self, name: str) -> asyncio.Lock:
        """The lock of a name. It lasts as long as somebody holds or awaits it."""
        return self._turns.setdefault(name, asyncio.Lock())


def _is_right(user: tables.User | None, password: str) -> bool:
    # A name that does not exist takes as long as one that does.
    return check_password(nobodys_hash() if user is None else user.password_hash, password)


def _endpoint(method: str, name: str, summary: str, handler: Handler, **more: Any) -> Endpoint:
    # Nothing of c9rest is public, except that there is a login and a setting called Voice via Web Proxy.
    return Endpoint(HostRole.LOGIN, method, f"/rest/v1/{name}", Mark.INVENTED, summary, handler, **more)


_LOGIN_ERRORS = {
    401: "The name or the password is wrong.",
    403: "The user is disabled.",
    429: "Too many failed logins: Retry-After says how long to wait.",
    503: "Too many logins at once: Retry-After says how long to wait.",
}
_LOG_ERRORS = {
    429: "You upload too many logs at once: Retry-After says how long to wait.",
    503: "Too many logs at once: Retry-After says how long to wait.",
    507: "The emulator keeps no more logs until somebody removes some.",
}


class LoginService:
    """Everything of c9rest."""

    def __init__(self, store: Store, names: Names, media: Media, logs: ClientLogs, passwords: Passwords) -> None:
        self._store = store
        self._names = names
        self._media = media
        self._logs = logs
        self._passwords = passwords
        self.tokens = Tokens(store)
        self.bearer = Bearer(self.tokens)

    def register(self, site: Site) -> None:
        """Serve the endpoints."""
        bearer = self.bearer
        site.add(
            _endpoint(
                "POST",
                "login",
                "Log in",
                self._login,
                body=models.LoginRequest,
                answer=models.LoginAnswer,
                errors=_LOGIN_ERRORS,
            ),
            _endpoint(
                "GET",
                "settings",
                "The settings of the login, with fresh TURN credentials",
                self._settings,
                answer=models.Settings,
                security=bearer,
                description="`voiceViaWebProxy` is documented, and so is that a change counts from the next login.",
            ),
            _endpoint(
                "POST",
                "turn-credentials",
                "Fresh credentials for the TURN hosts",
                self._credentials,
                answer=models.TurnCredentials,
                security=bearer,
            ),
            _endpoint(
                "POST",
                "logs",
                "Upload a log: text, or text in gzip",
                self._keep_log,
                answer=models.LogReceipt,
                status=201,
                security=bearer,
                body_types=TYPES,
                reads_body=False,
                errors=_LOG_ERRORS,
            ),
            _endpoint("POST", "logout", "End the login", self._logout, answer=models.Done, security=bearer),
        )

    async def _login(self, call: Call) -> models.LoginAnswer:
        wanted: models.LoginRequest = call.body
        users = tables.User
        async with self._store.reading() as session:
            found = select(users).where(or_(users.user_id == wanted.user, users.email == wanted.user.lower()))
            user = (await session.scalars(found)).first()
        if not await self._passwords.check(wanted.user, call.client_host, user, wanted.password) or user is None:
            raise unauthorized("The name or the password is wrong.", where="body", scheme="Login")
        if not user.enabled:
            raise ApiError(
                403, "disabled", "This user is disabled.", where="body.user", expected="a firm administrator enables it"
            )
        token, expires_at = await self.tokens.open(user, "client", client_version=wanted.client_version)
        principal = await self.tokens.find(token, "client")
        if principal is None:
            raise unauthorized("The login was ended as soon as it began.", where="body", scheme="Login")
        async with self._store.writing() as session:
            audit(session, user.firm_id, user.user_id, "login", user.user_id, client_version=wanted.client_version)
        async with self._store.reading() as session:
            firm = await session.get_one(tables.Firm, user.firm_id)
            settings = await self._settings_of(session, principal)
        view = models.UserView(
            user_id=user.user_id,
            name=user.name,
            email=user.email,
            firm_id=user.firm_id,
            firm_name=firm.name,
            role="admin" if user.role == "admin" else "user",
            extension=user.extension,
        )
        return models.LoginAnswer(token=token, expires_at=expires_at, user=view, settings=settings)

    async def _settings(self, call: Call) -> models.Settings:
        async with self._store.reading() as session:
            return await self._settings_of(session, call.caller)

    async def _settings_of(self, session: AsyncSession, principal: Principal) -> models.Settings:
        members, lines, buttons = tables.LineMember, tables.Line, tables.Button
        mine = select(members.role, lines).join(lines, lines.number == members.number)
        mine = mine.where(members.user_id == principal.user_id).order_by(lines.number)
        keys = select(buttons).where(buttons.user_id == principal.user_id).order_by(buttons.position)
        return models.Settings(
            voice_via_web_proxy=principal.voice_via_web_proxy,
            region=principal.region,
            signaling=models.SignalingSettings(hosts=self._signaling_hosts(principal.region)),
            media=self._media.settings(principal),
            buttons=[
                models.ButtonView(position=key.position, label=key.label, line=key.line, dial=key.dial)
                for key in await session.scalars(keys)
            ],
            lines=[
                models.LineView(
                    line=row.Line.number,
                    kind=row.Line.kind,
                    label=row.Line.label,
                    region=row.Line.region,
                    may_talk=row.role == MemberRole.TALKER,
                )
                for row in await session.execute(mine)
            ],
        )

    def _signaling_hosts(self, region: str) -> list[models.SignalingHost]:
        hosts = [
            models.SignalingHost(name=host.name, region=host.region)
            for host in self._names.catalog.hosts
            if host.service is Service.SIGNALING and self._names.exists(host.name)
        ]
        return sorted(hosts, key=lambda host: (host.region != region, host.region is not None))

    async def _credentials(self, call: Call) -> models.TurnCredentials:
        return self._media.credentials(call.caller.user_id)

    async def _keep_log(self, call: Call) -> models.LogReceipt:
        content_type = call.request.content_type
        if content_type not in TYPES:
            expected = " or ".join(TYPES)
            raise ApiError(415, "wrong_type", "The body has another type.", where="Content-Type", expected=expected)

        async def read() -> bytes:
            body = await read_body(call.request, MAX_UPLOAD_BYTES)
            # The body may have taken its time, and the login may have ended meanwhile.
            await self.bearer.check(call.request, body)
            return body

        log = await self._logs.keep(call.caller.user_id, content_type, read)
        return models.LogReceipt(log_id=log.log_id, size_bytes=log.size_bytes)

    async def _logout(self, call: Call) -> models.Done:
        await self.tokens.close(call.caller.token_hash)
        return models.Done()
