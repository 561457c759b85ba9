"""The firm itself: its name and region, and the groups of its users."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator import fixtures
from relay.emulator.portal import firms
from relay.emulator.portal.forms import VERSION, FormView, check, conflicts, differences, version_of
from relay.emulator.portal.pages import ROOT, PageError, not_found, see_other
from relay.emulator.portal.parts import Parts
from relay.emulator.portal.visits import Visit, Visits
from relay.emulator.store.store import audit
from relay.emulator.store.tables import Firm, Group, User

FIRM = f"{ROOT}firm"


class FirmEdit(BaseModel):
    """What an administrator changes of the firm."""

    name: firms.Name
    region: firms.Region


class GroupEdit(BaseModel):
    """A group's only field."""

    group_name: firms.Name


class FirmPage:
    """The page ``/portal/firm``."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each page."""
        yield "GET", FIRM, visits.reading(self._show, admin=True)
        yield "POST", FIRM, visits.changing(self._save, admin=True)
        yield "POST", f"{FIRM}/groups", visits.changing(self._add_group, admin=True)
        yield "POST", f"{FIRM}/groups/{{group}}", visits.changing(self._rename_group, admin=True)
        yield "POST", f"{FIRM}/groups/{{group}}/delete", visits.changing(self._delete_group, admin=True)

    async def _show(self, visit: Visit) -> web.StreamResponse:
        return await self._page(visit, None)

    async def _page(
        self, visit: Visit, form: FormView | None, *, status: int = 200, group_error: str = "", group_id: str = ""
    ) -> web.Response:
        async with self._store.reading() as session:
            firm = await firms.firm_of(session, visit.who.firm_id)
            groups = await firms.groups_of(session, visit.who.firm_id)
            users = await session.execute(
                select(User.group_id, func.count()).where(User.firm_id == visit.who.firm_id).group_by(User.group_id)
            )
            counts = dict(users.all())
        if form is None:
            form = FormView(_values(firm), version=version_of(_values(firm)))
        context = {
            "firm": firm,
            "groups": groups,
            "counts": counts,
            "form": form,
            "regions": fixtures.REGIONS,
            "group_error": group_error,
            "group_id": group_id,
        }
        return visit.render("firm.html", context, status=status)

    async def _save(self, visit: Visit) -> web.StreamResponse:
        values, errors = visit.form.texts("name", "region"), dict[str, str]()
        wanted = check(FirmEdit, values, errors)
        async with visit.writing() as session:
            firm = await firms.firm_of(session, visit.who.firm_id)
            stored = _values(firm)
            differing = conflicts(stored, values, visit.form.text(VERSION))
            if wanted is not None and not differing:
                firm.name, firm.region = wanted.name, wanted.region
                if changes := differences(stored, _values(firm)):
                    audit(session, firm.firm_id, visit.who.user_id, "firm changed", firm.firm_id, changes=changes)
        if errors or differing:
            form = FormView(values, errors, differing, version_of(stored))
            return await self._page(visit, form, status=422 if errors else 409)
        return see_other(f"{FIRM}?done=saved")

    # Groups

    async def _add_group(self, visit: Visit) -> web.StreamResponse:
        errors = dict[str, str]()
        wanted = check(GroupEdit, visit.form.texts("group_name"), errors)
        async with visit.writing() as session:
            groups = await firms.groups_of(session, visit.who.firm_id)
            if len(groups) >= firms.MAX_GROUPS:
                errors["group_name"] = f"The firm has {firms.MAX_GROUPS} groups, and cannot have more."
            if wanted is not None and not errors:
                group_id = f"{visit.who.firm_id[:40]}-{secrets.token_hex(6)}"
                session.add(Group(group_id=group_id, firm_id=visit.who.firm_id, name=wanted.group_name))
                audit(session, visit.who.firm_id, visit.who.user_id, "group added", group_id, name=wanted.group_name)
        if errors:
            return await self._page(visit, None, status=422, group_error=errors["group_name"])
        return see_other(f"{FIRM}?done=added")

    async def _rename_group(self, visit: Visit) -> web.StreamResponse:
        errors = dict[str, str]()
        wanted = check(GroupEdit, visit.form.texts("group_name"), errors)
        async with visit.writing() as session:
            group = await _group_of(session, visit)
            # The form has one field, and says what it was made from.
            if wanted is not None and visit.form.text("was") != group.name != wanted.group_name:
                errors["group_name"] = f"Somebody has renamed this group to “{group.name}” meanwhile."
            if wanted is not None and not errors and group.name != wanted.group_name:
                changes = {"name": [group.name, wanted.group_name]}
                group.name = wanted.group_name
                audit(session, group.firm_id, visit.who.user_id, "group changed", group.group_id, changes=changes)
        if errors:
            error, group_id = errors["group_name"], group.group_id
            return await self._page(
                visit, None, status=422 if wanted is None else 409, group_error=error, group_id=group_id
            )
        return see_other(f"{FIRM}?done=saved")

    async def _delete_group(self, visit: Visit) -> web.StreamResponse:
        async with visit.writing() as session:
            group = await _group_of(session, visit)
            users = select(func.count()).select_from(User).where(User.group_id == group.group_id)
            if count := await session.scalar(users):
                raise PageError(422, "Not deleted", f"The group has {count} users. Move them to another one first.")
            await session.delete(group)
            audit(session, group.firm_id, visit.who.user_id, "group deleted", group.group_id, name=group.name)
        return see_other(f"{FIRM}?done=deleted")


def _values(firm: Firm) -> dict[str, str]:
    return {"name": firm.name, "region": firm.region}


async def _group_of(session: AsyncSession, visit: Visit) -> Group:
    name = visit.path("group")
    group = await session.get(Group, name) if firms.is_name(name) else None
    if group is None or group.firm_id != visit.who.firm_id:
        raise not_found()
    return group
