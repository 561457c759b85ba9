"""How property tests run here: the same examples every time, nothing kept on disk, no clock."""

from __future__ import annotations

from hypothesis import settings

# Put above ``@given``. A random search finds more in the long run; here every run must end alike.
repeatable = settings(derandomize=True, database=None, deadline=None)
