"""The stream cutter's tests import its compiled twin from ``tests.fuzz._leaves``, which must be built before that."""

from tests.fuzz.build import build_leaves

build_leaves()
