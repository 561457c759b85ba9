"""What is wrong with a field, and what was expected, in plain English and without the names of Python's classes.

What was expected comes from the model's JSON schema. A field with a pattern says in its description what it takes,
because a regular expression is hard to read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

# A value that is shown back is cut after this many characters.
MAX_SHOWN = 100
# An error lists at most this many of the names and values that could have been given.
MAX_LISTED = 20

_Schema = Mapping[str, Any]

# A field with one of these in its name is not shown back: it has a secret, or may have one in it.
_NEVER_SHOWN = ("password", "secret", "sdp")
_OTHER_TYPE = "The value has the wrong type"
_UNFIT = "The value does not fit"
_MESSAGES = {
    "missing": "The field is missing",
    "extra_forbidden": "There is no such field",
    "string_pattern_mismatch": "The value does not have the right form",
    "string_too_short": "The value is too short",
    "string_too_long": "The value is too long",
    "too_short": "The list is too short",
    "too_long": "The list is too long",
    "greater_than": "The value is too small",
    "greater_than_equal": "The value is too small",
    "less_than": "The value is too large",
    "less_than_equal": "The value is too large",
    "literal_error": "The value is not one of those that can be given",
    "enum": "The value is not one of those that can be given",
}


@dataclass(frozen=True, slots=True)
class WrongField:
    """One mistake. ``where`` is the path to the field, with dots, and empty for the whole."""

    code: str
    message: str
    where: str
    expected: str


def wrong_fields(invalid: ValidationError, model: type[BaseModel]) -> Iterator[WrongField]:
    """Each mistake in what was to be a ``model``, in the order of its fields."""
    for error in invalid.errors(include_url=False, include_context=False):
        where = ".".join(str(key) for key in error["loc"])
        is_secret = any(word in where for word in _NEVER_SHOWN)
        yield WrongField(
            code=error["type"],
            message=_message(error["type"], error["msg"], None if is_secret else error["input"]),
            where=where[:MAX_SHOWN],
            expected=_expected(model, error["type"], error["loc"]),
        )


def first_wrong(invalid: ValidationError, model: type[BaseModel]) -> WrongField:
    """The first mistake."""
    return next(wrong_fields(invalid, model))


def _message(code: str, told: str, given: object) -> str:
    if code == "value_error":
        # From a validator of ours.
        message = told.removeprefix("Value error, ")
        message = message[:1].upper() + message[1:]
    else:
        message = _MESSAGES.get(code) or (_OTHER_TYPE if code.endswith(("_type", "_parsing")) else _UNFIT)
    if isinstance(given, str | int | float | bool):
        message = f"{message} (got {str(given)[:MAX_SHOWN]!r})"
    return f"{message}."


def _expected(model: type[BaseModel], code: str, path: tuple[int | str, ...]) -> str:
    root = _schema_of(model)
    if code == "extra_forbidden":
        return _names(_at(root, root, path[:-1]))
    return described(_at(root, root, path), root) or "a JSON value of another type"


@functools.cache
def _schema_of(model: type[BaseModel]) -> _Schema:
    """Made once for each model, of which there are a few dozen."""
    return model.model_json_schema()


def _at(root: _Schema, schema: _Schema, path: tuple[int | str, ...]) -> _Schema:
    """The schema of a field. Empty if the path does not lead to one."""
    schema = _resolved(root, schema)
    if not path:
        return schema
    key, rest = path[0], path[1:]
    if isinstance(key, int):
        return _at(root, schema.get("items", {}), rest)
    inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
    return _at(root, inner, rest) if isinstance(inner, Mapping) else {}


def _resolved(root: _Schema, schema: _Schema) -> _Schema:
    """Follow a reference, and leave null out of the choices: it says only that the field is optional."""
    if (reference := schema.get("$ref")) is not None:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return {**_resolved(root, root["$defs"][reference.rpartition("/")[2]]), **beside}
    choices = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if len(choices) == 1:
        beside = {key: value for key, value in schema.items() if key != "anyOf"}
        return {**_resolved(root, choices[0]), **beside}
    return schema


def described(schema: _Schema, root: _Schema) -> str:
    """What a value of this schema is, in words. Empty if the schema does not say."""
    schema = _resolved(root, schema)
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return _one_of([str(each) for each in schema["enum"]])
    if schema.get("format") == "date-time":
        return "a time in RFC 3339, such as 2026-11-27T09:00:00Z"
    kind = schema.get("type")
    if kind == "string":
        return _text(schema)
    if kind in ("integer", "number"):
        return _number(schema)
    if kind == "array":
        return _list(schema, root)
    if kind == "object":
        return f"a JSON object with {_names(schema)}" if schema.get("properties") else "a JSON object"
    return "true or false" if kind == "boolean" else ""


def _text(schema: _Schema) -> str:
    if "pattern" in schema and schema.get("description"):
        return str(schema["description"]).rstrip(".")
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if most is None:
        return f"a text of at least {least} characters" if least else "a text"
    return f"a text of {least} to {most} characters" if least else f"a text of at most {most} characters"


def _number(schema: _Schema) -> str:
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    bounds = [
        f"{told} {schema[name]:.15g}"
        for name, told in (("minimum", "at least"), ("exclusiveMinimum", "more than"), ("maximum", "at most"))
        if name in schema
    ]
    return f"{kind}, {' and '.join(bounds)}" if bounds else kind


def _list(schema: _Schema, root: _Schema) -> str:
    most = f" of at most {schema['maxItems']}" if "maxItems" in schema else ""
    items = described(schema.get("items", {}), root)
    return f"a list{most}; each of its values is {items}" if items else f"a list{most}"


def _names(schema: _Schema) -> str:
    """The fields of an object."""
    required = schema.get("required", ())
    names = [name if name in required else f"{name} (optional)" for name in schema.get("properties", {})]
    return ", ".join(names[:MAX_LISTED]) or "no fields"


def _one_of(values: list[str]) -> str:
    shown = ", ".join(values[:MAX_LISTED])
    return f"one of {shown}" if len(values) > 1 else shown
