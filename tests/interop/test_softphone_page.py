"""Two softphones in a real Chromium call each other: through the relay, and through squid and the relay without UDP.

The second is how a trader's browser is placed: a web proxy that wants a name and a password, CONNECT, and no UDP. The
portal and the dashboard must show the call; with the setting off it must be refused, and the page must say why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.benches.cloud import through_relay
from tests.support.benches.floor import Floor, running_floor
from tests.support.peers.browser import CHROMIUM, FAKE_MICROPHONE, Browser, Page, browser, chromium
from tests.support.peers.softphone_page import NO_UDP, Softphone, complaints, connect, softphones
from tests.support.peers.squid import Squid, needs_squid, open_squid
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
ANNA_BEN = "sPK-10000001-100001"
TO_BOREALIS = "sPK-10000001-100002"


async def calls_at_the_relay(floor: Floor, page: Page) -> dict[str, int]:
    """Who has calls at the relay, and how many packets came up, as the dashboard's API tells it."""
    await page.open(f"{floor.admin_origin}/api/flows")
    await page.until("document.body.innerText.includes('flows')")
    flows = json.loads(await page.run("document.body.innerText"))["flows"]
    return {flow["username"].partition(":")[2]: flow["uplink"]["packets"] for flow in flows}


async def test_through_the_relay(tmp_path: Path) -> None:
    async with (
        running_floor(tmp_path, fixtures=through_relay("anna", "ben")) as floor,
        softphones(floor.relay_origin, "anna", "ben", options=(floor.trust_option,)) as (anna, ben),
    ):
        told = await anna.text(".transport")
        assert told == (
            f"Transport: TURN over TLS through the relay {floor.gateway.tls[0]}, "
            "because Voice via Web Proxy is on for you."
        )
        await connect(anna, ben, ANNA_BEN)
        for phone in (anna, ben):
            await phone.page.until("document.querySelector('.call .path').textContent.includes('TURN over TLS')")
        found = await calls_at_the_relay(floor, await anna.browser.open_tab())
        assert set(found) == {"anna", "ben"}
        assert min(found.values()) > 0
        # The other way, for the next call: one end by UDP, the other through the relay.
        await ben.press(ANNA_BEN, "release")
        await ben.until_no_call()
        await ben.choose("udp")
        await connect(anna, ben, ANNA_BEN)
        await ben.page.until("document.querySelector('.call .path').textContent.includes('TURN over UDP')")
        assert complaints(anna, ben) == []


async def test_the_relay_refuses_who_has_the_setting_off(tmp_path: Path) -> None:
    async with (
        running_floor(tmp_path) as floor,
        softphones(floor.relay_origin, "chen", "fay", options=(floor.trust_option,)) as (chen, fay),
    ):
        assert "because Voice via Web Proxy is off for you" in await chen.text(".transport")
        await chen.choose("relay")
        await chen.press(TO_BOREALIS, "ring")
        await fay.answer()
        await chen.until_problem("turn-403")
        await chen.page.until("document.querySelector('[data-problem=turn-403]').innerText.includes('admin@')")
        told = await chen.text("[data-problem=turn-403]")
        assert "Voice via Web Proxy is off" in told
        assert "Atlas Administrator (admin@atlas.example)" in told
        assert "log in again" in told
        await chen.page.until("document.querySelector('.call .status').innerText.includes('no voice')")
        # The other end is told as well that it is not its own fault.
        assert "Chen Wei" in await fay.until_problem("no-far-candidate")


async def test_a_browser_that_does_not_trust_the_relay_is_told_what_to_import(tmp_path: Path) -> None:
    async with (
        running_floor(tmp_path, fixtures=through_relay("anna", "ben")) as floor,
        softphones(floor.cloud_origin, "anna", "ben") as (anna, ben),
    ):
        await anna.press(ANNA_BEN, "ring")
        await ben.answer()
        told = await anna.until_problem("turns-701")
        assert str(floor.gateway.tls[0]) in told
        assert "does not trust its certificate" in told
        assert "import the CA file" in told


@contextlib.asynccontextmanager
async def desks(folder: Path) -> AsyncIterator[tuple[Floor, Squid, list[Softphone]]]:
    """Anna and Ben behind squid, without UDP; what the browser knows is the proxy and the name for it."""
    async with running_floor(folder, fixtures=through_relay("anna", "ben")) as floor, open_squid() as squid:
        options = (
            f"--proxy-server={squid.url}",
            # Otherwise a browser asks loopback addresses directly.
            "--proxy-bypass-list=<-loopback>",
            NO_UDP,
            floor.trust_option,
        )
        async with chromium(*FAKE_MICROPHONE, *options, proxy_login=(squid.username, squid.password)) as started:
            yield floor, squid, [await Softphone.open(started, floor.relay_origin, user) for user in ("anna", "ben")]


