"""The softphone's requests over HTTP: login, settings, TURN credentials. Every one has a deadline."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from relay import __version__, deadlines
from relay.emulator.http.errors import ErrorAnswer
from relay.emulator.login.models import LoginAnswer, LoginRequest, TurnCredentials
from relay.emulator.softphone.errors import LoginRefused, SoftphoneError, Unreachable

# A login checks a password, which takes a while by design, and in a storm it waits for others.
REQUEST_TIMEOUT_S = 30.0
# A login names every TURN host and line: 50 KB with the largest fixtures that there are.
MAX_ANSWER_BYTES = 4 * 1024 * 1024
# What one softphone does at a time: a poll of signaling, a post of it, a request, and an upload.
CONNECTIONS = 4
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_LOCATION = 300
_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY, _UNAVAILABLE = 401, 403, 429, 503

Model = TypeVar("Model", bound=BaseModel)


class AnswerError(SoftphoneError):
    """The server refuses a request: ``status``, and what it says."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.retry_after_s = retry_after_s


class Redirected(aiohttp.ClientError):
    """A server answers that somebody else is to be asked: ``status``, and whom it names."""

    def __init__(self, status: int, location: str) -> None:
        super().__init__(f"leads to {location[:MAX_LOCATION]!r}, which a softphone does not follow")
        self.status = status


async def _refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """For all requests of a softphone, those of socket.io too: it asks the hosts that it was told, and no others."""
    answer = await handler(request)
    if answer.status in _REDIRECTS:
        location = answer.headers.get("Location", "")
        answer.close()
        raise Redirected(answer.status, location)
    return answer


def open_http(ssl_context: ssl.SSLContext | None, proxy: str | None) -> aiohttp.ClientSession:
    """The connections of one softphone. ``proxy`` is a web proxy, with user and password if it wants them."""
    # The system's resolver: aiohttp's own has threads and queues, which do not work where gevent has replaced them.
    resolver = aiohttp.ThreadedResolver()
    connector = aiohttp.TCPConnector(ssl=ssl_context or True, limit=CONNECTIONS, resolver=resolver)
    return aiohttp.ClientSession(
        connector=connector,
        proxy=proxy,
        cookie_jar=aiohttp.CookieJar(unsafe=True),
        middlewares=(_refuse_redirects,),
    )


class Rest:
    """Requests to the REST host at ``url``, such as ``https://c9rest.xhoot.com``. ``token`` is set by the login."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url.rstrip("/")
        self.token = ""
        self._http = http

    async def login(self, user: str, password: str) -> LoginAnswer:
        """Log in. Raises LoginRefused or Unreachable."""
        request = LoginRequest(user=user, password=password, client_version=f"relay-softphone {__version__}")
        try:
            answer = await self.ask("POST", "/rest/v1/login", LoginAnswer, json=request.model_dump())
        except AnswerError as error:
            if error.status in {_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY, _UNAVAILABLE}:
                raise LoginRefused(f"login of {user}: {error}", retry_after_s=error.retry_after_s) from error
            raise Unreachable(f"login at {self.url}: {error}") from error
        self.token = answer.token
        return answer

    async def credentials(self) -> TurnCredentials:
        """Fresh TURN credentials. Raises SoftphoneError."""
        return await self.ask("POST", "/rest/v1/turn-credentials", TurnCredentials)

    async def logout(self) -> None:
        """End the login. Raises SoftphoneError."""
        await self.request("POST", "/rest/v1/logout")

    async def ask(self, method: str, path: str, model: type[Model], **arguments: Any) -> Model:
        """An answer of JSON. Raises AnswerError if the server refuses, and Unreachable."""
        body = await self.request(method, path, **arguments)
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise Unreachable(f"{self.url}{path}: expected {model.__name__}, but {_first_line(error)}") from error

    async def request(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **arguments: Any
    ) -> bytes:
        """An answer's body. Raises as ``ask`` does."""
        return (await self._request(method, path, headers, **arguments))[1]

    async def head(self, path: str) -> Mapping[str, str]:
        """An answer's headers. Raises as ``ask`` does."""
        return (await self._request("HEAD", path, None))[0]

    async def _request(
        self, method: str, path: str, headers: dict[str, str] | None, **arguments: Any
    ) -> tuple[Mapping[str, str], bytes]:
        sent = dict(headers or {})
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        try:
            async with (
                deadlines.timeout(REQUEST_TIMEOUT_S),
                self._http.request(method, self.url + path, headers=sent, **arguments) as answer,
            ):
                body = await _read(answer)
        except TimeoutError:
            raise Unreachable(f"{self.url}{path}: no answer within {REQUEST_TIMEOUT_S:g} s") from None
        except Redirected as redirected:
            raise AnswerError(redirected.status, str(redirected)) from redirected
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self.url}{path}: {error}") from error
        if answer.status >= 300:
            raise _refusal(answer, body)
        return answer.headers, body


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise aiohttp.ClientPayloadError(f"more than {MAX_ANSWER_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _refusal(answer: aiohttp.ClientResponse, body: bytes) -> AnswerError:
    try:
        detail = ErrorAnswer.model_validate_json(body).error
        message = f"{detail.message} Expected: {detail.expected}." if detail.expected else detail.message
    except ValidationError:
        message = answer.reason or "no reason"
    after = answer.headers.get("Retry-After", "")
    return AnswerError(answer.status, message, float(after) if after.isdecimal() and len(after) < 7 else None)


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
