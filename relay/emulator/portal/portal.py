"""The portal: puts the pages together, and serves them below ``/portal/``."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from aiohttp import web
from sqlalchemy import or_, select

from relay.emulator.faults.board import FaultBoard
from relay.emulator.http.errors import ApiError
from relay.emulator.http.site import Site
from relay.emulator.login.service import Passwords
from relay.emulator.login.tokens import Tokens
from relay.emulator.names import HostRole
from relay.emulator.portal.api_keys import ApiKeys
from relay.emulator.portal.audit_log import AuditLog
from relay.emulator.portal.buttons import Buttons
from relay.emulator.portal.faults_page import FaultsPage
from relay.emulator.portal.firm import FirmPage
from relay.emulator.portal.firms import MAX_PASSWORD
from relay.emulator.portal.forms import read_form
from relay.emulator.portal.lines import Lines
from relay.emulator.portal.logins import FORM_TOKEN, Logins, check_origin, digest_of
from relay.emulator.portal.neighbours import Listener, LiveCalls, NoCalls, NoListener, RecordedMedia
from relay.emulator.portal.overview import Overview
from relay.emulator.portal.pages import ROOT, PageError, Pages, bundled_assets, see_other
from relay.emulator.portal.parts import Parts
from relay.emulator.portal.profile import Profile
from relay.emulator.portal.recordings import Recordings
from relay.emulator.portal.users import Users
from relay.emulator.portal.visits import Page, Visit, Visits
from relay.emulator.store import Store
from relay.emulator.store.store import audit
from relay.emulator.store.tables import User

_LOGIN_SCHEME = {"WWW-Authenticate": 'Login realm="c9"'}


class Portal:
    """Every page of the portal. ``register`` it with a site."""

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        passwords: Passwords,
        media: RecordedMedia,
        *,
        live: LiveCalls | None = None,
        faults: FaultBoard | None = None,
        listener: Listener | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._passwords = passwords
        self._pages = Pages(has_faults=faults is not None)
        self._logins = Logins(tokens)
        self._visits = Visits(self._logins, self._pages, store)
        parts = Parts(store, clock, listener or NoListener())
        self._parts: list[Page] = [
            Overview(parts, live or NoCalls()),
            Profile(parts, passwords),
            Users(parts),
            Lines(parts),
            Buttons(parts),
            Recordings(parts, media),
            ApiKeys(parts),
            FirmPage(parts),
            AuditLog(parts),
            *([] if faults is None else [FaultsPage(faults)]),
        ]

    def register(self, site: Site) -> None:
        """Serve all pages."""
        guarded = self._visits.guarded
        route = functools.partial(site.route, HostRole.PORTAL, on_slow=self._visits.not_now)
        route("GET", ROOT.rstrip("/"), guarded(self._to_root))
        route("GET", f"{ROOT}login", guarded(self._show_login))
        route("POST", f"{ROOT}login", guarded(self._log_in))
        route("POST", f"{ROOT}logout", self._visits.changing(self._log_out))
        route("GET", f"{ROOT}static/{{digest}}/{{name}}", guarded(bundled_assets().on_request))
        for part in self._parts:
            for method, path, handler in part.routes(self._visits):
                route(method, path, handler)
        route("GET", f"{ROOT}{{path:.*}}", guarded(self._nothing))

    async def _to_root(self, request: web.Request) -> web.StreamResponse:
        return see_other(ROOT)

    async def _nothing(self, request: web.Request) -> web.StreamResponse:
        raise PageError(404, "Not found", "There is no such page.")

    # Log in and out

    async def _show_login(self, request: web.Request) -> web.StreamResponse:
        if await self._logins.find(request) is not None:
            return see_other(_next_of(request.query.get("next", "")))
        return self._login_page(request, _next_of(request.query.get("next", "")))

    def _login_page(
        self, request: web.Request, wanted: str, *, name: str = "", error: ApiError | None = None
    ) -> web.Response:
        secret = self._logins.before_login(request)
        context = {
            "form_token": digest_of(secret),
            "form_token_name": FORM_TOKEN,
            "next": wanted,
            "name": name,
            "error": str(error) if error else "",
        }
        status, headers = (error.status, error.headers) if error else (200, {})
        answer = self._pages.render("login.html", context, status=status, headers=headers)
        self._logins.keep_before_login(request, answer, secret)
        return answer

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        check_origin(request)
        form = await read_form(request)
        self._logins.check_login_form(request, form.raw(FORM_TOKEN))
        name, wanted = form.text("name")[:255], _next_of(form.raw("next"))
        try:
            user = await self._user(name, form.raw("password")[:MAX_PASSWORD], request.remote or "")
            answer = see_other(wanted)
            await self._logins.begin(request, answer, user)
        except ApiError as refused:
            return self._login_page(request, wanted, name=name, error=refused)
        async with self._store.writing() as session:
            audit(session, user.firm_id, user.user_id, "portal login", user.user_id)
        return answer

    async def _user(self, name: str, password: str, address: str) -> User:
        """The user with this name or address, and this password. Raises ApiError 401, 403, 429 or 503."""
        async with self._store.reading() as session:
            found = select(User).where(or_(User.user_id == name, User.email == name.lower()))
            user = (await session.scalars(found)).first()
        if not await self._passwords.check(name, address, user, password) or user is None:
            message = "The name or the password is wrong."
            raise ApiError(401, "unauthorized", message, headers=_LOGIN_SCHEME)
        if not user.enabled:
            raise ApiError(403, "disabled", "This user is disabled. An administrator of your firm can change that.")
        return user

    async def _log_out(self, visit: Visit) -> web.StreamResponse:
        answer = see_other(f"{ROOT}login")
        await self._logins.end(visit.request, answer)
        return answer


def _next_of(wanted: str) -> str:
    """Where to go after the login: only to a page of the portal, and never to another site."""
    plain = wanted.startswith(ROOT) and wanted.isascii() and wanted.isprintable() and "\\" not in wanted
    return wanted if plain and len(wanted) <= 500 else ROOT