async def portal_of(owner: Browser, origin: str) -> Page:
    """A tab in which the administrator of Atlas is logged in to the portal."""
    page = await owner.open_tab()
    await page.open(f"{origin}/portal/login")
    await page.write("#name", "atlas-admin")
    await page.write("#password", "admin")
    await page.press("Enter")
    await page.until("document.querySelector('#calls')")
    return page


def keep_picture(page_name: str, picture: bytes) -> None:
    """Where RELAY_PICTURES says, for people to look at."""
    if folder := os.environ.get("RELAY_PICTURES"):
        (Path(folder) / f"{page_name}.png").write_bytes(picture)


@needs_squid
async def test_through_squid_without_udp(tmp_path: Path) -> None:
    async with desks(tmp_path) as (floor, squid, (anna, ben)):
        await connect(anna, ben, ANNA_BEN)
        for phone in (anna, ben):
            await phone.page.until("document.querySelector('.call .path').textContent.includes('TURN over TLS')")
        await asyncio.gather(*(each() for phone in (anna, ben) for each in (phone.until_sent, phone.until_heard)))
        # The portal shows the call, and so does the relay's dashboard.
        portal = await portal_of(anna.browser, floor.relay_origin)
        await portal.until("document.querySelector('#calls').innerText.includes('Anna - Ben')")
        shown = await portal.run("document.querySelector('#calls').innerText")
        assert "Anna Keller" in shown
        assert "Ben Osei" in shown
        async with browser() as dashboard:
            found = await calls_at_the_relay(floor, dashboard)
            assert set(found) == {"anna", "ben"}
            assert min(found.values()) > 0
            await dashboard.open(floor.admin_origin)
            await dashboard.until("document.querySelectorAll('#calls tbody tr').length === 2")
            names = await dashboard.run("document.querySelector('#calls').innerText")
            assert "anna" in names
            assert "ben" in names
            keep_picture("dashboard", await dashboard.picture())
        keep_picture("anna", await anna.page.picture())
        keep_picture("portal", await portal.picture())
        target = str(floor.gateway.tls[0])
        # squid writes a tunnel down when it has ended.
        await ben.press(ANNA_BEN, "release")
        await asyncio.gather(anna.until_no_call(), ben.until_no_call())
        tunnel = ["TCP_TUNNEL/200", "CONNECT", target, squid.username]
        await eventually(lambda: [request[1:] for request in squid.requests()].count(tunnel) >= 2, "two tunnels ended")
        # Without the relay there is no way out: the browser may not send UDP.
        await anna.choose("udp")
        await anna.press(ANNA_BEN, "ring")
        await ben.answer()
        await anna.until_problem("udp-701")


@needs_squid
async def test_switched_off_in_the_portal(tmp_path: Path) -> None:
    async with desks(tmp_path) as (floor, _, (anna, ben)):
        portal = await portal_of(anna.browser, floor.relay_origin)
        await portal.open(f"{floor.relay_origin}/portal/users/ben")
        await portal.click("#voice [role=switch][aria-checked=true]")
        await portal.until("document.querySelector('#voice [role=switch]')?.getAttribute('aria-checked') === 'false'")
        # It counts from the next login: until then all is as before.
        await connect(anna, ben, ANNA_BEN)
        await ben.press(ANNA_BEN, "release")
        await asyncio.gather(anna.until_no_call(), ben.until_no_call())
        await ben.page.click("#logout")
        await ben.log_in()
        assert "because Voice via Web Proxy is off for you" in await ben.text(".transport")
        # By UDP there is no way out of this network, and the relay refuses.
        await ben.choose("relay")
        await anna.press(ANNA_BEN, "ring")
        await ben.answer()
        await ben.until_problem("turn-403")
        await ben.page.until("document.querySelector('[data-problem=turn-403]').innerText.includes('admin@')")
        told = await ben.text("[data-problem=turn-403]")
        for words in ("Voice via Web Proxy is off", "in the portal", "log in again", "Atlas Administrator"):
            assert words in told
        await ben.page.until("document.querySelector('.call .status').innerText.includes('no voice')")
        assert await ben.figure("received") == 0
        keep_picture("refused", await ben.page.picture())
