"""Here every database is migrated by alembic, as those of operators are."""

from __future__ import annotations

import pytest

from relay.emulator.store import store
from tests.support import brief_stores


@pytest.fixture(autouse=True)
def _migrated_by_alembic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_upgrade", brief_stores.migrate)
