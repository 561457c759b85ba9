"""Users of a firm: add, edit, disable, give a new password, and switch Voice via Web Proxy."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import urlencode

from aiohttp import web
from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator import fixtures
from relay.emulator.apis.entitlement import CLIENT, standing_of
from relay.emulator.names import UserRole
from relay.emulator.portal import firms
from relay.emulator.portal.forms import VERSION, Form, FormView, check, conflicts, differences, version_of
from relay.emulator.portal.listing import Paging, containing, count_of, on_page, page_in
from relay.emulator.portal.pages import ROOT, PageError, see_other
from relay.emulator.portal.parts import Parts
from relay.emulator.portal.visits import Visit, Visits
from relay.emulator.store.passwords import hash_password
from relay.emulator.store.store import audit
from relay.emulator.store.tables import LoginSession, User

USERS = f"{ROOT}users"
_FIELDS = ("name", "email", "extension", "group", "role", "region")
_ON = "on"


class UserEdit(BaseModel):
    """What an administrator changes of a user."""

    name: firms.Name
    email: Annotated[fixtures.Email, Field(description="an address such as anna@atlas.example")]
    extension: Annotated[fixtures.Extension | None, Field(description="1 to 20 digits, +, * or #, or nothing")]
    group: Annotated[fixtures.Identifier | None, Field(description="one of the firm's groups, or none")]
    role: Annotated[UserRole, Field(description="user or admin")]
    region: firms.Region


class NewUser(UserEdit):
    """A user who is to be added."""

    user_id: Annotated[
        fixtures.Identifier,
        Field(description="1 to 63 of a-z, 0-9, dot, hyphen and underscore; the first is a letter or a digit"),
    ]
    password: Annotated[firms.Password | None, Field(description=firms.PASSWORD_RULE)]


class Users:
    """The pages below ``/portal/users``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._store = parts.store

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each page."""
        yield "GET", USERS, visits.reading(self._list, admin=True)
        yield "GET", f"{USERS}/new", visits.reading(self._new, admin=True)
        yield "POST", f"{USERS}/new", visits.changing(self._add, admin=True)
        yield "GET", f"{USERS}/{{user}}", visits.reading(self._show, admin=True)
        yield "POST", f"{USERS}/{{user}}", visits.changing(self._save, admin=True)
        yield "POST", f"{USERS}/{{user}}/voice", visits.changing(self._switch_voice, admin=True)
        yield "POST", f"{USERS}/{{user}}/enabled", visits.changing(self._switch_enabled, admin=True)
        yield "POST", f"{USERS}/{{user}}/password", visits.changing(self._new_password, admin=True)

    async def _list(self, visit: Visit) -> web.StreamResponse:
        wanted, page = visit.query("q"), page_in(visit.query("page"))
        users = select(User).where(User.firm_id == visit.who.firm_id)
        users = containing(users, wanted, User.user_id, User.name, User.email, User.extension)
        async with self._store.reading() as session:
            total = await count_of(session, users)
            rows = (await session.scalars(on_page(users.order_by(User.name, User.user_id), page))).all()
            groups = {group.group_id: group.name for group in await firms.groups_of(session, visit.who.firm_id)}
            at_login = await self._at_login(session, [user.user_id for user in rows])
        paging = Paging(USERS, {"q": wanted}, page, total)
        # Whose switch was pressed on this page.
        changed = next((user.name for user in rows if user.user_id == visit.query("user")), "")
        context = {"users": rows, "groups": groups, "at_login": at_login, "q": wanted, "paging": paging}
        return visit.render("users.html", {**context, "notice_of": changed})

    async def _at_login(self, session: AsyncSession, user_ids: list[str]) -> dict[str, bool]:
        """Voice via Web Proxy as it was at each user's latest login. Who is not logged in is not in it."""
        logins = select(LoginSession.user_id, LoginSession.voice_via_web_proxy).where(
            LoginSession.user_id.in_(user_ids),
            LoginSession.kind == CLIENT,
            LoginSession.expires_at > self._parts.clock(),
        )
        return dict((await session.execute(logins.order_by(LoginSession.created_at))).all())

    # One user

    async def _show(self, visit: Visit) -> web.StreamResponse:
        return await self._page(visit, None)

    async def _page(self, visit: Visit, form: FormView | None, *, status: int = 200, **more: Any) -> web.Response:
        """The page of a user. Without a form it shows what is stored."""
        async with self._store.reading() as session:
            user = await firms.user_of(session, visit.who.firm_id, visit.path("user"))
            groups = await firms.groups_of(session, visit.who.firm_id)
            standing = await standing_of(session, user.user_id, self._parts.clock())
        if form is None:
            form = FormView(_values(user), version=version_of(_values(user)))
        context = {
            "user": user,
            "groups": groups,
            "regions": fixtures.REGIONS,
            "standing": standing,
            "form": form,
            "password_rule": firms.PASSWORD_RULE,
            "password_error": "",
            **more,
        }
        return visit.render("user.html", context, status=status)

    async def _save(self, visit: Visit) -> web.StreamResponse:
        values, errors = _typed(visit.form), dict[str, str]()
        wanted = check(UserEdit, _optional(values), errors)
        async with visit.writing() as session:
            user = await firms.user_of(session, visit.who.firm_id, visit.path("user"))
            stored = _values(user)
            await _check_clashes(session, user.user_id, visit.who.firm_id, values, errors)
            if wanted is not None and wanted.role != UserRole.ADMIN and await firms.is_last_admin(session, user):
                errors["role"] = _LAST_ADMIN
            differing = conflicts(stored, values, visit.form.text(VERSION))
            if wanted is not None and not errors and not differing:
                _apply(user, wanted)
                if changes := differences(stored, _values(user)):
                    audit(session, user.firm_id, visit.who.user_id, "user changed", user.user_id, changes=changes)
                return see_other(f"{USERS}/{user.user_id}?done=saved")
        form = FormView(values, errors, differing, version_of(stored))
        return await self._page(visit, form, status=422 if errors else 409)

    async def _switch_voice(self, visit: Visit) -> web.StreamResponse:
        on = visit.form.text("voice") == _ON
        async with visit.writing() as session:
            user = await firms.user_of(session, visit.who.firm_id, visit.path("user"))
            if user.voice_via_web_proxy != on:
                user.voice_via_web_proxy = on
                audit(session, user.firm_id, visit.who.user_id, "voice via web proxy switched", user.user_id, on=on)
        done = f"done=voice-{'on' if on else 'off'}"
        if visit.form.text("back") == "list":
            filters = {"q": visit.form.text("q")[:200], "page": str(page_in(visit.form.text("page")))}
            return see_other(f"{USERS}?{urlencode({**filters, 'user': user.user_id})}&{done}")
        return see_other(f"{USERS}/{user.user_id}?{done}")

    async def _switch_enabled(self, visit: Visit) -> web.StreamResponse:
        on = visit.form.text("enabled") == _ON
        async with visit.writing() as session:
            user = await firms.user_of(session, visit.who.firm_id, visit.path("user"))
            if not on and user.user_id == visit.who.user_id:
                raise PageError(422, "Not yourself", "You cannot disable yourself: ask another administrator.")
            if not on and await firms.is_last_admin(session, user):
                raise PageError(422, "The last administrator", _LAST_ADMIN)
            if user.enabled != on:
                user.enabled = on
                audit(session, user.firm_id, visit.who.user_id, f"user {'enabled' if on else 'disabled'}", user.user_id)
            if not on:
                await firms.end_logins(session, user.user_id)
        if not on:
            await self._parts.tell_logins_ended(user.user_id)
        return see_other(f"{USERS}/{user.user_id}?done={'enabled' if on else 'disabled'}")

    async def _new_password(self, visit: Visit) -> web.StreamResponse:
        given, errors = visit.form.raw("password"), dict[str, str]()
        made = "" if given else secrets.token_urlsafe(12)
        if check(_NewPassword, {"password": given or made}, errors) is None:
            return await self._page(visit, None, status=422, password_error=errors["password"])
        hashed = await asyncio.to_thread(hash_password, given or made)
        async with visit.writing() as session:
            user = await firms.user_of(session, visit.who.firm_id, visit.path("user"))
            user.password_hash = hashed
            own = user.user_id == visit.who.user_id
            await firms.end_logins(session, user.user_id, except_for=visit.who.token_hash if own else "")
            audit(session, user.firm_id, visit.who.user_id, "password changed", user.user_id)
        await self._parts.tell_logins_ended(user.user_id)
        if made:
            context = {
                "title": "New password",
                "of": user.name,
                "name": user.user_id,
                "what": "password",
                "secret": made,
            }
            return visit.render("secret.html", {**context, "back": f"{USERS}/{user.user_id}"})
        return see_other(f"{USERS}/{user.user_id}?done=password")

    # A new user

    async def _new(self, visit: Visit) -> web.StreamResponse:
        async with self._store.reading() as session:
            firm = await firms.firm_of(session, visit.who.firm_id)
        empty = dict.fromkeys((*_FIELDS, "user_id"), "")
        return await self._new_page(visit, FormView({**empty, "role": "user", "region": firm.region, "voice": ""}))

    async def _new_page(self, visit: Visit, form: FormView, *, status: int = 200) -> web.Response:
        async with self._store.reading() as session:
            groups = await firms.groups_of(session, visit.who.firm_id)
        context = {
            "form": form,
            "groups": groups,
            "regions": fixtures.REGIONS,
            "password_rule": firms.PASSWORD_RULE,
        }
        return visit.render("user_new.html", context, status=status)

    async def _add(self, visit: Visit) -> web.StreamResponse:
        values = {**_typed(visit.form), **visit.form.texts("user_id", "voice")}
        password, errors = visit.form.raw("password"), dict[str, str]()
        wanted = check(NewUser, {**_optional(values), "password": password or None}, errors)
        made = "" if password else secrets.token_urlsafe(12)
        hashed = await asyncio.to_thread(hash_password, password or made) if wanted is not None else ""
        async with visit.writing() as session:
            await _check_clashes(session, "", visit.who.firm_id, values, errors)
            if "user_id" not in errors and await session.get(User, values["user_id"]) is not None:
                errors["user_id"] = f"The user name “{values['user_id']}” is taken. Choose another one."
            await _check_room(session, visit.who.firm_id, errors)
            if wanted is not None and not errors:
                user = User(user_id=wanted.user_id, firm_id=visit.who.firm_id, password_hash=hashed, enabled=True)
                _apply(user, wanted)
                user.voice_via_web_proxy = values["voice"] == _ON
                session.add(user)
                details = {**_values(user), "voice_via_web_proxy": user.voice_via_web_proxy}
                audit(session, user.firm_id, visit.who.user_id, "user added", user.user_id, **details)
        if wanted is None or errors:
            return await self._new_page(visit, FormView(values, errors), status=422)
        if made:
            context = {
                "title": "New user",
                "of": wanted.name,
                "name": wanted.user_id,
                "what": "password",
                "secret": made,
            }
            return visit.render("secret.html", {**context, "back": f"{USERS}/{wanted.user_id}"})
        return see_other(f"{USERS}/{wanted.user_id}?done=added")


