"""An endpoint says in pydantic's models what it takes and answers. They check requests, and describe the API.

Life of a request: host and method match → security → body within its bound and of its type → models → the handler.
Whatever fails on the way is an ApiError. Security comes before the models, so that strangers learn nothing of them; a
signature is over the raw body, so the body is read first where the security asks for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web
from pydantic import BaseModel, ValidationError

from relay import deadlines
from relay.emulator.http.errors import ApiError, from_validation
from relay.emulator.marks import Mark
from relay.emulator.names import HostRole

# A request of JSON is some hundred bytes. Endpoints that take more say so.
MAX_BODY_BYTES = 64 * 1024
# A client that sends its body this slowly is hung, or means harm.
BODY_TIMEOUT_S = 15.0
JSON = "application/json"


class Security(Protocol):
    """How an endpoint knows who asks. ``name`` and ``scheme`` are what OpenAPI's securitySchemes has of it."""

    name: str
    scheme: Mapping[str, Any]

    async def check(self, request: web.Request, body: bytes) -> object:
        """Who asks. Raises ApiError 401 if that is not proved, and 403 if they may not ask here."""


@dataclass(frozen=True)
class Call:
    """A request that was checked. ``body``, ``query`` and ``path`` are of the endpoint's models, or None."""

    request: web.Request
    raw_body: bytes
    body: Any = None
    query: Any = None
    path: Any = None
    # What the security returned.
    caller: Any = None

    @property
    def client_host(self) -> str:
        """The address of who asks, or an empty text."""
        return self.request.remote or ""


Handler = Callable[[Call], Awaitable[BaseModel | web.StreamResponse]]


@dataclass(frozen=True)
class Endpoint:
    """One method of one path. A ``{name}`` in the path is a field of ``path_model``.

    ``answer`` is the model of the body that goes with ``status``. A handler may return a finished response instead,
    whose types ``content_types`` names. With ``reads_body=False`` the handler reads the request's stream itself, and
    bounds it. ``errors`` says what each further status means.
    """

    role: HostRole
    method: str
    path: str
    mark: Mark
    summary: str
    handler: Handler
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    path_model: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    status: int = 200
    content_types: tuple[str, ...] = ()
    security: Security | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    reads_body: bool = True
    # How long the answer may take. None: as long as ``Site.route`` allows.
    timeout_s: float | None = None
    # What a handler that reads the body itself takes.
    body_types: tuple[str, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)
    # Headers of the answer that a client should read, and what they say.
    headers: Mapping[str, str] = field(default_factory=dict)
    # Headers that the handler reads and checks: each one's parameter in OpenAPI, without its name.
    reads_headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    description: str = ""

    async def answer_to(self, request: web.Request) -> web.StreamResponse:
        """Check the request, and do what it asks for. Raises ApiError."""
        raw = await read_body(request, self.max_body_bytes) if self.reads_body else b""
        caller = None if self.security is None else await self.security.check(request, raw)
        call = Call(
            request=request,
            raw_body=raw,
            body=None if self.body is None else parse_json(self.body, raw, request),
            query=None if self.query is None else _parse_query(self.query, request),
            path=None if self.path_model is None else _parse(self.path_model, dict(request.match_info), "path"),
            caller=caller,
        )
        answer = await self.handler(call)
        if isinstance(answer, BaseModel):
            text = answer.model_dump_json(by_alias=True)
            return web.Response(status=self.status, text=text, content_type=JSON)
        return answer


async def read_body(request: web.Request, most: int) -> bytes:
    """The body of a request, bounded in size and time. Raises ApiError."""
    if request.content_length is not None and request.content_length > most:
        raise _too_large(most)
    parts, size = [], 0
    try:
        async with deadlines.timeout(BODY_TIMEOUT_S):
            async for part in request.content.iter_any():
                size += len(part)
                if size > most:
                    raise _too_large(most)
                parts.append(part)
    except TimeoutError:
        expected = f"the whole body within {BODY_TIMEOUT_S:.0f} s"
        raise ApiError(408, "too_slow", "The body did not come in time.", where="body", expected=expected) from None
    return b"".join(parts)


def _too_large(most: int) -> ApiError:
    return ApiError(413, "too_large", "The body is too large.", where="body", expected=f"at most {most} bytes")


def parse_json(model: type[BaseModel], raw: bytes, request: web.Request) -> BaseModel:
    """The body as a model. Raises ApiError 415, 400 or 422."""
    if request.content_type != JSON:
        got = request.headers.get("Content-Type", "")[:100]
        message = f"The body has the type {got!r}." if got else "The body has no type."
        raise ApiError(415, "wrong_type", message, where="Content-Type", expected=JSON)
    try:
        tree = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8: byte {error.start} is wrong."
        raise ApiError(400, "not_json", message, where="body", expected="JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        message = f"The body is not JSON: {error.msg} in line {error.lineno}, column {error.colno}."
        raise ApiError(400, "not_json", message, where="body", expected="a JSON object") from None
    except (ValueError, RecursionError):
        message = "The body is not JSON that can be read: a number is too long, or it nests too deeply."
        raise ApiError(400, "not_json", message, where="body", expected="a JSON object") from None
    return _parse(model, tree, "body")


def _parse_query(model: type[BaseModel], request: web.Request) -> BaseModel:
    values: dict[str, Any] = {}
    for key in request.query:
        every = request.query.getall(key)
        if len(every) > 1:
            expected = "each parameter once"
            raise ApiError(422, "given_twice", f"{key[:100]!r} is given twice.", where="query", expected=expected)
        values[key] = every[0]
    return _parse(model, values, "query")


def _parse(model: type[BaseModel], tree: object, part: str) -> BaseModel:
    try:
        return model.model_validate(tree)
    except ValidationError as invalid:
        raise from_validation(invalid, part, model) from None


def path_fields(path: str) -> list[str]:
    """The names in a path's braces."""
    return re.findall(r"\{(\w+)\}", path)
