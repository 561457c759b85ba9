"""The docstring of a folder of the planes lists its files, so that a newcomer finds them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import relay

ROOT = Path(relay.__file__).parent


@pytest.mark.parametrize("folder", ["plane", "plane/compiled", "plane/reference"])
def test_each_file_is_listed(folder: str) -> None:
    listed = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""
    first_columns = {name.strip() for line in listed.splitlines() for name in line.partition("  ")[0].split(",")}
    files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__", "api"}
    assert files - first_columns == set()
