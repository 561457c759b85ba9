"""Calls: what a window says, what is kept of a call, and what stays bounded."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import pytest

from relay.gateway.calls import calls as module
from relay.gateway.calls.call import BAD_MOS, Call
from relay.gateway.calls.calls import BANDS, NO_BAND, WINDOWS_KEPT, Calls, band_of
from relay.gateway.calls.histograms import Histogram
from relay.gateway.calls.windows import Heard, Window, Windows, heard_between, percentile_ms
from relay.plane.api import ClientLink, Closed, CloseReason, ConnectionId, FlowSnapshot, Latency
from relay.quality.emodel import G711_CONCEALED, mos, mouth_to_ear_ms, r_factor
from relay.quality.stream import Direction, RtpStream
from tests.support.benches.made_up import MadeUpCall, MadeUpRelay, stream, went_on

# G.711 with concealment, a jitter buffer of 60 ms, and nothing missing.
BEST_MOS = mos(93.2)


def flow(*streams: RtpStream) -> FlowSnapshot:
    return dataclasses.replace(MadeUpCall(ConnectionId(1)).snapshot(), streams=streams, link=None)


def call_of(relay: MadeUpRelay, connection: int = 1) -> Call:
    call = relay.calls.get(ConnectionId(connection))
    assert call is not None
    return call


def window_of(relay: MadeUpRelay, connection: int = 1) -> Window:
    window = call_of(relay, connection).window
    assert window is not None
    return window


# One window


def test_a_window_is_the_difference_of_two_readings() -> None:
    first = went_on(stream(), 250, lost=50)
    second = went_on(first, 250, lost=5, late=10, jitter_us=4000)
    _, heard = heard_between(flow(first), flow(second), 60.0)
    assert (heard.expected, heard.lost, heard.late, heard.jitter_ms) == (250, 5, 10, 4.0)
    assert (heard.lost_percent, heard.late_percent) == (2.0, 4.0)
    assert heard.mos == pytest.approx(mos(r_factor(G711_CONCEALED, mouth_to_ear_ms(0, 60), 6.0)))


def test_the_first_window_is_all_there_was() -> None:
    up, down = heard_between(None, flow(went_on(stream(Direction.UPLINK), 250)), 60.0)
    assert up.expected == 250
    assert up.mos == pytest.approx(BEST_MOS)
    assert down == Heard()


def test_the_worst_audible_stream_is_the_direction() -> None:
    streams = [went_on(stream(ssrc=1), 250), went_on(stream(ssrc=2), 250, lost=50), went_on(stream(ssrc=3), 3, lost=2)]
    _, heard = heard_between(None, flow(*streams), 60.0)
    _, alone = heard_between(None, flow(streams[1]), 60.0)
    # Of three packets nobody can say how they sounded; they count as packets.
    assert (heard.r, heard.mos) == (alone.r, alone.mos)
    assert (heard.expected, heard.lost) == (503, 52)


def test_silence_is_no_score() -> None:
    one = went_on(stream(), 250)
    assert heard_between(flow(one), flow(one), 60.0) == (Heard(), Heard())
    assert Heard().lost_percent is None


def test_what_no_clock_is_known_for_has_no_score() -> None:
    _, heard = heard_between(None, flow(went_on(stream(clock_hz=0), 250)), 60.0)
    assert (heard.expected, heard.mos) == (250, None)


def test_a_stream_that_lost_its_place_and_came_back_begins_anew() -> None:
    _, heard = heard_between(flow(went_on(stream(), 5000)), flow(went_on(stream(), 100, lost=1)), 60.0)
    assert (heard.expected, heard.lost) == (100, 1)


def test_half_of_the_clients_round_trip_counts_as_delay() -> None:
    near = flow(went_on(stream(), 250))
    far = dataclasses.replace(near, link=ClientLink(600_000, 0, 0, 0))
    assert heard_between(None, near, 60.0)[1].r == pytest.approx(93.2)
    assert heard_between(None, far, 60.0)[1].r == pytest.approx(r_factor(G711_CONCEALED, 380, 0))


@pytest.mark.parametrize(
    ("earlier", "later", "expected"),
    [
        (None, [], None),
        (None, [(1000, 100)], 1.0),
        (None, [(1000, 95), (64_000, 5)], 1.0),
        (None, [(1000, 94), (64_000, 6)], 64.0),
        ([(1000, 100)], [(1000, 100), (2000, 1)], 2.0),
        ([(1000, 100)], [(1000, 100)], None),
    ],
)
def test_percentile(
    earlier: list[tuple[int, int]] | None, later: list[tuple[int, int]], expected: float | None
) -> None:
    assert percentile_ms(None if earlier is None else Latency(earlier), Latency(later), 95) == expected


# Windows kept


def test_windows_come_out_as_they_went_in() -> None:
    given = Window(7.5, Heard(250, 3, 2, 1.5, 80.0, 4.0), Heard(), 0.25, 4, None)
    windows = Windows()
    windows.append(given, 3)
    assert list(windows) == [given]
    assert (given.mos, Window(0, Heard(), Heard(), None, 0, None).mos) == (4.0, None)


def window(age_s: float, *, lost: int = 0, mos: float | None = 4.0, queue_ms: float | None = 1.0) -> Window:
    heard = Heard(250, lost, 1, 2.0, None if mos is None else 20 * mos, mos)
    return Window(age_s, heard, Heard(), queue_ms, 2, None)


def test_the_young_half_stays_and_the_old_half_has_the_worst_of_its_time() -> None:
    windows = Windows()
    for number in range(1000):
        bad = number == 123
        windows.append(window(number, lost=50 * bad, mos=1.5 if bad else 4.0, queue_ms=90.0 if bad else 1.0), 100)
        assert len(windows) <= 100
    kept = list(windows)
    assert [one.age_s for one in kept[-50:]] == list(range(950, 1000))
    assert [one.age_s for one in windows.last(3)] == [997, 998, 999]
    # Nothing is lost: every packet and drop is in one of them, in order.
    assert sum(one.uplink.expected for one in kept) == 250_000
    assert (sum(one.uplink.lost for one in kept), sum(one.uplink.late for one in kept)) == (50, 1000)
    assert sum(one.drops for one in kept) == 2000
    assert [one.age_s for one in kept] == sorted({one.age_s for one in kept})
    [worst] = [one for one in kept if one.uplink.lost]
    assert (worst.uplink.mos, worst.queue_ms, worst.uplink.jitter_ms, worst.rtt_ms) == (1.5, 90.0, 2.0, None)
    # And the time of it is known to a small part of the call.
    before = kept[kept.index(worst) - 1].age_s
    assert before < 123 <= worst.age_s < before + 50
    assert worst.downlink == Heard()


def test_what_is_not_known_is_not_the_worst() -> None:
    windows = Windows()
    for number, known in enumerate((False, True, False)):
        windows.append(window(number, mos=3.0 if known else None, queue_ms=5.0 if known else None), 1)
    [one] = windows
    assert (one.age_s, one.uplink.mos, one.queue_ms) == (2, 3.0, 5.0)


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 7])
def test_fewer_may_be_kept_than_there_are(keep: int) -> None:
    windows = Windows()
    for number in range(50):
        windows.append(window(number), 40)
    for number in range(50, 60):
        windows.append(window(number), keep)
        assert 0 < len(windows) <= max(1, keep)
    assert sum(one.uplink.expected for one in windows) == 60 * 250
    assert list(windows)[-1].age_s == 59


def test_windows_can_be_packed() -> None:
    windows = Windows()
    for number in range(3):
        windows.append(window(number + 0.5, mos=None if number else 3.5, queue_ms=None), 10)
    packed = windows.pack()
    assert len(packed) == 3 * 64
    assert list(Windows.unpack(packed)) == list(windows)
    assert packed[:4] == b"\x00\x00\x00\x3f"  # 0.5, the lowest byte first
    assert list(Windows.unpack(packed[:-1])) == list(windows)[:2]
    assert list(Windows.unpack(b"")) == []


# Looks


async def test_a_call_over_time() -> None:
    relay = MadeUpRelay()
    made = relay.call()
    for lost in (0, 25, 0):
        made.talk(lost=lost, drops=1, queue_us=2000)
        await relay.calls.look()
    call, window = call_of(relay), window_of(relay)
    assert [one.downlink.lost for one in call.windows] == [0, 25, 0]
    assert (window.queue_ms, window.drops, window.rtt_ms) == (2.0, 1, 0.4)
    assert (call.downlink.expected, call.downlink.lost) == (750, 25)
    assert call.downlink.mos_min is not None
    assert call.downlink.mos_mean is not None
    assert call.downlink.mos_min < call.downlink.mos_mean < BEST_MOS
    assert call.uplink.mos_min == pytest.approx(BEST_MOS)
    assert call.mos == window.mos == pytest.approx(BEST_MOS)
    assert call.region == "use1"


async def test_the_whole_call_outlives_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOWS_KEPT", 3)
    relay = MadeUpRelay()
    made = relay.call()
    for number in range(10):
        made.talk(lost=0 if number else 100)
        await relay.calls.look()
    call = call_of(relay)
    assert 0 < len(call.windows) <= 3
    assert call.downlink.lost == 100
    assert call.downlink.mos_min is not None
    assert call.downlink.mos_min < 2.5


async def test_all_calls_together_keep_so_many_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOWS_KEPT_IN_ALL", 20)
    relay = MadeUpRelay()
    for number in range(5):
        relay.call(number)
    for _ in range(8):
        for made in relay.flows:
            made.talk()
        await relay.calls.look()
    assert [len(call.windows) <= 4 for call in relay.calls] == [True] * 5


async def test_a_flow_without_rtp_is_no_call() -> None:
    relay = MadeUpRelay()
    relay.call()
    await relay.calls.look()
    assert len(relay.calls) == 0


async def test_no_more_calls_than_are_allowed() -> None:
    relay = MadeUpRelay()
    relay.calls.configure(max_calls=2, playout_deadline_ms=60.0)
    for number in range(5):
        relay.call(number).talk()
    await relay.calls.look()
    assert (len(relay.calls), relay.calls.unwatched) == (2, 3)


async def test_other_work_comes_between_slices() -> None:
    relay = MadeUpRelay()
    for number in range(10 * module.SLICE):
        relay.call(number).talk()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await relay.calls.look()
    counting.cancel()
    await asyncio.gather(counting, return_exceptions=True)
    assert turns >= 10
    assert len(relay.calls) == 10 * module.SLICE


async def test_a_call_that_ends_during_a_look_does_not_come_back() -> None:
    relay = MadeUpRelay()
    for number in range(3 * module.SLICE):
        relay.call(number).talk()
    last = relay.flows[-1]
    looking = asyncio.create_task(relay.calls.look())
    await asyncio.sleep(0)  # the first slice
    relay.end(last)
    await looking
    assert relay.calls.get(last.connection) is None
    assert [one.connection for one in relay.calls.ended] == [last.connection]


async def test_what_the_plane_no_longer_has_is_forgotten() -> None:
    relay = MadeUpRelay()
    relay.call().talk()
    await relay.calls.look()
    relay.flows.clear()
    await relay.calls.look()
    assert len(relay.calls) == 1  # its Closed may be on the way
    await relay.calls.look()
    assert len(relay.calls) == 0


async def test_a_look_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_S", 0)
    relay = MadeUpRelay()
    relay.call().talk()
    looks, looked = 0, asyncio.Event()

    def snapshot() -> object:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ValueError("no such flow")
        looked.set()
        return relay.snapshot()

    calls = Calls(snapshot, relay.upstreams.region_of)  # type: ignore[arg-type]
    running = asyncio.create_task(calls.run())
    await looked.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert looks >= 2


# Beginnings


async def test_a_call_starts_once_when_a_look_has_seen_it() -> None:
    relay, started = MadeUpRelay(), list[Call]()
    relay.calls._on_started = started.append
    made = relay.call(7, username="a.keller")
    await relay.calls.look()
    assert started == []
    for _ in range(2):
        made.talk()
        await relay.calls.look()
    relay.end(made)
    assert [(call.id, call.flow and call.flow.username) for call in started] == [("test-7", "a.keller")]


async def test_a_call_that_ends_before_a_look_starts_before_it_ends() -> None:
    relay, started = MadeUpRelay(), list[Call]()
    relay.calls._on_started = started.append
    silent, made = relay.call(1), relay.call(2)
    made.talk(1)
    relay.end(made)
    relay.end(silent)
    assert [call.id for call in started] == ["test-2"]
    assert relay.calls.ended[0].id == "test-2"


# Ends


async def test_the_last_seconds_count() -> None:
    relay = MadeUpRelay()
    made = relay.call()
    made.talk()
    await relay.calls.look()
    made.talk(2, lost=60)
    relay.end(made, CloseReason.CLIENT_LOST)
    [ended] = relay.calls.ended
    assert (ended.reason, ended.call.downlink.lost, len(ended.call.windows)) == (CloseReason.CLIENT_LOST, 60, 2)
    assert ended.mos_min is not None
    assert ended.mos_min < BAD_MOS
    assert relay.calls.ended_badly(5) == [ended]
    assert relay.calls.get_ended(made.connection) is ended
    assert len(relay.calls) == 0


async def test_a_call_shorter_than_a_look_is_a_call() -> None:
    relay = MadeUpRelay()
    made = relay.call()
    made.talk(2)
    relay.end(made)
    [ended] = relay.calls.ended
    assert ended.mos_min == pytest.approx(BEST_MOS)
    assert relay.calls.ended_badly(5) == []


async def test_a_flow_without_rtp_ends_as_no_call() -> None:
    relay = MadeUpRelay()
    ended = relay.calls.on_closed(relay.call().closed())
    assert ended is not None
    assert (ended.carried_rtp, ended.mos_min) == (False, None)
    assert not relay.calls.ended


async def test_a_connection_that_was_no_flow_ends_as_nothing() -> None:
    relay = MadeUpRelay()
    closed = dataclasses.replace(relay.call().closed(), flow=None)
    assert isinstance(closed, Closed)
    assert relay.calls.on_closed(closed) is None


async def test_ended_calls_are_bounded() -> None:
    relay = MadeUpRelay()
    for number in range(module.ENDED_KEPT + 10):
        made = relay.call(number)
        made.talk(1)
        relay.end(made)
    assert len(relay.calls.ended) == module.ENDED_KEPT
    assert relay.calls.ended[0].connection == 10


# Numbers


async def test_worst_first_and_the_silent_last() -> None:
    relay = MadeUpRelay()
    for number, lost in enumerate((0, 40, 10)):
        relay.call(number).talk(lost=lost)
    await relay.calls.look()
    relay.call(3).talk(0.1)
    for made in relay.flows[:3]:
        made.talk(lost=40 if made.connection == 1 else 10 if made.connection == 2 else 0)
    await relay.calls.look()
    assert [call.flow.connection for call in relay.calls.worst(9) if call.flow] == [1, 2, 0, 3]
    assert call_of(relay, 3).mos == math.inf
    counts, unscored = relay.calls.mos_bands()
    assert (sum(counts), counts[0], unscored) == (3, 1, 1)
    assert set(relay.calls.mos_by_upstream()) == {"use1-stun1"}


@pytest.mark.parametrize(
    ("r", "name"), [(93.2, "best"), (90, "best"), (89, "high"), (70, "medium"), (55, "poor"), (0, "not recommended")]
)
def test_bands(r: float, name: str) -> None:
    assert BANDS[band_of(mos(r))][0] == name
    assert band_of(math.inf) == NO_BAND


@pytest.mark.parametrize(("score", "name"), [(4.0151, "high"), (4.0149, "medium"), (3.596, "medium"), (3.594, "low")])
def test_the_band_is_that_of_the_figure_as_it_is_shown(score: float, name: str) -> None:
    assert BANDS[band_of(score)][0] == name
    assert band_of(score) == band_of(round(score, 2))


def test_histogram() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    assert (histogram.counts, histogram.sum) == ([2, 1, 1], 12.0)


async def test_history_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = MadeUpRelay()
    relay.call().talk()
    for _ in range(module.HISTORY_KEPT + 5):
        await relay.calls.look()
    assert len(relay.calls.history) == module.HISTORY_KEPT
    assert len(call_of(relay).windows) == WINDOWS_KEPT
