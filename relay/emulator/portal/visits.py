"""One request to the portal: who asks, whether they may, and what they sent. Whatever fails becomes a page.

Life of a request: a login → the role → for a change, its origin, its form and the form's token → the page's handler.
A form may take its time, and a password to hash, too. So a change looks at the login and the role again as it writes.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

import structlog
from aiohttp import web
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator.http.errors import ApiError
from relay.emulator.login.tokens import Principal
from relay.emulator.names import UserRole
from relay.emulator.portal.forms import Form, read_form
from relay.emulator.portal.logins import FORM_TOKEN, Logins, check_origin
from relay.emulator.portal.pages import ROOT, PageError, Pages, see_other
from relay.emulator.store import Store
from relay.emulator.store.store import is_full, is_unavailable
from relay.emulator.store.tables import Firm

log = structlog.get_logger()

# What a page may say after a redirect. An address has only the word, so that no link can make the portal say anything.
NOTICES = {
    "saved": "Saved.",
    "added": "Added.",
    "deleted": "Deleted.",
    "voice-on": "Voice via Web Proxy is on. It counts from the user's next login.",
    "voice-off": "Voice via Web Proxy is off. It counts from the user's next login.",
    "password": "The password was changed. All other logins of this user have ended.",
    "enabled": "The user can log in again.",
    "fault-on": "The fault is on.",
    "fault-off": "The fault is off.",
    "disabled": "The user is disabled. All their logins have ended.",
}
_EMPTY = Form([])


@dataclass(frozen=True)
class Visit:
    """A request of someone who is logged in."""

    request: web.Request
    who: Principal
    form_token: str
    pages: Pages
    # A session that writes, for one who still may.
    writing: Callable[[], contextlib.AbstractAsyncContextManager[AsyncSession]]
    form: Form = field(default=_EMPTY)

    @property
    def is_admin(self) -> bool:
        """True for an administrator of the firm."""
        return self.who.role == UserRole.ADMIN

    def path(self, name: str) -> str:
        """A name in the request's path."""
        return self.request.match_info[name]

    def query(self, name: str) -> str:
        """A parameter, without what cannot be printed."""
        return "".join(one for one in self.request.query.get(name, "")[:200] if one.isprintable()).strip()

    def render(
        self, template: str, context: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """A page with the frame around it."""
        frame = {
            "who": self.who,
            "is_admin": self.is_admin,
            "form_token": self.form_token,
            "form_token_name": FORM_TOKEN,
            "here": self.request.path,
            "notice": NOTICES.get(self.query("done"), ""),
            "notice_of": "",
        }
        return self.pages.render(template, {**frame, **context}, status=status, headers=headers)


Handler = Callable[[Visit], Awaitable[web.StreamResponse]]


class Page(Protocol):
    """A part of the portal."""

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each of its pages."""


class Visits:
    """Makes handlers of visits into handlers of requests."""

    def __init__(self, logins: Logins, pages: Pages, store: Store) -> None:
        self._logins = logins
        self._pages = pages
        self._store = store

    def reading(
        self, handler: Handler, *, admin: bool = False
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """For GET: strangers are sent to the login."""

        async def on_request(request: web.Request) -> web.StreamResponse:
            who = await self._logins.find(request)
            if who is None:
                return self._to_login(request)
            _check_role(who, admin)
            return await handler(self._visit(request, who, admin, _EMPTY))

        return self.guarded(on_request)

    def changing(
        self, handler: Handler, *, admin: bool = False
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """For POST: the form must be one of ours."""

        async def on_request(request: web.Request) -> web.StreamResponse:
            check_origin(request)
            who = await self._logins.find(request)
            if who is None:
                raise _not_logged_in()
            _check_role(who, admin)
            form = await read_form(request)
            self._logins.check_form(request, form.raw(FORM_TOKEN))
            return await handler(self._visit(request, who, admin, form))

        return self.guarded(on_request)

    def _visit(self, request: web.Request, who: Principal, admin: bool, form: Form) -> Visit:
        token, writing = self._logins.form_token(request), functools.partial(self._writing, who, admin)
        return Visit(request, who, token, self._pages, writing, form)

    @contextlib.asynccontextmanager
    async def _writing(self, who: Principal, admin: bool) -> AsyncIterator[AsyncSession]:
        """A session that writes. Raises PageError 401 or 403 if the login has ended meanwhile, or the role is gone."""
        async with self._store.writing() as session:
            # Changes of a firm take turns. So nobody loses login or role after this look, and two administrators
            # cannot each be the one who stays. SQLite has one writer anyhow.
            await session.execute(
                select(Firm.firm_id).where(Firm.firm_id == who.firm_id).with_for_update(key_share=True)
            )
            now = await self._logins.find_again(session, who)
            if now is None:
                raise _not_logged_in()
            _check_role(now, admin)
            yield session

    def guarded(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Turn what fails into a page."""

        async def on_request(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except PageError as refused:
                return self.refusal(refused.status, refused.title, str(refused), refused.headers)
            except ApiError as refused:
                return self.not_now(refused)
            except IntegrityError:
                # The checks before a change find this, unless two changes meet in the database itself.
                message = "Somebody else has just changed the same thing. Nothing was changed. Go back and try again."
                return self.refusal(409, "Two changes at once", message)
            except (web.HTTPException, ConnectionResetError, web.RequestPayloadError):
                # An answer of aiohttp's, or the client is gone.
                raise
            except Exception as error:
                if is_full(error):
                    return self.refusal(507, "Disk full", "The emulator's disk is full. Nothing was changed.")
                if is_unavailable(error):
                    message = "The database is busy. Nothing was changed. Try again."
                    return self.refusal(503, "Busy", message, {"Retry-After": "5"})
                incident = secrets.token_hex(4)
                log.exception("portal failed", incident=incident, method=request.method, path=request.path)
                message = f"A fault of the emulator's own. Its log has it as incident {incident}."
                return self.refusal(500, "Something failed", message)

        return on_request

    def not_now(self, refused: ApiError) -> web.Response:
        """A page for what another part of the emulator has refused."""
        return self.refusal(refused.status, "Not now", str(refused), refused.headers)

    def refusal(self, status: int, title: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
        """A page that says why nothing was done."""
        context = {"title": title, "message": message, "status": status}
        return self._pages.render("refusal.html", context, status=status, headers=headers)

    def _to_login(self, request: web.Request) -> web.StreamResponse:
        wanted = request.raw_path
        if wanted == ROOT or len(wanted) > 500:
            return see_other(f"{ROOT}login")
        return see_other(f"{ROOT}login?next={quote(wanted, safe='')}")


def _not_logged_in() -> PageError:
    message = "The login has ended. Nothing was changed. Log in, and repeat what you did."
    return PageError(401, "Not logged in", message, headers={"WWW-Authenticate": 'Login realm="c9"'})


def _check_role(who: Principal, admin: bool) -> None:
    if admin and who.role != UserRole.ADMIN:
        raise PageError(403, "For administrators", "Only an administrator of your firm may see this.")
