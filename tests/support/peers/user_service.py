"""A service of users, as a firm would run it: real HTTP on loopback, with the faults that a test asks for."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def _admit(_: web.Request) -> web.StreamResponse:
    return web.json_response({"allowed": True})


@dataclass
class UserService:
    """``answer`` may be replaced at any time; ``asked`` has all requests."""

    url: str = ""
    answer: Answer = _admit
    asked: list[web.Request] = field(default_factory=list)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def users(self) -> list[str]:
        """Who was asked for, in order."""
        return [request.query["user"] for request in self.asked]

    def says(self, content: object, status: int = 200) -> None:
        """Answer all with this JSON."""

        async def answer(_: web.Request) -> web.StreamResponse:
            return web.json_response(content, status=status)

        self.answer = answer

    def hang(self, content: object = None) -> None:
        """Answer nobody until ``release``, and then with this JSON, or as by default."""
        self._released.clear()

        async def answer(request: web.Request) -> web.StreamResponse:
            await self._released.wait()
            return await _admit(request) if content is None else web.json_response(content)

        self.answer = answer

    def release(self) -> None:
        """Answer those that wait."""
        self._released.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        self.asked.append(request)
        return await self.answer(request)


@contextlib.asynccontextmanager
async def user_service(context: ssl.SSLContext | None = None) -> AsyncIterator[UserService]:
    """Serve on a free port, with TLS if there is a context."""
    service = UserService()
    app = web.Application()
    app.router.add_get("/{path:.*}", service.handle)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        scheme = "http" if context is None else "https"
        service.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}/voice"
        yield service
    finally:
        service.release()
        await runner.cleanup()
