"""Debian's Chromium without a screen, driven through the DevTools protocol: tabs, their keys and their pictures."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import aiohttp

from relay.tasks import Tasks
from tests.support.kept import KEPT
from tests.support.waiting import POLL_S

CHROMIUM = shutil.which("chromium")
# A cold start on a busy machine takes some seconds, and an answer a fraction of one.
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 30.0

# No sandbox: tests may run as root. No background work: nothing is asked of anybody but the page's server.
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    # Names lead nowhere: a page that loads anything from elsewhere fails here.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_KEYS = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "Tab": 9}


# Calls without people: a microphone that beeps, and nobody who must allow it.
FAKE_MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


class Browser:
    """A running Chromium, or a person's part of one. ``open_tab`` opens as many pages as a test needs."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, proxy_login: tuple[str, str] | None = None) -> None:
        self._socket = socket
        self._proxy_login = proxy_login
        # Names the part that has cookies, storage and a cache of its own.
        self._part: dict[str, str] = {}
        self._tasks = Tasks()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._number = 0

    async def read(self) -> None:
        """Take what the browser says, until it is gone."""
        async for message in self._socket:
            told = json.loads(message.data)
            if (answer := self._answers.pop(told.get("id", 0), None)) is not None:
                if not answer.done():
                    answer.set_result(told)
            elif "method" in told and (page := self._pages.get(told.get("sessionId", ""))) is not None:
                page.on_event(told["method"], told["params"])

    async def ask(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        asked = {"id": self._number, "method": method, "params": params}
        await self._socket.send_json({**asked, "sessionId": session} if session else asked)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            told = await answer
        assert "error" not in told, (method, told)
        return dict(told["result"])

    async def open_tab(self) -> Page:
        """A new empty page, in a window of its own: none is in the background."""
        target = (await self.ask("Target.createTarget", url="about:blank", newWindow=True, **self._part))["targetId"]
        session = (await self.ask("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.ask(f"{domain}.enable")
        if self._proxy_login is not None:
            await page.ask("Fetch.enable", handleAuthRequests=True)
        await page.size(1440, 900)
        return page

    def on_paused(self, session: str, request: str, *, asks: bool) -> None:
        """A request waits: for the proxy's name and password, or, as all do meanwhile, for leave to go on."""
        self._tasks.start(self._go_on(session, request, asks=asks), "let a request go on")

    async def _go_on(self, session: str, request: str, *, asks: bool) -> None:
        if not asks or self._proxy_login is None:
            await self.ask("Fetch.continueRequest", session, requestId=request)
            return
        username, password = self._proxy_login
        answer = {"response": "ProvideCredentials", "username": username, "password": password}
        await self.ask("Fetch.continueWithAuth", session, requestId=request, authChallengeResponse=answer)

    async def be_new(self) -> None:
        """Know nothing of what others have done in this Chromium, and leave them nothing."""
        made = await self.ask("Target.createBrowserContext", disposeOnDetach=True)
        self._part = {"browserContextId": made["browserContextId"]}

    async def close(self) -> None:
        """End it, or the part of it."""
        await self._tasks.cancel()
        if not self._part:
            await self.ask("Browser.close")
            return
        await self.ask("Target.disposeBrowserContext", **self._part)
        await self._socket.close()


class Page:
    """One tab. ``complaints`` are what it said on the console, threw, or was refused by its own security policy."""

    def __init__(self, owner: Browser, session: str) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._owner = owner
        self._session = session

    def on_event(self, method: str, params: dict[str, Any]) -> None:
        """Note what the page does."""
        if method == "Log.entryAdded":
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:1000])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(params["args"])[:1000])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method in {"Fetch.authRequired", "Fetch.requestPaused"}:
            self._owner.on_paused(self._session, params["requestId"], asks=method == "Fetch.authRequired")

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol about this page, and its result."""
        return await self._owner.ask(method, self._session, **params)

    async def open(self, url: str) -> None:
        """Load a page; a fragment only is a step inside of it."""
        await self.ask("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        told = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, condition: str, what: str = "") -> None:
        """Wait until an expression holds in the page."""
        script = f"""new Promise((resolve) => {{
            const look = () => {{ let found = false; try {{ found = Boolean({condition}); }} catch {{}}
                if (found) resolve(true); else setTimeout(look, 20); }};
            look(); }})"""
        try:
            while not await self._holds(script):
                pass
        except TimeoutError:
            raise AssertionError(what or f"{condition}: it did not come true; {self.complaints}") from None

    async def _holds(self, script: str) -> bool:
        """True if it came true, and False if another page was loaded meanwhile: then the new one is asked."""
        try:
            return bool(await self.run(script))
        except AssertionError as failed:
            if "navigated or closed" in str(failed) or "Execution context was destroyed" in str(failed):
                return False
            raise

    async def press(self, key: str) -> None:
        """Press and release a key."""
        code = _KEYS.get(key, ord(key[0]))
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        await self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        await self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    async def click(self, selector: str) -> None:
        """Click an element with the mouse, as a person does: it counts as a gesture."""
        x, y = await self.middle_of(selector)
        await self.mouse("mousePressed", x, y)
        await self.mouse("mouseReleased", x, y)

    async def middle_of(self, selector: str) -> tuple[float, float]:
        """Wait until an element can be seen, and nothing covers it. Returns where it is in the window."""
        await self.until(
            f"""(() => {{ const element = document.querySelector({json.dumps(selector)});
            if (!element?.checkVisibility()) return false;
            element.scrollIntoView({{ block: "center", behavior: "instant" }});
            const box = element.getBoundingClientRect();
            window.middle = [box.left + box.width / 2, box.top + box.height / 2];
            return element.contains(document.elementFromPoint(...window.middle)); }})()""",
            f"no {selector} to click",
        )
        x, y = await self.run("window.middle")
        return x, y

    async def mouse(self, kind: str, x: float, y: float) -> None:
        """``mousePressed`` or ``mouseReleased`` of the left button at a place of the window."""
        await self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def write(self, selector: str, text: str) -> None:
        """Click a field, and replace what it has."""
        await self.click(selector)
        await self.run(f"document.querySelector({json.dumps(selector)}).select()")
        await self.ask("Input.insertText", text=text)

    async def size(self, width: int, height: int) -> None:
        """What the window shows, in CSS pixels."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def prefer(self, scheme: str) -> None:
        """Say that the system is ``light`` or ``dark``."""
        await self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def picture(self) -> bytes:
        """A PNG of the window."""
        told = await self.ask("Page.captureScreenshot", format="png")
        return base64.b64decode(told["data"])


