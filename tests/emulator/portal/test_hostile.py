"""What a page must bear: markup and SQL in every field, names of other firms in every path, and forms that are none."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from sqlalchemy import select

from relay.emulator.portal.forms import MAX_FIELDS, MAX_FORM_BYTES
from relay.emulator.portal.logins import FORM_TOKEN
from relay.emulator.store import tables
from tests.support.benches.portal import ADMIN, OTHER_ADMIN, MadeUpPortal, made_up_portal
from tests.support.waiting import eventually

MARKUP = "\"'><img src=x onerror=ran()><script>ran()</script>{{7*7}}"
LINE = "sPK-10000004-100001"
# Where texts of people end up, and where they are shown.
SHOWN = ["/portal/", "/portal/users", "/portal/users/anna", "/portal/users/anna/board", "/portal/lines"]
SHOWN += [f"/portal/lines/{LINE}", "/portal/recordings", "/portal/keys", "/portal/keys/atlas-key-1", "/portal/audit"]
SHOWN += ["/portal/firm", "/portal/profile", "/portal/users/new", "/portal/lines/new"]
# Everything of Atlas that has a name in a path, asked for by an administrator of Borealis.
FOREIGN = [
    "/portal/users/anna",
    "/portal/users/anna/board",
    f"/portal/lines/{LINE}",
    "/portal/keys/atlas-key-1",
]
FOREIGN_CHANGES: list[tuple[str, dict[str, str]]] = [
    ("/portal/users/anna", {"name": "x", "email": "x@y.example", "role": "admin", "region": "use1"}),
    ("/portal/users/dora/voice", {"voice": "off"}),
    ("/portal/users/anna/enabled", {"enabled": "off"}),
    ("/portal/users/anna/password", {"password": "a long password"}),
    ("/portal/users/anna/board", {"position": "9", "label": "x", "line": LINE}),
    ("/portal/users/anna/board/delete", {"position": "1"}),
    (f"/portal/lines/{LINE}", {"label": "x", "region": "use1", "talkers": "fay"}),
    (f"/portal/lines/{LINE}/delete", {"confirm": "yes"}),
    ("/portal/keys/atlas-key-1", {"name": "x", "networks": "0.0.0.0/0", "apis": "cti"}),
    ("/portal/firm/groups/atlas-rates", {"group_name": "x", "was": "Rates"}),
    ("/portal/firm/groups/atlas-rates/delete", {}),
]


async def everything(portal: MadeUpPortal) -> dict[str, list[Any]]:
    """All rows that a page changes."""
    async with portal.store.reading() as session:
        found = {}
        for table in (
            tables.User,
            tables.Line,
            tables.LineMember,
            tables.Button,
            tables.ApiKey,
            tables.Group,
            tables.Firm,
        ):
            rows = (await session.execute(select(table.__table__))).all()
            found[table.__tablename__] = sorted(map(repr, rows))
        return found


async def test_markup_is_text_everywhere() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        anna = {"email": "anna@atlas.example", "extension": "1001", "group": "atlas-rates", "role": "user"}
        line = {"region": "use1", "talkers": "anna ben chen dora emil", "listeners": ""}
        key = {"networks": "10.0.0.0/8", "apis": "cti", "enabled": "on"}
        board = {"position": "1", "line": "sPK-10000001-100001", "dial": "", "was": "1"}
        version = (await admin.get("/portal/users/anna/board?edit=1")).field("version")
        changes: list[tuple[str, dict[str, str], str]] = [
            ("/portal/users/anna", {**anna, "name": MARKUP, "region": "use1"}, ""),
            (f"/portal/lines/{LINE}", {**line, "label": MARKUP}, ""),
            ("/portal/keys/atlas-key-1", {**key, "name": MARKUP}, ""),
            ("/portal/users/anna/board", {**board, "label": MARKUP, "version": version}, ""),
            ("/portal/firm", {"name": MARKUP, "region": "use1"}, ""),
            ("/portal/firm/groups/atlas-rates", {"group_name": MARKUP, "was": "Rates"}, "/portal/firm"),
        ]
        for path, fields, on in changes:
            assert (path, (await admin.post(path, fields, on=on)).status) == (path, 303)
        await portal.record(1, "anna", "atlas", b"x", media_type=MARKUP[:60], call_id=MARKUP[:36])
        portal.call("sPK-10000001-100001", ["anna"], label=MARKUP)
        for path in SHOWN:
            page = await admin.get(path)
            assert page.status == 200
            assert "<img" not in page.text
            assert "<script>" not in page.text
            assert "onerror=ran()" not in page.text.replace("onerror=ran()&gt;", "")
            assert "49" not in page.text.replace(FORM_TOKEN, "") or "{{7*7}}" in page.text
        for path in ("/portal/users/anna", f"/portal/lines/{LINE}", "/portal/users/anna/board", "/portal/firm"):
            assert MARKUP in (await admin.get(path)).text.replace("&#34;", '"').replace("&#39;", "'").replace(
                "&lt;", "<"
            ).replace("&gt;", ">")


async def test_markup_in_what_comes_back_at_once() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        for path in ("/portal/users", "/portal/lines", "/portal/audit", "/portal/recordings", "/portal/users/anna"):
            for name in ("q", "user", "line", "from", "page", "done", "edit"):
                page = await admin.get(path, params={name: MARKUP})
                assert page.status in {200, 422}
                assert "<img" not in page.text
        fields = dict.fromkeys(("name", "email", "extension", "group", "role", "region", "version", "user_id"), MARKUP)
        for path in ("/portal/users/anna", "/portal/users/new"):
            page = await admin.post(path, fields)
            assert page.status == 422
            assert "<img" not in page.text
        fields = dict.fromkeys(("label", "kind", "region", "talkers", "listeners"), MARKUP)
        for path in ("/portal/lines/new", f"/portal/lines/{LINE}"):
            page = await admin.post(path, fields)
            assert page.status == 422
            assert "<img" not in page.text
        page = await admin.post("/portal/keys/new", {"name": MARKUP, "networks": MARKUP, "apis": MARKUP})
        assert (page.status, "<img" in page.text) == (422, False)
        page = await admin.post("/portal/board", dict.fromkeys(("position", "label", "line", "dial"), MARKUP))
        assert "<img" not in page.text
        async with portal.visitor() as guest:
            page = await guest.log_in(MARKUP, MARKUP, next=MARKUP)
            assert (page.status, "<img" in page.text) == (401, False)


async def test_another_firm_is_not_there() -> None:
    async with made_up_portal() as portal, portal.visitor(*OTHER_ADMIN) as admin:
        before = await everything(portal)
        missing = await admin.get("/portal/users/no-such-user")
        for path in FOREIGN:
            page = await admin.get(path)
            # Not even a difference to what does not exist.
            assert (path, page.status, page.body) == (path, 404, missing.body)
        for path, fields in FOREIGN_CHANGES:
            page = await admin.post(path, fields, on="/portal/profile")
            assert (path, page.status, page.body) == (path, 404, missing.body)
        for path in (
            "/portal/users",
            "/portal/lines",
            "/portal/keys",
            "/portal/audit",
            "/portal/firm",
            "/portal/recordings",
        ):
            page = await admin.get(path)
            assert not {"anna", "Keller", "atlas-key-1"} & set(page.words.split())
            assert "atlas" not in page.text
        assert await everything(portal) == before
        assert {entry.action for entry in await portal.audited()} == {"portal login"}
        assert portal.told == []


async def test_an_administrator_moves_nobody_into_another_firm() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        fields = {"name": "E", "email": "emil@atlas.example", "role": "user", "region": "use1"}
        more = {"firm": "borealis", "firm_id": "borealis", "user_id": "fay", "enabled": "off", "password_hash": "x"}
        page = await admin.post("/portal/users/emil", {**fields, "extension": "", "group": "", **more})
        assert page.status == 303
        emil = await portal.user("emil")
        assert (emil.firm_id, emil.enabled, emil.password_hash[:9]) == ("atlas", True, "$argon2id")


@pytest.mark.parametrize(
    "text",
    [
        "' OR 1=1 --",
        '"; DROP TABLE users; --',
        "%",
        "\\",
        "a\x00b",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
async def test_sql_is_text(text: str) -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        before = await everything(portal)
        for path in ("/portal/users", "/portal/lines", "/portal/audit"):
            page = await admin.get(path, params={"q": text})
            assert (page.status, "Nothing matches" in page.words) == (200, True), path
        for name in ("user", "line"):
            assert (await admin.get("/portal/recordings", params={name: text})).status == 200
        async with portal.visitor() as guest:
            assert (await guest.log_in(text, text)).status == 401
        assert await everything(portal) == before


async def test_what_cannot_be_seen_becomes_visible() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        name = "a\u202eb\x00c\x1b[31m\nd\te\u2028f \u0645\u200c\u06cc"
        fields = {"email": "emil@atlas.example", "extension": "", "group": "", "role": "user", "region": "use1"}
        assert (await admin.post("/portal/users/emil", {**fields, "name": name})).status == 303
        assert (await portal.user("emil")).name == "a\ufffdb\ufffdc\ufffd[31m d e\ufffdf \u0645\u200c\u06cc"


# Forms that are none


async def test_forms_that_are_none() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        token = (await admin.get("/portal/users/anna")).field(FORM_TOKEN)
        path = "/portal/users/dora/voice"
        many = "&".join(f"f{number}=" for number in range(MAX_FIELDS + 1))
        for body, headers, status in (
            (b"{}", {"Content-Type": "application/json"}, 415),
            (b"--x--", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
            (b"x", {"Content-Type": ""}, 415),
            (b"\xff\xfe", form, 400),
            (b"voice=%FF", form, 400),
            (many.encode(), form, 400),
            (b"voice=off", form, 403),
            (b"a" * (MAX_FORM_BYTES + 1), form, 413),
            (b"", form, 403),
            (f"voice=off;x&{FORM_TOKEN}={token}&{FORM_TOKEN}=".encode(), form, 403),
        ):
            page = await admin.send(path, body, headers=headers)
            assert (body[:20], page.status) == (body[:20], status)
            assert "Nothing was changed." in page.words or status == 415
        assert (await portal.user("dora")).voice_via_web_proxy


async def test_a_form_without_a_length_is_bounded_too() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        sent = 0

        async def endless() -> Any:
            nonlocal sent
            while True:
                sent += 16 * 1024
                yield b"a" * 16 * 1024

        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        # The server answers, and then closes. Which of both the client sees first is a race.
        try:
            async with admin.http.post(portal.base + "/portal/firm", data=endless(), headers=headers) as answer:
                assert answer.status == 413
        except aiohttp.ClientConnectionError:
            pass
        assert sent < 64 * MAX_FORM_BYTES


async def test_a_slow_form_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.emulator.portal.forms.BODY_TIMEOUT_S", 0.05)
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        stop = asyncio.Event()

        async def slow() -> Any:
            yield b"voice=off"
            await stop.wait()

        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        try:
            async with admin.http.post(portal.base + "/portal/firm", data=slow(), headers=headers) as answer:
                assert answer.status == 408
        finally:
            stop.set()
    # The server reads the rest of what it has refused, for a moment.
    await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def test_an_answer_that_takes_too_long_is_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr("relay.emulator.http.site.ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr("relay.emulator.portal.logins.Logins.find", hang)
    async with made_up_portal() as portal, portal.visitor() as visitor:
        for path in ("/portal/", "/portal/login"):
            page = await visitor.get(path)
            assert (page.status, page.headers["Retry-After"]) == (503, "5")
            assert "Not now There was no answer within 0 s. To the portal" in page.words
            assert page.headers["Content-Security-Policy"]


async def test_a_fault_of_ours_shows_no_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: MadeUpPortal) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(MadeUpPortal, "live_lines", fail)
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.get("/portal/")
        assert page.status == 500
        assert "incident" in page.words
        assert "inside" not in page.text
        assert page.headers["Cache-Control"] == "no-store"
