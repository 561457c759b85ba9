"""``relay calls`` and ``relay explain``: what a running relay knows of calls that have ended."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from relay.console.asking import Json, get, open_client
from relay.console.listener import AdminListener
from relay.console.times import span_of
from relay.errors import OperatorError
from relay.logs import printable

# The relay gives up a search before this.
TIMEOUT_S = 15.0
# What the listener gives in one answer.
PAGE = 1000
# A narrower terminal shows users, but no addresses and other names.
_WIDE_COLUMNS = 130
_NAMES = {"user": "username", "client": "client", "upstream": "upstream"}
_FIGURES = ("lasted", "MOS min", "miss%↑", "miss%↓")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for. Times are Unix seconds, both included; empty or None is not asked for."""

    user: str = ""
    address: str = ""
    since: float | None = None
    until: float | None = None
    limit: int = 20

    def query(self, limit: int, before: str) -> dict[str, str]:
        """The query of one page."""
        given = {"user": self.user, "address": self.address, "from": self.since, "to": self.until, "before": before}
        return {"limit": str(limit), **{key: str(value) for key, value in given.items() if value not in ("", None)}}


def wanted_of(user: str, address: str, limit: int, *, at: str, since: str, until: str) -> Wanted:
    """What the options ask for. Raises OperatorError."""
    now = datetime.now().astimezone()
    wanted = Wanted(user, address, limit=limit)
    if at and (since or until):
        raise OperatorError("--at: not together with --from and --to")
    if at:
        first, last = span_of("--at", at, now)
        return dataclasses.replace(wanted, since=first, until=last)
    if since:
        wanted = dataclasses.replace(wanted, since=span_of("--from", since, now)[0])
    if until:
        wanted = dataclasses.replace(wanted, until=span_of("--to", until, now)[1])
    if wanted.since is not None and wanted.until is not None and wanted.since > wanted.until:
        raise OperatorError(f"--from {since}: expected a time that is not after --to {until}")
    return wanted


async def find(listener: AdminListener, wanted: Wanted) -> tuple[list[Json], bool]:
    """The calls that match, the last that ended first, and whether there are more. Raises OperatorError."""
    found: list[Json] = []
    before = ""
    async with open_client(listener, TIMEOUT_S) as http_client:
        while True:
            query = wanted.query(min(PAGE, wanted.limit - len(found)), before)
            answer = await get(http_client, listener, "/api/calls", query, "calls")
            found += answer["calls"]
            before = answer.get("next") or ""
            if not before or len(found) >= wanted.limit:
                return found, bool(before)


async def show_calls(listener: AdminListener, wanted: Wanted, console: Console, *, as_json: bool) -> None:
    """Print the calls that match, one in a row. Raises OperatorError."""
    found, more = await find(listener, wanted)
    if as_json:
        for call in found:
            # One call in a line. JSON escapes what could steer a terminal.
            console.file.write(json.dumps(call, separators=(",", ":")) + "\n")
        return
    if not found:
        console.print("No call matches.")
        return
    console.print(_table(found, console.width))
    if more:
        console.print(f"The last {len(found)} calls that match. There are more: --limit, or a shorter time.")


def _table(calls: list[Json], width: int) -> Table:
    wide = width >= _WIDE_COLUMNS
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True, header_style="dim")
    # Whole on every terminal: it is what relay explain takes.
    table.add_column("id", no_wrap=True, min_width=max(len(printable(call["id"])) for call in calls))
    names = _NAMES if wide else {"user": "username"}
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("began", no_wrap=True)
    for name in _FIGURES if wide else _FIGURES[:2]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True, overflow="ellipsis")
    for call in calls:
        told = (Text(printable(call[key]) or "-") for key in names.values())
        began = datetime.fromisoformat(call["started_at"]).astimezone()
        figures = _figures(call) if wide else _figures(call)[:2]
        row = (f"{began:%Y-%m-%d %H:%M:%S}", *figures, printable(call["reason"]))
        table.add_row(Text(printable(call["id"])), *told, *map(Text, row))
    return table


def _figures(call: Json) -> list[str]:
    mos = call["mos_min"]
    return [
        _duration(call["age_s"]),
        "-" if mos is None else f"{mos:.2f}",
        _missing(call["uplink"]),
        _missing(call["downlink"]),
    ]


def _missing(way: Json) -> str:
    return "-" if way["lost_percent"] is None else f"{way['lost_percent'] + way['late_percent']:.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


async def show_explanation(listener: AdminListener, call: str, console: Console, *, as_json: bool) -> None:
    """Print what the relay knows of a call, in sentences. Raises OperatorError."""
    path = f"/api/calls/{quote(call, safe='')}"
    async with open_client(listener, TIMEOUT_S) as http_client:
        told = await get(http_client, listener, path, {}, "started_at")
        offset = datetime.fromisoformat(told["started_at"]).astimezone().utcoffset()
        minutes = 0 if offset is None else round(offset.total_seconds() / 60)
        query = {"utc_offset_minutes": str(minutes)}
        found = await get(http_client, listener, f"{path}/explanation", query, "sentences")
    if as_json:
        console.file.write(json.dumps(found, separators=(",", ":")) + "\n")
        return
    console.print(Text(printable(f"Call {found['id']}, times in {found['times']}")))
    for sentence in found["sentences"]:
        # Names that peers chose are text, not markup, and cannot steer the terminal.
        console.print(Text(_whole(sentence["text"])))


def _whole(text: str) -> str:
    """A sentence that cannot steer a terminal. ``printable`` would cut a long one."""
    return "".join(printable(text[start : start + 100]) for start in range(0, len(text), 100))
