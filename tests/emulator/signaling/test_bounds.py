"""What a client can hold, and what it can say: bounded, and of no harm to others. Clients here are byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from engineio.exceptions import QueueEmpty

from relay.emulator.lines import LineKind
from relay.emulator.signaling.delivery import Outbox
from relay.emulator.signaling.messages import MAX_SDP_BYTES
from tests.support.benches.emulated_signaling import People, Phone, Signaling, running_signaling
from tests.support.emulated_lines import NUMBERS, line
from tests.support.waiting import becomes, eventually

SHOUT, HOOT = NUMBERS[LineKind.SHOUTDOWN], NUMBERS[LineKind.HOOT]


def people() -> People:
    return People.with_lines(line(LineKind.SHOUTDOWN, "a1", "b1"), line(LineKind.HOOT, "a1", "b1"))


@dataclass
class RawSocket:
    """A WebSocket that has logged in."""

    socket: aiohttp.ClientWebSocketResponse
    session: aiohttp.ClientSession

    async def next(self) -> str | None:
        """The next packet. None at the end."""
        message = await self.socket.receive(timeout=60)
        return message.data if message.type is aiohttp.WSMsgType.TEXT else None

    async def heard(self, start: str) -> str:
        """The next packet that begins so."""
        while (packet := await self.next()) is not None:
            if packet.startswith(start):
                return packet
        raise AssertionError(f"the connection ended before {start}")

    async def ended(self) -> None:
        """Read to the end."""
        while await self.next() is not None:
            pass

    async def ask(self, number: int, event: str, **fields: Any) -> Any:
        await self.socket.send_str(f"42{number}{json.dumps([event, fields])}")
        return json.loads((await self.heard(f"43{number}["))[len(f"43{number}") :])[0]


@contextlib.asynccontextmanager
async def raw_socket(signaling: Signaling, user: str = "") -> AsyncIterator[RawSocket]:
    """A WebSocket, which logs in if a user is given."""
    url = f"{signaling.url}/socket.io/?EIO=4&transport=websocket"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        raw = RawSocket(socket, session)
        await raw.heard("0")
        if user:
            await socket.send_str(f'40{{"token":"token-{user}"}}')
            await raw.heard("40")
        yield raw


@contextlib.asynccontextmanager
async def raw_polling(signaling: Signaling) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A session over polling, and the URL of its requests."""
    url = f"{signaling.url}/socket.io/?EIO=4&transport=polling"
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as answer:
            opened = json.loads((await answer.text())[1:])
        yield session, f"{url}&sid={opened['sid']}"


def connections(signaling: Signaling) -> int:
    return len(signaling.server._clients)


async def test_who_does_not_log_in_is_cut_off() -> None:
    async with running_signaling(people(), login_timeout_s=0.05) as signaling, raw_socket(signaling) as raw:
        await raw.ended()
        await becomes(lambda: connections(signaling), 0)


async def test_who_logs_in_may_stay() -> None:
    async with running_signaling(people(), login_timeout_s=3600.0) as signaling, raw_socket(signaling, "a1") as raw:
        assert [client.login for client in signaling.server._clients.values()] == [None]
        # To leave the namespace and stay connected is to have to log in again.
        await raw.socket.send_str("41")
        await eventually(lambda: [client.login for client in signaling.server._clients.values() if client.login])


async def test_connections_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.emulator.signaling.server.MAX_CONNECTIONS", 1)
    async with running_signaling(people()) as signaling, raw_socket(signaling), aiohttp.ClientSession() as session:
        async with session.get(f"{signaling.url}/socket.io/?EIO=4&transport=polling") as answer:
            assert answer.status == 401
            assert "too_many_connections" in await answer.text()
        assert connections(signaling) == 1


async def send_until_cut_off(raw: RawSocket) -> None:
    with contextlib.suppress(ConnectionError):
        while not raw.socket.closed:
            await raw.socket.send_str('421["state.get",{}]')


async def test_messages_are_rationed_and_a_flood_is_cut_off() -> None:
    async with (
        running_signaling(people()) as signaling,
        raw_socket(signaling, "a1") as flood,
        raw_socket(signaling, "b1") as other,
    ):
        sending = asyncio.ensure_future(send_until_cut_off(flood))
        codes = set()
        while (packet := await flood.next()) is not None:
            if packet.startswith("43"):
                answer = json.loads(packet.partition("[")[2][:-1])
                codes.add("ok" if answer["ok"] else answer["error"]["code"])
        await sending
        assert codes == {"ok", "rate_limited"}
        assert (await other.ask(1, "state.get"))["ok"]
        await becomes(lambda: connections(signaling), 1)


