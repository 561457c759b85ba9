"""Debian's Prometheus for a test: it reads one relay each second, with the rules of ``deploy/``."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.addresses import Address
from tests.support.network.ports import reserved_address

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
RULES = Path(__file__).parents[3] / "deploy" / "prometheus"
READY_TIMEOUT_S = 60.0
# The address that the file in deploy/ has, and how often it asks.
SAMPLE_TARGET, SAMPLE_INTERVAL = "127.0.0.1:9443", "15s"


@dataclass
class Prometheus:
    """A running Prometheus."""

    url: str
    http: aiohttp.ClientSession

    async def query(self, query: str) -> list[dict[str, Any]]:
        """The value of each series that a query has now."""
        async with self.http.get(f"{self.url}/api/v1/query", params={"query": query}) as response:
            answer = await response.json()
            assert answer["status"] == "success", (query, answer)
            found = answer["data"]["result"]
            assert isinstance(found, list)
            return found

    async def eventually(self, query: str) -> list[dict[str, Any]]:
        """The same, once there are any. Raises AssertionError."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not (found := await self.query(query)):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"nothing for {query}") from None
        return found


def _configure(folder: Path, target: Address) -> None:
    folder.mkdir()
    for rules in ("recording.yml", "alerts.yml"):
        shutil.copy(RULES / rules, folder / rules)
    text = (RULES / "prometheus.yml").read_text()
    assert SAMPLE_TARGET in text
    assert SAMPLE_INTERVAL in text
    (folder / "prometheus.yml").write_text(text.replace(SAMPLE_TARGET, str(target)).replace(SAMPLE_INTERVAL, "1s"))


@contextlib.asynccontextmanager
async def prometheus(folder: Path, target: Address) -> AsyncIterator[Prometheus]:
    """A Prometheus that reads this admin listener, while the block runs."""
    _configure(folder, target)
    with reserved_address() as address, (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            async with aiohttp.ClientSession() as http:
                running = Prometheus(f"http://{address}", http)
                async with asyncio.timeout(READY_TIMEOUT_S):
                    while not await _is_ready(running):
                        assert process.returncode is None, (folder / "log").read_text()
                        await asyncio.sleep(0.05)
                yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _is_ready(running: Prometheus) -> bool:
    try:
        async with running.http.get(f"{running.url}/-/ready") as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False
