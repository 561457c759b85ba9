"""Files and functions stay small enough to be read: a file that outgrows its room is split, not the bound raised."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import relay

ROOT = Path(relay.__file__).parent
MAX_PYTHON_LINES = 550
# A layer of the packet's life is one text, and C has more words than Python.
MAX_CYTHON_LINES = 700
MAX_FUNCTION_LINES = 60

PYTHON = sorted(ROOT.rglob("*.py"))
CYTHON = sorted(path for suffix in ("pyx", "pxd") for path in ROOT.rglob(f"*.{suffix}"))
CYTHON_FUNCTION = re.compile(r"^(\s*)(?:cdef|cpdef|def)\b.*\(")


def python_functions(source: str) -> dict[str, int]:
    """The functions of a Python source, and how many lines each has, without its docstring."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            text = ast.get_docstring(node, clean=False)
            docstring = (first.end_lineno or 0) - first.lineno + 1 if text is not None else 0
            found[node.name] = (node.end_lineno or 0) - node.lineno + 1 - docstring
    return found


def cython_functions(source: str) -> dict[str, int]:
    """The same for Cython, which ``ast`` cannot read: a function ends before the next line that is indented no more."""
    lines = source.splitlines()
    found = {}
    for number, line in enumerate(lines):
        if not (match := CYTHON_FUNCTION.match(line)):
            continue
        indent = len(match[1])
        body = number + 1
        while body < len(lines) and (
            not lines[body].strip()
            or len(lines[body]) - len(lines[body].lstrip()) > indent
            or lines[body].lstrip()[0] == ")"
        ):
            body += 1
        while not lines[body - 1].strip():
            body -= 1
        found[line.strip()] = body - number
    return found


@pytest.mark.parametrize("path", PYTHON + CYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    source = path.read_text()
    python = path.suffix == ".py"
    assert source.count("\n") <= (MAX_PYTHON_LINES if python else MAX_CYTHON_LINES)
    functions = python_functions(source) if python else cython_functions(source)
    assert {name: lines for name, lines in functions.items() if lines > MAX_FUNCTION_LINES} == {}


# The proof proves nothing if it cannot see


PYTHON_SAMPLE = '''
class A:
    def f(self):
        """One.

        Two."""
        return 1

async def g(
    a,
):
    pass
'''
CYTHON_SAMPLE = """
cdef int f(
    int a,
) noexcept nogil:
    if a:

        return 1
    return 0


cdef class A:
    def g(self):
        return 1

    x = 1
"""


def test_functions_are_measured() -> None:
    assert python_functions(PYTHON_SAMPLE) == {"f": 2, "g": 4}
    assert cython_functions(CYTHON_SAMPLE) == {"cdef int f(": 7, "def g(self):": 2}
