"""The modules beside this one import ``_leaves``: it is built before they are collected."""

from tests.fuzz.build import build_leaves

build_leaves()
