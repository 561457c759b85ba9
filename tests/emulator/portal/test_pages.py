"""Every page, for whom it is, and what each answer carries."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import relay
from relay.emulator.portal.pages import FOLDER
from relay.emulator.store.tables import User
from tests.support.benches.portal import ADMIN, TRADER, made_up_portal

PROJECT = Path(relay.__file__).parent.parent
LINE = "sPK-10000001-100001"
SHARED = "sPK-10000001-100002"
FOR_ALL = ["/portal/", "/portal/calls", "/portal/recordings", "/portal/board", "/portal/profile"]
FOR_ADMINS = [
    "/portal/users",
    "/portal/users/new",
    "/portal/users/anna",
    "/portal/users/anna/board",
    "/portal/lines",
    "/portal/lines/new",
    f"/portal/lines/{LINE}",
    f"/portal/lines/{SHARED}",
    "/portal/keys",
    "/portal/keys/new",
    "/portal/keys/atlas-key-1",
    "/portal/audit",
    "/portal/firm",
    "/portal/faults",
]
CHANGES = [
    "/portal/users/new",
    "/portal/users/anna",
    "/portal/users/anna/voice",
    "/portal/users/anna/enabled",
    "/portal/users/anna/password",
    "/portal/users/anna/board",
    "/portal/users/anna/board/delete",
    "/portal/lines/new",
    f"/portal/lines/{LINE}",
    f"/portal/lines/{LINE}/delete",
    "/portal/keys/new",
    "/portal/keys/atlas-key-1",
    "/portal/firm",
    "/portal/firm/groups",
    "/portal/faults",
    "/portal/faults/off",
    "/portal/firm/groups/atlas-rates",
    "/portal/firm/groups/atlas-rates/delete",
]
# What a page and all that it loads weigh before compression. A laptop's portal is read over slow lines, too.
MAX_PAGE_BYTES = 28 * 1024


async def test_each_page_for_those_who_may_see_it() -> None:
    async with made_up_portal() as portal:
        async with portal.visitor(*ADMIN) as admin:
            for path in [*FOR_ALL, *FOR_ADMINS]:
                page = await admin.get(path)
                assert (path, page.status) == (path, 200)
        async with portal.visitor(*TRADER) as trader:
            for path in FOR_ALL:
                assert (await trader.get(path)).status == 200
            for path in FOR_ADMINS:
                page = await trader.get(path)
                assert (path, page.status) == (path, 403)
                assert "Only an administrator of your firm may see this." in page.words
            for path in CHANGES:
                assert (await trader.send(path, {})).status == 403
        async with portal.visitor() as stranger:
            for path in [*FOR_ALL, *FOR_ADMINS]:
                page = await stranger.get(path)
                assert (page.status, page.location.partition("?")[0]) == (303, "/portal/login")
            for path in [*CHANGES, "/portal/board", "/portal/profile/password", "/portal/logout"]:
                assert (path, (await stranger.send(path, {})).status) == (path, 401)
        assert not [entry for entry in await portal.audited() if entry.action != "portal login"]


async def test_no_answer_may_be_kept_framed_or_load_anything_from_elsewhere() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        for path in [*FOR_ALL, *FOR_ADMINS, "/portal/login", "/portal/nothing", "/portal"]:
            answer = await admin.get(path)
            policy = answer.headers["Content-Security-Policy"]
            directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
            assert directives["default-src"] == directives["frame-ancestors"] == directives["base-uri"] == "'none'"
            assert set(directives.values()) == {"'none'", "'self'"}
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|https?:", answer.text), path


async def test_pages_are_light() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        for path in [*FOR_ALL, *FOR_ADMINS]:
            page = await admin.get(path)
            loaded = set(re.findall(r'(?:href|src)="(/portal/static/[^"]+)"', page.text))
            weight = len(page.body) + sum([len((await admin.get(url)).body) for url in loaded])
            assert weight <= MAX_PAGE_BYTES, (path, weight)


async def test_pages_of_a_large_firm_stay_light() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        async with portal.store.writing() as session:
            anna = await session.get_one(User, "anna")
            more = {name: getattr(anna, name) for name in ("firm_id", "password_hash", "role", "region")}
            for number in range(2000):
                values = {
                    "user_id": f"trader-{number}",
                    "name": f"Trader {number}",
                    "email": f"t{number}@atlas.example",
                }
                session.add(User(**values, **more, voice_via_web_proxy=False, enabled=True))
        weights = {path: len((await admin.get(path)).body) for path in [*FOR_ALL, *FOR_ADMINS]}
        assert max(weights.values()) < 80 * 1024, weights
        assert weights["/portal/recordings"] < 8 * 1024


async def test_every_file_is_served_for_good_and_is_in_the_package() -> None:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["relay"]
    for path in [*FOLDER.iterdir(), *(FOLDER.parent / "templates").iterdir()]:
        name = path.relative_to(PROJECT / "relay").as_posix()
        assert any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns), name
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.get("/portal/")
        urls = re.findall(r'"(/portal/static/[^"]+)"', page.text)
        assert sorted(url.rpartition("/")[2] for url in urls) == sorted(path.name for path in FOLDER.iterdir())
        for url in urls:
            answer = await admin.get(url)
            assert answer.body == (FOLDER / url.rpartition("/")[2]).read_bytes()
            assert "immutable" in answer.headers["Cache-Control"]


@pytest.mark.parametrize(
    "path",
    [
        "/portal/static/0000000000000000/portal.css",
        "/portal/static/x/../portal.py",
        "/portal/static/x/%2e%2e%2fportal.py",
        "/portal/static/x/..%2f..%2fstore%2ftables.py",
        "/portal/templates/page.html",
        "/portal/users/..%2f..%2fetc%2fpasswd",
        "/portal/recordings/..%2f..%2fetc%2fpasswd/media",
        "/portal/recordings/%00/media",
        "/portal/users/a%00b",
        "/portal/users/%ff",
        f"/portal/users/{'a' * 5000}",
        "/portal/lines/%E2%80%AE",
        "/portal/keys/%25s",
        "/portal/nothing/at/all",
    ],
)
async def test_there_is_nothing_else(path: str) -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        import yarl

        async with admin.http.get(yarl.URL(portal.base + path, encoded=True), allow_redirects=False) as answer:
            text = await answer.text()
        assert answer.status == 404
        assert "root:" not in text
        assert "import" not in text


async def test_other_methods() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        for method in ("PUT", "DELETE", "PATCH"):
            async with admin.http.request(method, portal.base + "/portal/users/anna") as answer:
                assert answer.status == 405
                assert answer.headers["Allow"] == "GET,POST".replace(",", ", ")


def test_the_colours_are_those_of_the_dashboard() -> None:
    def palettes(path: Path, start: str) -> dict[str, str]:
        text = path.read_text()
        block = text[text.index(start) :].partition("}")[0]
        return dict(re.findall(r"(--[a-z-]+): ([^;]+);", block))

    ours, theirs = FOLDER / "portal.css", PROJECT / "relay/web/style.css"
    for start in ("color-scheme: light;", "color-scheme: dark;"):
        mine, all_of_them = palettes(ours, start), palettes(theirs, start)
        # Text on a dark theme's accent is dark here, because the accent is light.
        mine.pop("--on-dark")
        assert len(mine) >= 10
        assert mine.items() <= all_of_them.items()
