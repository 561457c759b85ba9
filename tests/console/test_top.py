"""``relay top``: a frame from a real admin listener, and clear words if there is none."""

from __future__ import annotations

import asyncio
import contextlib
import io

import pytest
from aiohttp import web
from rich.console import Console

from relay.console import top
from relay.console.listener import AdminListener
from relay.errors import OperatorError
from relay.gateway.calls.calls import BANDS
from relay.plane.api import CloseReason
from tests.support.benches.made_up import MadeUpRelay
from tests.support.waiting import eventually

# It would colour what follows red, move the cursor, and be a tag of rich besides.
HOSTILE = "[bold]\x1b[31m\x07\r\n\u202e[/bold]<b>"


def console(width: int = 160, *, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, height=30, force_terminal=terminal)


def text_of(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


async def test_one_frame_worst_first() -> None:
    relay = MadeUpRelay()
    relay.call(1, username="good").talk()
    relay.call(2, username="bad").talk(lost=60, drops=3)
    relay.call(3, username="silent")
    await relay.calls.look()
    relay.end(relay.call(4), CloseReason.CLIENT_LOST)
    screen = console()
    async with relay.served() as address:
        await top.show_once(AdminListener(f"http://{address}/"), "", screen)
    head, figures, upstreams, drops, _, *rows = text_of(screen).splitlines()
    assert head.startswith("cloud9-relay")
    assert "calls 2  flows 3" in figures
    assert "use1-stun2 down" in upstreams
    assert "downlink_old" not in drops  # before the first look nothing is known
    assert [row.split()[1] for row in rows] == ["bad", "good", "silent"]
    assert "24.0" in rows[0].split()
    assert [row.split()[-1] for row in rows] == ["test-2", "test-1", "test-3"]
    assert rows[2].split()[0] == "-"


@pytest.mark.parametrize(
    ("mos", "style"),
    [(4.02, "green"), (4.01, "yellow"), (3.6, "yellow"), (3.59, "red"), (3.09, "bold red"), (0.5, "bold red")],
)
def test_colours_change_where_the_bands_of_the_relay_do(mos: float, style: str) -> None:
    assert top._style(mos, [least for _, least in BANDS]) == style
    assert top._style(None, []) == "dim"


async def test_match_and_a_narrow_terminal() -> None:
    relay = MadeUpRelay()
    for number in range(3):
        relay.call(number, username=f"trader{number}").talk()
    screen = console(80)
    async with relay.served() as address:
        await top.show_once(AdminListener(f"http://{address}"), "TRADER1", screen)
    assert "trader1" in text_of(screen)
    assert "trader2" not in text_of(screen)
    assert text_of(screen).split()[-1] == "test-1"
    assert "desk.relay.test" not in text_of(screen)
    assert max(map(len, text_of(screen).splitlines())) <= 80


async def test_what_peers_choose_cannot_steer_the_terminal() -> None:
    relay = MadeUpRelay()
    relay.call(1, username=HOSTILE, server_name=HOSTILE).talk()
    screen = console(300)
    async with relay.served() as address:
        await top.show_once(AdminListener(f"http://{address}"), "", screen)
    shown = text_of(screen)
    assert HOSTILE.encode("unicode_escape").decode() in shown
    assert all(character.isprintable() for line in shown.splitlines() for character in line)


async def test_it_goes_on_and_says_when_the_relay_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "INTERVAL_S", 0.01)
    relay = MadeUpRelay()
    screen = console(terminal=True)
    async with contextlib.AsyncExitStack() as stack:
        serving = contextlib.AsyncExitStack()
        address = await serving.enter_async_context(relay.served())
        showing = asyncio.create_task(top.show(AdminListener(f"http://{address}"), "", screen))
        stack.callback(showing.cancel)
        await eventually(lambda: "flows 0" in text_of(screen) or showing.done())
        relay.call(1, username="newcomer")
        await eventually(lambda: "newcomer" in text_of(screen) or showing.done())
        await serving.aclose()
        await eventually(lambda: "cannot be read" in text_of(screen) or showing.done())
    await asyncio.gather(showing, return_exceptions=True)
    assert showing.cancelled()


@pytest.mark.parametrize("url", ["127.0.0.1:9443", "ftp://127.0.0.1", ""])
async def test_no_address(url: str) -> None:
    with pytest.raises(OperatorError, match="expected an address"):
        await top.show_once(AdminListener(url), "", console())


async def test_nobody_listens() -> None:
    for show in (top.show, top.show_once):
        with pytest.raises(
            OperatorError, match=r"http://127.0.0.1:9/api/summary cannot be read \(.*: is the relay running"
        ):
            await show(AdminListener("http://127.0.0.1:9"), "", console())


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (web.Response(text="hello"), "cannot be read"),
        (web.Response(text="{", content_type="application/json"), "cannot be read"),
        (web.json_response([1]), "answers something else"),
        (web.json_response({}), "answers something else"),
        (web.Response(status=404), "answers 404"),
        (web.Response(status=401), "answers 401: the token is missing or wrong: set RELAY_ADMIN_TOKEN"),
        (web.Response(status=421), "does not answer to this name: use an address, or add it to listen.admin_hosts"),
    ],
)
async def test_another_server(response: web.Response, said: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return response

    app = web.Application()
    app.router.add_get("/api/summary", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with pytest.raises(OperatorError, match=said):
            await top.show_once(AdminListener(f"http://127.0.0.1:{runner.addresses[0][1]}"), "", console())
    finally:
        await runner.cleanup()
