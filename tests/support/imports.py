"""Which modules a source imports, read from its text."""

from __future__ import annotations

import ast
import functools
import re


def imported_modules(source: str, package: str) -> set[str]:
    """The absolute names of all that a Python source imports, also inside functions; ``package`` is its own."""
    return set(_imported_modules(source, package))


# Several rules ask for each source.
@functools.cache
def _imported_modules(source: str, package: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(names)


def cython_imported_modules(source: str) -> set[str]:
    """The same for Cython, which ``ast`` cannot read: one import in a line, absolute."""
    found = re.findall(r"^\s*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w.]+))", source, re.MULTILINE)
    return {first or second for first, second in found}
