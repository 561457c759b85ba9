"""Who may ask the admin listener: pages of its own only, and whoever brings the token, if there is one."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from relay.gateway.admin.hosts import OPEN_PATHS
from relay.gateway.admin.refusals import AdminRefusal, AdminRefusals
from relay.gateway.admin.tokens import TokenCheck, TokenVerdict

# A browser asks its user for a name, which does not matter, and a password, which is the token. The second is for
# programs.
CHALLENGES = ('Basic realm="cloud9-relay", charset="UTF-8"', 'Bearer realm="cloud9-relay"')
_WORDS = {
    TokenVerdict.MISSING: "expected the token: Authorization: Bearer ..., or the password of any user",
    TokenVerdict.WRONG: "this is not the token",
    TokenVerdict.TOO_MANY: "too many tokens to check: try again in some seconds",
}
_REFUSALS = {
    TokenVerdict.MISSING: AdminRefusal.TOKEN_MISSING,
    TokenVerdict.WRONG: AdminRefusal.TOKEN_WRONG,
    TokenVerdict.TOO_MANY: AdminRefusal.TOO_MANY_TOKENS,
}
RETRY_AFTER_S = 5


def check_origin(refusals: AdminRefusals) -> Middleware:
    """Refuses what a page of another origin asks for, with 403: it could use what its reader's browser knows.

    Browsers name the page's origin in all requests that change something, and in event streams of other pages.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get(hdrs.HOST, "").lower()
        for origin in request.headers.getall(hdrs.ORIGIN, []):
            if origin.lower().partition("://")[2] != host and request.path not in OPEN_PATHS:
                refusals.note_request(AdminRefusal.ORIGIN, request)
                return _refuse(403, "Origin: expected none, or a page of this listener")
        return await handler(request)

    return middleware


def check_token(tokens: TokenCheck, refusals: AdminRefusals) -> Middleware:
    """Refuses requests without the token, with 401, or 429 if there were too many wrong ones."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS:
            return await handler(request)
        verdict = await tokens.check(request.headers.get(hdrs.AUTHORIZATION), request.remote or "")
        if verdict is TokenVerdict.GOOD:
            return await handler(request)
        refusals.note_request(_REFUSALS[verdict], request)
        if verdict is TokenVerdict.TOO_MANY:
            response = _refuse(429, _WORDS[verdict])
            response.headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_S)
            return response
        response = _refuse(401, _WORDS[verdict])
        for challenge in CHALLENGES:
            response.headers.add(hdrs.WWW_AUTHENTICATE, challenge)
        return response

    return middleware


def _refuse(status: int, why: str) -> web.Response:
    headers = {hdrs.CACHE_CONTROL: "no-store", "X-Content-Type-Options": "nosniff"}
    return web.json_response({"error": why}, status=status, headers=headers)
