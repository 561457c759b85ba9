"""Builds ``_leaves``."""

from __future__ import annotations

from tests.fuzz import ROOT
from tests.support.compiled import build


def build_leaves() -> None:
    """Build it now. Raises CalledProcessError, with the compiler's words on stderr."""
    build("tests.fuzz._leaves", ROOT.glob("relay/plane/compiled/leaves/*.pxd"))


if __name__ == "__main__":
    build_leaves()
