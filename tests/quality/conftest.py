"""The meter's tests import the compiled twin from ``tests.fuzz._leaves``: it is built before they are collected."""

from tests.fuzz.build import build_leaves

build_leaves()
