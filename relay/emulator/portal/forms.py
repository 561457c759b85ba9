"""What a form sent, checked by a model; and the same form as a person sees it again, with mistakes beside the fields.

Two people may change one thing at the same time. So each form carries a digest of the values that it was made from. If
they have changed since, the form comes back with both values, and saving it again is a decision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import BaseModel, ValidationError

from relay import deadlines
from relay.emulator.http.endpoints import BODY_TIMEOUT_S
from relay.emulator.portal.pages import PageError

# The largest form lists the members of a hoot: 1,600 names of at most 63 characters.
MAX_FORM_BYTES = 128 * 1024
# The largest form has a dozen fields; the API key's has a box for each API.
MAX_FIELDS = 50
# A value that a message repeats is cut after this many characters.
MAX_SHOWN = 40
FORM_TYPE = "application/x-www-form-urlencoded"
VERSION = "version"
# Persian, Hindi and others join letters by the last two.
_ALSO_ALLOWED = "\n\u200c\u200d"

_Model = TypeVar("_Model", bound=BaseModel)


class Form:
    """The fields of a form."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def raw(self, name: str) -> str:
        """The value as it came, or an empty text. For passwords. Of several the last counts."""
        return next((value for key, value in reversed(self._pairs) if key == name), "")

    def block(self, name: str) -> str:
        """A value of several lines, without what cannot be seen."""
        return _clean(self.raw(name))

    def text(self, name: str) -> str:
        """A value of one line."""
        return " ".join(self.block(name).split("\n"))

    def many(self, name: str) -> list[str]:
        """All values of a field."""
        return [_clean(value) for key, value in self._pairs if key == name]

    def texts(self, *names: str) -> dict[str, str]:
        """The values of fields, by name."""
        return {name: self.text(name) for name in names}


async def read_form(request: web.Request) -> Form:
    """Read and take apart. Raises PageError 400, 408, 413 or 415."""
    if request.content_type != FORM_TYPE:
        raise PageError(415, "Not a form", f"The portal takes {FORM_TYPE}.")
    try:
        pairs = parse_qsl(
            (await _read(request)).decode("ascii"),
            keep_blank_values=True,
            max_num_fields=MAX_FIELDS,
            encoding="utf-8",
            errors="strict",
        )
    except ValueError:
        message = f"It cannot be read: expected at most {MAX_FIELDS} fields of text in UTF-8. Nothing was changed."
        raise PageError(400, "Not a form", message) from None
    return Form(pairs)


async def _read(request: web.Request) -> bytes:
    too_large = PageError(413, "Too much", f"A form has at most {MAX_FORM_BYTES} bytes. Nothing was changed.")
    if (request.content_length or 0) > MAX_FORM_BYTES:
        raise too_large
    parts, size = [], 0
    try:
        async with deadlines.timeout(BODY_TIMEOUT_S):
            async for part in request.content.iter_any():
                size += len(part)
                if size > MAX_FORM_BYTES:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise PageError(408, "Too slow", "The form did not arrive in time. Nothing was changed.") from None
    return b"".join(parts)


def _clean(value: str) -> str:
    """Without spaces around. A sign takes the place of what cannot be printed: it could turn the text around it."""
    value = value.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ").strip()
    return "".join(one if one.isprintable() or one in _ALSO_ALLOWED else "\ufffd" for one in value)


@dataclass
class FormView:
    """A form as it is shown. ``stored`` has what somebody else has saved meanwhile in a field."""

    values: Mapping[str, Any]
    errors: dict[str, str] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    version: str = ""

    @property
    def is_in_conflict(self) -> bool:
        """True if somebody else has changed the same thing."""
        return bool(self.stored)


def check(model: type[_Model], values: Mapping[str, Any], errors: dict[str, str]) -> _Model | None:
    """The values as a model. None if one is wrong; then ``errors`` says by field what was expected.

    What is expected is the field's description.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False, include_context=False):
            name = str(error["loc"][0]) if error["loc"] else ""
            errors.setdefault(name, _message(model, name, error["type"], error["msg"], values.get(name)))
        return None


def _message(model: type[BaseModel], name: str, kind: str, told: str, value: Any) -> str:
    if kind == "value_error":
        return told.removeprefix("Value error, ")
    about = model.model_fields.get(name)
    expected = (about.description if about is not None else None) or told
    if value in (None, "", []):
        return f"Fill this in: {expected}."
    if "password" in name or not isinstance(value, str):
        return f"Expected {expected}."
    cut = value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "…"
    return f"“{cut}” does not fit. Expected {expected}."


def version_of(values: Mapping[str, Any]) -> str:
    """A digest of what a form was made from."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What a change changed, for the audit: the old and the new value of each field."""
    return {name: [old[name], new[name]] for name in new if old.get(name) != new[name]}


def conflicts(stored: Mapping[str, str], given: Mapping[str, str], version: str) -> dict[str, str]:
    """What is stored in each field that differs, if the stored values are not those that the form was made from.

    Empty if nothing would be lost.
    """
    if version == version_of(stored):
        return {}
    return {name: stored[name] for name in stored if stored[name] != given[name]}
