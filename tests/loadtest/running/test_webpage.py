"""Locust's own web page during a run, as a browser asks for it: the tab, the page with charts, and Locust's report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path

import aiohttp

from loadtest.plan.target import Target
from loadtest.running.processes import Mode
from loadtest.verdict.result import Result
from tests.loadtest.running.driver import run_small, small
from tests.support.network.ports import reserved_address

Rows = dict[str, dict[str, str]]
# The rest of the seconds is not needed: the test is stopped when all was seen.
LONG_S = 300
CHARTS = {"Delay", "Lost and late packets", "MOS", "Jitter", "Lateness of the load tester", "CPU"}


class Run:
    """A load test with its web page."""

    def __init__(self, http: aiohttp.ClientSession, running: asyncio.Task[Result]) -> None:
        self._http = http
        self._running = running

    async def get(self, path: str) -> str:
        async with self._http.get(path) as answer:
            assert answer.status == 200
            return await answer.text()

    async def tab(self) -> Rows:
        """What the tab shows now; nothing if Locust does not serve yet."""
        try:
            stats = json.loads(await self.get("/stats/requests"))["extended_stats"]
        except (aiohttp.ClientError, OSError):
            return {}
        (voice,) = stats
        assert voice["key"] == "voice"
        return {row["figure"]: row for row in voice["data"]}

    async def tab_when(self, holds: Callable[[Rows], bool]) -> Rows:
        """The tab, as soon as this holds."""
        while not self._running.done():
            if (rows := await self.tab()) and holds(rows):
                return rows
            await asyncio.sleep(0.2)
        raise AssertionError(self._running.result())


@asynccontextmanager
async def running(folder: Path, target: Target) -> AsyncIterator[Run]:
    """Two users who talk, until the block ends."""
    stopped = asyncio.Event()
    profile = small(shape={"ramp_s": 0, "hold_s": LONG_S}, warm_up_s=0)
    with reserved_address() as address:
        mode = Mode(web=str(address))
        work = asyncio.to_thread(run_small, folder, target, profile, mode=mode, interrupted=stopped.is_set)
        task = asyncio.create_task(work)
        try:
            async with aiohttp.ClientSession(f"http://{address}") as http:
                yield Run(http, task)
        finally:
            stopped.set()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def number(text: str) -> float:
    return float(text.split(maxsplit=1)[0])


def measured(rows: Rows) -> bool:
    """Whether each figure has been measured; a relay is looked at every two seconds."""
    return "relay: CPU seconds" in rows and all(row["all"] != "-" for row in rows.values())


def lines_of(page: str) -> Iterator[tuple[str, bool]]:
    """The charts of a page by their titles, and whether each has a line."""
    for figure in re.findall(r"<figure>.*?</figure>", page, re.DOTALL):
        title = re.search(r"<figcaption>(.*?)(?: \(|<)", figure)
        assert title is not None, figure[:300]
        yield unescape(title[1]), re.search(r'<path d="M', figure) is not None


async def test_the_tab_the_charts_and_the_report_have_data(relay: Target, tmp_path: Path) -> None:
    async with running(tmp_path, relay) as run:
        first = await run.tab_when(measured)
        assert number(first["sent"]["now"]) > 0
        assert 1 <= number(first["MOS"]["all"]) <= 4.5
        assert 0 < number(first["delay p50"]["all"]) <= number(first["delay p99.9"]["all"])
        assert number(first["lateness of the generator p99"]["all"]) >= 0
        assert number(first["relay: CPU seconds"]["all"]) > 0
        assert number(first["relay: drops"]["all"]) >= 0
        # It goes on.
        sent = number(first["sent"]["all"])
        await run.tab_when(lambda rows: number(rows["sent"]["all"]) > sent)
        # Locust's page is told of the tab, and of its columns.
        index = await run.get("/")
        told = json.loads(re.findall(r"window\.templateArgs = (.*)", index)[0])
        assert told["extended_tabs"] == [{"title": "Voice", "key": "voice"}]
        assert [one["key"] for one in told["extended_tables"][0]["structure"]] == ["figure", "now", "all"]
        page = await run.get("/voice")
        assert "The test goes on." in page
        assert {title for title, has_line in lines_of(page) if has_line} >= CHARTS
        assert "Quality of streams, second by second" in page
        report = await run.get("/stats/report?download=1")
        (inner,) = re.findall(r'<iframe title="Voice"[^>]* srcdoc="([^"]*)"', report)
        assert {title for title, has_line in lines_of(unescape(inner)) if has_line} >= CHARTS
        assert "http-equiv" not in unescape(inner)
