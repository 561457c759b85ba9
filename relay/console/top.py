"""``relay top``: the calls of a running relay in a terminal, read from its admin listener like the dashboard."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from relay.console.asking import Json, get, open_client
from relay.console.listener import AdminListener
from relay.errors import OperatorError
from relay.logs import printable

INTERVAL_S = 1.0
# Nobody reads more rows on a terminal.
MAX_ROWS = 200
# Rows of a frame that is printed once, as for a script.
ROWS_ONCE = 20
# Lines that are not rows: title, figures, upstreams, drops, head of the table, and the line for the cursor.
LINES_BESIDE = 8

# The colours of the bands of MOS, best first. The relay's summary says where each band begins (``mos_bands``).
_BAND_STYLES = ("green", "green", "yellow", "red", "bold red", "bold red")

# A narrower terminal shows users, but no addresses and other names.
_WIDE_COLUMNS = 110
_NAMES = {"user": "username", "client": "client", "server name": "server_name", "upstream": "upstream"}
_FIGURES = ("age", "miss%↑", "miss%↓", "jit↑", "jit↓", "queue", "RTT")


async def show_once(listener: AdminListener, match: str, console: Console) -> None:
    """Print one frame. Raises OperatorError if the listener does not answer as it should."""
    async with open_client(listener) as http_client:
        console.print(frame(*await _read(http_client, listener, match, ROWS_ONCE), console.width))


async def show(listener: AdminListener, match: str, console: Console) -> None:
    """Draw a frame each second until cancelled. Raises OperatorError if the first one fails; later it waits."""
    async with open_client(listener) as http_client:
        summary, flows = await _read(http_client, listener, match, _rows(console))
        with Live(
            frame(summary, flows, console.width), console=console, screen=console.is_terminal, auto_refresh=False
        ) as live:
            while True:
                await asyncio.sleep(INTERVAL_S)
                lost = None
                try:
                    summary, flows = await _read(http_client, listener, match, _rows(console))
                except OperatorError as error:
                    lost = str(error)
                live.update(frame(summary, flows, console.width, lost), refresh=True)


def _rows(console: Console) -> int:
    return max(1, min(MAX_ROWS, console.size.height - LINES_BESIDE))


async def _read(
    http_client: aiohttp.ClientSession, listener: AdminListener, match: str, limit: int
) -> tuple[Json, Json]:
    # Both answers have flows, counted or listed.
    summary = await get(http_client, listener, "/api/summary", {}, "flows")
    flows = await get(http_client, listener, "/api/flows", {"limit": str(limit), "match": match}, "flows")
    return summary, flows


def frame(summary: Json, flows: Json, width: int, lost: str | None = None) -> Group:
    """One picture of the API's answers. Names that peers chose are text, not markup, and cannot steer the terminal."""
    rates = summary["packets_per_s"]
    bands = "  ".join(f"{one['name']} {one['calls']}" for one in summary["mos_bands"] if one["calls"])
    title = Text.assemble(("cloud9-relay ", "bold"), summary["version"], ("  draining" * summary["draining"], "yellow"))
    figures = (
        f"calls {summary['calls']}  flows {summary['flows']}  connections {summary['connections']}  "
        f"packets/s ↑ {rates['uplink']:.0f} ↓ {rates['downlink']:.0f}  MOS: {bands or 'none'}"
    )
    upstreams = Text("upstreams  ")
    for one in summary["upstreams"]:
        upstreams.append(f"{one['name']} {one['health']} {one['flows']}  ", style=_HEALTH.get(one["health"], ""))
    drops = "  ".join(f"{reason} {count}" for reason, count in summary["drops_last_minute"].items())
    shown, total = len(flows["flows"]), flows["total"]
    more = f"  {shown} of {total} flows, worst first" if total > shown else ""
    lines: list[Any] = [title, Text(figures), upstreams, Text(f"drops, last minute: {drops or 'none'}{more}")]
    if lost is not None:
        lines.append(Text(printable(lost), style="bold red"))
    return Group(*lines, _table(flows["flows"], width, [one["mos_from"] for one in summary["mos_bands"]]))


_HEALTH = {"up": "green", "down": "bold red"}


def _table(flows: list[Json], width: int, bands: list[float]) -> Table:
    table = Table(box=None, padding=(0, 1), expand=True, header_style="dim")
    names = _NAMES if width >= _WIDE_COLUMNS else {"user": "username"}
    table.add_column("MOS", justify="right", no_wrap=True)
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1)
    for name in _FIGURES:
        table.add_column(name, justify="right", no_wrap=True)
    # Last, whole on every terminal: for relay explain and relay capture.
    table.add_column("id", no_wrap=True, min_width=max((len(printable(flow["id"])) for flow in flows), default=0))
    for flow in flows:
        mos = Text(_number(flow["mos"], 2), style=_style(flow["mos"], bands))
        told = (Text(printable(flow[key]) or "-") for key in names.values())
        table.add_row(mos, *told, *map(Text, _figures(flow)), Text(printable(flow["id"])))
    return table


def _figures(flow: Json) -> list[str]:
    uplink, downlink = flow["uplink"], flow["downlink"]
    return [
        _duration(flow["age_s"]),
        _number(_missing(uplink), 1),
        _number(_missing(downlink), 1),
        _number(uplink["jitter_ms"], 1),
        _number(downlink["jitter_ms"], 1),
        _number(flow["queue_ms"], 0),
        _number(flow["rtt_ms"], 0),
    ]


def _missing(way: Json) -> float | None:
    return None if way["lost_percent"] is None else way["lost_percent"] + way["late_percent"]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _style(mos: float | None, bands: list[float]) -> str:
    if mos is None:
        return "dim"
    return next((style for least, style in zip(bands, _BAND_STYLES, strict=False) if mos >= least), _BAND_STYLES[-1])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
