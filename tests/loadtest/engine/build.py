"""Builds ``_parts``."""

from __future__ import annotations

from tests.support.compiled import ROOT, build


def build_parts() -> None:
    """Build it now, if a source is younger. Raises CalledProcessError, with the compiler's words on stderr."""
    sources = [*ROOT.glob("relay/plane/compiled/leaves/*.pxd"), *ROOT.glob("loadtest/engine/*.pxd")]
    build("tests.loadtest.engine._parts", sources)


if __name__ == "__main__":
    build_parts()
