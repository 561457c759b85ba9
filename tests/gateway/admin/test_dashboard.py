"""The dashboard: its files as they are served, and the page in a real browser with a relay that is made up."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tomllib
from collections.abc import AsyncIterator
from fnmatch import fnmatch
from pathlib import Path

import aiohttp
import pytest

from relay.addresses import Address
from relay.gateway.admin.dashboard import FOLDER
from relay.gateway.calls.store import CallStore, Kept
from relay.plane.api import CloseReason
from tests.support.benches.made_up import MadeUpRelay
from tests.support.peers.browser import CHROMIUM, Page, browser
from tests.support.waiting import eventually

PROJECT = Path(__file__).parent.parent.parent.parent
# It would run if anything parsed it as markup.
HOSTILE = "<img src=x onerror=\"window.ran = 'image'\"><script>window.ran = 'script'</script>"
BAD_NOW = "Calls with a MOS below 3.60 in the last 5 s"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


# Files


async def test_the_page_may_load_nothing_from_elsewhere() -> None:
    async with (
        MadeUpRelay().served() as address,
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}/") as answer,
    ):
        policy = answer.headers["Content-Security-Policy"]
        page = await answer.text()
    assert (answer.status, answer.content_type) == (200, "text/html")
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives.pop("default-src") == directives.pop("frame-ancestors") == "'none'"
    assert directives["script-src"] == directives["style-src"] == directives["connect-src"] == "'self'"
    assert "unsafe" not in policy
    assert not re.search(r"<script>|<style|\son\w+=|style=|https?:", page)


async def test_every_file_is_served_and_is_in_the_package() -> None:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["relay"]
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    async with MadeUpRelay().served() as address, aiohttp.ClientSession() as session:
        for path in FOLDER.rglob("*"):
            if path.is_dir():
                continue
            name = path.relative_to(FOLDER.parent).as_posix()
            assert any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns), name
            url = path.relative_to(FOLDER).as_posix()
            async with session.get(f"http://{address}/{'' if url == 'index.html' else url}") as answer:
                if path.suffix in types:
                    assert (answer.status, answer.content_type) == (200, types[path.suffix])
                    assert await answer.read() == path.read_bytes()
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                else:
                    assert answer.status == 404


async def test_what_a_browser_has_is_not_sent_again() -> None:
    async with MadeUpRelay().served() as address, aiohttp.ClientSession() as session:
        async with session.get(f"http://{address}/style.css") as answer:
            etag = answer.headers["ETag"]
        async with session.get(f"http://{address}/style.css", headers={"If-None-Match": etag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
        async with session.get(f"http://{address}/style.css", headers={"If-None-Match": '"other"'}) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    "path", ["/index.html", "/../pyproject.toml", "/%2e%2e/%2e%2e/pyproject.toml", "/uplot/", "/uplot"]
)
async def test_no_other_path(path: str) -> None:
    async with (
        MadeUpRelay().served() as address,
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}{path}") as answer,
    ):
        assert answer.status == 404


def test_uplot_is_what_its_page_says() -> None:
    folder = FOLDER / "uplot"
    told = re.findall(r"\| (\S+) \| ([0-9a-f]{64}) \|", (folder / "README.md").read_text())
    assert len(told) == 2
    for name, checksum in told:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    assert "Permission is hereby granted" in (folder / "LICENSE").read_text()


def test_dark_is_the_same_whoever_asks_for_it() -> None:
    """CSS has no way to write these colours once that all browsers know."""
    style = (FOLDER / "style.css").read_text()
    palettes = [re.findall(r"[\w-]+: [^;]+;", block) for block in re.findall(r"color-scheme: dark;[^}]*", style)]
    assert len(palettes) == 2
    assert palettes[0] == palettes[1]


# In a browser


async def opened(page: Page, address: Address, path: str = "/") -> None:
    await page.open(f"http://{address}{path}")
    await page.until("document.querySelector('#live')?.dataset.state === 'live'")


async def cell_of(page: Page, table: str, head: str) -> str:
    """The selector of a column's cells, by the words above them."""
    heads = await page.run(f"[...document.querySelectorAll('{table} th')].map((e) => e.textContent)")
    return f"{table} tbody td:nth-child({heads.index(head) + 1})"


