"""From a file to checked settings. Mistakes become lines that tell the operator the key, the value and what to write.

``check_tree`` serves any model: the whole configuration, and files of their own such as lists of users.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from relay.config.values import KeyedError
from relay.errors import OperatorError

# What pydantic says in the words of Python, in the operator's words.
_MESSAGES = {
    "extra_forbidden": "unknown key",
    "missing": "required, but missing",
    "model_type": "expected a table of keys and values",
    "dict_type": "expected a table of keys and values",
    "int_parsing": "expected a number",
    "tuple_type": "expected a list",
    "too_short": "expected at least one character",
    "path_type": "expected the path of a file",
    "string_pattern_mismatch": "expected at most 63 letters, digits, '.', '_' or '-', the first a letter or digit",
}
# These name the value in their own text, or have no value.
_SELF_EXPLAINED = {"value_error", "extra_forbidden", "missing"}
# "Input should be a valid number", "String should have at least 1 character".
_OWN_WORDS = re.compile(r"^\w+ should (be|have)\b")
# The values of these keys are never shown, nor of those that end so (``cloud_password``), whatever is wrong with them.
_SECRET_KEYS = {"password", "secret", "token", "token_hash"}
_SECRET_TABLE = ("web_proxy", "users")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

_Model = TypeVar("_Model", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a file without checking what its keys are. Raises OperatorError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror or error}") from None
    # tomllib raises these two also for a number of five thousand digits, and for a thousand brackets.
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"{path}: not valid TOML: {error}") from None


def check_tree(model: type[_Model], tree: object, *, folder: Path, source: str) -> _Model:
    """Check a tree of settings; relative paths in it count from ``folder``.

    Raises OperatorError with one line for each mistake. Each line begins with ``source``.
    """
    try:
        return model.model_validate(tree, context={"folder": folder})
    except ValidationError as invalid:
        raise OperatorError("\n".join(f"{source}: {line}" for line in explain(invalid))) from None


def explain(invalid: ValidationError) -> list[str]:
    """A line for each mistake: the key, the value unless it is a secret, and what was expected."""
    return [_explain(error) for error in invalid.errors() if not _follows(error)]


def _follows(error: Any) -> bool:
    """True for a list that is called too short only because what is in it is wrong, which has a line of its own."""
    value = error["input"]
    return error["type"] == "too_short" and isinstance(value, list) and len(value) >= error["ctx"]["min_length"]


def _explain(error: Any) -> str:
    # Where a key of a table is wrong, rather than its value, pydantic adds "[key]".
    parts = [str(part) for part in error["loc"] if part != "[key]"]
    if isinstance(found := error.get("ctx", {}).get("error"), KeyedError):
        parts += found.key.split(".")
    key = ".".join(map(_shown_key, parts))
    kind, value = error["type"], error["input"]
    message = _OWN_WORDS.sub("expected", str(error["msg"]).removeprefix("Value error, "))
    message = _MESSAGES.get(kind, message)
    if kind == "too_short" and isinstance(value, list):
        message = f"expected at least {error['ctx']['min_length']} of them"
    told = kind in _SELF_EXPLAINED or not isinstance(value, str | int | float)
    secret = any(map(_is_secret, parts)) or error["loc"][:2] == _SECRET_TABLE
    if not told and not secret:
        # As TOML has it: true, not True.
        message = f"{str(value).lower() if isinstance(value, bool) else repr(value)}: {message}"
    return f"{key}: {message}" if key else message


def _is_secret(part: str) -> bool:
    return not _SECRET_KEYS.isdisjoint((part, part.rpartition("_")[2]))


def _shown_key(part: str) -> str:
    """A key as TOML writes it: in quotes, unless it is a bare key. Nothing in it can steer a terminal."""
    return part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=not part.isprintable())
