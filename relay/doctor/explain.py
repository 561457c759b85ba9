"""The explanation of each check, from the docstring of its class: for a terminal, and for docs/doctor.md."""

from __future__ import annotations

import inspect
import textwrap

from relay.doctor.checks import ALL, BY_CODE, Check
from relay.errors import OperatorError

# As wide as lines of the documentation.
WIDTH = 128


def find(code: str) -> type[Check]:
    """The check of a code, in upper or lower case. Raises OperatorError, with the codes that there are."""
    check = BY_CODE.get(code.upper())
    if check is None:
        raise OperatorError(f"{code}: not a check; expected one of {', '.join(BY_CODE)}")
    return check


def text_of(check: type[Check], width: int = 100) -> str:
    """The explanation for a terminal: without the marks of Markdown."""
    title, *paragraphs = _paragraphs(check)
    told = [textwrap.fill(one.replace("**", "").replace("`", ""), width) for one in paragraphs]
    return "\n\n".join([f"{check.code}: {title}", *told])


def page() -> str:
    """The part of docs/doctor.md about checks, in the order of a connection."""
    return "\n".join(map(_section, ALL))


def _section(check: type[Check]) -> str:
    title, *paragraphs = _paragraphs(check)
    told = [textwrap.fill(one, WIDTH, break_on_hyphens=False, break_long_words=False) for one in paragraphs]
    return "\n\n".join([f"### {check.code}", title, *told]) + "\n"


def _paragraphs(check: type[Check]) -> list[str]:
    text = inspect.getdoc(check) or ""
    return [" ".join(one.split()) for one in text.split("\n\n")]
