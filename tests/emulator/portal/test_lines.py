"""Lines and boards: who has them, what a firm may change of a line that it shares, and what follows from a change."""

from __future__ import annotations

import re
from typing import Any

import pytest
from sqlalchemy import select

from relay.emulator.store.tables import Button, Line, LineMember
from tests.support.benches.portal import ADMIN, TRADER, MadeUpPortal, made_up_portal

OWN = "sPK-10000004-100001"
PAIR = "sPK-10000001-100001"
SHARED = "sPK-10000003-100001"
DIAL = "sPK-10000005-100001"
NEW = {
    "kind": "hoot",
    "label": "A new hoot",
    "region": "euc1",
    "talkers": "anna, ben",
    "listeners": "chen\r\ndora;emil",
}


async def members(portal: MadeUpPortal, number: str) -> dict[str, str]:
    async with portal.store.reading() as session:
        found = await session.scalars(select(LineMember).where(LineMember.number == number))
        return {member.user_id: member.role for member in found}


async def buttons(portal: MadeUpPortal, user: str) -> list[tuple[int, str, str, str | None]]:
    async with portal.store.reading() as session:
        found = await session.scalars(select(Button).where(Button.user_id == user).order_by(Button.position))
        return [(each.position, each.label, each.line, each.dial) for each in found]


async def audited(portal: MadeUpPortal) -> list[tuple[str, str, Any]]:
    return [
        (each.action, each.object, each.details) for each in await portal.audited() if each.action != "portal login"
    ]


async def test_a_new_line() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/lines/new", NEW)
        found = re.fullmatch(r"/portal/lines/(sPK-\d{8}-\d{6})\?done=added", page.location)
        assert found is not None
        assert await members(portal, found[1]) == {
            "anna": "talker",
            "ben": "talker",
            "chen": "listener",
            "dora": "listener",
            "emil": "listener",
        }
        assert portal.told == [("lines", (found[1],))]
        [(action, line, details)] = await audited(portal)
        assert (action, line, details["talkers"]) == ("line added", found[1], "anna\nben")
        assert "A new hoot" in (await admin.get("/portal/lines?q=new+hoot")).words


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"talkers": "anna", "listeners": ""}, "Members: 1 given; a hoot line has 2 to 800."),
        ({"talkers": "", "listeners": "anna ben"}, "Members: a hoot line needs at least one talker."),
        ({"kind": "broadcast"}, "Members: a broadcast line has exactly one talker"),
        ({"kind": "dial_tone"}, "Members: 5 given; a dial_tone line has 1."),
        ({"talkers": "anna fay"}, "The firm has no user “fay”."),
        ({"talkers": "anna nobody"}, "The firm has no user “nobody”."),
        ({"talkers": "<script>"}, "The firm has no user “&lt;script&gt;”."),
        ({"listeners": "anna"}, "“anna” is a talker already."),
        ({"label": ""}, "Fill this in: 1 to 128 characters."),
        ({"kind": "party"}, "“party” does not fit. Expected ringdown, shoutdown"),
        ({"region": "mars"}, "expected one of use1"),
    ],
)
async def test_a_new_line_that_cannot_be(fields: dict[str, str], told: str) -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/lines/new", {**NEW, **fields})
        assert page.status == 422
        assert told in page.text
        assert portal.told == []
        assert await audited(portal) == []
        async with portal.store.reading() as session:
            assert len((await session.scalars(select(Line))).all()) == 8


async def test_a_change_of_members_takes_their_buttons_with_it() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        fields = {"label": "Ben - Chen", "region": "apse1", "talkers": "ben chen", "listeners": ""}
        page = await admin.post(f"/portal/lines/{PAIR}", fields)
        assert page.location == f"/portal/lines/{PAIR}?done=saved"
        assert await members(portal, PAIR) == {"ben": "talker", "chen": "talker"}
        assert [each[2] for each in await buttons(portal, "anna")] == [
            "sPK-10000001-100002",
            "sPK-10000003-100001",
            DIAL,
        ]
        assert [each[2] for each in await buttons(portal, "ben")] == [PAIR]
        [(action, line, details)] = await audited(portal)
        assert (action, line) == ("line changed", PAIR)
        assert details["changes"] == {
            "label": ["Anna - Ben", "Ben - Chen"],
            "region": ["use1", "apse1"],
            "talkers": ["anna\nben", "ben\nchen"],
        }
        # The same once more, in another order, is not a change.
        await admin.post(f"/portal/lines/{PAIR}", {**fields, "talkers": "chen,ben"})
        assert len(await audited(portal)) == 1


