"""What the models of all APIs share: names in camelCase, times in RFC 3339, and pages."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

from relay.emulator.marks import Mark

# A page of this size is some 100 KB of JSON.
MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 100
# In one request. Longer lists are asked for in parts.
MAX_NAMES = 1000

# Of users, firms and groups: longer than any in the fixtures, and printable.
NAME = "a name of 1 to 64 printable ASCII characters, without spaces"
Name = Annotated[str, Field(pattern=r"^[!-~]{1,64}$", description=NAME)]
# A NUL is in no name, and PostgreSQL takes none.
Email = Annotated[str, Field(pattern=r"^[^\x00]{1,255}$", description="an e-mail address of 1 to 255 characters")]
Label = Annotated[str, Field(pattern=r"^[^\x00]{1,128}$", description="a text of 1 to 128 characters, without NUL")]
LineNumber = Annotated[
    str, Field(pattern=r"^[!-~]{1,64}$", description="the number of a connection, such as sPK-10000001-100001")
]

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _is_time(value: object) -> object:
    """Only texts: pydantic would take numbers too, as seconds."""
    if isinstance(value, datetime.datetime) or (isinstance(value, str) and _RFC_3339.fullmatch(value)):
        return value
    raise ValueError("the value is not a time in RFC 3339")


def _shown_time(value: datetime.datetime) -> str:
    return value.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[
    datetime.datetime,
    BeforeValidator(_is_time),
    PlainSerializer(_shown_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


def time_of(seconds: float) -> datetime.datetime:
    """A Unix time as the models have it."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _whole(value: object) -> object:
    """In JSON, 10.0 is an integer too; a text or true is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("the value is not a whole number")


# Comes last in an annotation, after the bounds: otherwise these would be missing in the description.
WHOLE = BeforeValidator(_whole)


class ApiModel(BaseModel):
    """A message of an API. Its names are in camelCase on the wire, and unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True)
    mark: ClassVar[Mark] = Mark.INVENTED


class ApiRequest(ApiModel):
    """A message that a client sends. Its fields have the names of the wire; the names that Python uses are refused."""

    model_config = ConfigDict(validate_by_name=False, validate_by_alias=True)


# How a token begins whose list is in the order of names. Anything else is not a token of ours.
_AFTER = "after-"
PAGE_TOKEN = "nextPageToken of the answer before"  # noqa: S105 - what a client reads of it
# Of lists in the order of numbers.
NumberToken = Annotated[str | None, Field(description=PAGE_TOKEN, pattern="^[0-9]{1,9}$")]


def token_after(name: str) -> str:
    """The token of a page whose last item has this name."""
    return _AFTER + name


def name_before(token: str | None) -> str:
    """The name after which a page begins. Empty for the first page."""
    return (token or "").removeprefix(_AFTER)


class PageRequest(ApiRequest):
    """What a request for a list may say. The rest of a long list begins after ``pageToken``."""

    page_size: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE), WHOLE] = DEFAULT_PAGE_SIZE
    page_token: Annotated[str | None, Field(description=PAGE_TOKEN, pattern=rf"^{_AFTER}[!-~]{{1,64}}$")] = None


class Page(ApiModel):
    """What an answer with a list says of the next page."""

    next_page_token: str | None = Field(default=None, description="null on the last page")
