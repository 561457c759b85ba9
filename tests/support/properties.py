"""How some property tests run: the same examples every time. What holds for all of them stands in conftest."""

from __future__ import annotations

from hypothesis import settings

# Put above ``@given``. A random search finds more in the long run; here every run must end alike.
repeatable = settings(derandomize=True)
