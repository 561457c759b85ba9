"""``relay demo`` on the terminal: progress, the table, and with --stay what to open in a browser."""

from __future__ import annotations

import asyncio
import json
import signal

import typer
from rich.console import Console

from relay.demo.cloud import FIRM, Floor
from relay.demo.progress import progress
from relay.demo.report import json_of, table_of
from relay.demo.run import PATHS, demo_floor, place_calls
from relay.emulator.folder import urls, write_browser
from relay.emulator.settings import DEFAULT_HTTP
from relay.emulator.softphone.voice import PACKETS_PER_SECOND

HINT = (
    "With --stay (make demo STAY=1) it keeps running, with a softphone for your browser:\n"
    f"http://localhost:{DEFAULT_HTTP.port}/softphone/. Log in as anna in one tab and as ben in another\n"
    "(password trader). Press Ben in Anna's tab, and Answer in Ben's."
)


async def show(seconds: float, *, as_json: bool, stay: bool) -> bool:
    """Run the demo. Returns True if nothing was lost. Raises RelayError."""
    told = Console(stderr=True, quiet=as_json)
    if not told.is_terminal:
        told.print("Starting the vendor's cloud and a relay on this machine.")
    async with demo_floor(known_ports=stay) as floor:
        total = PATHS * round(seconds * PACKETS_PER_SECOND)
        with progress(
            told, total, f"Placing {PATHS} calls of {seconds:g} s, directly and through the relay."
        ) as on_tick:
            rows = await place_calls(floor, seconds, on_tick)
        if as_json:
            typer.echo(json.dumps(json_of(rows), indent=2))
        else:
            Console().print(table_of(rows))
        if stay:
            await _stay(floor)
        elif not as_json:
            typer.echo(HINT)
    return all(row.complete for row in rows)


async def _stay(floor: Floor) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        typer.echo(await invite(floor))
        await stop.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def invite(floor: Floor) -> str:
    """What to open, and who to be. Writes ``browser.sh``, with which one hears the relay."""
    script = await asyncio.to_thread(write_browser, floor.cloud)
    pages = urls(floor.cloud)
    users = [user for user in floor.cloud.settings.fixtures.users if user.firm != FIRM and user.password is not None]
    names = [
        f"  {user.id:<16}{'' if user.password is None else user.password.get_secret_value():<10}"
        f"{'Voice via Web Proxy' if user.voice_via_web_proxy else ''}".rstrip()
        for user in users
    ]
    return "\n".join(
        [
            "The cloud and the relay keep running until Ctrl-C. To hear a call:",
            "",
            f"  1. Open this page in two tabs of any browser: {pages['softphone']}",
            "  2. Log in as anna in one tab, as ben in the other (password trader). Their voice goes by UDP.",
            "  3. Press Ben in Anna's tab, and Answer in Ben's.",
            "",
            "To hear a call through the relay, whose certificate your browser does not trust:",
            "",
            f"  1. Start a Chromium that trusts it: {script}",
            "  2. Log in as dora in one tab, as emil in another (password trader). Voice via Web Proxy is on for them.",
            "  3. Press Call under Atlas desk in Dora's tab.",
            "",
            "That folder is temporary: Ctrl-C removes it. `relay emulate --with-relay` keeps its folder.",
            "",
            f"  portal      {pages['portal']}",
            f"  relay       http://{floor.gateway.admin}/",
            "",
            "  user            password",
            *names,
        ]
    )
