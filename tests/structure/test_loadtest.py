"""The load tester: its parts import one way, only users know Locust, and its files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import loadtest
from tests.support.imports import imported_modules

ROOT = Path(loadtest.__file__).parent
# From the bottom up, as the door lists what is done with them.
LAYERS = [
    "engine",
    "plan",
    "figures",
    "direct",
    "verdict",
    "users",
    "shapefile",
    "locustfile",
    "demo_target",
    "running",
    "commands",
]
RANKS = {name: rank for rank, name in enumerate(LAYERS)}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] not in {"bench", "__init__.py"}]
GEVENT = {"locust", "gevent"}
MAX_LINES = 550
MAX_FUNCTION_LINES = 60


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    return imported_modules(path.read_text(), ".".join(["loadtest", *path.parent.relative_to(ROOT).parts]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_part_imports_only_what_stands_below_it(path: Path) -> None:
    own = part_of(path)
    others = {module.split(".")[1] for module in imports_of(path) if module.startswith("loadtest.")} - {own}
    assert others <= {name for name in LAYERS if RANKS[name] < RANKS[own]}
    # The command line and what runs Locust are other processes than Locust's.
    if own in {"running", "commands", "demo_target"}:
        assert not others & {"users", "shapefile", "locustfile"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_users_know_locust(path: Path) -> None:
    """It replaces Python's own threads and sockets, so nobody else may import it by accident."""
    roots = {module.partition(".")[0] for module in imports_of(path)}
    assert part_of(path) in {"users", "shapefile"} or not roots & GEVENT


def test_plans_and_figures_do_nothing_but_think() -> None:
    """A plan resolves names, and is read from a file; neither it nor a figure starts or waits for anything."""
    busy = {"asyncio", "threading", "subprocess", "select", "signal"}
    for path in FILES:
        if part_of(path) in {"plan", "figures"}:
            assert not {module.partition(".")[0] for module in imports_of(path)} & busy, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Arguments of a command are its documentation.
            body = (node.end_lineno or 0) - node.body[0].lineno + 1
            assert body <= MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("folder", ["plan", "figures", "verdict", "users", "running"])
def test_each_folder_lists_its_files(folder: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""
    listed = {line.partition("  ")[0] for line in text.splitlines() if "  " in line}
    assert listed == {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}


def test_the_door_lists_all_parts() -> None:
    assert loadtest.__doc__ is not None
    for name in [*LAYERS, "profiles", "bench"]:
        assert f"\n{name} " in loadtest.__doc__ or f", {name} " in loadtest.__doc__, name
