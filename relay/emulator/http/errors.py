"""What a client is told when its request cannot be done: always JSON of one form, never a stack trace."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from relay.emulator.http.fields import MAX_SHOWN, wrong_fields
from relay.errors import PeerError

# More mistakes in one request than this are not listed.
MAX_MISTAKES = 20


class ErrorDetail(BaseModel):
    """One thing that is wrong."""

    model_config = ConfigDict(frozen=True)

    code: str = Field(description="A word for programs, which does not change.")
    message: str = Field(description="What is wrong, for people.")
    where: str = Field(default="", description="The field, header or parameter that is wrong.")
    expected: str = Field(default="", description="What to send instead.")


class ErrorAnswer(BaseModel):
    """The body of every answer from 400 on."""

    error: ErrorDetail
    also: list[ErrorDetail] = Field(default_factory=list, description="Further mistakes in the same request.")


class ApiError(PeerError):
    """A request that is refused. ``headers`` are added to the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        where: str = "",
        expected: str = "",
        headers: Mapping[str, str] | None = None,
        also: list[ErrorDetail] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(code=code, message=message, where=where, expected=expected)
        self.headers = dict(headers or {})
        self.also = also or []

    def response(self) -> web.Response:
        """The answer to send."""
        answer = ErrorAnswer(error=self.detail, also=self.also)
        return web.Response(
            status=self.status, headers=self.headers, text=answer.model_dump_json(), content_type="application/json"
        )


def unauthorized(message: str, *, scheme: str = "Bearer", expected: str = "", where: str = "Authorization") -> ApiError:
    """401: who asks is not known. (Who is known, but may not, gets 403.)"""
    return ApiError(
        401,
        "unauthorized",
        message,
        where=where,
        expected=expected,
        headers={"WWW-Authenticate": f'{scheme} realm="c9"'},
    )


def forbidden(message: str, *, expected: str = "", where: str = "") -> ApiError:
    """403: who asks is known, and may not do this."""
    return ApiError(403, "forbidden", message, where=where, expected=expected)


def not_found(what: str, *, where: str = "", expected: str = "") -> ApiError:
    """404: there is no such thing, or it belongs to another firm, which is the same for who asks."""
    return ApiError(404, "not_found", what, where=where, expected=expected)


def internal(incident: str) -> ApiError:
    """500: a fault of our own. The log has the rest under the incident's number."""
    message = f"A fault of the emulator's own. Its log has it as incident {incident}."
    return ApiError(500, "internal", message, expected="the request again")


def from_validation(invalid: ValidationError, part: str, model: type[BaseModel]) -> ApiError:
    """422: the request can be read, but has wrong fields. ``part`` is ``body``, ``query`` or ``path``."""
    details = [
        ErrorDetail(
            code=wrong.code,
            message=wrong.message,
            where=f"{part}.{wrong.where}".rstrip(".")[:MAX_SHOWN],
            expected=wrong.expected,
        )
        for wrong in itertools.islice(wrong_fields(invalid, model), MAX_MISTAKES + 1)
    ]
    first, rest = details[0], details[1:]
    return ApiError(422, first.code, first.message, where=first.where, expected=first.expected, also=rest)