async def test_of_a_shared_line_a_firm_changes_only_its_own_part() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        before = await members(portal, SHARED)
        page = await admin.get(f"/portal/lines/{SHARED}")
        assert "Another firm has 5 members on this line." in page.words
        assert not re.search(r"fay|gus|hana|ivan|june|Borealis", page.text)
        fields = {"label": "Ours", "region": "apse2", "talkers": "dora", "listeners": "anna"}
        page = await admin.post(f"/portal/lines/{SHARED}", fields)
        assert page.status == 303
        after = await members(portal, SHARED)
        assert {name: role for name, role in after.items() if name in {"anna", "chen", "dora", "emil"}} == {
            "anna": "listener",
            "dora": "talker",
        }
        theirs = {"fay", "gus", "hana", "ivan", "june"}
        assert {name: after[name] for name in theirs} == {name: before[name] for name in theirs}
        async with portal.store.reading() as session:
            line = await session.get_one(Line, SHARED)
        assert (line.label, line.region) == ("Energy hoot", "use1")
        # Neither everybody nor the line itself can be taken away.
        page = await admin.post(f"/portal/lines/{SHARED}", {"talkers": "", "listeners": ""})
        assert (page.status, "Name at least one user of the firm." in page.words) == (422, True)
        page = await admin.post(f"/portal/lines/{SHARED}/delete", {"confirm": "yes"}, on=f"/portal/lines/{SHARED}")
        assert (page.status, "Another firm has this line, too." in page.words) == (422, True)
        assert await members(portal, SHARED) == after


async def test_two_administrators_at_once() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as one, portal.visitor(*ADMIN) as other:
        fields = {"label": "Atlas desk", "region": "use1", "talkers": "anna ben chen dora emil", "listeners": ""}
        version = (await one.get(f"/portal/lines/{OWN}")).field("version")
        await other.post(f"/portal/lines/{OWN}", {**fields, "talkers": "anna ben"})
        page = await one.post(f"/portal/lines/{OWN}", {**fields, "label": "Desk", "version": version})
        assert page.status == 409
        assert "Stored now: anna ben" in page.words
        assert set(await members(portal, OWN)) == {"anna", "ben"}
        page = await one.post(f"/portal/lines/{OWN}", {**fields, "label": "Desk", "version": page.field("version")})
        assert page.status == 303
        assert len(await members(portal, OWN)) == 5


async def test_a_line_is_deleted() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post(f"/portal/lines/{PAIR}/delete", {}, on=f"/portal/lines/{PAIR}")
        assert (page.status, "Tick the box" in page.words) == (422, True)
        page = await admin.post(f"/portal/lines/{PAIR}/delete", {"confirm": "yes"}, on=f"/portal/lines/{PAIR}")
        assert page.location == "/portal/lines?done=deleted"
        assert await members(portal, PAIR) == {}
        assert await buttons(portal, "ben") == []
        assert portal.told == [("lines", (PAIR,))]
        assert [each[:2] for each in await audited(portal)] == [("line deleted", PAIR)]
        assert (await admin.get(f"/portal/lines/{PAIR}")).status == 404


async def test_a_firm_has_only_so_many_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.emulator.portal.firms.MAX_LINES", 7)
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/lines/new", NEW)
        assert (page.status, "The firm has 7 lines, and can have 7." in page.words) == (422, True)


