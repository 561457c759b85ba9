"""Log in and out: cookies, forms of others, guesses, and sessions that end."""

from __future__ import annotations

import ssl
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from sqlalchemy import select
from yarl import URL

from relay import catalog
from relay.demo.authority import Authority
from relay.emulator.http.site import Names, Site
from relay.emulator.portal.logins import FORM_TOKEN, LIFETIME_S
from relay.emulator.store.tables import LoginSession
from tests.support.benches.portal import ADMIN, TRADER, MadeUpPortal, Visitor, made_up_portal

COOKIE = "c9portal-login"


def cookie_of(visitor: Visitor, name: str = COOKIE) -> str:
    return next((each.value for each in visitor.http.cookie_jar if each.key == name), "")


async def logins(portal: MadeUpPortal) -> list[LoginSession]:
    async with portal.store.reading() as session:
        return list((await session.scalars(select(LoginSession))).all())


async def test_in_and_out() -> None:
    async with made_up_portal() as portal, portal.visitor() as anna:
        page = await anna.log_in("anna", "trader")
        assert (page.status, page.location) == (303, "/portal/")
        [login] = await logins(portal)
        token = cookie_of(anna)
        assert (login.kind, login.user_id) == ("portal", "anna")
        # The database holds nothing that could be used as a cookie.
        assert token
        assert token not in login.token_hash
        assert login.expires_at == portal.now + LIFETIME_S
        page = await anna.post("/portal/logout", {}, on="/portal/")
        assert (page.status, page.location) == (303, "/portal/login")
        assert await logins(portal) == []
        # The cookie of before is worth nothing.
        page = await anna.get("/portal/", cookies={COOKIE: token})
        assert page.status == 303


async def test_the_address_is_a_name_too() -> None:
    async with made_up_portal() as portal, portal.visitor() as anna:
        assert (await anna.log_in("Anna@Atlas.example", "trader")).status == 303


async def test_the_cookie_over_http() -> None:
    async with made_up_portal() as portal, portal.visitor() as anna:
        set_cookie = (await anna.log_in("anna", "trader")).headers.getall("Set-Cookie")
        cookie = SimpleCookie(next(each for each in set_cookie if each.startswith(COOKIE)))[COOKIE]
        assert cookie["httponly"]
        assert (cookie["samesite"], cookie["path"], cookie["domain"]) == ("Strict", "/portal/", "")
        assert int(cookie["max-age"]) == LIFETIME_S
        assert not cookie["secure"]


