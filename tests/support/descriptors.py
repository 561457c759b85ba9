"""How many descriptors the process may have: more than usual, or none. Afterwards it has as many as before."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def _limited_to(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def room_for(count: int, *, whole: bool = False) -> Iterator[None]:
    """At least this many while the block runs, or all that the machine allows; the test is skipped where it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"{count} descriptors are needed, and {hard} are allowed")
    with _limited_to(hard if whole else max(soft, count)):
        yield


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """The process can open nothing while the block runs."""
    next_free = os.dup(0)
    os.close(next_free)
    with _limited_to(next_free):
        yield
