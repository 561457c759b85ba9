"""What an administrator does with users, and what they are told when it cannot be done."""

from __future__ import annotations

import re
from typing import Any

import pytest
from sqlalchemy import update

from relay.emulator.apis.entitlement import standing_of
from relay.emulator.store.tables import User
from tests.support.benches.portal import ADMIN, MadeUpPortal, Reply, Visitor, made_up_portal

EMIL = {
    "name": "Emil Novak",
    "email": "emil@atlas.example",
    "extension": "1005",
    "group": "atlas-energy",
    "role": "user",
    "region": "use1",
}
NEW = {**EMIL, "user_id": "kim", "name": "Kim Lee", "email": "Kim@Atlas.example", "extension": "1010", "password": ""}


def error_of(page: Reply, field: str) -> str:
    found = re.search(rf'id="{field}-error">([^<]*)<', page.text)
    return "" if found is None else found[1]


async def audited(portal: MadeUpPortal) -> list[tuple[str, str, Any]]:
    return [
        (each.action, each.object, each.details) for each in await portal.audited() if each.action != "portal login"
    ]


async def test_the_list_and_its_filter() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.get("/portal/users")
        assert re.findall(r'href="/portal/users/([a-z-]+)">', page.text)[1:] == [
            "anna",
            "atlas-admin",
            "ben",
            "chen",
            "dora",
            "emil",
        ]
        for wanted, users in (
            ("ANNA", ["anna"]),
            ("1003", ["chen"]),
            ("novak", ["emil"]),
            ("%", []),
            ("_", []),
            ("'", []),
        ):
            page = await admin.get("/portal/users", params={"q": wanted})
            assert re.findall(r'href="/portal/users/([a-z-]+)">', page.text)[1:] == users
            assert page.field("q") == wanted.replace("'", "'")
        assert "Nothing matches" in page.words


async def test_pages_of_a_long_list() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        async with portal.store.writing() as session:
            anna = await session.get_one(User, "anna")
            for number in range(101):
                values = {"user_id": f"u{number:03}", "name": f"User {number:03}", "email": f"u{number}@atlas.example"}
                more = {column: getattr(anna, column) for column in ("firm_id", "password_hash", "role", "region")}
                session.add(User(**values, **more, voice_via_web_proxy=False, enabled=True))
        page = await admin.get("/portal/users?q=User")
        assert "1 to 50 of 101" in page.words
        assert 'href="/portal/users?q=User&amp;page=2" rel="next"' in page.text
        page = await admin.get("/portal/users?q=User&page=3")
        assert "101 to 101 of 101" in page.words
        assert 'rel="next"' not in page.text
        for odd in ("0", "-1", "x", "9" * 30, "1e3", "٣", ""):
            assert (await admin.get("/portal/users", params={"page": odd})).status == 200


async def test_a_change_and_its_trace() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        changes = {"name": "Emil N.", "email": "E.Novak@atlas.example", "extension": "", "group": "", "region": "euc1"}
        page = await admin.post("/portal/users/emil", {**EMIL, **changes})
        assert page.location == "/portal/users/emil?done=saved"
        emil = await portal.user("emil")
        assert (emil.name, emil.email, emil.extension, emil.group_id) == (
            "Emil N.",
            "e.novak@atlas.example",
            None,
            None,
        )
        assert await audited(portal) == [
            (
                "user changed",
                "emil",
                {
                    "changes": {
                        "name": ["Emil Novak", "Emil N."],
                        "email": ["emil@atlas.example", "e.novak@atlas.example"],
                        "extension": ["1005", ""],
                        "group": ["atlas-energy", ""],
                        "region": ["use1", "euc1"],
                    }
                },
            )
        ]
        # Saving the same again changes and notes nothing.
        assert (await admin.post("/portal/users/emil", {**EMIL, **changes})).status == 303
        assert len(await audited(portal)) == 1
        page = await admin.get("/portal/audit?q=emil")
        assert "name: Emil Novak → Emil N." in page.words


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("name", "", "Fill this in: 1 to 128 characters."),
        ("name", "x" * 129, "does not fit. Expected 1 to 128 characters."),
        ("email", "nobody", "does not fit. Expected an address such as"),
        ("email", "anna@atlas.example", "Another user has the address anna@atlas.example."),
        ("email", "FAY@borealis.example", "Another user has the address fay@borealis.example."),
        ("extension", "1001", "Another user has the extension 1001."),
        ("extension", "ten", "“ten” does not fit. Expected 1 to 20 digits, +, * or #, or nothing."),
        ("group", "borealis-sales", "The firm has no such group."),
        ("group", "A B", "does not fit. Expected one of the firm"),
        ("role", "root", "“root” does not fit. Expected user or admin."),
        ("region", "mars", "expected one of use1, euc1, apse1, apse2"),
    ],
)
async def test_what_is_wrong_stands_beside_the_field_and_nothing_is_changed(field: str, value: str, told: str) -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/users/emil", {**EMIL, "name": "Another", field: value})
        assert page.status == 422
        assert told in error_of(page, field).replace("&#39;", "'")
        assert "Nothing was saved." in page.words
        # What was typed is still there.
        assert field == "name" or page.field("name") == "Another"
        assert (await portal.user("emil")).name == "Emil Novak"
        assert await audited(portal) == []


