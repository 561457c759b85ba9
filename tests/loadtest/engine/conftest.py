"""The modules beside this one import ``_parts``: it is built before they are collected."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from loadtest.engine._engine import live_objects
from tests.loadtest.engine.build import build_parts

build_parts()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """A debug build (``RELAY_DEBUG=1``) counts what is alive. Any other has nothing to say."""
    yield
    gc.collect()
    alive = live_objects()
    assert not any(alive.values()), alive
