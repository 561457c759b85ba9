"""The firm's audit: who did what, newest first."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from aiohttp import web
from sqlalchemy import func, select

from relay.emulator.portal.listing import Paging, containing, count_of, on_page, page_in
from relay.emulator.portal.pages import ROOT
from relay.emulator.portal.parts import Parts
from relay.emulator.portal.visits import Visit, Visits
from relay.emulator.store.tables import AuditEntry

AUDIT = f"{ROOT}audit"
# A value of an entry is cut after this many characters: the members of a hoot would fill the page.
MAX_VALUE = 200


class AuditLog:
    """The page ``/portal/audit``."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each page."""
        yield "GET", AUDIT, visits.reading(self._list, admin=True)

    async def _list(self, visit: Visit) -> web.StreamResponse:
        wanted, page = visit.query("q"), page_in(visit.query("page"))
        entries = select(AuditEntry).where(AuditEntry.firm_id == visit.who.firm_id)
        # An action can be found as the page shows it, and as the audit API names it.
        shown = func.replace(func.replace(AuditEntry.action, ".", ": "), "_", " ")
        entries = containing(entries, wanted, AuditEntry.actor, AuditEntry.action, shown, AuditEntry.object)
        async with self._store.reading() as session:
            total = await count_of(session, entries)
            rows = (await session.scalars(on_page(entries.order_by(AuditEntry.entry_id.desc()), page))).all()
        context = {"rows": [(row, action_in_words(row.action), told(row.details)) for row in rows], "q": wanted}
        return visit.render("audit.html", {**context, "paging": Paging(AUDIT, {"q": wanted}, page, total)})


def told(details: dict[str, Any]) -> list[tuple[str, str]]:
    """What an entry says, as names and values: a change as ``old → new``."""
    found = {key: value for key, value in details.items() if key != "changes"}
    told = [(name, _text(value)) for name, value in found.items()]
    for name, (old, new) in dict(details.get("changes") or {}).items():
        told.append((name, f"{_text(old)} → {_text(new)}"))
    return told


def action_in_words(action: str) -> str:
    """An action for people: those of the APIs have names for programs, such as ``call_data.download``."""
    return action.replace(".", ": ").replace("_", " ")


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text or "(empty)"
    return text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "…"