@pytest.mark.parametrize(
    "packet",
    [
        '451-["line.ring",{"_placeholder":true,"num":0}]',
        "42{}",
        "42[]",
        "42[1]",
        "42[",
        "42" + "[" * 100_000,
        "4" + "[" * 100_000,
        "47",
        "4",
        "49999999999999-[]",
        "x",
        "9",
        "",
        "42" + "1" * 200 + '["state.get"]',
        "4[1]",
    ],
    ids=lambda packet: packet[:20],
)
@pytest.mark.parametrize("logged_in", [False, True])
async def test_what_is_not_of_the_protocol_ends_the_connection(
    packet: str, logged_in: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with running_signaling(people()) as signaling, raw_socket(signaling, "a1" if logged_in else "") as raw:
            await raw.socket.send_str(packet)
            await raw.ended()
            await becomes(lambda: connections(signaling), 0)
    assert [record for record in caplog.records if record.exc_info and record.name != "asyncio"] == []


async def test_binary_messages_end_the_connection() -> None:
    async with running_signaling(people()) as signaling, raw_socket(signaling, "a1") as raw:
        await raw.socket.send_bytes(b"\x04hello")
        await raw.ended()


async def test_other_namespaces_do_not_exist() -> None:
    async with running_signaling(people()) as signaling, raw_socket(signaling, "a1") as raw:
        await raw.socket.send_str('40/admin,{"token":"token-a1"}')
        await raw.heard("44/admin,")
        await raw.socket.send_str('42/admin,7["state.get",{}]')
        assert "not_logged_in" in await raw.heard("43/admin,7")
        # Twice is once.
        await raw.socket.send_str('40{"token":"token-a1"}')
        await raw.heard("44")
        assert (await raw.ask(1, "state.get"))["ok"]


async def test_messages_that_are_too_long() -> None:
    async with running_signaling(people()) as signaling, raw_socket(signaling, "a1") as raw:
        sdp = "x" * MAX_SDP_BYTES
        call_id = (await raw.ask(1, "line.join", line=HOOT))["line_state"]["call_id"]
        wanted = {"call_id": call_id, "to": "b1", "type": "offer"}
        assert (await raw.ask(2, "media.description", sdp=sdp, **wanted))["error"]["code"] == "not_in_call"
        assert (await raw.ask(3, "media.description", sdp=sdp + "x", **wanted))["error"]["code"] == "bad_message"
        await raw.socket.send_str("42" + json.dumps(["media.description", {**wanted, "sdp": sdp * 3}]))
        await raw.ended()
        async with raw_polling(signaling) as (session, url), session.post(url, data="4" + "x" * 200_000) as answer:
            assert answer.status == 400


async def test_a_poll_may_bring_all_candidates_of_a_call() -> None:
    async with (
        running_signaling(people()) as signaling,
        signaling.phone("b1") as b1,
        raw_polling(signaling) as (session, url),
    ):
        async with session.post(url, data='40{"token":"token-a1"}') as answer:
            assert answer.status == 200
        ring = json.dumps(["line.ring", {"line": SHOUT}])
        async with session.post(url, data="42" + ring) as answer:
            assert answer.status == 200
        call_id = (await b1.heard("line.state", line=SHOUT))["call_id"]
        packets = [
            "42" + json.dumps(["media.candidate", {"call_id": call_id, "to": "b1", "candidate": f"candidate:{number}"}])
            for number in range(40)
        ]
        async with session.post(url, data="\x1e".join(packets)) as answer:
            assert answer.status == 200
        for number in range(40):
            await b1.heard("media.candidate", candidate=f"candidate:{number}")


async def flood_with_media(phone: Phone, to: str) -> None:
    """Send someone a few megabytes of descriptions."""
    call_id = (await phone.do("line.ring", line=SHOUT))["line_state"]["call_id"]
    for _ in range(150):
        answer = await phone.ask("media.description", call_id=call_id, to=to, type="offer", sdp="x" * 60_000)
        if not answer["ok"]:
            assert answer["error"]["code"] in {"nobody_there", "not_in_call"}
            return


@pytest.mark.parametrize("reads", ["websocket", "polling"])
async def test_who_does_not_read_is_cut_off_and_holds_up_nobody(reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.emulator.signaling.delivery.MAX_QUEUED_BYTES", 1 << 18)
    monkeypatch.setattr("relay.emulator.signaling.server.LINGER_S", 0.05)
    async with (
        running_signaling(people(), grace_s=0.0) as signaling,
        signaling.phone("a1") as a1,
        contextlib.AsyncExitStack() as stack,
    ):
        if reads == "websocket":
            raw = await stack.enter_async_context(raw_socket(signaling, "b1"))
            connection = raw.socket._response.connection
            assert connection is not None
            assert connection.transport is not None
            connection.transport.pause_reading()
        else:
            session, url = await stack.enter_async_context(raw_polling(signaling))
            await (await session.post(url, data='40{"token":"token-b1"}')).read()
        await a1.heard("presence.state", user_id="b1", state="available")
        await flood_with_media(a1, "b1")
        await eventually(lambda: signaling.server.cut_off == 1)
        assert (await a1.heard("line.state", line=SHOUT, state="idle"))["reason"] == "gone"
        assert (await a1.do("state.get"))["presence"]["b1"] == "offline"
        # With its connection, what was kept for it has gone.
        await becomes(lambda: connections(signaling), 1)


async def test_a_poll_that_waits_ends_with_its_session() -> None:
    async with running_signaling(people()) as signaling, raw_polling(signaling) as (session, url):
        await (await session.post(url, data='40{"token":"token-a1"}')).read()
        await (await session.get(url)).read()
        waiting = asyncio.ensure_future(session.get(url))
        await (await session.post(url, data="1")).read()
        await (await waiting).read()
        await becomes(lambda: connections(signaling), 0)


async def test_requests_to_a_session_that_has_ended_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with running_signaling(people()) as signaling, raw_polling(signaling) as (session, url):
        (engine,) = signaling.server.eio.sockets.values()
        # It ends while the library looks at the packet.
        engine.closed = True
        for method in ("POST", "GET"):
            signaling.server.eio.sockets[engine.sid] = engine
            async with session.request(method, url, data="6") as answer:
                assert answer.status == 400
                assert (await answer.json())["error"]["code"] == "refused"
    assert not any(record.exc_info for record in caplog.records)


async def test_a_session_that_ends_while_a_request_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_signaling(people()) as signaling, raw_polling(signaling) as (session, url):
        (engine,) = signaling.server.eio.sockets.values()
        receive = engine.receive

        async def receive_and_end(packet: object) -> None:
            del signaling.server.eio.sockets[engine.sid]
            await receive(packet)

        monkeypatch.setattr(engine, "receive", receive_and_end)
        async with session.post(url, data="6") as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["message"] == "The session has ended."


async def test_other_versions_are_refused() -> None:
    async with running_signaling(people()) as signaling, aiohttp.ClientSession() as session:
        for query in (
            "EIO=3&transport=polling",
            "transport=polling",
            "EIO=4&transport=pigeon",
            "EIO=4&transport=polling&sid=x",
        ):
            async with session.get(f"{signaling.url}/socket.io/?{query}") as answer:
                assert answer.status == 400
                assert (await answer.json())["error"]["message"]
        async with session.get(f"{signaling.url}/socket.io/?EIO=4&transport=websocket") as answer:
            assert answer.status == 400


async def test_a_page_of_any_origin_may_connect_without_cookies() -> None:
    async with running_signaling(people()) as signaling, aiohttp.ClientSession() as session:
        headers = {"Origin": "http://c9portal.xhoot.com.localhost:8080"}
        async with session.get(f"{signaling.url}/socket.io/?EIO=4&transport=polling", headers=headers) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == headers["Origin"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
            assert "Set-Cookie" not in answer.headers


async def test_pings_that_are_not_answered_end_the_session() -> None:
    async with (
        running_signaling(people(), ping_interval_s=0.05, ping_timeout_s=0.1) as signaling,
        raw_socket(signaling, "a1") as raw,
    ):
        await raw.heard("2")
        await raw.ended()
        await becomes(lambda: connections(signaling), 0)


# Queues


class Packet:
    def __init__(self, data: str) -> None:
        self.data = data


async def test_an_outbox_that_is_full_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    full: list[int] = []
    box = Outbox(lambda: full.append(1))
    for number in range(1000):
        box.put_nowait(Packet(str(number)))
    assert (box.qsize(), full) == (1000, [])
    await box.put(Packet("one too many"))
    assert full == [1]
    assert await box.get() is None
    box.put_nowait(Packet("later"))
    assert box.empty()
    box.put_nowait(None)
    assert await box.get() is None
    await box.join()


async def test_an_outbox_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.emulator.signaling.delivery.MAX_QUEUED_BYTES", 100)
    full: list[int] = []
    box = Outbox(lambda: full.append(1))
    for _ in range(1000):
        box.put_nowait(Packet("x" * 100))
        assert (await box.get()).data == "x" * 100
    assert full == []
    box.put_nowait(Packet("x" * 101))
    assert full == [1]


async def test_an_outbox_gives_all_that_waits_and_then_the_end() -> None:
    box = Outbox(lambda: None)
    first = asyncio.ensure_future(box.take_all())
    await asyncio.sleep(0)
    packets = [Packet(str(number)) for number in range(3)]
    for packet in (*packets, None):
        box.put_nowait(packet)
    assert await first == packets
    assert await box.take_all() == []
    assert box.empty()


async def test_an_outbox_whose_taker_is_cancelled_loses_nothing() -> None:
    box = Outbox(lambda: None)
    taker = asyncio.ensure_future(box.take_all())
    await asyncio.sleep(0)
    taker.cancel()
    with pytest.raises(QueueEmpty):
        await taker
    packet = Packet("later")
    box.put_nowait(packet)
    assert await box.take_all() == [packet]
