"""The compiled queues of a flow: against the obvious ones in any order of what may happen, and their memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.plane.api import Traffic
from relay.plane.traffic import traffic_of
from tests.fuzz import _leaves
from tests.fuzz.targets import MAX_AGE_US, ROOMS, Queues, waiting_unit
from tests.support.properties import repeatable

CHUNK, HEADER = _leaves.CHUNK_BYTES, _leaves.HEADER_BYTES
NOW = 1_000_000
MEDIA_BYTES, CONTROL_BYTES = 256 * 1024, 64 * 1024

traffics = st.sampled_from(Traffic)
sizes = st.one_of(
    st.integers(4, 300),
    st.integers(CHUNK - HEADER - 20, CHUNK + 4),
    st.integers(2 * CHUNK - HEADER - 8, 2 * CHUNK + 8),
    st.integers(4, 65_535),
)
steps = st.one_of(
    st.tuples(st.just("put"), traffics, sizes),
    # So many bytes more or less than the last chunk has room for.
    st.tuples(st.just("fill"), traffics, st.integers(-24, 24)),
    st.tuples(st.just("take"), traffics, st.integers(0, 20_000)),
    st.tuples(st.just("wait"), traffics, st.integers(0, MAX_AGE_US + 1)),
)


@pytest.fixture(autouse=True)
def _no_block_stays() -> Iterator[None]:
    before = _leaves.live_buffers()
    yield
    _leaves.leave_memory(-1)
    assert _leaves.live_buffers() == before


@settings(repeatable, max_examples=300)
@given(st.sampled_from(ROOMS), st.lists(steps, max_size=80))
# To the end of a chunk, taken to there, and put again: with nothing behind it, and with a header's room.
@example(ROOMS[0], [("put", Traffic.MEDIA, CHUNK - HEADER), ("take", Traffic.MEDIA, 0), ("put", Traffic.MEDIA, 8)])
@example(ROOMS[0], [("put", Traffic.MEDIA, CHUNK - HEADER), ("put", Traffic.MEDIA, 8), ("take", Traffic.MEDIA, 0)])
@example(ROOMS[0], [("put", Traffic.MEDIA, CHUNK - 2 * HEADER), ("put", Traffic.MEDIA, 9), ("take", Traffic.MEDIA, 0)])
@example(ROOMS[0], [("put", Traffic.RTCP, 5), ("wait", Traffic.RTCP, MAX_AGE_US), ("wait", Traffic.RTCP, 1)])
def test_it_is_the_obvious_one(room: tuple[int, int, int], script: list[tuple[str, Traffic, int]]) -> None:
    media_bytes, control_bytes, least = room
    queues = Queues(media_bytes, control_bytes)
    for number, (verb, traffic, amount) in enumerate(script):
        if verb == "put":
            queues.put(waiting_unit(traffic, number, max(least, amount)))
        elif verb == "fill":
            left = queues.compiled.room(list(Traffic).index(traffic)) - HEADER
            queues.put(waiting_unit(traffic, number, max(least, left + amount)))
        elif verb == "take":
            queues.take(amount)
        else:
            queues.now_us += amount
            queues.put(waiting_unit(Traffic.MEDIA, number, least))
    queues.drain()


@pytest.mark.parametrize("size", range(CHUNK - HEADER - 12, CHUNK + 8))
def test_frames_around_a_chunk(size: int) -> None:
    """Several of each size, so that the later ones begin wherever they do; taken one by one while others come."""
    queues = Queues(40_000, 20_000)
    for number in range(12):
        queues.put(waiting_unit(Traffic.MEDIA, number, size))
        if number % 3 == 2:
            queues.take(0)
    queues.drain()


# ---- No more than 80 chunks of 4 KiB, whatever the bytes in them


def test_320_kib_are_the_bound() -> None:
    assert _leaves.MOST_CHUNKS * (CHUNK + 8) == 320 * 1024


@pytest.mark.parametrize("size", [4, 5, 8, 20, 4072, 4073, 9000, 65_535])
def test_a_flood_of_media_keeps_the_newest(size: int) -> None:
    schedule = _leaves.Schedule(MAX_AGE_US, MEDIA_BYTES, CONTROL_BYTES)
    count = 2 * MEDIA_BYTES // size
    for number in range(count):
        # Those of 4 bytes carry no number: the moment tells them apart.
        assert schedule.put(NOW + number % 1000, waiting_unit(Traffic.MEDIA, number, size))
        assert schedule.chunks <= _leaves.MOST_CHUNKS
    held = schedule.chunks
    taken = schedule.take(NOW, MEDIA_BYTES + 65_536)
    assert held > 60
    newest = range(count - len(taken), count)
    assert [unit for _, unit, _ in taken] == [waiting_unit(Traffic.MEDIA, number, size) for number in newest]
    assert [arrived for arrived, _, _ in taken] == [NOW + number % 1000 for number in newest]
    assert schedule.drops == ((0, 0, 0), (0, 0, count - len(taken)))
    # No memory is wasted but in the first chunk, where others were, and in the last.
    assert sum(len(padded) + HEADER for _, _, padded in taken) > (held - 2) * (CHUNK - HEADER) - size


def test_media_gives_way_to_control() -> None:
    schedule = _leaves.Schedule(MAX_AGE_US, MEDIA_BYTES, CONTROL_BYTES)
    for number in range(60_000):
        schedule.put(NOW, waiting_unit(Traffic.MEDIA, number, 4))
    assert schedule.chunks == _leaves.MOST_CHUNKS
    control = [waiting_unit(Traffic.CONTROL, 2 * number, 8) for number in range(CONTROL_BYTES // 8)]
    for unit in control:
        assert schedule.put(NOW, unit)
        assert schedule.chunks <= _leaves.MOST_CHUNKS
    assert not schedule.put(NOW, control[0])
    taken = schedule.take(NOW, 2 * MEDIA_BYTES)
    assert [unit for _, unit, _ in taken[: len(control)]] == control
    assert {unit for _, unit, _ in taken[len(control) :]} == {waiting_unit(Traffic.MEDIA, 0, 4)}


def test_control_that_fills_all_chunks_is_refused_and_media_drops_itself() -> None:
    """Bounds larger than a flow may hold: the chunks bound it all the same."""
    schedule = _leaves.Schedule(MAX_AGE_US, 1 << 30, 1 << 30)
    accepted = 0
    while schedule.put(NOW, waiting_unit(Traffic.CONTROL, 2 * accepted, 8)):
        accepted += 1
    assert accepted == _leaves.MOST_CHUNKS * (CHUNK // (8 + HEADER))
    for traffic in (Traffic.MEDIA, Traffic.RTCP):
        assert schedule.put(NOW, waiting_unit(traffic, 0, 100))
    assert (schedule.chunks, schedule.drops) == (_leaves.MOST_CHUNKS, ((0, 0, 0), (0, 1, 1)))
    assert len(schedule.take(NOW, 1 << 30)) == accepted


@settings(repeatable, max_examples=60)
@given(st.lists(st.tuples(traffics, st.one_of(st.integers(4, 40), sizes), st.integers(1, 400)), max_size=60))
def test_any_flood_is_bounded_and_nothing_is_lost_without_a_reason(floods: list[tuple[Traffic, int, int]]) -> None:
    schedule = _leaves.Schedule(MAX_AGE_US, MEDIA_BYTES, CONTROL_BYTES)
    put: Counter[Traffic] = Counter()
    for number, (traffic, size, count) in enumerate(floods):
        unit = waiting_unit(traffic, number, size)
        for _ in range(count):
            put[traffic_of(unit)] += schedule.put(NOW, unit)
            assert schedule.chunks <= _leaves.MOST_CHUNKS
    taken = Counter(traffic_of(unit) for _, unit, _ in schedule.take(NOW, 1 << 30))
    _, full = schedule.drops
    assert put == Counter({traffic: taken[traffic] + full[at] for at, traffic in enumerate(Traffic)})
    assert (schedule.chunks, schedule.waiting_bytes) == (0, 0)


# ---- No memory


@pytest.mark.parametrize("blocks", range(16))
@pytest.mark.parametrize("waiting", [0, 1, 10, 41])
def test_a_unit_for_which_there_is_no_memory_leaves_nothing_behind(blocks: int, waiting: int) -> None:
    schedule = _leaves.Schedule(MAX_AGE_US, MEDIA_BYTES, 100_000)
    before = [waiting_unit(traffic, number, 100) for traffic in Traffic for number in range(waiting)]
    for unit in before:
        schedule.put(NOW, unit)
    as_it_was = (schedule.waiting_bytes, schedule.chunks, schedule.oldest_age(NOW + 5))
    # The longest needs 17 chunks, or 16 behind the last one.
    _leaves.leave_memory(blocks)
    assert not schedule.put(NOW + 1, waiting_unit(Traffic.CONTROL, 0, 65_535))
    _leaves.leave_memory(blocks)
    assert schedule.put(NOW + 2, waiting_unit(Traffic.MEDIA, 0, 65_535))
    assert (schedule.waiting_bytes, schedule.chunks, schedule.oldest_age(NOW + 5)) == as_it_was
    assert schedule.drops == ((0, 0, 0), (0, 0, 1))
    _leaves.leave_memory(-1)
    long = waiting_unit(Traffic.MEDIA, 1, 65_535)
    assert schedule.put(NOW + 3, long)
    assert [unit for _, unit, _ in schedule.take(NOW, 1 << 30)] == [*before, long]


def test_what_is_dropped_for_want_of_memory_has_not_dropped_others() -> None:
    schedule = _leaves.Schedule(MAX_AGE_US, MEDIA_BYTES, CONTROL_BYTES)
    _leaves.leave_memory(0)
    assert schedule.put(NOW, waiting_unit(Traffic.MEDIA, 0, 100))
    assert not schedule.put(NOW, waiting_unit(Traffic.CONTROL, 0, 100))
    assert (schedule.is_waiting, schedule.drops) == (False, ((0, 0, 0), (0, 0, 1)))
    assert schedule.take(NOW, 4096) == []
