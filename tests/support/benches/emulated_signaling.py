"""A signaling server in the test's own loop, and phones that talk to it through python-socketio."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Self

import socketio
from aiohttp import web

from relay.emulator.signaling.directory import Account
from relay.emulator.signaling.server import SignalingServer, serve_signaling
from relay.emulator.signaling.state import CallRecord, LineSpec
from tests.support.emulated_lines import member

# What has not been heard by then will not be.
HEAR_TIMEOUT_S = 60.0
POLLING, WEBSOCKET = ["polling"], ["websocket"]


@dataclass
class People:
    """A directory in memory. Everyone's token is ``token-`` and their user id; extensions are given."""

    specs: dict[str, LineSpec] = field(default_factory=dict)
    extensions: dict[str, str] = field(default_factory=dict)
    records: list[CallRecord] = field(default_factory=list)
    # Logins have names once there is a set of those that have ended; they are the user ids.
    ended: set[str] | None = None
    ends_at: float = math.inf
    disabled_users: set[str] = field(default_factory=set)
    # Raised instead of an answer, if set.
    failure: Exception | None = None

    @classmethod
    def with_lines(cls, *specs: LineSpec) -> Self:
        return cls({spec.number: spec for spec in specs})

    async def user_of_token(self, token: str) -> Account | None:
        self._fail()
        user_id = token.removeprefix("token-")
        if user_id in {token, "nobody"}:
            return None
        known = member(user_id)
        login = user_id if self.ended is not None else ""
        return Account(user_id, known.name, known.firm_id, known.firm, "use1", login, self.ends_at)

    async def still_open(self, logins: Collection[str]) -> Collection[str]:
        return set(logins) - (self.ended or set())

    async def disabled(self, user_ids: Collection[str]) -> Collection[str]:
        return self.disabled_users.intersection(user_ids)

    def forget(self) -> None:
        pass

    async def lines_of(self, user_id: str) -> tuple[LineSpec, ...]:
        self._fail()
        return tuple(spec for spec in self.specs.values() if user_id in spec.firm_of)

    async def line(self, number: str) -> LineSpec | None:
        self._fail()
        return self.specs.get(number)

    async def user_of_extension(self, number: str) -> str | None:
        return self.extensions.get(number)

    async def on_call_ended(self, record: CallRecord) -> None:
        self._fail()
        self.records.append(record)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class Phone:
    """A client, what it was told, and what is not yet heard of that."""

    def __init__(self) -> None:
        self.client = socketio.AsyncClient(reconnection=False)
        self.told: list[tuple[str, Any]] = []
        self._news = asyncio.Event()
        self.client.on("*", self._on_event)
        for event in ("connect_error", "disconnect"):
            self.client.on(event, lambda *args, event=event: self._on_event(event, *args))

    def _on_event(self, event: str, data: Any = None, *_: Any) -> None:
        self.told.append((event, data))
        self._news.set()

    async def heard(self, event: str, **fields: Any) -> Any:
        """The first event of this name with these fields that was not heard yet; others are kept."""

        def find(told: list[tuple[str, Any]]) -> int | None:
            for at, (name, data) in enumerate(told):
                if name == event and (not fields or fields.items() <= data.items()):
                    return at
            return None

        try:
            async with asyncio.timeout(HEAR_TIMEOUT_S):
                while (at := find(self.told)) is None:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not heard: {event} {fields}; but: {self.told}") from None
        return self.told.pop(at)[1]

    async def ask(self, event: str, **fields: Any) -> Any:
        """Send a message, and return its acknowledgement."""
        return await self.client.call(event, fields, timeout=HEAR_TIMEOUT_S)

    async def do(self, event: str, **fields: Any) -> Any:
        """The same for one that must be accepted."""
        answer = await self.ask(event, **fields)
        assert answer["ok"], answer
        return answer

    async def refused(self, event: str, **fields: Any) -> Any:
        """The same for one that must be refused: the error's code."""
        answer = await self.ask(event, **fields)
        assert not answer["ok"], answer
        assert answer["error"]["message"]
        return answer["error"]["code"]

    def cut(self) -> None:
        """Lose the connection without a word."""
        self.client.eio.ws._response.connection.transport.abort()


@dataclass
class Signaling:
    """A running server."""

    server: SignalingServer
    people: People
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def phone(self, user_id: str, *, transports: Iterable[str] = WEBSOCKET) -> AbstractAsyncContextManager[Phone]:
        """A phone of a user."""
        return phone(self.url, f"token-{user_id}", transports=transports)


@contextlib.asynccontextmanager
async def phone(url: str, token: str, *, transports: Iterable[str] = WEBSOCKET, **options: Any) -> AsyncIterator[Phone]:
    """A phone that has logged in and heard its welcome, which is kept for the test."""
    opened = Phone()
    await opened.client.connect(
        url, auth={"token": token}, transports=list(transports), wait_timeout=HEAR_TIMEOUT_S, **options
    )
    try:
        welcome = await opened.heard("welcome")
        opened.told.insert(0, ("welcome", welcome))
        yield opened
    finally:
        await opened.client.disconnect()


@contextlib.asynccontextmanager
async def running_signaling(people: People, **options: Any) -> AsyncIterator[Signaling]:
    """A server on a free port while the block runs. Deadlines that a test does not name are far off."""
    known = {
        "grace_s": 3600.0,
        "ping_interval_s": 3600.0,
        "ping_timeout_s": 3600.0,
        "login_timeout_s": 3600.0,
        **options,
    }
    server = SignalingServer(people, people.on_call_ended, **known)
    app = web.Application()
    serve_signaling(app.router.add_route, server)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.start()
    try:
        yield Signaling(server, people, runner.addresses[0][1])
    finally:
        await server.stop()
        await runner.cleanup()
