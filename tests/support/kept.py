"""What the tests of a process share until the last one has ended. Then ``conftest`` closes it."""

from __future__ import annotations

import contextlib

KEPT = contextlib.ExitStack()
