"""A folder's docstring lists its files, so that a newcomer finds them. ``app.js`` lists the dashboard's."""

from __future__ import annotations

import ast
import re
from itertools import takewhile
from pathlib import Path

import pytest

import relay

ROOT = Path(relay.__file__).parent
ROOMS = [
    path.parent.relative_to(ROOT).as_posix()
    for path in sorted([*ROOT.glob("gateway/*/__init__.py"), *ROOT.glob("emulator/*/__init__.py")])
]


def told_of(text: str) -> set[str]:
    """What a text lists: the first column of its lists, and words in double backticks."""
    columns = [line.partition("  ")[0] for line in text.splitlines() if "  " in line]
    return {name.strip() for column in columns for name in column.split(",")} | set(re.findall(r"``(\w+)``", text))


def test_what_a_text_lists_is_seen() -> None:
    assert told_of("Some words.\n\none, two   these\nthree  asks ``four`` (not five)") == {
        "one",
        "two",
        "three",
        "four",
    }


@pytest.mark.parametrize(
    "folder",
    [
        "plane",
        "plane/compiled",
        "plane/reference",
        "config",
        "gateway",
        "emulator",
        "floor",
        "demo",
        "demo/wan",
        "doctor",
        "doctor/checks",
        "doctor/probes",
        *ROOMS,
    ],
)
def test_each_file_is_listed(folder: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""
    files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    assert files - told_of(docstring) == set()


def test_each_file_of_the_dashboard_is_listed() -> None:
    lines = (ROOT / "web/app.js").read_text().splitlines()
    head = " ".join(takewhile(lambda line: line.startswith("//"), lines))
    assert {path.name for path in (ROOT / "web").iterdir() if path.is_file()} - set(
        re.findall(r"\w+\.\w+", head)
    ) == set()