class _NewPassword(BaseModel):
    password: firms.Password


_LAST_ADMIN = "This is the last administrator of the firm. Make somebody else an administrator first."


def _typed(form: Form) -> dict[str, str]:
    """What was typed. Addresses are compared in lower case, so they are kept so."""
    values = form.texts(*_FIELDS)
    return {**values, "email": values["email"].lower()}


def _optional(values: dict[str, str]) -> dict[str, str | None]:
    return {**values, "extension": values["extension"] or None, "group": values["group"] or None}


def _values(user: User) -> dict[str, str]:
    """A user as the form shows them."""
    return {
        "name": user.name,
        "email": user.email,
        "extension": user.extension or "",
        "group": user.group_id or "",
        "role": str(user.role),
        "region": user.region,
    }


def _apply(user: User, wanted: UserEdit) -> None:
    user.name, user.email, user.extension = wanted.name, wanted.email, wanted.extension
    user.group_id, user.role, user.region = wanted.group, wanted.role.value, wanted.region


async def _check_clashes(
    session: AsyncSession, user_id: str, firm_id: str, values: dict[str, str], errors: dict[str, str]
) -> None:
    """What others have already, or what is not the firm's. Fields that are wrong anyhow are left alone."""
    others = select(User.user_id).where(User.user_id != user_id)
    email, extension, group = values["email"], values["extension"], values["group"]
    if "email" not in errors and await session.scalar(others.where(User.email == email).limit(1)) is not None:
        errors["email"] = f"Another user has the address {email}."
    same_extension = others.where(User.extension == extension).limit(1)
    if extension and "extension" not in errors and await session.scalar(same_extension) is not None:
        errors["extension"] = f"Another user has the extension {extension}."
    if group and group not in {each.group_id for each in await firms.groups_of(session, firm_id)}:
        errors.setdefault("group", "The firm has no such group.")


async def _check_room(session: AsyncSession, firm_id: str, errors: dict[str, str]) -> None:
    count = await session.scalar(select(func.count()).select_from(User).where(User.firm_id == firm_id)) or 0
    if count >= firms.MAX_USERS:
        errors["user_id"] = f"The firm has {count} users, and can have {firms.MAX_USERS}."
