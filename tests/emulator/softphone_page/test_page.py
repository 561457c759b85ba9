"""The softphone page without a cloud: its files as they are served, and its own arithmetic in a real browser."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import tomllib
from collections.abc import AsyncIterator
from fnmatch import fnmatch
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from relay import catalog
from relay.emulator import softphone_page
from relay.emulator.http.site import Names, Site
from relay.emulator.softphone_page import FOLDER, PREFIX, SHARED
from relay.quality import emodel
from tests.support.peers.browser import CHROMIUM, Page, browser

PROJECT = Path(__file__).parents[3]
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[str]:
    """The URL of the page, on a site that has nothing else."""
    site = Site(Names(catalog.load()))
    softphone_page.register(site)
    runner = web.AppRunner(site.app, access_log=None)
    await runner.setup()
    try:
        listener = web.TCPSite(runner, "127.0.0.1", 0)
        await listener.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{PREFIX}/"
    finally:
        await runner.cleanup()


# Files


async def test_the_page_may_load_nothing_from_elsewhere() -> None:
    async with served() as url, aiohttp.ClientSession() as session, session.get(url) as answer:
        policy = answer.headers["Content-Security-Policy"]
        page = await answer.text()
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives.pop("default-src") == directives.pop("frame-ancestors") == "'none'"
    assert directives["script-src"] == directives["style-src"] == directives["connect-src"] == "'self'"
    assert "unsafe" not in policy
    assert not re.search(r"<script>|<style|\son\w+=|style=|https?:|(src|href)=\"/", page)


async def test_every_file_is_served_and_is_in_the_package() -> None:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["relay"]
    async with served() as base, aiohttp.ClientSession() as session:
        for path in FOLDER.rglob("*"):
            if path.is_dir():
                continue
            name = path.relative_to(PROJECT / "relay").as_posix()
            assert any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns), name
            url = path.relative_to(FOLDER).as_posix()
            async with session.get(base + ("" if url == "index.html" else url)) as answer:
                if path.suffix in TYPES:
                    assert (answer.status, answer.content_type) == (200, TYPES[path.suffix])
                    assert await answer.read() == path.read_bytes()
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                else:
                    assert answer.status == 404
        for name in SHARED:
            async with session.get(f"{base}shared/{name}") as answer:
                assert (answer.status, answer.content_type) == (200, "text/javascript")


async def test_what_a_browser_has_is_not_sent_again_and_the_slash_counts() -> None:
    async with served() as base, aiohttp.ClientSession() as session:
        async with session.get(base) as answer:
            etag = answer.headers["ETag"]
        async with session.get(base, headers={"If-None-Match": etag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
        async with session.get(base, headers={"If-None-Match": '"other"'}) as answer:
            assert answer.status == 200
        async with session.get(base.removesuffix("/"), allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (308, f"{PREFIX}/")


@pytest.mark.parametrize("path", ["index.html", "%2e%2e/%2e%2e/cloud.py", "socket.io/", "socket.io/LICENSE", "shared/"])
async def test_no_other_path(path: str) -> None:
    async with served() as base, aiohttp.ClientSession() as session, session.get(base + path) as answer:
        assert answer.status == 404


async def test_hosts_of_the_vendor_do_not_have_it() -> None:
    headers = {"Host": "c9rest.xhoot.com"}
    async with served() as base, aiohttp.ClientSession() as session, session.get(base, headers=headers) as answer:
        assert answer.status == 404


def test_socket_io_is_what_its_page_says() -> None:
    folder = FOLDER / "socket.io"
    [(name, checksum)] = re.findall(r"\| (\S+) \| ([0-9a-f]{64}) \|", (folder / "README.md").read_text())
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    assert "Permission is hereby granted" in (folder / "LICENSE").read_text()


def test_each_file_is_listed() -> None:
    lines = (FOLDER / "app.js").read_text().splitlines()
    head = " ".join(takewhile(lambda line: line.startswith("//"), lines))
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} == set(
        re.findall(r"\w+\.(?:js|css|html|svg)", head)
    )


def test_dark_is_the_same_whoever_asks_for_it() -> None:
    style = (FOLDER / "style.css").read_text()
    palettes = [re.findall(r"[\w-]+: [^;]+;", block) for block in re.findall(r"color-scheme: dark;[^}]*", style)]
    assert len(palettes) == 2
    assert palettes[0] == palettes[1]


# In a browser


async def module(page: Page, name: str, expression: str) -> Any:
    """The value of an expression in which ``m`` is a module of the page."""
    return await page.run(f"import('/softphone/{name}').then((m) => {expression})")


@needs_chromium
async def test_mos_is_the_same_as_the_relays() -> None:
    delays, losses = (0.0, 20.0, 99.9, 100.0, 150.0, 177.3, 400.0, 2000.0), (0.0, 0.1, 1.0, 5.0, 33.3, 100.0)
    codecs = {"g711": emodel.G711_CONCEALED, "opus": emodel.OPUS}
    table = list(product(codecs, delays, losses))
    async with served() as url, browser() as page:
        await page.open(url)
        score = "m.mos(m.rFactor(m.CODECS[c], m.mouthToEarMs(d, 7), l))"
        shown = await module(page, "emodel.js", f"{json.dumps(table)}.map(([c, d, l]) => {score})")
    for (codec, delay_ms, loss_percent), found in zip(table, shown, strict=True):
        r = emodel.r_factor(codecs[codec], emodel.mouth_to_ear_ms(delay_ms, 7.0), loss_percent)
        assert found == pytest.approx(emodel.mos(r), abs=1e-12)
    assert len({round(score, 3) for score in shown}) > 40


def report(number: int, *, received: int, lost: int, late: int = 0) -> list[dict[str, Any]]:
    """What getStats says after so many seconds."""
    return [
        {
            "id": "in",
            "type": "inbound-rtp",
            "kind": "audio",
            "codecId": "c",
            "jitter": 0.004,
            "packetsReceived": received,
            "packetsLost": lost,
            "packetsDiscarded": late,
            "jitterBufferDelay": 0.04 * 8000 * number,
            "jitterBufferEmittedCount": 8000 * number,
        },
        {"id": "out", "type": "outbound-rtp", "kind": "audio", "codecId": "c", "packetsSent": 50 * number},
        {"id": "c", "type": "codec", "mimeType": "audio/PCMU"},
        {"id": "t", "type": "transport", "selectedCandidatePairId": "p"},
        {
            "id": "p",
            "type": "candidate-pair",
            "currentRoundTripTime": 0.1,
            "localCandidateId": "l",
            "remoteCandidateId": "r",
            "bytesSent": 1000,
            "bytesReceived": 2000,
        },
        {
            "id": "l",
            "type": "local-candidate",
            "relayProtocol": "tls",
            "url": "turns:127.0.0.1:4443",
            "address": "127.0.1.1",
            "port": 50000,
        },
        {"id": "r", "type": "remote-candidate", "candidateType": "relay", "address": "127.0.1.2", "port": 50001},
    ]


async def compared(page: Page, *reports: list[dict[str, Any]]) -> dict[str, Any]:
    maps = ", ".join(f"new Map({json.dumps([[one['id'], one] for one in each])})" for each in reports)
    return dict(await module(page, "quality.js", f"m.compare({maps})"))


@needs_chromium
async def test_quality_of_a_second() -> None:
    async with served() as url, browser() as page:
        await page.open(url)
        found = await compared(page, report(2, received=90, lost=8, late=2), report(1, received=50, lost=3))
        assert found["lossPercent"] == pytest.approx(100 * 7 / 45)
        assert (found["delayMs"], found["jitterMs"], found["of"]) == (pytest.approx(50), pytest.approx(4), "heard here")
        r = emodel.r_factor(emodel.G711_CONCEALED, emodel.mouth_to_ear_ms(50, 40), 100 * 7 / 45)
        assert found["mos"] == pytest.approx(emodel.mos(r))
        # Packets that were thought lost, and came after all, are not less than none.
        again = await compared(page, report(2, received=100, lost=3), report(1, received=50, lost=5))
        assert again["lossPercent"] == 0
        # Who only talks is told what the others hear; before they have reported, nothing.
        quiet = report(2, received=50, lost=3)
        assert (await compared(page, quiet, report(1, received=50, lost=3)))["of"] is None
        told = {"id": "far", "type": "remote-inbound-rtp", "kind": "audio", "fractionLost": 0.25, "jitter": 0.01}
        heard_there = await compared(page, [*quiet, told], report(1, received=50, lost=3))
        assert (heard_there["of"], heard_there["lossPercent"]) == ("heard there", 25)
        # Nothing is known yet.
        assert (await compared(page, []))["mos"] is None
        path = await module(page, "quality.js", f"m.pathOf(new Map({json.dumps([[e['id'], e] for e in quiet])}))")
        assert (path["over"], path["remote"]) == ("TURN over TLS", "127.0.1.2:50001")


def sample(mos: float, cause: str = "delay", loss: float = 0) -> dict[str, Any]:
    return {"mos": mos, "cause": cause, "lossPercent": loss, "delayMs": 6.5, "bufferMs": 310}


@needs_chromium
async def test_a_call_that_sounds_bad_says_so_and_why() -> None:
    missing, delayed = sample(2.11, "missing", 30), sample(3.4)
    histories = [
        [None] * 5,
        [sample(4.3)] * 10,
        [sample(4.3)] * 7 + [missing] * 3,
        [delayed] * 10,
        # The buffer of a call that has just begun is large: it is explained, but not judged.
        [sample(3.14)] * 2,
        # One bad second is not a bad call, and seconds without a figure count for nothing.
        [sample(4.4)] * 9 + [sample(3.2)],
        [missing] * 6 + [None],
    ]
    async with served() as url, browser() as page:
        await page.open(url)
        found = await module(page, "quality.js", f"{json.dumps(histories)}.map(m.judge)")
        assert [each["level"] for each in found] == ["good", "good", "bad", "poor", "good", "good", "bad"]
        assert [bool(each["why"]) for each in found] == [False, False, True, True, True, False, True]
        assert "30 % of the packets are missing" in found[2]["why"]
        assert "delay: 7 ms on the way, and 310 ms in the buffer" in found[3]["why"]
        assert "just begun" in found[4]["why"]
        # What costs the most is what is named.
        lossy = await compared(page, report(2, received=80, lost=20), report(1, received=50, lost=0))
        late = await compared(page, report(9, received=100, lost=0), report(8, received=50, lost=0))
        assert (lossy["cause"], late["cause"], late["bufferMs"]) == ("missing", "delay", pytest.approx(40))


@needs_chromium
async def test_both_sides_agree_who_offers() -> None:
    kinds = [
        {"role": role, "talking": talking} for role in ("caller", "callee", "listener") for talking in (True, False)
    ]
    pairs = [({"user_id": "a", **one}, {"user_id": "b", **other}) for one, other in product(kinds, kinds)]
    async with served() as url, browser() as page:
        await page.open(url)
        found = await module(
            page, "state.js", f"{json.dumps(pairs)}.map(([a, b]) => [m.offererOf(a, b), m.offererOf(b, a)])"
        )
    for (one, other), (here, there) in zip(pairs, found, strict=True):
        assert here == there
        if one["talking"] != other["talking"]:
            assert here == ("a" if one["talking"] else "b")
        assert (here is None) == (not one["talking"] and not other["talking"])


# A call with stubs for signaling: what it offers to whom, and what it tells of.
CALL = """(async () => {
    const [{ Call }, { State }] = await Promise.all(["call", "state"].map((name) => import(`/softphone/${name}.js`)));
    const listener = (_, number) => ({ user_id: `u${10 + number}`, role: "listener", talking: false });
    const people = Array.from({ length: LISTENERS }, listener);
    const state = new State();
    state.me = "me";
    const line = { line: "s", call_id: "c", kind: "hoot", state: "talking", subscribers: people.length + 1,
        participants: [{ user_id: "me", role: "talker", talking: true }, ...people] };
    const said = { problems: [], offered: [] };
    const nothing = () => {};
    const signaling = { send: async (event, { to, type }) => { if (type) said.offered.push(to); } };
    const track = new AudioContext().createMediaStreamDestination().stream.getAudioTracks()[0];
    const call = new Call(line, { state, signaling, transport: { iceServers: [], hosts: [], kind: "udp" }, track,
        settings: { voiceViaWebProxy: true }, isHeld: () => window.held ?? true, onEvent: nothing, onSolved: nothing,
        onFault: nothing, onProblem: (one) => said.problems.push(one.key), onSilent: nothing,
        onChange: nothing, onConnected: nothing });
    await Promise.all([...call.peers.values()].map((peer) => peer.chain));
    STEPS
    call.close();
    return said; })()"""


async def called(page: Page, listeners: int, steps: str = "") -> dict[str, list[str]]:
    return dict(await page.run(CALL.replace("LISTENERS", str(listeners)).replace("STEPS", steps)))


@needs_chromium
async def test_a_talker_reaches_eight_and_says_so_if_there_are_more() -> None:
    async with served() as url, browser() as page:
        await page.open(url)
        said = await called(page, 8)
        assert sorted(said["offered"]) == [f"u{number}" for number in range(10, 18)]
        assert "too-many" not in said["problems"]
        said = await called(page, 12)
        assert sorted(said["offered"]) == [f"u{number}" for number in range(10, 18)]
        assert "too-many" in said["problems"]


# Something that takes UDP and never answers: the page must say so long before the browser gives up.
SILENT = """const [{ Peer }, { chooseTransport }] =
        await Promise.all(["peer", "transport"].map((name) => import(`/softphone/${name}.js`)));
    const settings = { voiceViaWebProxy: false, media: { transport: "udp", alternatives: { udp: [
        { urls: ["turn:127.0.0.1:PORT?transport=udp"], username: "u", credential: "c" }] } } };
    const told = [];
    const solved = [];
    const silent = () => {};
    const link = { me: "a", name: "Ben", settings, transport: chooseTransport(settings, "auto"),
        sendDescription: silent, sendCandidate: silent, onProblem: (one) => told.push(one),
        onSolved: (key) => solved.push(key), onEvent: silent, onFault: silent,
        onChange: silent, onConnected: silent, onSilent: silent };
    const sound = new AudioContext().createMediaStreamDestination().stream.getAudioTracks()[0];
    window.phone = new Peer("b", link, sound, true);
    Object.assign(window, { told, solved });
    window.before = phone.waitsFor;
    phone.offer();"""


@needs_chromium
async def test_a_turn_server_that_does_not_answer_is_told_after_some_seconds() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = str(deaf.getsockname()[1])
        async with served() as url, browser() as page:
            await page.open(url)
            await page.run(f"(async () => {{ {SILENT.replace('PORT', port)} }})()")
            assert await page.run("before") == ""
            await page.until("told.length")
            # The browser itself has not given up.
            assert await page.run("[phone.hasFailed, phone.pc.iceGatheringState]") == [False, "gathering"]
            [problem] = await page.run("told")
            assert problem["key"] == "turn-slow"
            assert problem["title"] == f"No answer yet from 127.0.0.1:{port} by UDP"
            assert "in the portal" in problem["text"]
            assert await page.run("phone.waitsFor") == f"no answer yet from 127.0.0.1:{port} by UDP"
            # It is over when the call is.
            await page.run("phone.close()")
            assert await page.run("solved") == ["turn-slow"]


@needs_chromium
async def test_who_lets_go_of_the_button_is_silent_at_once() -> None:
    async with served() as url, browser() as page:
        await page.open(url)
        steps = """said.sends = [String(call.track.enabled)];
            window.held = false;
            call.applyTalk();
            said.sends.push(String(call.track.enabled));"""
        assert (await called(page, 1, steps))["sends"] == ["true", "false"]


@needs_chromium
async def test_a_native_softphone_is_told_apart_and_a_reloaded_page_is_a_new_connection() -> None:
    native = "v=0\\r\\no=- 1 1 IN IP4 127.0.0.1\\r\\ns=-\\r\\nt=0 0\\r\\nm=audio 9 RTP/SAVP 0\\r\\n"
    async with served() as url, browser() as page:
        await page.open(url)
        steps = f"""call.onDescription({{ from: "u10", type: "answer", sdp: "{native}" }});
            await call.peers.get("u10").chain;"""
        assert "native-peer" in (await called(page, 1, steps))["problems"]
        # Their answer, and then an offer of another session: it is answered by a connection of its own.
        steps = """
            const far = async (offer) => { const pc = new RTCPeerConnection();
                pc.addTrack(track); if (offer) await pc.setRemoteDescription(offer);
                await pc.setLocalDescription(); return pc.localDescription; };
            const first = call.peers.get("u10");
            call.onDescription({ from: "u10", ...(await far(first.pc.localDescription)).toJSON() });
            await first.chain;
            call.onDescription({ from: "u10", ...(await far()).toJSON() });
            await call.peers.get("u10").chain;
            said.replaced = [String(first.closed), String(call.peers.get("u10") !== first)];"""
        said = await called(page, 1, steps)
        assert said["replaced"] == ["true", "true"]
        assert said["offered"] == ["u10", "u10"]


# TURN's answer, whether Voice via Web Proxy is on, the transport; what the title and the text must say.
REFUSALS = [
    (403, "TURN allocate error.", False, "relay", "not entitled", "in the portal"),
    (403, "TURN allocate error.", True, "relay", "not entitled", "whether it still is"),
    (486, "Allocation Quota Reached: too many calls at once", True, "relay", "as many calls", "End a call"),
    (401, "Unauthorized", True, "udp", "credentials", "log out and in"),
    (508, "Insufficient Capacity", True, "relay", "full", "operator"),
    (701, "TURN allocate request timed out.", False, "udp", "by UDP", "in the portal"),
    (701, "TURN allocate request timed out.", True, "udp", "by UDP", "choose the relay"),
    (701, "", True, "relay", "TURN over TLS", "CA file"),
]


@needs_chromium
async def test_a_failure_names_its_cause_and_who_can_act() -> None:
    async with served() as url, browser() as page:
        await page.open(url)
        for code, reason, on, kind, title, text in REFUSALS:
            told = {"errorCode": code, "errorText": reason, "url": "turns:127.0.0.1:4443?transport=tcp"}
            context = {"settings": {"voiceViaWebProxy": on}, "transport": {"kind": kind, "hosts": ["127.0.0.1:4443"]}}
            found = await module(page, "problems.js", f"m.ofIceError({json.dumps(told)}, {json.dumps(context)})")
            assert title in found["title"], (code, found)
            assert text in found["text"], (code, found)


@needs_chromium
@pytest.mark.parametrize(
    ("reason", "title"),
    [("disabled", "has disabled this user"), ("expired", "time of this login is up"), ("ended", "by a new password")],
)
async def test_an_ended_login_is_explained(reason: str, title: str) -> None:
    async with served() as url, browser() as page:
        await page.open(url)
        found = await module(page, "problems.js", f'm.ofSignaling("ended", {{ reason: "{reason}" }})')
        assert title in found["title"]
        assert found["text"]
