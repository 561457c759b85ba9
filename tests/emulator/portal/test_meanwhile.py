"""A login, a role or a password that goes while a form or a login is under way."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.sql import Executable

from relay.emulator.login.service import Passwords
from relay.emulator.portal import visits
from relay.emulator.portal.forms import Form, read_form
from relay.emulator.portal.logins import FORM_TOKEN
from relay.emulator.store.tables import ApiKey, Group, LoginSession, User
from tests.support.benches.portal import ADMIN, TRADER, MadeUpPortal, Reply, made_up_portal

ANNA = update(User).where(User.user_id == "anna")
ENDED = {
    "disabled": (ANNA.values(enabled=False), 401),
    "logged out": (delete(LoginSession).where(LoginSession.user_id == "anna"), 401),
    "no administrator": (ANNA.values(role="user"), 403),
}
LINE = {"label": "New", "region": "use1", "kind": "hoot", "talkers": "anna", "listeners": ""}
USER = {"name": "Kim", "email": "kim@atlas.example", "extension": "", "group": "", "role": "user", "region": "use1"}
KEY = {"name": "Open", "networks": "0.0.0.0/0", "apis": "cti", "enabled": "on"}
PASSWORD = {"current": "trader", "password": "a long password", "again": "a long password"}
FORMS = [
    ("/portal/users/new", {**USER, "user_id": "kim", "password": "a long password"}),
    ("/portal/users/emil", USER),
    ("/portal/users/emil/voice", {"voice": "on"}),
    ("/portal/users/emil/enabled", {"enabled": "off"}),
    ("/portal/users/atlas-admin/password", {"password": "a long password"}),
    ("/portal/users/emil/board", {"position": "99", "label": "New", "line": "sPK-10000001-100002", "dial": ""}),
    ("/portal/users/emil/board/delete", {"position": "1"}),
    ("/portal/lines/new", LINE),
    ("/portal/lines/sPK-10000001-100002", LINE),
    ("/portal/lines/sPK-10000001-100002/delete", {"confirm": "yes"}),
    ("/portal/keys/new", KEY),
    ("/portal/keys/{key}", KEY),
    ("/portal/firm", {"name": "Renamed", "region": "use1"}),
    ("/portal/firm/groups", {"group_name": "New"}),
    ("/portal/firm/groups/{group}", {"group_name": "New"}),
    ("/portal/firm/groups/{group}/delete", {}),
    ("/portal/faults", {"place": "desk_udp/loss", "percent": "12.5"}),
    ("/portal/faults/off", {"place": "all"}),
]
OWN_FORMS = [
    ("/portal/profile/password", PASSWORD),
    ("/portal/board", {"position": "99", "label": "New", "line": "sPK-10000001-100002", "dial": ""}),
    ("/portal/board/delete", {"position": "1"}),
]


class Pause:
    """Where something stops until the test goes on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.over = asyncio.Event()

    async def stop(self) -> None:
        """For what is to stop here."""
        self.reached.set()
        await self.over.wait()


def pause_forms(monkeypatch: pytest.MonkeyPatch, pause: Pause) -> None:
    """Forms stop when the login has been found, and before their body is there."""

    async def read_later(request: Any) -> Form:
        await pause.stop()
        return await read_form(request)

    monkeypatch.setattr(visits, "read_form", read_later)


def pause_passwords(monkeypatch: pytest.MonkeyPatch, pause: Pause) -> None:
    """The first password to be checked stops after its check."""
    check = Passwords.check

    async def check_and_stop(self: Passwords, *given: Any) -> bool:
        right = await check(self, *given)
        if not pause.reached.is_set():
            await pause.stop()
        return right

    monkeypatch.setattr(Passwords, "check", check_and_stop)


async def change(portal: MadeUpPortal, statement: Executable) -> None:
    async with portal.store.writing() as session:
        await session.execute(statement)


async def meanwhile(task: asyncio.Task[Reply], pause: Pause, portal: MadeUpPortal, statement: Executable) -> Reply:
    """The answer to what stops at the pause while the database changes."""
    async with asyncio.timeout(10):
        await pause.reached.wait()
        await change(portal, statement)
        pause.over.set()
        return await task


async def send_meanwhile(
    portal: MadeUpPortal, path: str, fields: dict[str, str], statement: Executable, monkeypatch: pytest.MonkeyPatch
) -> tuple[Reply, list[str]]:
    """Anna's form while the database changes. The answer, and what the audit says of her."""
    await change(portal, ANNA.values(role="admin"))
    async with portal.store.reading() as session:
        key = await session.scalar(select(ApiKey.api_key).where(ApiKey.firm_id == "atlas"))
        group = await session.scalar(select(Group.group_id).where(Group.firm_id == "atlas"))
    async with portal.visitor(*TRADER) as anna:
        token = (await anna.get("/portal/profile")).field(FORM_TOKEN)
        pause = Pause()
        pause_forms(monkeypatch, pause)
        form = aiohttp.FormData({FORM_TOKEN: token, **fields})
        task = asyncio.create_task(anna.send(path.format(key=key, group=group), form))
        answer = await meanwhile(task, pause, portal, statement)
    return answer, [each.action for each in await portal.audited() if each.action != "portal login"]


@pytest.mark.parametrize("ended", ENDED)
@pytest.mark.parametrize(("path", "fields"), FORMS)
async def test_no_form_outlives_login_and_role(
    path: str, fields: dict[str, str], ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement, status = ENDED[ended]
    async with made_up_portal() as portal:
        answer, actions = await send_meanwhile(portal, path, fields, statement, monkeypatch)
        assert (answer.status, actions) == (status, [])
        assert portal.told == []
        assert not portal.faults.active


@pytest.mark.parametrize("ended", ["disabled", "logged out"])
@pytest.mark.parametrize(("path", "fields"), OWN_FORMS)
async def test_nor_does_a_form_of_ones_own(
    path: str, fields: dict[str, str], ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement, status = ENDED[ended]
    async with made_up_portal() as portal:
        answer, actions = await send_meanwhile(portal, path, fields, statement, monkeypatch)
        assert (answer.status, actions) == (status, [])


@pytest.mark.parametrize("changed", [ANNA.values(password_hash="another"), ANNA.values(enabled=False)])
async def test_a_login_with_what_no_longer_counts(changed: Executable, monkeypatch: pytest.MonkeyPatch) -> None:
    async with made_up_portal() as portal, portal.visitor() as anna:
        pause = Pause()
        pause_passwords(monkeypatch, pause)
        answer = await meanwhile(asyncio.create_task(anna.log_in(*TRADER)), pause, portal, changed)
        assert answer.status == 401
        assert "The password was changed, or the user was disabled, during the login." in answer.words
        async with portal.store.reading() as session:
            assert (await session.scalars(select(LoginSession))).all() == []
        assert await portal.audited() == []


async def test_an_old_password_does_not_replace_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        pause = Pause()
        pause_passwords(monkeypatch, pause)
        newer = update(User).where(User.user_id == "atlas-admin").values(password_hash="newer")
        fields = {**PASSWORD, "current": "admin"}
        task = asyncio.create_task(admin.post("/portal/profile/password", fields, on="/portal/profile"))
        answer = await meanwhile(task, pause, portal, newer)
        assert (answer.status, "Your password has been changed meanwhile." in answer.words) == (409, True)
        assert (await portal.user("atlas-admin")).password_hash == "newer"
