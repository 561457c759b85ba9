"""A softphone asks the hosts that it was told, and no others: it follows no redirect, whatever sends it away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from relay.emulator.signaling.messages import Event
from relay.emulator.softphone.errors import Unreachable
from relay.emulator.softphone.rest import AnswerError, Rest, open_http
from relay.emulator.softphone.signaling import Signaling


@asynccontextmanager
async def serving(location: str, asked: list[str]) -> AsyncIterator[str]:
    """A server that sends everybody away, or answers if there is nowhere to go: its URL."""

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return (
            web.Response(status=307, headers={"Location": location + request.path_qs}) if location else web.Response()
        )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def sent_away(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Where a server sends everybody to another one, which must not be asked; nor a proxy of the environment."""
    first: list[str] = []
    others: list[str] = []
    async with serving("", others) as elsewhere, serving(elsewhere, first) as url:
        monkeypatch.setenv("http_proxy", elsewhere)
        monkeypatch.delenv("no_proxy", raising=False)
        yield url
    assert first
    assert others == []


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
async def test_requests_are_not_sent_elsewhere(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sent_away(monkeypatch) as url, open_http(None, None) as http:
        with pytest.raises(
            AnswerError, match=r"307: leads to 'http://\S+', which a softphone does not follow"
        ) as raised:
            await Rest(url, http).request(method, "/rest/v1/login", json={})
        assert raised.value.status == 307


@pytest.mark.parametrize("transports", [("websocket",), ("polling",), ("polling", "websocket")], ids="+".join)
async def test_signaling_is_not_sent_elsewhere(transports: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def hear(_: Event) -> None:
        raise AssertionError

    async with sent_away(monkeypatch) as url, open_http(None, None) as http:
        signaling = Signaling(url, "token", http, hear, transports=transports)
        with pytest.raises(
            Unreachable, match=rf"signaling at {url}: .*leads to 'http://\S+', which a softphone does not"
        ):
            await signaling.open()
        await signaling.close()
