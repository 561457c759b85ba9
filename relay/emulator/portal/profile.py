"""What a user sees of themselves. They change their password; the rest their administrators change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from relay.emulator.apis.entitlement import administrators_of, standing_of
from relay.emulator.login.service import Passwords
from relay.emulator.portal import firms
from relay.emulator.portal.forms import FormView, check
from relay.emulator.portal.pages import ROOT, PageError, see_other
from relay.emulator.portal.parts import Parts
from relay.emulator.portal.visits import Visit, Visits
from relay.emulator.store.passwords import hash_password
from relay.emulator.store.store import audit
from relay.emulator.store.tables import Group

PROFILE = f"{ROOT}profile"


class _Change(BaseModel):
    password: firms.Password


class Profile:
    """The page ``/portal/profile``."""

    def __init__(self, parts: Parts, passwords: Passwords) -> None:
        self._parts = parts
        self._store = parts.store
        self._passwords = passwords

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each page."""
        yield "GET", PROFILE, visits.reading(self._show)
        yield "POST", f"{PROFILE}/password", visits.changing(self._change_password)

    async def _show(self, visit: Visit) -> web.StreamResponse:
        return await self._page(visit, FormView({}))

    async def _page(self, visit: Visit, form: FormView, *, status: int = 200) -> web.Response:
        async with self._store.reading() as session:
            user = await firms.user_of(session, visit.who.firm_id, visit.who.user_id)
            firm = await firms.firm_of(session, visit.who.firm_id)
            group = None if user.group_id is None else await session.get(Group, user.group_id)
            standing = await standing_of(session, user.user_id, self._parts.clock())
            admins = await administrators_of(session, user.user_id)
        context = {"user": user, "firm": firm, "group": group, "standing": standing, "admins": admins, "form": form}
        return visit.render("profile.html", {**context, "password_rule": firms.PASSWORD_RULE}, status=status)

    async def _change_password(self, visit: Visit) -> web.StreamResponse:
        old, new, again = (visit.form.raw(name) for name in ("current", "password", "again"))
        errors = dict[str, str]()
        check(_Change, {"password": new}, errors)
        if new != again:
            errors["again"] = "This is not the same as the new password."
        async with self._store.reading() as session:
            user = await firms.user_of(session, visit.who.firm_id, visit.who.user_id)
        if not errors and not await self._passwords.check(
            user.user_id, visit.request.remote or "", user, old[: firms.MAX_PASSWORD]
        ):
            errors["current"] = "This is not your password."
        if errors:
            return await self._page(visit, FormView({}, errors), status=422)
        hashed = await asyncio.to_thread(hash_password, new)
        async with visit.writing() as session:
            checked, user = user, await firms.user_of(session, visit.who.firm_id, visit.who.user_id)
            if user.password_hash != checked.password_hash:
                message = "Your password has been changed meanwhile. Go back, and give the one that counts now."
                raise PageError(409, "Two changes at once", message)
            user.password_hash = hashed
            await firms.end_logins(session, user.user_id, except_for=visit.who.token_hash)
            audit(session, user.firm_id, user.user_id, "password changed", user.user_id)
        await self._parts.tell_logins_ended(user.user_id)
        return see_other(f"{PROFILE}?done=password")