async def test_two_administrators_at_once() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as one, portal.visitor(*ADMIN) as other:
        version = (await one.get("/portal/users/emil")).field("version")
        await other.post("/portal/users/emil", {**EMIL, "email": "new@atlas.example"})
        page = await one.post("/portal/users/emil", {**EMIL, "name": "Emil the First", "version": version})
        assert page.status == 409
        assert "Nothing was saved, because somebody else has changed this meanwhile." in page.words
        assert "Stored now: new@atlas.example" in page.words
        emil = await portal.user("emil")
        assert (emil.name, emil.email) == ("Emil Novak", "new@atlas.example")
        # Saving again is a decision, and is done.
        again = {**EMIL, "name": "Emil the First", "version": page.field("version")}
        assert (await one.post("/portal/users/emil", again)).status == 303
        emil = await portal.user("emil")
        assert (emil.name, emil.email) == ("Emil the First", "emil@atlas.example")
        # Both have done the same: nothing is lost, and nobody is asked.
        version = (await one.get("/portal/users/emil")).field("version")
        same = {**EMIL, "name": "Emil the Second"}
        await other.post("/portal/users/emil", same)
        assert (await one.post("/portal/users/emil", {**same, "version": version})).status == 303


async def test_voice_via_web_proxy_and_when_it_counts() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:

        async def allowed() -> bool:
            async with portal.store.reading() as session:
                return (await standing_of(session, "chen", portal.now)).allowed

        await portal.tokens.open(await portal.user("chen"), "client")
        page = await admin.post("/portal/users/chen/voice", {"voice": "on"}, on="/portal/users/chen")
        assert page.location == "/portal/users/chen?done=voice-on"
        page = await admin.get(page.location)
        assert "It counts from the user's next login." in page.words
        assert "At the latest login it was off, and that is still in effect." in page.words
        assert "off, until the next login" in (await admin.get("/portal/users?q=chen")).words
        assert not await allowed()
        portal.now += 10
        await portal.tokens.open(await portal.user("chen"), "client")
        assert await allowed()
        page = await admin.get("/portal/users/chen")
        assert "It was on at the latest login, too, so that is in effect." in page.words
        # From the list, one comes back to the list; doing the same again is not noted again.
        for _ in range(2):
            fields = {"voice": "off", "back": "list", "q": "a&b", "page": "2"}
            page = await admin.post("/portal/users/chen/voice", fields, on="/portal/users/chen")
            assert page.location == "/portal/users?q=a%26b&page=2&user=chen&done=voice-off"
        told = "Voice via Web Proxy is off. It counts from the user's next login."
        assert f"Chen Wei : {told}" in (await admin.get("/portal/users?user=chen&done=voice-off")).words
        # A name of nobody on this page is not shown.
        page = await admin.get("/portal/users?user=fay&done=voice-off")
        assert told in page.words
        assert "Fay" not in page.words
        assert await allowed()
        assert await audited(portal) == [
            ("voice via web proxy switched", "chen", {"on": True}),
            ("voice via web proxy switched", "chen", {"on": False}),
        ]


async def test_users_see_their_setting_and_who_changes_it() -> None:
    async with made_up_portal() as portal, portal.visitor("chen", "trader") as chen:
        page = await chen.get("/portal/profile")
        assert "Off. There is no softphone login now" in page.words
        assert "Atlas Administrator (admin@atlas.example)" in page.words
        assert "admin@borealis.example" not in page.text
        answer = await chen.post("/portal/users/chen/voice", {"voice": "on"}, on="/portal/profile")
        assert answer.status == 403
        assert not (await portal.user("chen")).voice_via_web_proxy