async def users(page: Page) -> list[str]:
    cells = await cell_of(page, "#calls", "user")
    return list(await page.run(f"[...document.querySelectorAll('{cells}')].map((e) => e.textContent)"))


async def relay_of(calls: int) -> MadeUpRelay:
    """So many good calls, before them a bad one (0) and a hostile one that is worse (1), and a bad one that ended."""
    relay = MadeUpRelay()
    for number in range(calls):
        relay.call(number, username=f"trader{number}")
    relay.flows[1].username = relay.flows[1].server_name = HOSTILE
    ended = relay.call(calls, username=HOSTILE + "2")
    for _ in range(3):
        for made in relay.flows:
            made.talk(lost={0: 20, 1: 60, calls: 90}.get(made.connection, 0), drops=made.connection == 1)
        await relay.calls.look()
    relay.end(ended, CloseReason.CLIENT_LOST)
    return relay


@needs_chromium
async def test_in_a_browser() -> None:
    relay = await relay_of(4)
    async with relay.served() as address, browser() as page:
        await opened(page, address)
        await page.until("document.querySelectorAll('#calls tbody tr').length === 4")
        # What a peer chose is there as text, in the list, the tooltip and the calls that ended.
        assert await users(page) == [HOSTILE, "trader0", "trader2", "trader3"]
        asked_for, ended = await cell_of(page, "#calls", "server name"), await cell_of(page, ".ended table", "user")
        assert await page.run(f"document.querySelector('{asked_for}').title") == HOSTILE
        assert await page.run(f"document.querySelector('{ended}').textContent") == HOSTILE + "2"
        figures = await page.run(
            "Object.fromEntries([...document.querySelectorAll('.figure')]"
            ".map((e) => [e.lastChild.textContent, e.firstChild.textContent]))"
        )
        assert (figures["calls"], figures["bad now"], figures["upstreams up"]) == ("4", "1", "2/3")
        assert await page.run("document.querySelectorAll('.overview canvas').length") == 1
        assert await page.run("[...document.querySelectorAll('.figure')][1].title") == BAD_NOW
        # A call has the colour of the band in which it is counted.
        score = await cell_of(page, "#calls", "MOS")
        coloured = await page.run(f"[...document.querySelectorAll('{score} .mos')].map((e) => e.classList[1])")
        counts, _ = relay.calls.mos_bands()
        assert sorted(coloured) == [f"band-{band}" for band, calls in enumerate(counts) for _ in range(calls)]

        # By keyboard: down to the first, open it, and back.
        await page.press("j")
        await page.press("Enter")
        await page.until("document.querySelector('.who')")
        assert await page.run("location.hash") == "#/call/test-1"
        assert await page.run("document.querySelector('.who').textContent") == HOSTILE
        await page.until("document.querySelectorAll('.call canvas').length === 4")
        assert "encrypted" in await page.run("document.querySelector('.assumptions').textContent")
        charts = "[...document.querySelectorAll('.call .panel:has(.chart) h2')]"
        headings = await page.run(f"{charts}.map((e) => e.textContent)")
        assert headings[1:] == [
            "Missing: lost and late (%)",
            "Jitter, worst stream (ms)",
            "Queue to the client (p95), and its round trip (ms)",
        ]
        await page.press("Escape")
        await page.until("document.querySelector('#calls')")

        await page.press("/")
        for letter in "trader3":
            await page.press(letter)
        await page.until("document.querySelectorAll('#calls tbody tr').length === 1")
        assert await users(page) == ["trader3"]
        await page.press("Escape")
        await page.until("document.querySelectorAll('#calls tbody tr').length === 4")

        # Nothing of it ran, nothing was refused by the policy, and nobody else was asked for anything.
        assert await page.run("window.ran") is None
        assert page.complaints == []
        elsewhere = {url for url in page.requests if not url.startswith(f"http://{address}/")} - {"about:blank"}
        # The picture in a field for times is the browser's own.
        assert {url for url in elsewhere if not url.startswith("data:image/svg+xml;")} == set()


