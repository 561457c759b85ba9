"""The stream of summaries: computed once for all who watch, never waiting for a slow one."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import aiohttp
import pytest

from relay.addresses import Address
from relay.gateway.admin import events as module
from relay.gateway.admin.listener import Admin
from tests.support.benches.made_up import NO_CAPTURES, MadeUpRelay
from tests.support.waiting import eventually


async def next_event(stream: aiohttp.StreamReader) -> dict[str, Any]:
    """The next summary; what else is in the stream must be as the format has it."""
    event = ""
    while True:
        line = (await stream.readline()).decode()
        assert line, "the stream ended"
        field, _, value = line.rstrip("\n").partition(": ")
        if field == "event":
            event = value
        elif field == "data":
            assert event == "summary"
            assert (await stream.readline()) == b"\n"
            return dict(json.loads(value))
        else:
            assert field in {"retry", ""}


class Served:
    """An admin listener whose events come when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "INTERVAL_S", 3600)
        self.relay = MadeUpRelay()
        self.admin = Admin(self.relay.view, NO_CAPTURES)
        self.url = ""
        self.address = Address("", 0)

    async def __aenter__(self) -> Served:
        self.address = await self.admin.listen(Address("127.0.0.1", 0))
        self.url = f"http://{self.address}/api/events"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.admin.stop()


async def test_a_summary_at_once_and_then_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Served(monkeypatch) as served, aiohttp.ClientSession() as session, session.get(served.url) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert (await next_event(answer.content))["calls"] == 0
        served.relay.call(username="line\nbreak").talk()
        await served.relay.calls.look()
        served.admin.events.publish()
        summary = await next_event(answer.content)
        assert (summary["calls"], summary["worst"][0]["username"]) == (1, "line\nbreak")


async def test_the_clock_drives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Served(monkeypatch) as served, aiohttp.ClientSession() as session:
        monkeypatch.setattr(module, "INTERVAL_S", 0.01)
        async with session.get(served.url) as answer:
            for _ in range(3):
                await next_event(answer.content)
        await eventually(lambda: not len(served.admin.events))


async def test_one_summary_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Served(monkeypatch) as served, aiohttp.ClientSession() as session:
        answers = [await session.get(served.url) for _ in range(5)]
        for answer in answers:
            await next_event(answer.content)
        looks, snapshot = 0, served.relay.view.snapshot

        def counted() -> Any:
            nonlocal looks
            looks += 1
            return snapshot()

        served.relay.view.snapshot = counted
        served.admin.events.publish()
        told = [await next_event(answer.content) for answer in answers]
        assert looks == 1
        assert all(one == told[0] for one in told)
        for answer in answers:
            answer.close()
        await eventually(lambda: not len(served.admin.events))
        served.admin.events.publish()
        assert looks == 1


async def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SUBSCRIBERS", 2)
    async with Served(monkeypatch) as served, aiohttp.ClientSession() as session:
        first, second = await session.get(served.url), await session.get(served.url)
        async with session.get(served.url) as third:
            assert (third.status, third.headers["Retry-After"]) == (503, "5")
        first.close()
        await eventually(lambda: len(served.admin.events) == 1)
        async with session.get(served.url) as fourth:
            assert fourth.status == 200
        second.close()


async def test_who_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Served(monkeypatch) as served, aiohttp.ClientSession() as session:
        for number in range(20):
            served.relay.call(number, username="x" * 400).talk()
        await served.relay.calls.look()
        loop = asyncio.get_running_loop()
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            await loop.sock_connect(slow, (served.address.host, served.address.port))
            await loop.sock_sendall(slow, b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with session.get(served.url) as answer:
                await next_event(answer.content)
                await eventually(lambda: len(served.admin.events) == 2)
                while len(served.admin.events) == 2:
                    served.admin.events.publish()
                    await next_event(answer.content)  # the other one goes on
                served.admin.events.publish()
                await next_event(answer.content)
                assert len(served.admin.events) == 1


async def test_the_end_of_the_relay_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Served(monkeypatch) as served, aiohttp.ClientSession() as session, session.get(served.url) as answer:
        await next_event(answer.content)
        # Without that, the listener would wait for it.
        async with asyncio.timeout(module.RETRY_MS):
            stopping = asyncio.create_task(served.admin.stop())
            assert await answer.content.read() == b""
            await stopping
