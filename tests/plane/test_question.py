"""Which silence means that an upstream is gone, and what a flow asks of its own before it is believed to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.plane.api import Carrier, CloseReason, StunReceived, UpstreamLost
from relay.plane.reference.question import Judgement, Question
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import MessageClass, Method, message_type, parse_message
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.benches.taps import tapped
from tests.support.messages import HELLO, VOICE, answer, stun
from tests.support.peers.carriers import binary as frame_of
from tests.support.peers.carriers import carried, moved_session
from tests.support.peers.tls_client import TlsClient

planes = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())

FRAME = build_channel_data(0x4001, VOICE)
QUESTIONS = [message_type(method, MessageClass.REQUEST) for method in (Method.BINDING, Method.CREATE_PERMISSION)]
# Half of it is what a busy machine has to answer in.
SILENCE_S = 1.0


async def question(bench: Bench, apart_from: bytes = b"") -> bytes:
    """The next datagram of the flow that is not this one; it must be a request without attributes."""
    while (datagram := (await bench.upstream.receive())[0]) == apart_from:
        pass
    parsed = parse_message(datagram)
    assert (parsed.message_class, parsed.attributes, len(datagram)) == (MessageClass.REQUEST, (), 20)
    assert message_type(parsed.method, MessageClass.REQUEST) in QUESTIONS
    return datagram


# ---- The rule, second by second


def test_half_of_the_time_passes_before_it_is_asked_and_half_after() -> None:
    asks = Question(rto_s=0.5)
    assert asks.next_deadline(10.0, 4.0) == 12.0
    assert asks.judge(11.9, 10.0, 4.0) is Judgement.WAIT
    seen = []
    while True:
        now = asks.next_deadline(10.0, 4.0)
        seen.append((now, asks.judge(now, 10.0, 4.0)))
        if seen[-1][1] is Judgement.GONE:
            break
    ask = Judgement.ASK
    assert seen == [(12.0, ask), (12.5, ask), (13.5, ask), (14.0, Judgement.GONE)]


@pytest.mark.parametrize("rto_s", [0.5, 3600.0])
def test_it_is_asked_three_times_however_little_time_there_is(rto_s: float) -> None:
    asks, now = Question(rto_s), 0.0
    seen: list[Judgement] = []
    while not seen or seen[-1] is not Judgement.GONE:
        now = asks.next_deadline(10.0, 1.0)
        seen.append(asks.judge(now, 10.0, 1.0))
    assert (seen, now) == ([*[Judgement.ASK] * 3, Judgement.GONE], 11.0)


def test_a_sign_of_life_begins_anew() -> None:
    asks = Question(rto_s=0.5)
    assert asks.judge(12.0, 10.0, 4.0) is Judgement.ASK
    assert asks.judge(13.9, 12.1, 4.0) is Judgement.WAIT
    assert asks.next_deadline(12.1, 4.0) == pytest.approx(14.1)
    assert asks.judge(14.1, 12.1, 4.0) is Judgement.ASK
    assert asks.judge(16.09, 12.1, 4.0) is not Judgement.GONE
    assert asks.judge(16.1, 12.1, 4.0) is Judgement.GONE


def test_who_comes_late_asks_before_judging() -> None:
    """A machine that stood still for a minute has not heard what waits in its sockets."""
    asks = Question(rto_s=0.5)
    assert asks.judge(70.0, 10.0, 4.0) is Judgement.ASK
    assert asks.judge(71.9, 10.0, 4.0) is Judgement.ASK
    assert asks.judge(72.0, 10.0, 4.0) is Judgement.GONE


def test_questions_take_turns_and_know_their_answers() -> None:
    asks, other = Question(0.5), Question(0.5)
    assert not asks.is_answered_by(bytes(12))
    built = [asks.build() for _ in range(4)]
    other.build()
    assert [int.from_bytes(one[:2]) for one in built] == QUESTIONS * 2
    assert len({one[8:20] for one in built}) == 4
    assert all(asks.is_answered_by(one[8:20]) and not other.is_answered_by(one[8:20]) for one in built)
    assert [parse_message(one).attributes for one in built] == [()] * 4


# ---- On every plane


async def silent_call(bench: Bench) -> TlsClient:
    """A client whose upstream leaves an Allocate unanswered, and whatever else it is asked."""
    client = await bench.connect()
    await client.send(stun(99, Method.ALLOCATE))
    return client


@planes
async def test_requests_that_servers_may_ignore_close_nobody(make: MakePlane, tmp_path: Path) -> None:
    """A Binding, an unknown method; another call, which began later, is closed for an Allocate meanwhile."""
    settings = bounds(upstream_silence_s=SILENCE_S)
    async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, flow):
        for request in (stun(1), stun(2, 0x00C), stun(3, 0xFFF)):
            await client.send(request)
            await bench.upstream.expect(request)
        bench.upstream.send(flow, FRAME)
        assert await client.receive_exactly(len(FRAME)) == FRAME
        other = await silent_call(bench)
        assert await other.closed_by_server()
        assert (await bench.closed()).reason is CloseReason.UPSTREAM_SILENT
        other.abort()
        bench.upstream.send(flow, FRAME)
        assert await client.receive_exactly(len(FRAME)) == FRAME


@planes
@pytest.mark.parametrize("method", [Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
async def test_an_upstream_that_answers_the_question_is_there(make: MakePlane, tmp_path: Path, method: int) -> None:
    """It ignores a request for some reason of its own. The client hears nothing of what the relay asks."""
    settings = bounds(upstream_silence_s=SILENCE_S, initial_rto_s=0.05)
    async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, flow):
        ignored = stun(1, method)
        await client.send(ignored)
        for error in (0, 401, 400):
            asked = await question(bench, apart_from=ignored)
            for _ in range(2):
                bench.upstream.send(flow, answer(asked, error=error))
        # Now it has gone.
        closed = await bench.closed()
        assert (closed.reason, closed.detail) == (CloseReason.UPSTREAM_SILENT, f"no answer for {SILENCE_S:g} s")
        assert closed.totals.downlink_packets == 0
        assert not closed.totals.drops
        # HELLO, the request and its copies: the relay's own questions are in no count.
        assert closed.totals.uplink_packets == 2 + closed.totals.retransmissions
        assert await client.receive() == b""


@planes
async def test_media_after_the_question_is_an_answer(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(upstream_silence_s=SILENCE_S)
    async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, flow):
        ignored = stun(1, Method.CHANNEL_BIND)
        await client.send(ignored)
        await bench.upstream.expect(ignored)
        seen = []
        for _ in range(3):
            seen.append(await question(bench))
            bench.upstream.send(flow, FRAME)
            assert await client.receive_exactly(len(FRAME)) == FRAME
        assert len(set(seen)) == 3
        bench.upstream.send(flow, answer(ignored))
        assert await client.receive_unit() == answer(ignored)
        # The answer ends it: another call is closed, and this one is not asked about any more.
        other = await silent_call(bench)
        assert await other.closed_by_server()
        other.abort()
        assert [flow.totals.downlink_packets for flow in bench.plane.snapshot().flows] == [4]


@planes
async def test_the_questions_of_a_silent_upstream_take_turns(make: MakePlane, tmp_path: Path) -> None:
    """Some servers ignore every Binding (coturn with no-stun), and refuse an empty CreatePermission."""
    settings = bounds(upstream_silence_s=1.0, initial_rto_s=0.05)
    async with plane_bench(make, tmp_path, settings) as bench, bench.flow(HELLO) as (client, flow):
        ignored = stun(1, Method.REFRESH)
        await client.send(ignored)
        kinds: list[int] = []
        while len(kinds) < 6:
            asked = await question(bench, apart_from=ignored)
            kinds.append(int.from_bytes(asked[:2]))
            if kinds[-1] != QUESTIONS[0]:
                bench.upstream.send(flow, answer(asked, error=401))
        assert kinds == QUESTIONS * 3
        assert not bench.plane.snapshot().closed


@planes
async def test_a_session_asks_too_and_control_does_not_hear_of_it(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(upstream_silence_s=SILENCE_S)
    async with plane_bench(make, tmp_path, settings) as bench, moved_session(bench) as (client, flow):
        ignored = stun(1, Method.REFRESH)
        bench.plane.request(client.connection, ignored)
        for _ in range(2):
            bench.upstream.send(flow, answer(await question(bench, apart_from=ignored)))
        late = stun(7, Method.DATA, MessageClass.INDICATION)
        bench.upstream.send(flow, late)
        assert (await bench.event(StunReceived)).message == late
        lost = await bench.event(UpstreamLost)
        assert lost.reason is CloseReason.UPSTREAM_SILENT
        assert not [event for event in bench.events if isinstance(event, StunReceived)]


@planes
async def test_a_tap_sees_the_question(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(upstream_silence_s=SILENCE_S)
    async with plane_bench(make, tmp_path, settings) as bench, carried(bench, Carrier.WEBSOCKET) as client:
        await client.send(frame_of(HELLO))
        tap = await tapped(bench, client.connection, await bench.upstream.expect(HELLO))
        ignored = stun(1, Method.ALLOCATE)
        await client.send(frame_of(ignored))
        asked = await question(bench, apart_from=ignored)
        assert (await bench.closed()).reason is CloseReason.UPSTREAM_SILENT
        sent = [datagram.data for datagram in tap.take(10)]
        assert sent[:2] == [ignored, asked]
        assert [int.from_bytes(one[:2]) for one in sent[1:]] == [*QUESTIONS, QUESTIONS[0]]
        tap.close()