@needs_chromium
async def test_a_call_by_its_address_and_one_that_is_over() -> None:
    relay = await relay_of(2)
    async with relay.served() as address, browser() as page:
        await opened(page, address, "/#/call/test-2")
        await page.until("document.querySelector('.who')")
        assert await page.run("document.querySelector('.head .badge').textContent") == "ended: client lost"
        await page.open(f"http://{address}/#/call/test-77")
        await page.until("document.querySelector('h1').textContent.includes('over')")
        assert [one for one in page.complaints if "404" not in one] == []


@contextlib.asynccontextmanager
async def keeping(folder: Path) -> AsyncIterator[CallStore]:
    store = CallStore(Kept(folder / "calls.sqlite3"))
    store.start()
    try:
        yield store
    finally:
        await store.stop()


async def search(page: Page, **fields: str) -> str:
    """Fill in the form, and press Enter in it; the note beside its heading, once it has an answer."""
    for name in ("user", "address", "from", "to"):
        value = json.dumps(fields.get(name, ""))
        await page.run(f"document.querySelector('#search-{name}').value = {value}")
    note = "document.querySelector('.search h2 .muted').textContent"
    await page.run("document.querySelector('.search h2 .muted').textContent = ''")
    await page.run("document.querySelector('#search-user').focus()")
    await page.press("Enter")
    await page.until(f"{note} && !{note}.startsWith('searching')")
    return str(await page.run(note))


async def found_users(page: Page) -> list[str]:
    cells = await cell_of(page, "#found", "user")
    return list(await page.run(f"[...document.querySelectorAll('{cells}')].map((e) => e.textContent)"))


@needs_chromium
async def test_a_call_is_found_after_a_restart_and_explained(tmp_path: Path) -> None:
    async with keeping(tmp_path) as store:
        relay = MadeUpRelay(store)
        bad, other = relay.call(1, username=HOSTILE), relay.call(2, username="mei", client=Address("10.9.9.9", 4711))
        for _ in range(3):
            for made in relay.flows:
                made.talk(lost=60 if made is bad else 0)
            await relay.calls.look()
        relay.end(bad, CloseReason.CLIENT_LOST)
        relay.end(other)
    async with keeping(tmp_path) as store, MadeUpRelay(store).served() as address, browser() as page:
        await opened(page, address)
        assert await search(page) == "2 found"
        assert await found_users(page) == ["mei", HOSTILE]
        assert (await search(page, user="IMG SRC"), await found_users(page)) == ("1 found", [HOSTILE])
        assert (await search(page, address="10.9.9.9"), await found_users(page)) == ("1 found", ["mei"])
        assert await search(page, **{"from": "2020-01-01T10:30", "to": "2020-01-01T10:35"}) == "0 found"
        assert "No call matches." in await page.run("document.querySelector('#found').textContent")
        minute = await page.run(
            "((d) => new Date(d - d.getTimezoneOffset() * 60000).toISOString().slice(0, 16))(new Date())"
        )
        assert await search(page, **{"from": "2020-01-01T10:30", "to": minute}) == "2 found"
        assert page.complaints == []
        wrong = "address: expected an IP address such as 10.1.2.3 or 2001:db8::7, without a port"
        assert await search(page, address="10.9") == wrong

        await search(page, user="onerror")
        await page.click("#found tbody tr")
        await page.until("document.querySelectorAll('.sentences p').length > 4")
        assert await page.run("location.hash") == "#/call/test-1"
        said = await page.run("document.querySelector('.sentences').textContent")
        assert f"{HOSTILE} called from 10.1.2.3:50000" in said
        assert "lost on the upstream's side" in said
        assert await page.run("document.querySelector('.head .badge').textContent") == "ended: client lost"
        await page.until("document.querySelectorAll('.call canvas').length === 4")
        # The list is as it was left.
        await page.press("Escape")
        await page.until("document.querySelector('#found tbody tr')")
        assert await found_users(page) == [HOSTILE]
        assert await page.run("window.ran") is None
        assert [one for one in page.complaints if "400" not in one] == []


