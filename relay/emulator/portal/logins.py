"""Who is logged in to the portal: cookies, their login sessions, and the tokens that prove that a form is ours.

A login has a random token in a cookie; the database has its hash. Nobody can choose it: each login makes a new one, and
a token that the database does not know is nothing. A form carries a digest of the token, which no other site can read.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator.login.tokens import Kind, Principal, Tokens, hash_token
from relay.emulator.portal.pages import ROOT, PageError
from relay.emulator.store.tables import User

# A working day. After that people log in again, whether they were busy or not.
LIFETIME_S = 8 * 3600.0
# The field of each form that changes something.
FORM_TOKEN = "form_token"  # noqa: S105
KIND: Kind = "portal"


def is_secure(request: web.Request) -> bool:
    """True if the browser came by HTTPS: to us, or to a relay in front of us, which says so itself.

    The header cannot be planted: a page of another site cannot add it to a form, and the relay replaces what clients
    say.
    """
    return request.secure or request.headers.get("X-Forwarded-Proto") == "https"


def _cookie_name(request: web.Request, name: str) -> str:
    # Browsers take a cookie with this prefix only over HTTPS, for this host alone. So a page of plain HTTP, or of a
    # neighbouring host, cannot plant it.
    return f"__Host-c9portal-{name}" if is_secure(request) else f"c9portal-{name}"


def _set_cookie(request: web.Request, answer: web.StreamResponse, name: str, value: str, max_age_s: float) -> None:
    secure = is_secure(request)
    answer.set_cookie(
        _cookie_name(request, name),
        value,
        max_age=int(max_age_s),
        path="/" if secure else ROOT,
        secure=secure,
        httponly=True,
        samesite="Strict",
    )


def _digest(secret: str) -> str:
    return hmac.new(secret.encode("utf-8", "surrogateescape"), b"c9portal form", hashlib.sha256).hexdigest()


class Logins:
    """Reads and sets the cookies of the portal."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def find(self, request: web.Request) -> Principal | None:
        """Who is logged in. None for nobody."""
        token = self._token(request)
        return await self._tokens.find(token, KIND) if token else None

    async def find_again(self, session: AsyncSession, who: Principal) -> Principal | None:
        """The same login as it is now, in a transaction that is to change something. None if it has ended."""
        return await self._tokens.find_in(session, who.token_hash, KIND)

    def form_token(self, request: web.Request) -> str:
        """What the forms of this login carry."""
        return _digest(self._token(request))

    async def begin(self, request: web.Request, answer: web.StreamResponse, user: User) -> None:
        """A new login. One that the browser had before ends. Raises ApiError 401 if the user has changed meanwhile."""
        token, _ = await self._tokens.open(user, KIND, lifetime_s=LIFETIME_S)
        await self.end(request, answer)
        _set_cookie(request, answer, "login", token, LIFETIME_S)
        self._forget(request, answer, "before")

    async def end(self, request: web.Request, answer: web.StreamResponse) -> None:
        """End the login of this browser, if it has one."""
        if token := self._token(request):
            await self._tokens.close(hash_token(token))
            self._forget(request, answer, "login")

    def before_login(self, request: web.Request) -> str:
        """A secret for the login form of this browser, which has no login yet."""
        return request.cookies.get(_cookie_name(request, "before"), "") or secrets.token_urlsafe(16)

    def keep_before_login(self, request: web.Request, answer: web.StreamResponse, secret: str) -> None:
        """Let the browser keep the secret."""
        _set_cookie(request, answer, "before", secret, LIFETIME_S)

    def check_login_form(self, request: web.Request, given: str) -> None:
        """Raises PageError 403 unless the login form is ours: nobody is to be logged in as somebody else unawares."""
        _check(request.cookies.get(_cookie_name(request, "before"), ""), given)

    def check_form(self, request: web.Request, given: str) -> None:
        """Raises PageError 403 unless the form was made for this login."""
        _check(self._token(request), given)

    def _token(self, request: web.Request) -> str:
        return request.cookies.get(_cookie_name(request, "login"), "")

    def _forget(self, request: web.Request, answer: web.StreamResponse, name: str) -> None:
        _set_cookie(request, answer, name, "", 0)


def digest_of(secret: str) -> str:
    """The token of a form that is made with this secret."""
    return _digest(secret)


def _check(secret: str, given: str) -> None:
    if not secret or not hmac.compare_digest(_digest(secret).encode(), given.encode("utf-8", "surrogatepass")):
        raise PageError(
            403,
            "Form out of date",
            "This form was made for another login, or the browser keeps no cookies. Nothing was changed. "
            "Go back, load the page again, and repeat what you did.",
        )


def check_origin(request: web.Request) -> None:
    """Raises PageError 403 if a browser says that another site's page has sent this.

    Only the host counts, because a proxy may have ended the TLS of a page that came by HTTPS.
    """
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin")
    if site in {"same-origin", "none"} and (origin is None or origin.partition("://")[2] == request.host):
        return
    raise PageError(403, "Sent by another site", "Another site's page has sent this form. Nothing was changed.")