async def test_a_new_user_logs_in() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin, portal.visitor() as kim:
        page = await admin.post("/portal/users/new", {**NEW, "voice": "on"})
        assert page.status == 200
        secret = re.search(r'id="secret">([^<]+)<', page.text)
        assert secret is not None
        assert page.headers["Cache-Control"] == "no-store"
        assert (await kim.log_in("kim", secret[1])).status == 303
        user = await portal.user("kim")
        assert (user.firm_id, user.email, user.voice_via_web_proxy) == ("atlas", "kim@atlas.example", True)
        assert secret[1] not in str(await audited(portal))
        assert secret[1] not in (await admin.get("/portal/users/kim")).text
        given = {**NEW, "user_id": "kim2", "email": "k2@atlas.example", "extension": "", "password": "a long password"}
        page = await admin.post("/portal/users/new", given)
        assert page.location == "/portal/users/kim2?done=added"
        await kim.post("/portal/logout", {}, on="/portal/")
        assert (await kim.log_in("kim2", "a long password")).status == 303


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("user_id", "", "Fill this in: 1 to 63 of a-z"),
        ("user_id", "Kim Lee", "does not fit. Expected 1 to 63 of a-z"),
        ("user_id", "anna", "The user name “anna” is taken."),
        ("user_id", "fay", "The user name “fay” is taken."),
        ("password", "short", "Expected 8 to 128 characters."),
    ],
)
async def test_a_new_user_who_cannot_be(field: str, value: str, told: str) -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/users/new", {**NEW, field: value})
        assert page.status == 422
        assert told in error_of(page, field)
        assert "short" not in page.text.replace("This form", "")
        assert await audited(portal) == []


async def test_all_mistakes_are_told_at_once() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        wrong = {"user_id": "anna", "email": "ben@atlas.example", "extension": "abc", "password": "short", "group": "x"}
        page = await admin.post("/portal/users/new", {**NEW, **wrong})
        assert page.status == 422
        assert all(error_of(page, field) for field in wrong)
        for told in ("User name: The user name “anna” is taken.", "E-mail address: Another", "Extension: “abc”"):
            assert told in page.words


async def test_a_firm_has_only_so_many_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.emulator.portal.firms.MAX_USERS", 6)
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/users/new", NEW)
        assert (page.status, error_of(page, "user_id")) == (422, "The firm has 6 users, and can have 6.")


async def test_a_password_for_a_user() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin, portal.visitor("anna", "trader") as anna:
        path = "/portal/users/anna/password"
        page = await admin.post(path, {"password": "short"}, on="/portal/users/anna")
        assert (page.status, error_of(page, "password")) == (422, "Expected 8 to 128 characters.")
        page = await admin.post(path, {"password": ""}, on="/portal/users/anna")
        secret = re.search(r'id="secret">([^<]+)<', page.text)
        assert secret is not None
        assert (await anna.get("/portal/")).status == 303
        assert (await anna.log_in("anna", secret[1])).status == 303
        page = await admin.post(path, {"password": "chosen by hand"}, on="/portal/users/anna")
        assert page.location == "/portal/users/anna?done=password"
        assert (await anna.log_in("anna", "chosen by hand")).status == 303
        assert "chosen by hand" not in str(await audited(portal))
        # One's own login stays.
        await admin.post(
            "/portal/users/atlas-admin/password", {"password": "another one"}, on="/portal/users/atlas-admin"
        )
        assert (await admin.get("/portal/")).status == 200


async def test_a_firm_always_has_an_administrator() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        own = {
            "name": "Atlas Administrator",
            "email": "admin@atlas.example",
            "extension": "1000",
            "group": "",
            "role": "user",
            "region": "use1",
        }
        page = await admin.post("/portal/users/atlas-admin", own)
        assert (page.status, "This is the last administrator" in error_of(page, "role")) == (422, True)
        page = await admin.post("/portal/users/atlas-admin/enabled", {"enabled": "off"}, on="/portal/users/atlas-admin")
        assert (page.status, "You cannot disable yourself" in page.words) == (422, True)
        async with portal.store.writing() as session:
            await session.execute(update(User).where(User.user_id == "anna").values(role="admin"))
        assert (await admin.post("/portal/users/atlas-admin", own)).status == 303
        # From now on they are a user like any other.
        assert (await admin.get("/portal/users")).status == 403


async def test_a_listener_that_fails_undoes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: MadeUpPortal, user_ids: object) -> None:
        raise RuntimeError("signaling is gone")

    monkeypatch.setattr(MadeUpPortal, "on_logins_ended", fail)
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/users/anna/enabled", {"enabled": "off"}, on="/portal/users/anna")
        assert page.status == 303
        assert not (await portal.user("anna")).enabled


async def test_of_many_changes_at_once_each_is_whole(tmp_path: Any) -> None:
    """Writers take turns: every change that was acknowledged is stored and noted."""
    import asyncio

    async with made_up_portal(str(tmp_path / "p.db")) as portal, portal.visitor(*ADMIN) as admin:

        async def switch(visitor: Visitor, user: str, to: str) -> int:
            answer = await visitor.post(f"/portal/users/{user}/voice", {"voice": to}, on=f"/portal/users/{user}")
            return answer.status

        users = ["anna", "ben", "chen", "dora", "emil"]
        for to in ("on", "off", "on"):
            assert set(await asyncio.gather(*(switch(admin, user, to) for user in users))) == {303}
            assert {(await portal.user(user)).voice_via_web_proxy for user in users} == {to == "on"}
        assert len(await audited(portal)) == 3 + 5 + 5