@needs_chromium
async def test_pages_of_a_search(tmp_path: Path) -> None:
    async with keeping(tmp_path) as store:
        relay = MadeUpRelay(store)
        for number in range(60):
            made = relay.call(number)
            made.talk(1)
            relay.end(made)
        await eventually(lambda: store.written == 60)
        async with relay.served() as address, browser() as page:
            await opened(page, address)
            assert await search(page) == "the last 50"
            await page.click(".search > button")
            await page.until("document.querySelectorAll('#found tbody tr').length === 60")
            assert not await page.run("document.querySelector('.search > button').checkVisibility()")
            assert (
                await page.run("new Set([...document.querySelectorAll('#found tr')].map((e) => e.dataset.call)).size")
                == 61
            )


@needs_chromium
@pytest.mark.parametrize("width", [390, 800])
async def test_a_narrow_page_does_not_scroll_sideways_and_cuts_no_time(width: int) -> None:
    relay = await relay_of(2)
    async with relay.served() as address, browser() as page:
        await page.size(width, 900)
        for path, canvases in (("/", 1), ("/#/call/test-1", 4), ("/#/call/test-2", 4)):
            await opened(page, address, path)
            await page.until(f"document.querySelectorAll('canvas').length === {canvases}")
            assert await page.run("document.documentElement.scrollWidth") == width
            # A time with seconds takes 46 pixels, and stands in the middle below its line.
            room = await page.run(
                "Math.min(...[...document.querySelectorAll('.u-over')].map((e) =>"
                " e.parentElement.getBoundingClientRect().right - e.getBoundingClientRect().right))"
            )
            assert room >= 23
        assert page.complaints == []


@needs_chromium
async def test_times_have_their_zone() -> None:
    relay = await relay_of(2)
    async with relay.served() as address, browser() as page:
        await page.ask("Emulation.setTimezoneOverride", timezoneId="Asia/Kolkata")
        await opened(page, address)
        clock = re.compile(r"\d\d:\d\d:\d\d GMT\+5:30")
        assert clock.fullmatch(await page.run("document.querySelector('#clock').textContent"))
        ended_at = await cell_of(page, ".ended table", "ended")
        assert clock.fullmatch(await page.run(f"document.querySelector('{ended_at}').textContent"))
        await page.until("document.querySelector('.u-legend').textContent.includes('time (GMT+5:30)')")
        await opened(page, address, "/#/call/test-2")
        await page.until("document.querySelector('.who')")
        facts = await page.run("[...document.querySelectorAll('.fact .name')].map((e) => e.textContent)")
        assert clock.fullmatch(facts[-1])


@needs_chromium
async def test_light_and_dark() -> None:
    relay = await relay_of(2)
    ground = "getComputedStyle(document.body).backgroundColor"
    async with relay.served() as address, browser() as page:
        await page.prefer("light")
        await opened(page, address)
        light = await page.run(ground)
        await page.prefer("dark")
        dark = await page.run(ground)
        assert light != dark
        await page.press("t")
        assert await page.run(ground) == light
        await page.ask("Page.reload")
        await page.until("document.querySelector('#live')?.dataset.state === 'live'")
        assert await page.run(ground) == light
        assert page.complaints == []


@needs_chromium
async def test_a_thousand_calls() -> None:
    relay = await relay_of(1000)
    async with relay.served() as address, browser() as page:
        await opened(page, address)
        await page.until("document.querySelectorAll('#calls tbody tr').length === 100")
        assert "100 of 1" in await page.run("document.querySelector('.calls h2').textContent")
        # Calls that are not among the worst are found, too.
        await page.press("/")
        for letter in "trader987":
            await page.press(letter)
        await page.until("document.querySelectorAll('#calls tbody tr').length === 1")
        assert await users(page) == ["trader987"]
        picture = await page.picture()
        assert picture.startswith(b"\x89PNG")


@needs_chromium
async def test_a_lost_connection_is_seen_and_found_again() -> None:
    relay = await relay_of(2)
    async with browser() as page:
        async with relay.served() as address:
            await opened(page, address)
        await page.until("document.querySelector('#live').dataset.state === 'lost'")
        assert await page.run("document.body.classList.contains('stale')")
        async with relay.served(address):
            await page.until("document.querySelector('#live').dataset.state === 'live'")
            assert not await page.run("document.body.classList.contains('stale')")
