"""The audit API: what happened in a firm, and by whom. That there is one is documented; all of this one is invented.

Entries are only added: the database itself refuses to change one or to take one away.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from sqlalchemy import select

from relay.emulator.apis.models import ApiModel, Name, NumberToken, Page, PageRequest, Time, time_of
from relay.emulator.apis.security import Keys, Signed
from relay.emulator.http.endpoints import Call, Endpoint
from relay.emulator.http.site import Site
from relay.emulator.marks import Mark
from relay.emulator.names import Api, HostRole
from relay.emulator.store import Store, tables

ACTOR = "a user's id, or key: and an API key, as in key:atlas-key-1"


class AuditRequest(PageRequest):
    """Entries of the firm, the oldest first. An entry must pass all filters that are given."""

    page_token: NumberToken = None
    begin_date: Time | None = None
    end_date: Time | None = Field(default=None, description="entries before this time")
    actor: Annotated[str, Field(pattern="^[!-~]{1,128}$", description=ACTOR)] | None = None
    action: Name | None = None


class AuditItem(ApiModel):
    """Something that happened. ``actor`` is a user, or ``key:`` and an API key."""

    entry_id: int
    at: Time
    actor: str
    action: str
    object: str
    details: dict[str, Any]


class AuditAnswer(Page):
    """A page of entries. ``nextPageToken`` of a full page may lead to an empty one: new entries may come."""

    entries: list[AuditItem]


class Audit:
    """The endpoint."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._security = Signed(keys, Api.AUDIT)

    def register(self, site: Site) -> None:
        """Serve it."""
        site.add(
            Endpoint(
                HostRole.AUDIT,
                "POST",
                "/audit/v1/entries",
                Mark.INVENTED,
                "What happened in the firm, and by whom",
                self._entries,
                body=AuditRequest,
                answer=AuditAnswer,
                security=self._security,
            )
        )

    async def _entries(self, call: Call) -> AuditAnswer:
        asked: AuditRequest = call.body
        entries = tables.AuditEntry
        query = select(entries).where(
            entries.firm_id == call.caller.firm, entries.entry_id > int(asked.page_token or 0)
        )
        if asked.begin_date is not None:
            query = query.where(entries.at >= asked.begin_date.timestamp())
        if asked.end_date is not None:
            query = query.where(entries.at < asked.end_date.timestamp())
        if asked.actor is not None:
            query = query.where(entries.actor == asked.actor)
        if asked.action is not None:
            query = query.where(entries.action == asked.action)
        async with self._store.reading() as session:
            found = (await session.scalars(query.order_by(entries.entry_id).limit(asked.page_size))).all()
        token = str(found[-1].entry_id) if len(found) == asked.page_size else None
        return AuditAnswer(entries=[_entry(row) for row in found], next_page_token=token)


def _entry(row: tables.AuditEntry) -> AuditItem:
    return AuditItem(
        entry_id=row.entry_id,
        at=time_of(row.at),
        actor=row.actor,
        action=row.action,
        object=row.object,
        details=row.details,
    )