async def test_the_cookie_over_https(tmp_path: Path) -> None:
    async with made_up_portal() as portal:
        issued = Authority(tmp_path).issue("localhost")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(issued.chain, issued.private_key)
        site = Site(Names(catalog.load()))
        portal.portal.register(site)
        runner = web.AppRunner(site.app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
            portal.base = f"https://127.0.0.1:{runner.addresses[0][1]}"
            jar = aiohttp.CookieJar(unsafe=True)
            connector = aiohttp.TCPConnector(ssl=False)
            async with aiohttp.ClientSession(cookie_jar=jar, connector=connector) as http:
                anna = Visitor(http, portal.base)
                answer = await anna.log_in("anna", "trader")
                lines = answer.headers.getall("Set-Cookie")
                name = f"__Host-{COOKIE}"
                cookie = SimpleCookie(next(each for each in lines if each.startswith(name)))[name]
                assert cookie["secure"]
                assert (cookie["samesite"], cookie["path"], cookie["domain"]) == ("Strict", "/", "")
                assert (await anna.get("/portal/")).status == 200
                # The cookie of plain HTTP, which anybody on the line could have set, does not count here.
                token = cookie_of(anna, name)
                jar.clear()
                assert (await anna.get("/portal/", cookies={COOKIE: token})).status == 303
        finally:
            await runner.cleanup()


def plant(visitor: Visitor, value: str) -> None:
    cookie = SimpleCookie({COOKIE: value})
    cookie[COOKIE]["path"] = "/portal/"
    visitor.http.cookie_jar.update_cookies(cookie, response_url=URL(visitor.base))


async def test_a_planted_cookie_is_replaced() -> None:
    async with made_up_portal() as portal, portal.visitor() as victim, portal.visitor() as other:
        plant(victim, "chosen-by-an-attacker")
        assert (await victim.log_in(*ADMIN)).status == 303
        assert cookie_of(victim) not in {"chosen-by-an-attacker", ""}
        plant(other, "chosen-by-an-attacker")
        assert (await other.get("/portal/")).status == 303


async def test_a_login_that_was_planted_is_not_the_victims() -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as attacker, portal.visitor() as victim:
        page = await victim.get("/portal/login")
        fields = {"name": ADMIN[0], "password": ADMIN[1], FORM_TOKEN: page.field(FORM_TOKEN)}
        planted = cookie_of(attacker)
        plant(victim, planted)
        assert (await victim.send("/portal/login", fields)).status == 303
        assert cookie_of(victim) != planted
        # The attacker's login has ended with it, so it became nobody else's.
        assert {login.user_id for login in await logins(portal)} == {"atlas-admin"}
        assert (await attacker.get("/portal/")).status == 303


async def test_a_login_ends_the_one_before() -> None:
    async with made_up_portal() as portal, portal.visitor() as anna:
        page = await anna.get("/portal/login")
        fields = {"name": "anna", "password": "trader", FORM_TOKEN: page.field(FORM_TOKEN)}
        before = cookie_of(anna, "c9portal-before")
        assert (await anna.send("/portal/login", fields)).status == 303
        first = cookie_of(anna)
        # The same form once more, as with the browser's back button.
        again = await anna.send("/portal/login", fields, cookies={"c9portal-before": before})
        assert again.status == 303
        assert cookie_of(anna) != first
        assert len(await logins(portal)) == 1


async def test_it_ends_by_itself() -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as anna:
        portal.now += LIFETIME_S - 1
        assert (await anna.get("/portal/")).status == 200
        portal.now += 1
        page = await anna.get("/portal/recordings?user=x")
        assert (page.status, page.location) == (303, "/portal/login?next=%2Fportal%2Frecordings%3Fuser%3Dx")
        page = await anna.send("/portal/board", {})
        assert page.status == 401
        assert "The login has ended. Nothing was changed." in page.words


@pytest.mark.parametrize(
    ("wanted", "went"),
    [
        ("/portal/board", "/portal/board"),
        ("/portal/recordings?user=anna", "/portal/recordings?user=anna"),
        ("https://evil.example/", "/portal/"),
        ("//evil.example/portal/", "/portal/"),
        ("/portal/\\evil.example", "/portal/"),
        ("/portal/\r\nSet-Cookie: a=b", "/portal/"),
        ("javascript:alert(1)", "/portal/"),
        ("/portal", "/portal/"),
        ("/portal/" + "x" * 600, "/portal/"),
        ("", "/portal/"),
    ],
)
async def test_where_a_login_leads(wanted: str, went: str) -> None:
    async with made_up_portal() as portal, portal.visitor() as anna:
        answer = await anna.log_in("anna", "trader", next=wanted)
        assert (answer.status, answer.location) == (303, went)
        answer = await anna.get("/portal/login", params={"next": wanted})
        assert (answer.status, answer.location) == (303, went)


# Wrong passwords


async def test_a_wrong_password_and_a_name_that_does_not_exist_look_alike() -> None:
    async with made_up_portal() as portal, portal.visitor() as guest:
        pages = [await guest.log_in(name, "wrong") for name in ("anna", "nobody", "anna", "a\x00b")]
        assert {page.status for page in pages} == {401}
        assert all("The name or the password is wrong." in page.words for page in pages)
        assert pages[0].headers["WWW-Authenticate"].startswith("Login")
        assert "wrong" not in pages[0].text.replace("password is wrong", "")
        assert await logins(portal) == []
        # What was typed as the name is kept, and the password is not.
        assert pages[0].field("name") == "anna"


async def test_guesses_are_slowed_down_by_name() -> None:
    async with made_up_portal() as portal, portal.visitor() as guest:
        for _ in range(5):
            assert (await guest.log_in("anna", "wrong")).status == 401
        page = await guest.log_in("anna", "trader")
        assert (page.status, page.headers["Retry-After"]) == (429, "1")
        assert "Too many failed logins. Try again in 1 s." in page.words
        # Others are not affected, and the same user is let in after the pause.
        assert (await guest.log_in("ben", "trader")).status == 303
        portal.now += 1.1
        async with portal.visitor() as anna:
            assert (await anna.log_in("anna", "trader")).status == 303
        # One who tries many names on this machine locks out nobody else on it.
        async with portal.visitor() as crowd:
            statuses = [(await crowd.log_in(f"made-up-{number}", "x")).status for number in range(60)]
            assert statuses == [401] * 60
            assert (await crowd.log_in("fay", "trader")).status == 303


async def test_the_api_and_the_portal_count_together() -> None:
    async with made_up_portal() as portal, portal.visitor() as guest:
        for _ in range(5):
            assert not await portal.passwords.check("anna", "192.0.2.1", await portal.user("anna"), "wrong")
        assert (await guest.log_in("anna", "trader")).status == 429


async def test_a_disabled_user() -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as anna, portal.visitor(*ADMIN) as admin:
        await portal.tokens.open(await portal.user("anna"), "client")
        page = await admin.post("/portal/users/anna/enabled", {"enabled": "off"}, on="/portal/users/anna")
        assert page.location == "/portal/users/anna?done=disabled"
        assert (await anna.get("/portal/")).status == 303
        assert {login.user_id for login in await logins(portal)} == {"atlas-admin"}
        assert ("logins", ("anna",)) in portal.told
        page = await anna.log_in(*TRADER)
        assert page.status == 403
        assert "This user is disabled." in page.words
        # Who does not know the password does not learn that.
        assert (await anna.log_in("anna", "wrong")).status == 401
        await admin.post("/portal/users/anna/enabled", {"enabled": "on"}, on="/portal/users/anna")
        assert (await anna.log_in(*TRADER)).status == 303


# Forms of others


async def test_a_form_needs_the_token_of_its_login() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin, portal.visitor(*ADMIN) as other:
        theirs = (await other.get("/portal/users/anna")).field(FORM_TOKEN)
        own = (await admin.get("/portal/users/anna")).field(FORM_TOKEN)
        for token in ("", "x", theirs, own[:-1], own + "0", "ü"):
            page = await admin.send("/portal/users/dora/voice", {"voice": "off", FORM_TOKEN: token})
            assert page.status == 403
            assert "Nothing was changed." in page.words
        page = await admin.send("/portal/users/dora/voice", {"voice": "off"})
        assert page.status == 403
        assert (await portal.user("dora")).voice_via_web_proxy
        # The token of a login that has ended is as good as none.
        await admin.post("/portal/logout", {}, on="/portal/")
        await admin.log_in(*ADMIN)
        page = await admin.send("/portal/users/dora/voice", {"voice": "off", FORM_TOKEN: own})
        assert page.status == 403
        assert (await portal.user("dora")).voice_via_web_proxy


async def test_nobody_is_logged_in_unawares() -> None:
    async with made_up_portal() as portal, portal.visitor() as victim, portal.visitor() as attacker:
        token = (await attacker.get("/portal/login")).field(FORM_TOKEN)
        for fields in ({}, {FORM_TOKEN: token}):
            answer = await victim.send("/portal/login", {"name": "anna", "password": "trader", **fields})
            assert answer.status == 403
        assert await logins(portal) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://HERE.evil.example"}, 403),
        ({"Origin": "http://HERE"}, 303),
        ({"Origin": "https://HERE"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({}, 303),
    ],
)
async def test_what_browsers_say_about_other_sites(headers: dict[str, str], status: int) -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        fields = {"voice": "off"}
        headers = {name: value.replace("HERE", portal.base.removeprefix("http://")) for name, value in headers.items()}
        answer = await admin.post("/portal/users/dora/voice", fields, on="/portal/users/dora", headers=headers)
        assert answer.status == status
        assert (await portal.user("dora")).voice_via_web_proxy == (status == 403)
        if status == 403:
            guest = await admin.post("/portal/logout", {}, on="/portal/", headers=headers)
            assert guest.status == 403


async def test_behind_a_relay_the_browser_came_by_https() -> None:
    async with made_up_portal() as portal, portal.visitor() as visitor:
        by_relay = {"X-Forwarded-Proto": "https"}
        page = await visitor.get("/portal/login", headers=by_relay)
        [cookie] = page.headers.getall("Set-Cookie")
        assert cookie.startswith("__Host-c9portal-before=")
        assert "; Secure" in cookie


# A new password


async def test_a_user_changes_their_password() -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as anna, portal.visitor(*TRADER) as elsewhere:
        client, _ = await portal.tokens.open(await portal.user("anna"), "client")

        async def change(current: str, password: str, again: str) -> Any:
            fields = {"current": current, "password": password, "again": again}
            return await anna.post("/portal/profile/password", fields, on="/portal/profile")

        for given, told in (
            (("wrong", "a long password", "a long password"), "This is not your password."),
            (("trader", "short", "short"), "Expected 8 to 128 characters."),
            (("trader", "", ""), "Fill this in: 8 to 128 characters."),
            (("trader", "a long password", "another password"), "This is not the same as the new password."),
            (("trader", "x" * 129, "x" * 129), "Expected 8 to 128 characters."),
        ):
            page = await change(*given)
            assert (page.status, told in page.words) == (422, True), given
            assert "a long password" not in page.text
        page = await change("trader", " spaces are kept ", " spaces are kept ")
        assert (page.status, page.location) == (303, "/portal/profile?done=password")
        assert (await anna.get("/portal/")).status == 200
        assert (await elsewhere.get("/portal/")).status == 303
        assert await portal.tokens.find(client, "client") is None
        assert (await elsewhere.log_in("anna", "trader")).status == 401
        assert (await elsewhere.log_in("anna", "spaces are kept")).status == 401
        assert (await elsewhere.log_in("anna", " spaces are kept ")).status == 303
        entry = [each for each in await portal.audited() if each.action == "password changed"][-1]
        assert (entry.actor, entry.object, entry.details) == ("anna", "anna", {})


async def test_guessing_through_the_profile_is_slowed_down_too() -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as anna:
        fields = {"current": "wrong", "password": "a long password", "again": "a long password"}
        statuses = [
            (await anna.post("/portal/profile/password", fields, on="/portal/profile")).status for _ in range(6)
        ]
        assert statuses == [422] * 5 + [429]