@contextlib.asynccontextmanager
async def browser(*options: str) -> AsyncIterator[Page]:
    """A Chromium as if it were new, with one empty page and further options."""
    async with chromium(*options) as started:
        yield await started.open_tab()


@contextlib.asynccontextmanager
async def chromium(*options: str, proxy_login: tuple[str, str] | None = None) -> AsyncIterator[Browser]:
    """A Chromium as if it were new, for several pages and with further options. Its pages are gone after the block.

    ``proxy_login`` is what its user would write into the window that a proxy's 407 opens.
    """
    # A start takes seconds of the processor. Tests without options share what was started for the first of them.
    if not options and proxy_login is None:
        async with _connected(await _Shared.address()) as started:
            await started.be_new()
            yield started
            await started.close()
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command, own = _command(profile, options)
        process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=PIPE, env=own)
        assert process.stderr is not None
        drained: asyncio.Task[bytes] | None = None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                address = await _address_of(process.stderr)
            drained = asyncio.create_task(process.stderr.read())
            async with _connected(address, proxy_login) as started:
                yield started
                await started.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if drained is not None:
                await drained


def _command(profile: str, options: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """What starts Chromium, and its environment."""
    assert CHROMIUM is not None
    # It keeps certificates in the home directory, and sockets and shared memory in the temporary one.
    own = {**os.environ, "HOME": profile, "TMPDIR": profile}
    return (CHROMIUM, *_OPTIONS, *options, f"--user-data-dir={profile}", "about:blank"), own


@contextlib.asynccontextmanager
async def _connected(address: str, proxy_login: tuple[str, str] | None = None) -> AsyncIterator[Browser]:
    """What listens there. The block must close it, unless it fails."""
    async with aiohttp.ClientSession() as client, client.ws_connect(address, max_msg_size=0) as socket:
        started = Browser(socket, proxy_login)
        reading = asyncio.create_task(started.read())
        try:
            yield started
        except BaseException:
            # What it has opened in a Chromium that others share goes with the connection.
            await socket.close()
            raise
        finally:
            await reading


class _Shared:
    """A Chromium that stays until the last test of this process has ended."""

    _running: ClassVar[_Shared | None] = None

    def __init__(self) -> None:
        profile = KEPT.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        command, own = _command(profile, ())
        # It says its address in this file. Nobody reads what it writes.
        self._address = Path(profile) / "DevToolsActivePort"
        self._process = subprocess.Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, env=own)
        KEPT.callback(self._end)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    @classmethod
    async def address(cls) -> str:
        """Where it listens. It is started if it does not run."""
        if cls._running is None or cls._running._process.poll() is not None:
            cls._running = cls()
        return await cls._running._listens()

    async def _listens(self) -> str:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                with contextlib.suppress(FileNotFoundError):
                    port, separator, path = self._address.read_text().partition("\n")
                    if separator and path:
                        return f"ws://127.0.0.1:{port}{path.strip()}"
                assert self._process.poll() is None, "chromium has ended"
                await asyncio.sleep(POLL_S)


async def _address_of(stderr: asyncio.StreamReader) -> str:
    said = []
    async for line in stderr:
        if found := re.search(rb"DevTools listening on (ws://\S+)", line):
            return found[1].decode()
        said.append(line)
    raise AssertionError(b"".join(said).decode(errors="replace"))
