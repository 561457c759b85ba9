"""One relay for all tests of this folder: a cloud and a relay take seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadtest.plan.target import Target
from loadtest.running.demo import demo_target


@pytest.fixture(scope="package")
def relay() -> Iterator[Target]:
    """The target ``demo`` with twelve users."""
    with demo_target(12) as target:
        yield target
