"""The emulator's softphone page in a tab of Chromium, used as a person would: by mouse and keyboard."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Self

from tests.support.peers.browser import FAKE_MICROPHONE, Browser, Page, chromium

PASSWORD = "trader"
# Chromium's own policy against UDP that no proxy carries: it may not send any.
NO_UDP = "--webrtc-ip-handling-policy=disable_non_proxied_udp"
_SPACE = {"key": " ", "windowsVirtualKeyCode": 32}


class Softphone:
    """One user in one tab."""

    def __init__(self, browser: Browser, page: Page, origin: str, user: str) -> None:
        self.browser = browser
        self.origin = origin
        self.page = page
        self.user = user

    @classmethod
    async def open(cls, browser: Browser, origin: str, user: str, *, query: str = "") -> Self:
        """A new tab, and a login. ``query`` is more of the page's address, such as ``&tone=1``."""
        phone = cls(browser, await browser.open_tab(), origin, user)
        await phone.page.open(f"{origin}/softphone/?user={user}{query}")
        await phone.log_in()
        return phone

    async def log_in(self, password: str = PASSWORD) -> None:
        """Fill in the form, and wait until signaling has welcomed the user."""
        await self.page.until("document.querySelector('.login [name=user]').value")
        await self.page.write(".login [name=password]", password)
        await self.page.press("Enter")
        await self.page.until("document.querySelector('#live').dataset.state === 'live'")

    async def choose(self, transport: str) -> None:
        """``auto``, ``udp`` or ``relay``, for the next calls."""
        wanted = f"[name=transport][value={transport}]"
        # A call that begins moves what is below it, and the click may fall beside.
        for _ in range(5):
            await self.page.click(wanted)
            if await self.page.run(f"document.querySelector('{wanted}').checked"):
                return
        raise AssertionError(f"{transport} cannot be chosen")

    async def press(self, line: str, action: str) -> None:
        """Press a line's button while it does this: ring, answer, release, join, leave."""
        await self.page.click(f'[data-line="{line}"] [data-action={action}]')

    async def answer(self) -> None:
        """Answer what rings, in the banner."""
        await self.page.click("#incoming .good")

    async def hold(self, line: str) -> None:
        """Press the talk button with the mouse, and keep it pressed."""
        await self._at_talk_button(line, "mousePressed")

    async def let_go(self, line: str) -> None:
        """Let go of the talk button."""
        await self._at_talk_button(line, "mouseReleased")

    async def _at_talk_button(self, line: str, kind: str) -> None:
        x, y = await self.page.middle_of(f'[data-line="{line}"] .hold')
        await self.page.mouse(kind, x, y)

    async def hold_space(self, line: str) -> None:
        """The same by keyboard."""
        await self.page.run(f"""document.querySelector('[data-line="{line}"] .hold').focus()""")
        await self.page.ask("Input.dispatchKeyEvent", type="keyDown", text=" ", **_SPACE)

    async def let_go_of_space(self) -> None:
        await self.page.ask("Input.dispatchKeyEvent", type="keyUp", **_SPACE)

    async def until_line(self, line: str, words: str) -> None:
        """Wait until a line says this."""
        said = f"""document.querySelector('.line[data-line="{line}"] .what').textContent"""
        await self.page.until(f"{said}.includes({json.dumps(words)})")

    async def until_heard(self, packets: int = 50) -> None:
        """Wait until this many more packets of voice have come in."""
        before = await self.figure("received")
        await self.page.until(f"{_figure('received')} >= {before + packets}")

    async def until_sent(self, packets: int = 50) -> None:
        """Wait until this many more packets of voice went out."""
        before = await self.figure("sent")
        await self.page.until(f"{_figure('sent')} >= {before + packets}")

    async def figure(self, name: str) -> int:
        """``sent`` or ``received``: packets of the call so far, as getStats counts them."""
        return int(await self.page.run(_figure(name)))

    async def until_problem(self, key: str) -> str:
        """Wait until the page tells of this problem. Returns all that it says."""
        try:
            await self.page.until(f"""document.querySelector('[data-problem="{key}"]')""")
        except AssertionError:
            raise AssertionError(f"no problem {key}; what happened: {await self.log()}") from None
        return await self.text(f'[data-problem="{key}"]')

    async def text(self, selector: str) -> str:
        """What a part of the page says."""
        return str(await self.page.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def until_no_call(self) -> None:
        await self.page.until("!document.querySelector('.call')")

    async def log(self) -> str:
        """What the page says has happened."""
        return str(await self.page.run("document.querySelector('.log pre')?.textContent ?? ''"))


def _figure(name: str) -> str:
    return f"Number(document.querySelector('.call')?.dataset.{name} ?? 0)"


@contextlib.asynccontextmanager
async def softphones(origin: str, *users: str, options: tuple[str, ...] = ()) -> AsyncIterator[list[Softphone]]:
    """A Chromium with a fake microphone, and a tab for each user, logged in."""
    async with chromium(*FAKE_MICROPHONE, *options) as started:
        yield [await Softphone.open(started, origin, user) for user in users]


async def connect(caller: Softphone, callee: Softphone, line: str) -> None:
    """Ring on a ringdown line, answer, and wait until each hears the other."""
    await caller.press(line, "ring")
    await callee.answer()
    await asyncio.gather(caller.until_heard(), callee.until_heard())


def complaints(*phones: Softphone) -> list[Any]:
    """What the pages said on their consoles, threw, or were refused by their own policy."""
    return [one for phone in phones for one in phone.page.complaints]
