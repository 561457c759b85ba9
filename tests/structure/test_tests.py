"""Tests share through ``tests.support``: no test module is imported, and what is shared imports no test."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.imports import imported_modules

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    str(path.relative_to(ROOT)) for folder in ("tests", "loadtest") for path in ROOT.glob(f"{folder}/**/*.py")
)
SUPPORT = "tests.support"
FOLDERS = [SUPPORT, f"{SUPPORT}.benches", f"{SUPPORT}.network", f"{SUPPORT}.peers"]


def imports_of(name: str) -> set[str]:
    path = Path(name)
    return imported_modules((ROOT / path).read_text(), ".".join(path.parent.parts))


def modules_with_tests(modules: set[str]) -> set[str]:
    """Those that hold tests; a test that is imported by its name gives its module away."""
    return {module for module in modules if re.match(r"tests\.(.+\.)?test_", module)}


@pytest.mark.parametrize("name", SOURCES)
def test_no_test_module_is_imported(name: str) -> None:
    assert modules_with_tests(imports_of(name)) == set()


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith(("tests/support/", "loadtest/"))])
def test_support_and_benchmarks_import_no_other_part_of_the_tests(name: str) -> None:
    """Benchmarks stand on ``tests.support`` as the tests do, and it knows neither."""
    foreign = {module for module in imports_of(name) if module.startswith(("tests.", "loadtest."))}
    allowed = SUPPORT if name.startswith("tests/") else (SUPPORT, "loadtest.")
    assert {module for module in foreign if not module.startswith(allowed)} == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_of_support_lists_what_is_in_it(folder: str) -> None:
    package = import_module(folder)
    assert package.__doc__ is not None
    listed = re.findall(r"^(?:    )?(\w+)/?  +\S", package.__doc__.partition("\n\n")[2], re.MULTILINE)
    path = ROOT / folder.replace(".", "/")
    present = {one.stem for one in path.glob("*.py")} | {one.parent.name for one in path.glob("*/__init__.py")}
    assert sorted(listed) == sorted(present - {"__init__"})


def test_test_modules_are_seen() -> None:
    seen = modules_with_tests({"tests.plane.test_contract", "tests.test_cli.Served", "tests.support.testing", "relay"})
    assert seen == {"tests.plane.test_contract", "tests.test_cli.Served"}