async def test_a_hoot_of_800_fits_into_a_form() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        from relay.emulator.store.tables import User

        names = [f"{'x' * 58}{number:05}" for number in range(800)]
        async with portal.store.writing() as session:
            anna = await session.get_one(User, "anna")
            more = {column: getattr(anna, column) for column in ("firm_id", "password_hash", "role", "region")}
            for name in names:
                values = {"user_id": name, "name": name, "email": f"{name[-30:]}@atlas.example"}
                session.add(User(**values, **more, voice_via_web_proxy=False, enabled=True))
        page = await admin.post("/portal/lines/new", {**NEW, "talkers": names[0], "listeners": "\n".join(names[1:])})
        assert page.status == 303, page.words[:300]
        assert len(await members(portal, page.location[14:33])) == 800


# Boards


async def test_users_change_their_own_board() -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as anna:
        page = await anna.post("/portal/board", {"position": "9", "label": "Desk", "line": OWN, "dial": "", "was": ""})
        assert page.location == "/portal/board?done=added"
        assert (9, "Desk", OWN, None) in await buttons(portal, "anna")
        # Move one, and change what it dials.
        page = await anna.get("/portal/board?edit=4")
        assert page.field("label") == "Fay by dial tone"
        fields = {"position": "40", "label": "Gus", "line": DIAL, "dial": "2002", "was": "4"}
        page = await anna.post("/portal/board", {**fields, "version": page.field("version")})
        assert page.status == 303
        assert [each[0] for each in await buttons(portal, "anna")] == [1, 2, 3, 9, 40]
        assert (await buttons(portal, "anna"))[-1] == (40, "Gus", DIAL, "2002")
        await anna.post("/portal/board/delete", {"position": "1"}, on="/portal/board")
        assert [each[0] for each in await buttons(portal, "anna")] == [2, 3, 9, 40]
        assert [each[0] for each in await audited(portal)] == ["button added", "button changed", "button deleted"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"position": "1"}, "There is a button at 1 already."),
        ({"position": "0"}, "“0” does not fit. Expected a number from 1 to 600."),
        ({"position": "601"}, "Expected a number from 1 to 600."),
        ({"position": "9" * 5000}, "Expected a number from 1 to 600."),
        ({"position": ""}, "Fill this in: a number from 1 to 600."),
        ({"label": ""}, "Fill this in: 1 to 128 characters."),
        ({"line": "sPK-10000005-100002"}, "The user does not have this line."),
        ({"line": "sPK-1"}, "does not fit. Expected one of the user"),
        ({"dial": "2001"}, "Only a dial-tone line dials a number."),
        ({"dial": "call me", "line": DIAL}, "“call me” does not fit."),
    ],
)
async def test_a_button_that_cannot_be(fields: dict[str, str], told: str) -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as anna:
        before = await buttons(portal, "anna")
        page = await anna.post("/portal/board", {"position": "9", "label": "x", "line": OWN, "dial": "", **fields})
        assert (page.status, told in page.words) == (422, True), page.words
        assert await buttons(portal, "anna") == before


async def test_a_button_that_somebody_else_has_changed() -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as anna, portal.visitor(*ADMIN) as admin:
        fields = {"position": "1", "label": "Mine", "line": PAIR, "dial": "", "was": "1"}
        version = (await anna.get("/portal/board?edit=1")).field("version")
        theirs = (await admin.get("/portal/users/anna/board?edit=1")).field("version")
        page = await admin.post("/portal/users/anna/board", {**fields, "label": "Theirs", "version": theirs})
        assert page.location == "/portal/users/anna/board?done=saved"
        page = await anna.post("/portal/board", {**fields, "version": version})
        assert (page.status, "Stored now: Theirs" in page.words) == (409, True)
        page = await anna.post("/portal/board", {**fields, "version": page.field("version")})
        assert page.status == 303
        assert (await buttons(portal, "anna"))[0] == (1, "Mine", PAIR, None)
        await admin.post("/portal/users/anna/board/delete", {"position": "1"}, on="/portal/users/anna/board")
        page = await anna.post("/portal/board", {**fields, "version": "x"})
        assert (page.status, "Somebody has moved or deleted this button" in page.words) == (409, True)
        for odd in ("", "x", "-1", "9" * 30, "1.5"):
            page = await anna.post("/portal/board/delete", {"position": odd}, on="/portal/board")
            assert page.status == 409
