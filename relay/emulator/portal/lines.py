"""Lines of a firm: add, edit, say who has them, and delete.

A firm changes only what is its own. On a line that it shares with another firm, it chooses among its own users; the
line's label and region belong to both, so neither can change them here, and neither can delete the line.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, Field
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator import fixtures
from relay.emulator.lines import LineKind, MemberRole, can_have
from relay.emulator.portal import firms
from relay.emulator.portal.forms import VERSION, Form, FormView, check, conflicts, differences, version_of
from relay.emulator.portal.listing import Paging, containing, count_of, on_page, page_in
from relay.emulator.portal.pages import ROOT, PageError, see_other
from relay.emulator.portal.parts import Parts
from relay.emulator.portal.visits import Visit, Visits
from relay.emulator.store.store import audit
from relay.emulator.store.tables import Button, Line, LineMember, User

LINES = f"{ROOT}lines"
_FIELDS = ("label", "region", "talkers", "listeners")
_WORDS = {
    LineKind.RINGDOWN: "rings at the other end, and is answered",
    LineKind.SHOUTDOWN: "one talks, and the others hear it at once",
    LineKind.HOOT: "many listen, and up to 12 talk at once",
    LineKind.INTERCOM: "connects at once, both ways",
    LineKind.DIAL_TONE: "dials extensions",
    LineKind.BROADCAST: "one talks to many",
}


class LineEdit(BaseModel):
    """What an administrator changes of a line."""

    label: firms.Name
    region: firms.Region


class NewLine(LineEdit):
    """A line that is to be added."""

    kind: Annotated[LineKind, Field(description=", ".join(LineKind))]


@dataclass(frozen=True)
class Members:
    """Who of the firm is to have a line."""

    roles: dict[str, MemberRole]

    @classmethod
    def read(cls, form: Form, own: Iterable[str], errors: dict[str, str]) -> Members:
        """The names in both fields. What is wrong is noted in ``errors``."""
        known, roles = set(own), dict[str, MemberRole]()
        for field, role in (("talkers", MemberRole.TALKER), ("listeners", MemberRole.LISTENER)):
            for name in _names_in(form.block(field)):
                if name not in known:
                    errors.setdefault(field, f"The firm has no user “{name[:40]}”. Write user names, not full names.")
                elif roles.setdefault(name, role) is not role:
                    errors.setdefault(field, f"“{name}” is a talker already. Name each user once.")
        return cls(roles)

    def check(self, kind: LineKind, others: Iterable[str], errors: dict[str, str]) -> None:
        """Whether a line of this kind can have these members, together with those of other firms."""
        roles = [*self.roles.values(), *others]
        talkers = sum(role == MemberRole.TALKER for role in roles)
        if not errors and (fault := can_have(kind, len(roles), talkers)):
            errors["talkers"] = f"Members: {fault}."

    def as_fields(self) -> dict[str, str]:
        """As the form shows them."""
        return _as_fields(self.roles)


class Lines:
    """The pages below ``/portal/lines``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._store = parts.store

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each page."""
        yield "GET", LINES, visits.reading(self._list, admin=True)
        yield "GET", f"{LINES}/new", visits.reading(self._new, admin=True)
        yield "POST", f"{LINES}/new", visits.changing(self._add, admin=True)
        yield "GET", f"{LINES}/{{line}}", visits.reading(self._show, admin=True)
        yield "POST", f"{LINES}/{{line}}", visits.changing(self._save, admin=True)
        yield "POST", f"{LINES}/{{line}}/delete", visits.changing(self._delete, admin=True)

    async def _list(self, visit: Visit) -> web.StreamResponse:
        wanted, page = visit.query("q"), page_in(visit.query("page"))
        lines = select(Line).where(Line.number.in_(firms.numbers_of(visit.who.firm_id)))
        lines = containing(lines, wanted, Line.number, Line.label, Line.kind)
        async with self._store.reading() as session:
            total = await count_of(session, lines)
            rows = (await session.scalars(on_page(lines.order_by(Line.label, Line.number), page))).all()
            counts = await _counts(session, visit.who.firm_id, [line.number for line in rows])
        paging = Paging(LINES, {"q": wanted}, page, total)
        return visit.render("lines.html", {"lines": rows, "counts": counts, "q": wanted, "paging": paging})

    # One line

    async def _show(self, visit: Visit) -> web.StreamResponse:
        return await self._page(visit, None)

    async def _page(self, visit: Visit, form: FormView | None, *, status: int = 200) -> web.Response:
        """The page of a line. Without a form it shows what is stored."""
        async with self._store.reading() as session:
            found = await firms.line_of(session, visit.who.firm_id, visit.path("line"))
            names = await firms.names_of(session, visit.who.firm_id)
        if form is None:
            form = FormView(_values(found), version=version_of(_values(found)))
        context = {
            "found": found,
            "form": form,
            "names": names,
            "regions": fixtures.REGIONS,
            "words": _WORDS[LineKind(found.line.kind)],
        }
        return visit.render("line.html", context, status=status)

    async def _save(self, visit: Visit) -> web.StreamResponse:
        errors = dict[str, str]()
        async with visit.writing() as session:
            found = await firms.line_of(session, visit.who.firm_id, visit.path("line"))
            stored = _values(found)
            values = {
                **_typed(visit.form),
                **({name: stored[name] for name in LineEdit.model_fields} if found.others else {}),
            }
            wanted = check(LineEdit, values, errors)
            members = Members.read(visit.form, await firms.names_of(session, visit.who.firm_id), errors)
            if not members.roles and not errors:
                errors["talkers"] = "Name at least one user of the firm."
            members.check(LineKind(found.line.kind), found.others, errors)
            differing = conflicts(
                stored, {**values, **(members.as_fields() if not errors else {})}, visit.form.text(VERSION)
            )
            if wanted is not None and not errors and not differing:
                await self._apply(session, visit, found, wanted, members)
        if errors or differing:
            form = FormView(values, errors, differing, version_of(stored))
            return await self._page(visit, form, status=422 if errors else 409)
        await self._parts.tell_lines([found.line.number])
        return see_other(f"{LINES}/{found.line.number}?done=saved")

    async def _apply(
        self, session: AsyncSession, visit: Visit, found: firms.FirmLine, wanted: LineEdit, members: Members
    ) -> None:
        stored, line = _values(found), found.line
        line.label, line.region = wanted.label, wanted.region
        gone = set(found.own) - set(members.roles)
        for user_id in gone:
            await session.execute(delete(LineMember).filter_by(number=line.number, user_id=user_id))
            # A button of someone who no longer has the line would do nothing.
            await session.execute(delete(Button).filter_by(line=line.number, user_id=user_id))
        for user_id, role in members.roles.items():
            await session.merge(LineMember(number=line.number, user_id=user_id, role=role.value))
        now = {"label": wanted.label, "region": wanted.region, **members.as_fields()}
        if changes := differences(stored, now):
            audit(session, visit.who.firm_id, visit.who.user_id, "line changed", line.number, changes=changes)

    async def _delete(self, visit: Visit) -> web.StreamResponse:
        if visit.form.text("confirm") != "yes":
            raise PageError(422, "Not deleted", "Tick the box that says that the line is to be deleted.")
        async with visit.writing() as session:
            found = await firms.line_of(session, visit.who.firm_id, visit.path("line"))
            if found.others:
                message = "Another firm has this line, too. Remove your own users from it instead."
                raise PageError(422, "Not deleted", message)
            number = found.line.number
            details = {"label": found.line.label, "kind": found.line.kind, "members": sorted(found.own)}
            # The database deletes members and buttons with it.
            await session.execute(delete(Line).filter_by(number=number))
            audit(session, visit.who.firm_id, visit.who.user_id, "line deleted", number, **details)
        await self._parts.tell_lines([number])
        return see_other(f"{LINES}?done=deleted")

    # A new line

    async def _new(self, visit: Visit) -> web.StreamResponse:
        async with self._store.reading() as session:
            firm = await firms.firm_of(session, visit.who.firm_id)
        empty = dict.fromkeys(_FIELDS, "")
        return await self._new_page(visit, FormView({**empty, "region": firm.region, "kind": LineKind.RINGDOWN.value}))

    async def _new_page(self, visit: Visit, form: FormView, *, status: int = 200) -> web.Response:
        async with self._store.reading() as session:
            names = await firms.names_of(session, visit.who.firm_id)
        context = {"form": form, "names": names, "regions": fixtures.REGIONS, "kinds": _WORDS}
        return visit.render("line_new.html", context, status=status)

    async def _add(self, visit: Visit) -> web.StreamResponse:
        values, errors = {**_typed(visit.form), "kind": visit.form.text("kind")}, dict[str, str]()
        wanted = check(NewLine, values, errors)
        number = ""
        async with visit.writing() as session:
            members = Members.read(visit.form, await firms.names_of(session, visit.who.firm_id), errors)
            count = await session.scalar(
                select(func.count()).select_from(firms.numbers_of(visit.who.firm_id).subquery())
            )
            if (count or 0) >= firms.MAX_LINES:
                errors["label"] = f"The firm has {count} lines, and can have {firms.MAX_LINES}."
            if wanted is not None:
                members.check(wanted.kind, (), errors)
            if wanted is not None and not errors:
                number = await self._insert(session, visit, wanted, members)
        if not number:
            return await self._new_page(visit, FormView(values, errors), status=422)
        await self._parts.tell_lines([number])
        return see_other(f"{LINES}/{number}?done=added")

    async def _insert(self, session: AsyncSession, visit: Visit, wanted: NewLine, members: Members) -> str:
        # One of 10^14: that two are the same will not happen, and if it does, the database refuses the second.
        number = f"sPK-{secrets.randbelow(10**8):08}-{secrets.randbelow(10**6):06}"
        session.add(Line(number=number, kind=wanted.kind.value, label=wanted.label, region=wanted.region))
        await session.flush()
        session.add_all(
            LineMember(number=number, user_id=user, role=role.value) for user, role in members.roles.items()
        )
        details = {"label": wanted.label, "kind": wanted.kind.value, "region": wanted.region, **members.as_fields()}
        audit(session, visit.who.firm_id, visit.who.user_id, "line added", number, **details)
        return number


def _names_in(text: str) -> list[str]:
    return text.replace(",", " ").replace(";", " ").split()


def _typed(form: Form) -> dict[str, str]:
    return {**form.texts("label", "region"), "talkers": form.block("talkers"), "listeners": form.block("listeners")}


def _as_fields(roles: dict[str, MemberRole] | dict[str, str]) -> dict[str, str]:
    """One name a line, in the order of the names."""
    return {f"{role}s": "\n".join(sorted(user for user, has in roles.items() if has == role)) for role in MemberRole}


def _values(found: firms.FirmLine) -> dict[str, str]:
    """A line as the form shows it."""
    return {"label": found.line.label, "region": found.line.region, **_as_fields(found.own)}


async def _counts(session: AsyncSession, firm_id: str, numbers: list[str]) -> dict[str, tuple[int, int]]:
    """How many members each line has: of the firm, and of others."""
    rows = select(LineMember.number, User.firm_id, func.count()).join(User, User.user_id == LineMember.user_id)
    rows = rows.where(LineMember.number.in_(numbers)).group_by(LineMember.number, User.firm_id)
    counts = dict.fromkeys(numbers, (0, 0))
    for number, firm, count in await session.execute(rows):
        mine, others = counts[number]
        counts[number] = (mine + count, others) if firm == firm_id else (mine, others + count)
    return counts
