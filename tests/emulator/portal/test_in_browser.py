"""The portal in a real browser: by keyboard alone, on a narrow screen, in the dark, and while calls come and go."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from relay.emulator.softphone.ogg import HEARD, SAID, build_recording
from tests.support.benches.portal import ADMIN, TRADER, MadeUpPortal, made_up_portal
from tests.support.peers.browser import CHROMIUM, Page, browser
from tests.support.waiting import EVENTUALLY_S

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")

PATHS = [
    "/portal/",
    "/portal/users",
    "/portal/users/new",
    "/portal/users/anna",
    "/portal/users/anna/board",
    "/portal/lines",
    "/portal/lines/new",
    "/portal/lines/sPK-10000003-100001",
    "/portal/recordings",
    "/portal/keys",
    "/portal/keys/new",
    "/portal/keys/atlas-key-1",
    "/portal/audit",
    "/portal/firm",
    "/portal/faults",
    "/portal/profile",
]
# Fields and buttons that nobody could name, ids that are there twice, and headings that are missing.
FAULTS = """(() => {
  const named = (e) => e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim();
  const shown = [...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a')];
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  const described = [...document.querySelectorAll('[aria-describedby]')]
    .flatMap((e) => e.getAttribute('aria-describedby').trim().split(/\\s+/));
  return [
    ...shown.filter((e) => !named(e)).map((e) => 'no name: ' + e.outerHTML),
    ...ids.filter((id, place) => ids.indexOf(id) !== place).map((id) => 'twice: ' + id),
    ...described.filter((id) => !document.getElementById(id)).map((id) => 'no description: ' + id),
    ...(document.querySelectorAll('h1').length === 1 ? [] : ['one h1 expected']),
    ...(document.documentElement.lang === 'en' ? [] : ['no language']),
  ];
})()"""
FOCUSED = "document.activeElement.name || document.activeElement.textContent.trim()"


async def arrives(page: Page, condition: str) -> None:
    """Wait for the page after this one: while one goes, it answers nothing."""
    async with asyncio.timeout(EVENTUALLY_S):
        while True:
            with contextlib.suppress(AssertionError):
                if await page.run(f"document.readyState === 'complete' && Boolean({condition})"):
                    return
            await asyncio.sleep(0.02)


async def write(page: Page, text: str) -> None:
    for letter in text:
        await page.press(letter)


async def log_in(page: Page, portal: MadeUpPortal, user: str, password: str) -> None:
    """By keyboard alone: the cursor is in the first field."""
    await page.open(portal.base + "/portal/")
    await arrives(page, "document.activeElement.id === 'name'")
    await write(page, user)
    await page.press("Tab")
    await write(page, password)
    await page.press("Enter")
    await arrives(page, "location.pathname === '/portal/' && document.querySelector('h1').textContent === 'Overview'")


async def tab_to(page: Page, wanted: str) -> None:
    """Press Tab until something is focused. A trap would never let go."""
    for _ in range(100):
        await page.press("Tab")
        if await page.run(FOCUSED) == wanted:
            return
    raise AssertionError(f"Tab never comes to {wanted}")


async def test_by_keyboard_alone() -> None:
    async with made_up_portal() as portal, browser() as page:
        await log_in(page, portal, *ADMIN)
        # The first stop leaps over the navigation.
        await page.press("Tab")
        assert await page.run(FOCUSED) == "Skip to the page"
        assert await page.run("document.activeElement.getBoundingClientRect().height") > 20
        await page.press("Enter")
        assert await page.run("document.activeElement.id") == "main"
        await tab_to(page, "Users")
        await page.press("Enter")
        await arrives(page, "location.pathname === '/portal/users'")
        assert await page.run("document.querySelector('[aria-current]').textContent") == "Users"
        await tab_to(page, "Chen Wei")
        # The switch is next to the name, and Space works it.
        await page.press("Tab")
        assert await page.run("document.activeElement.getAttribute('aria-label')") == "Voice via Web Proxy for Chen Wei"
        assert await page.run("document.activeElement.getAttribute('aria-checked')") == "false"
        await page.press(" ")
        await arrives(page, "document.querySelector('.notice')")
        assert "next login" in await page.run("document.querySelector('.notice').textContent")
        assert (await portal.user("chen")).voice_via_web_proxy
        # All around the page, and out of it again: no trap.
        stops = []
        for _ in range(60):
            await page.press("Tab")
            stops.append(await page.run(FOCUSED))
        assert {"Skip to the page", "Overview", "Log out", "Find", "Emil Novak"} <= set(stops)
        assert page.complaints == []


async def test_a_mistake_is_where_one_looks_first() -> None:
    async with made_up_portal() as portal, browser() as page:
        await log_in(page, portal, *ADMIN)
        await page.open(portal.base + "/portal/users/emil")
        await arrives(page, "location.pathname === '/portal/users/emil'")
        await page.run("document.querySelector('#extension').value = '1001'")
        await page.run("document.querySelector('button.main').click()")
        await arrives(page, "document.querySelector('.summary')")
        assert await page.run("document.activeElement.className") == "summary"
        await page.press("Tab")
        await page.press("Enter")
        assert await page.run("location.hash") == "#extension"
        assert await page.run("document.querySelector('#extension').getAttribute('aria-invalid')") == "true"
        assert await page.run(FAULTS) == []
        # The answer was 422, which Chromium notes.
        assert [each for each in page.complaints if "422" not in each] == []


# On a narrow screen each cell has its label beside it, and is as high as the label.
OVERLAPPING = """[...document.querySelectorAll('.stack td')].filter((cell) => cell.scrollHeight > cell.clientHeight + 1)
    .map((cell) => cell.dataset.label)"""


@pytest.mark.parametrize("width", [390, 1200])
async def test_each_page_fits_and_everything_has_a_name(width: int) -> None:
    async with made_up_portal() as portal, browser() as page:
        await portal.record(1, "anna", "atlas", build_recording(bytes([SAID] * 50), {}, 1))
        portal.call("sPK-10000001-100001", ["anna", "ben", "fay"], label="A line with a long name " * 4)
        async with portal.visitor(*ADMIN) as admin:
            long = {"name": "W" * 128, "email": f"{'w' * 60}@atlas.example", "role": "user", "region": "use1"}
            await admin.post("/portal/users/anna", {**long, "extension": "1" * 20, "group": "atlas-rates"})
        await page.size(width, 900)
        await log_in(page, portal, *ADMIN)
        for path in PATHS:
            await page.open(portal.base + path)
            await arrives(page, f"location.pathname === '{path}'")
            assert (path, await page.run("document.documentElement.scrollWidth")) == (path, width)
            assert (path, await page.run(FAULTS)) == (path, [])
            assert (path, await page.run(OVERLAPPING)) == (path, [])
        assert page.complaints == []
        # Chromium's own controls load their pictures from data: URLs.
        assert {url for url in page.requests if not url.startswith((portal.base, "data:"))} <= {"about:blank"}


async def test_light_and_dark() -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    async with made_up_portal() as portal, browser() as page:
        await page.prefer("light")
        await log_in(page, portal, *TRADER)
        light = await page.run(ground)
        await page.prefer("dark")
        assert await page.run(ground) != light
        assert await page.run("getComputedStyle(document.documentElement).colorScheme") == "dark"


async def test_calls_come_and_go_while_one_looks() -> None:
    async with made_up_portal() as portal, browser() as page:
        await log_in(page, portal, *ADMIN)
        await page.until("document.querySelector('#live').dataset.state === 'live'")
        assert "No calls now." in await page.run("document.querySelector('#calls').textContent")
        portal.call("sPK-10000001-100001", ["anna", "ben"], label="<img src=x onerror='window.ran = 1'>")
        await page.until("document.querySelectorAll('#calls tbody tr').length === 1")
        assert "<img" in await page.run("document.querySelector('#calls td').textContent")
        portal.calls.clear()
        await page.until("document.querySelectorAll('#calls tbody tr').length === 0")
        assert await page.run("window.ran") is None
        assert page.complaints == []
        # A login that has ended leads to the login page.
        portal.now += 24 * 3600
        await arrives(page, "location.pathname === '/portal/login'")


async def test_figures_that_are_old_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with made_up_portal() as portal, browser() as page:
        await log_in(page, portal, *ADMIN)
        await page.until("document.querySelector('#live').dataset.state === 'live'")

        async def fail(self: MadeUpPortal) -> None:
            raise RuntimeError("a fault")

        monkeypatch.setattr(MadeUpPortal, "live_lines", fail)
        await page.until("document.querySelector('#live').dataset.state === 'lost'")
        assert "what is shown is old" in await page.run("document.querySelector('#live').textContent")
        monkeypatch.undo()
        await page.until("document.querySelector('#live').dataset.state === 'live'")


async def test_a_recording_is_played_and_sought() -> None:
    media = build_recording(bytes([SAID] * 250 + [HEARD] * 250), {"USER": "anna"}, 7)
    async with made_up_portal() as portal, browser("--autoplay-policy=no-user-gesture-required") as page:
        await portal.record(1, "anna", "atlas", media)
        await log_in(page, portal, *TRADER)
        await page.open(portal.base + "/portal/recordings")
        await arrives(page, "document.querySelector('audio')")
        await page.run("window.audio = document.querySelector('audio'), audio.muted = true, audio.play()")
        await page.until("audio.currentTime > 0.1")
        assert round(await page.run("audio.duration")) == 10
        await page.run("audio.currentTime = 8")
        await page.until("audio.currentTime > 8.1 && audio.error === null")
        assert page.complaints == []
