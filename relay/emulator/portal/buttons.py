"""A user's board of buttons. Users change their own, and administrators those of their firm's users."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, Field
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator import fixtures
from relay.emulator.lines import LineKind
from relay.emulator.portal import firms
from relay.emulator.portal.forms import VERSION, FormView, check, conflicts, version_of
from relay.emulator.portal.pages import ROOT, PageError, see_other
from relay.emulator.portal.parts import Parts
from relay.emulator.portal.users import USERS
from relay.emulator.portal.visits import Visit, Visits
from relay.emulator.store.store import audit
from relay.emulator.store.tables import Button, Line, LineMember, User

BOARD = f"{ROOT}board"
_FIELDS = ("position", "label", "line", "dial")
MAX_POSITION = 600


class ButtonEdit(BaseModel):
    """One button."""

    position: Annotated[int, Field(ge=1, le=MAX_POSITION, description=f"a number from 1 to {MAX_POSITION}")]
    label: firms.Name
    line: Annotated[fixtures.LineNumber, Field(description="one of the user's lines")]
    dial: Annotated[fixtures.Extension | None, Field(description="1 to 20 digits, +, * or #, or nothing")]


class Buttons:
    """The pages ``/portal/board`` and ``/portal/users/{user}/board``."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each page."""
        for path, admin in ((BOARD, False), (f"{USERS}/{{user}}/board", True)):
            yield "GET", path, visits.reading(self._show, admin=admin)
            yield "POST", path, visits.changing(self._save, admin=admin)
            yield "POST", f"{path}/delete", visits.changing(self._delete, admin=admin)

    async def _show(self, visit: Visit) -> web.StreamResponse:
        return await self._page(visit, None)

    async def _page(self, visit: Visit, form: FormView | None, *, status: int = 200) -> web.Response:
        """A board. The form is for the button in the address, or for a new one."""
        async with self._store.reading() as session:
            user = await firms.user_of(session, visit.who.firm_id, _user_in(visit))
            found = select(Button, Line).join(Line, Line.number == Button.line).where(Button.user_id == user.user_id)
            buttons = (await session.execute(found.order_by(Button.position))).all()
            lines = await _lines_of(session, user.user_id)
        positions = {button.position for button, _ in buttons}
        free = next(number for number in range(1, MAX_POSITION + 2) if number not in positions)
        if form is None:
            edited = next((b for b, _ in buttons if str(b.position) == visit.query("edit")), None)
            empty = dict.fromkeys(_FIELDS, "") | {"position": str(free), "was": ""}
            values = empty if edited is None else {**_values(edited), "was": str(edited.position)}
            form = FormView(values, version="" if edited is None else version_of(_values(edited)))
        context = {"user": user, "buttons": buttons, "lines": lines, "form": form, "path": _board_of(visit)}
        return visit.render("board.html", {**context, "max_position": MAX_POSITION}, status=status)

    async def _save(self, visit: Visit) -> web.StreamResponse:
        values, errors = visit.form.texts(*_FIELDS), dict[str, str]()
        was, version = visit.form.text("was"), visit.form.text(VERSION)
        wanted = check(ButtonEdit, {**values, "dial": values["dial"] or None}, errors)
        differing = dict[str, str]()
        async with visit.writing() as session:
            user = await firms.user_of(session, visit.who.firm_id, _user_in(visit))
            old = await _button_of(session, user, was) if was else None
            if wanted is not None:
                await _check_clashes(session, user, old, wanted, errors)
            if old is not None:
                differing = conflicts(_values(old), values, version)
                version = version_of(_values(old))
            if wanted is not None and not errors and not differing:
                await _replace(session, visit, user, old, wanted)
        if errors or differing:
            form = FormView({**values, "was": was}, errors, differing, version)
            return await self._page(visit, form, status=422 if errors else 409)
        return see_other(f"{_board_of(visit)}?done={'saved' if was else 'added'}")

    async def _delete(self, visit: Visit) -> web.StreamResponse:
        async with visit.writing() as session:
            user = await firms.user_of(session, visit.who.firm_id, _user_in(visit))
            old = await _button_of(session, user, visit.form.text("position"))
            await session.delete(old)
            details = {"position": old.position, "label": old.label}
            audit(session, user.firm_id, visit.who.user_id, "button deleted", user.user_id, **details)
        return see_other(f"{_board_of(visit)}?done=deleted")


def _user_in(visit: Visit) -> str:
    """Whose board it is: one's own, unless an administrator names another."""
    return visit.request.match_info.get("user", visit.who.user_id)


def _board_of(visit: Visit) -> str:
    user = visit.request.match_info.get("user")
    return BOARD if user is None else f"{USERS}/{user}/board"


def _values(button: Button) -> dict[str, str]:
    return {"position": str(button.position), "label": button.label, "line": button.line, "dial": button.dial or ""}


async def _lines_of(session: AsyncSession, user_id: str) -> list[Line]:
    lines = select(Line).join(LineMember, LineMember.number == Line.number).where(LineMember.user_id == user_id)
    return list((await session.scalars(lines.order_by(Line.label))).all())


async def _button_of(session: AsyncSession, user: User, position: str) -> Button:
    known = position.isascii() and position.isdigit() and len(position) <= 4
    button = await session.get(Button, (user.user_id, int(position))) if known else None
    if button is None:
        raise PageError(409, "No such button", "Somebody has moved or deleted this button meanwhile.")
    return button


async def _check_clashes(
    session: AsyncSession, user: User, old: Button | None, wanted: ButtonEdit, errors: dict[str, str]
) -> None:
    line = next((line for line in await _lines_of(session, user.user_id) if line.number == wanted.line), None)
    if line is None:
        errors["line"] = "The user does not have this line."
    elif wanted.dial is not None and line.kind != LineKind.DIAL_TONE:
        errors["dial"] = "Only a dial-tone line dials a number. Leave this empty."
    if (old is None or old.position != wanted.position) and await session.get(
        Button, (user.user_id, wanted.position)
    ) is not None:
        errors["position"] = f"There is a button at {wanted.position} already."


async def _replace(session: AsyncSession, visit: Visit, user: User, old: Button | None, wanted: ButtonEdit) -> None:
    before = None if old is None else _values(old)
    if old is not None:
        await session.execute(delete(Button).filter_by(user_id=user.user_id, position=old.position))
        session.expunge(old)
    new = Button(user_id=user.user_id, position=wanted.position, label=wanted.label, line=wanted.line, dial=wanted.dial)
    session.add(new)
    action = "button added" if before is None else "button changed"
    audit(session, user.firm_id, visit.who.user_id, action, user.user_id, before=before, now=_values(new))
