"""The modules beside this one import ``_parts``: it is built before they are collected."""

from tests.support.compiled import ROOT, build

build(
    "tests.loadtest.engine._parts",
    [*ROOT.glob("relay/plane/compiled/leaves/*.pxd"), *ROOT.glob("loadtest/engine/*.pxd")],
)
