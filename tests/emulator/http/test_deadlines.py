"""An answer that takes too long: the client is told to come back. WebSockets and uploads have more time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from aiohttp import web
from structlog.testing import capture_logs

from relay import catalog
from relay.emulator.http.endpoints import Call, Endpoint
from relay.emulator.http.site import NO_DEADLINE, Names, Site
from relay.emulator.marks import Mark
from relay.emulator.names import HostRole
from tests.support.benches.cloud import running_cloud


@contextlib.asynccontextmanager
async def serving(site: Site) -> AsyncIterator[aiohttp.ClientSession]:
    runner = web.AppRunner(site.app)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    try:
        async with aiohttp.ClientSession(listener.name) as session:
            yield session
    finally:
        await runner.cleanup()


async def test_a_handler_that_hangs_ends_in_503() -> None:
    site, cancelled = Site(Names(catalog.load())), asyncio.Event()

    async def hang(_: object) -> web.Response:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()
        raise AssertionError

    async def hang_as_endpoint(call: Call) -> web.Response:
        return await hang(call)

    site.route(HostRole.EMULATOR, "GET", "/hang", hang, timeout_s=0.05)
    endpoint = Endpoint(HostRole.EMULATOR, "GET", "/end", Mark.INVENTED, "Hangs", hang_as_endpoint, timeout_s=0.05)
    site.add(endpoint)
    with capture_logs() as logs:
        async with serving(site) as session:
            for path in ("/hang", "/end"):
                cancelled.clear()
                async with session.get(path) as answer:
                    error = (await answer.json())["error"]
                    assert (answer.status, error["code"], answer.headers["Retry-After"]) == (503, "too_slow", "5")
                assert cancelled.is_set()
    # One line for all that are slow.
    assert [(line["event"], line["path"]) for line in logs] == [("an answer took too long", "/hang")]


async def test_a_timeout_within_the_deadline_is_told_as_what_it_is() -> None:
    site = Site(Names(catalog.load()))

    async def fail(_: web.Request) -> web.Response:
        raise TimeoutError

    site.route(HostRole.EMULATOR, "GET", "/fail", fail)
    async with serving(site) as session, session.get("/fail") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "busy")


async def test_what_lasts_by_its_nature_has_no_deadline(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        timeouts: dict[tuple[str, str], float] = {}
        for route in client.cloud.site.app.router.routes():
            assert route.resource is not None
            handler = route.handler
            bounded = isinstance(handler, functools.partial) and handler.func == client.cloud.site._answer_within
            place = (route.method, route.resource.canonical)
            timeouts[place] = handler.args[0] if bounded else NO_DEADLINE  # type: ignore[attr-defined]
        media = "/recordings/v1/{recording_id}/media"
        # The page at / is made of what the process has in memory.
        assert {path for (_, path), timeout_s in timeouts.items() if timeout_s == NO_DEADLINE} == {
            "/",
            "/api",
            "/socket.io/",
        }
        assert timeouts["POST", "/socket.io/"] == timeouts["POST", "/rest/v1/login"]
        assert timeouts["PATCH", media] > timeouts["POST", "/rest/v1/login"]
