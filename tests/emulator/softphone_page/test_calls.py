"""The softphone page with the whole cloud: two and three tabs of a real Chromium call each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.benches.cloud import running_cloud
from tests.support.peers.browser import CHROMIUM, browser, chromium
from tests.support.peers.softphone_page import NO_UDP, Softphone, complaints, connect, softphones

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
ANNA_BEN = "sPK-10000001-100001"
DORA_TO_FAY = "sPK-10000002-100001"
HOOT = "sPK-10000003-100001"
ATLAS_DESK = "sPK-10000004-100001"
BROADCAST = "sPK-10000006-100001"
UNLIMITED = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
DIAL_TONE = "sPK-10000005-100001"


@contextlib.asynccontextmanager
async def tabs(folder: Path, *users: str, options: tuple[str, ...] = ()) -> AsyncIterator[list[Softphone]]:
    """A cloud, and a tab for each user."""
    async with (
        running_cloud(folder, runs_turn=True) as client,
        softphones(f"http://{client.cloud.http}", *users, options=options) as phones,
    ):
        yield phones


@contextlib.asynccontextmanager
async def tabs_by_udp(folder: Path, *users: str) -> AsyncIterator[list[Softphone]]:
    """The same, with UDP chosen on each page: there is no relay here."""
    async with tabs(folder, *users) as phones:
        for phone in phones:
            await phone.choose("udp")
        yield phones


async def test_the_first_call_of_anna_and_ben_is_heard_in_any_browser(tmp_path: Path) -> None:
    # This browser trusts no certificate of ours, and nobody has chosen anything.
    async with tabs(tmp_path, "anna", "ben") as (anna, ben):
        for phone in (anna, ben):
            assert "TURN over UDP to 127.0." in await phone.text(".transport")
            assert "because Voice via Web Proxy is off for you" in await phone.text(".transport")
        await connect(anna, ben, ANNA_BEN)
        assert "voice flows · Ben Osei" in await anna.text(".call")
        # What the browser says of the path: a relayed address, reached by UDP.
        path = await anna.text(".call .path")
        assert "TURN over UDP" in path
        assert path.count("127.0.") >= 2
        # The quality is known after some seconds, and on loopback it is good.
        await anna.page.until("Number(document.querySelector('.figure b').textContent) > 3.5")
        await ben.press(ANNA_BEN, "release")
        for phone in (anna, ben):
            await phone.until_no_call()
            await phone.until_line(ANNA_BEN, "last call: ended")
        assert complaints(anna, ben) == []
        assert {urlsplit(url).netloc for url in anna.page.requests if url != "about:blank"} == {
            urlsplit(anna.origin).netloc
        }


async def test_a_page_that_is_loaded_again_is_back_in_its_call(tmp_path: Path) -> None:
    async with tabs_by_udp(tmp_path, "anna", "ben") as (anna, ben):
        await connect(anna, ben, ANNA_BEN)
        # The token and the choice of a transport are kept with the tab. Only this page knows that its voice is gone.
        await ben.page.ask("Page.reload")
        await ben.page.until("document.querySelector('.call')")
        await asyncio.gather(anna.until_heard(), ben.until_heard())
        await anna.press(ANNA_BEN, "release")
        await ben.until_no_call()


async def test_a_call_is_declined(tmp_path: Path) -> None:
    async with tabs(tmp_path, "anna", "ben") as (anna, ben):
        await anna.page.press("1")
        await ben.page.until("document.querySelector('#incoming .ring')")
        assert "rings on Anna - Ben" in await ben.text("#incoming")
        assert (await ben.page.run("document.title")).startswith("☎")
        await ben.page.click("#incoming button:last-child")
        await anna.until_line(ANNA_BEN, "declined")
        await ben.page.until("!document.querySelector('#incoming .ring')")


async def test_talk_is_held_on_a_shoutdown_and_both_ways_are_apart(tmp_path: Path) -> None:
    async with tabs_by_udp(tmp_path, "dora", "fay") as (dora, fay):
        await dora.hold(DORA_TO_FAY)
        await fay.until_heard()
        # The mouse is on the button, and its words are still to be read: the button is filled in the border's colour.
        talks = """getComputedStyle(document.querySelector('[aria-pressed="true"].hold:hover'))"""
        assert await dora.page.run(f"{talks}.backgroundColor === {talks}.borderTopColor")
        assert await dora.figure("received") == 0
        await dora.let_go(DORA_TO_FAY)
        await fay.until_line(DORA_TO_FAY, "nobody talks")
        await fay.hold(DORA_TO_FAY)
        await dora.until_heard()
        await fay.let_go(DORA_TO_FAY)
        await fay.press(DORA_TO_FAY, "release")
        await dora.until_no_call()


async def test_what_was_let_go_without_signaling_is_told_afterwards(tmp_path: Path) -> None:
    async with tabs_by_udp(tmp_path, "dora", "fay") as (dora, fay):
        # A button talks until it is pressed again.
        await dora.page.press("1")
        await fay.until_heard()
        await dora.page.ask("Network.emulateNetworkConditions", offline=True, **UNLIMITED)
        await dora.until_problem("signaling")
        await dora.page.click(f'[data-line="{DORA_TO_FAY}"] .latch')
        await dora.page.ask("Network.emulateNetworkConditions", offline=False, **UNLIMITED)
        await fay.until_line(DORA_TO_FAY, "nobody talks")


async def test_a_hoot_is_a_mesh_from_its_talkers(tmp_path: Path) -> None:
    async with tabs(tmp_path, "dora", "fay", "gus") as phones:
        dora, fay, gus = phones
        for phone in phones:
            await phone.choose("udp")
            await phone.press(HOOT, "join")
            await phone.page.until("document.querySelector('.call')")
        await dora.hold_space(HOOT)
        await asyncio.gather(fay.until_heard(), gus.until_heard())
        await gus.page.click(f'[data-line="{HOOT}"] .latch')
        await asyncio.gather(dora.until_heard(), fay.until_line(HOOT, "Dora Lind, Gus Andersen talk"))
        await dora.let_go_of_space()
        await fay.until_line(HOOT, "Gus Andersen talks")
        await gus.press(HOOT, "leave")
        await fay.until_line(HOOT, "nobody talks · 2 on it")
        await fay.press(HOOT, "leave")
        await dora.until_line(HOOT, "nobody talks · 1 on it")
        await dora.hold_space(HOOT)
        await dora.until_line(HOOT, "you talk · 1 on it")
        await dora.page.until("document.querySelector('.call').innerText.includes('nobody hears you yet')")
        await dora.let_go_of_space()
        assert complaints(*phones) == []


async def test_a_broadcast_reaches_all_who_are_there_and_only_its_talker_talks(tmp_path: Path) -> None:
    async with tabs_by_udp(tmp_path, "emil", "anna", "ben") as (emil, anna, ben):
        assert not await anna.page.run(
            f"""document.querySelector('[data-line="{BROADCAST}"] .hold').checkVisibility()"""
        )
        # Where there is no button, it says why.
        assert "Only its talkers can open it." in await anna.text(f'.line[data-line="{BROADCAST}"]')
        assert "Only its talkers" not in await emil.text(f'.line[data-line="{BROADCAST}"]')
        await emil.page.click(f'[data-line="{BROADCAST}"] .latch')
        await asyncio.gather(anna.until_heard(), ben.until_heard())
        await anna.press(BROADCAST, "release")
        await anna.until_no_call()
        await ben.until_heard()
        await anna.press(BROADCAST, "join")
        await anna.until_heard()
        await emil.press(BROADCAST, "release")
        await asyncio.gather(anna.until_no_call(), ben.until_no_call())


async def test_a_dialled_extension_rings_on_a_line_that_one_does_not_have(tmp_path: Path) -> None:
    async with tabs_by_udp(tmp_path, "anna", "fay") as (anna, fay):
        await anna.page.write(f'[data-line="{DIAL_TONE}"] input', "2001")
        await anna.page.press("Enter")
        await fay.answer()
        await asyncio.gather(anna.until_heard(), fay.until_heard())
        await anna.press(DIAL_TONE, "release")
        # The line is gone from fay's page: it is not one of theirs.
        await fay.page.until(f"""!document.querySelector('[data-line="{DIAL_TONE}"]')""")
        await anna.page.write(f'[data-line="{DIAL_TONE}"] input', "5550486")
        await anna.page.press("Enter")
        await anna.until_line(DIAL_TONE, "busy (486)")


async def test_the_page_says_that_udp_is_blocked(tmp_path: Path) -> None:
    async with tabs(tmp_path, "chen", "fay", options=(NO_UDP,)) as (chen, fay):
        assert "Voice via Web Proxy is off for you" in await chen.text(".transport")
        await chen.press("sPK-10000001-100002", "ring")
        await fay.answer()
        told = await chen.until_problem("udp-701")
        assert "UDP is blocked" in told
        assert "firm administrator" in told
        portal = await chen.page.run("document.querySelector('[data-problem=udp-701] a').href")
        assert portal == f"{chen.origin}/portal/"
        assert "no voice" in await chen.text(".call .status")


async def test_the_page_says_that_there_is_no_relay(tmp_path: Path) -> None:
    async with tabs(tmp_path, "dora", "emil") as (dora, _):
        assert "because Voice via Web Proxy is on for you" in await dora.text(".transport")
        await dora.press(ATLAS_DESK, "ring")
        assert "CA file" in await dora.until_problem("turns-701")


async def test_the_page_says_that_the_microphone_was_refused(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client, chromium("--deny-permission-prompts") as started:
        phone = await Softphone.open(started, f"http://{client.cloud.http}", "anna")
        told = await phone.until_problem("microphone")
        assert "tone is sent instead" in told
        assert await phone.page.run("document.querySelector('[name=source][value=tone]').checked")


async def test_a_second_login_ends_the_first(tmp_path: Path) -> None:
    async with tabs(tmp_path, "anna") as (anna,):
        await anna.press(ANNA_BEN, "ring")
        await anna.page.until("document.querySelector('#said').textContent.includes('Anna - Ben')")
        other = await Softphone.open(anna.browser, anna.origin, "anna")
        assert "logged in elsewhere" in await anna.until_problem("session")
        await anna.page.until("document.querySelector('.login')")
        assert await anna.text("#said") == ""
        # The next attempt is told alone.
        await anna.page.write(".login [name=password]", "wrong")
        await anna.page.press("Enter")
        assert "password is wrong" in await anna.until_problem("login")
        assert await anna.page.run("document.querySelectorAll('.problem').length") == 1
        assert await other.text("#who") == "Anna Keller, Atlas Capital"
        await other.page.click("#logout")
        await other.page.until("document.querySelector('.login')")
        assert await other.page.run("sessionStorage.getItem('login')") is None


async def test_a_wrong_password_is_told(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client, browser() as page:
        await page.open(f"http://{client.cloud.http}/softphone/?user=anna")
        await page.write(".login [name=password]", "Trader")
        await page.press("Enter")
        await page.until("document.querySelector('.problem')?.textContent.includes('name or the password is wrong')")


async def test_lost_signaling_is_told_and_found_again(tmp_path: Path) -> None:
    async with tabs_by_udp(tmp_path, "anna", "ben") as (anna, ben):
        await connect(anna, ben, ANNA_BEN)
        await anna.page.ask("Network.emulateNetworkConditions", offline=True, **UNLIMITED)
        await anna.until_problem("signaling")
        # Voice is not signaling's: it goes on meanwhile.
        await ben.until_heard()
        await anna.page.ask("Network.emulateNetworkConditions", offline=False, **UNLIMITED)
        await anna.page.until("document.querySelector('#live').dataset.state === 'live'")
        await anna.page.until("""!document.querySelector('[data-problem="signaling"]')""")
        await anna.press(ANNA_BEN, "release")
        await ben.until_no_call()


async def test_the_log_goes_to_the_emulator(tmp_path: Path) -> None:
    async with tabs(tmp_path, "anna") as (anna,):
        await anna.page.click(".log summary")
        await anna.page.click(".log button")
        await anna.page.until("document.querySelector('.log pre').textContent.includes('the emulator has this log')")
    [log] = (tmp_path / "client-logs").glob("*.log")
    assert "signaling: live" in log.read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_narrow_page_does_not_scroll_sideways(tmp_path: Path, scheme: str) -> None:
    async with tabs(tmp_path, "anna", "ben") as (anna, ben):
        await anna.page.prefer(scheme)
        for phone in (anna, ben):
            await phone.choose("udp")
        await connect(anna, ben, ANNA_BEN)
        await anna.page.size(390, 900)
        assert await anna.page.run("document.documentElement.scrollWidth") == 390
        # The bar at the top has two rows here. What is scrolled to is not below it.
        await anna.page.run(f"""document.querySelector('.line[data-line="{ANNA_BEN}"]').scrollIntoView()""")
        covers = "document.querySelector('.top').getBoundingClientRect().bottom"
        top = f"""document.querySelector('.line[data-line="{ANNA_BEN}"]').getBoundingClientRect().top"""
        assert await anna.page.run(f"{covers} <= {top}")
        ground = await anna.page.run("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(14, 18, 23)") == (scheme == "dark")
