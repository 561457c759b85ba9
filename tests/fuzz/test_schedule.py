"""The compiled queues of a flow: against the obvious ones in any order of what may happen, and their memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.plane.api import Traffic
from relay.plane.reference.traffic import traffic_of
from tests.fuzz import _leaves
from tests.fuzz.targets import DATA_AGE_US, MAX_AGE_US, ROOMS, Queues, waiting_unit
from tests.support.properties import examples, repeatable

CHUNK, HEADER = _leaves.CHUNK_BYTES, _leaves.HEADER_BYTES
NOW = 1_000_000
MEDIA_BYTES, CONTROL_BYTES, DATA_BYTES = 256 * 1024, 64 * 1024, 256 * 1024

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
    # Not of data, where it is to be of data.
    st.tuples(st.just("take"), traffics, st.integers(0, 20_000)),
    st.tuples(st.just("wait"), traffics, st.one_of(st.integers(0, MAX_AGE_US + 1), st.integers(0, DATA_AGE_US + 1))),
)


@pytest.fixture(autouse=True)
def _no_block_stays() -> Iterator[None]:
    before = _leaves.live_buffers()
    yield
    _leaves.leave_memory(-1)
    assert _leaves.live_buffers() == before


@settings(repeatable, max_examples=examples(300))
@given(st.sampled_from(ROOMS), st.lists(steps, max_size=80))
# To the end of a chunk, taken to there, and put again: with nothing behind it, and with a header's room.
@example(ROOMS[0], [("put", Traffic.MEDIA, CHUNK - HEADER), ("take", Traffic.MEDIA, 0), ("put", Traffic.MEDIA, 8)])
@example(ROOMS[0], [("put", Traffic.MEDIA, CHUNK - HEADER), ("put", Traffic.MEDIA, 8), ("take", Traffic.MEDIA, 0)])
@example(ROOMS[0], [("put", Traffic.MEDIA, CHUNK - 2 * HEADER), ("put", Traffic.MEDIA, 9), ("take", Traffic.MEDIA, 0)])
@example(ROOMS[0], [("put", Traffic.RTCP, 5), ("wait", Traffic.RTCP, MAX_AGE_US), ("wait", Traffic.RTCP, 1)])
def test_it_is_the_obvious_one(room: tuple[int, int, int, int], script: list[tuple[str, Traffic, int]]) -> None:
    *bounds, least = room
    queues = Queues(*bounds)
    for number, (verb, traffic, amount) in enumerate(script):
        if verb == "put":
            queues.put(waiting_unit(traffic, number, max(least, amount)))
        elif verb == "fill":
            left = queues.compiled.room(list(Traffic).index(traffic)) - HEADER
            queues.put(waiting_unit(traffic, number, max(least, left + amount)))
        elif verb == "take":
            queues.take(amount, with_data=traffic is not Traffic.DATA)
        else:
            queues.now_us += amount
            queues.put(waiting_unit(Traffic.MEDIA, number, least))
    queues.drain()


@pytest.mark.parametrize("size", range(CHUNK - HEADER - 12, CHUNK + 8))
def test_frames_around_a_chunk(size: int) -> None:
    """Several of each size, so that the later ones begin wherever they do; taken one by one while others come."""
    queues = Queues(40_000, 20_000, 20_000)
    for number in range(12):
        queues.put(waiting_unit(Traffic.MEDIA, number, size))
        if number % 3 == 2:
            queues.take(0)
    queues.drain()


# ---- No more than 80 chunks of 4 KiB and 64 of data, whatever the bytes in them

URGENT_CHUNKS = _leaves.MAX_CHUNKS - _leaves.MAX_DATA_CHUNKS


def new_schedule(control_bytes: int = CONTROL_BYTES) -> _leaves.Schedule:
    return _leaves.Schedule(MAX_AGE_US, MEDIA_BYTES, control_bytes, DATA_BYTES, DATA_AGE_US)


def own_stun(number: int, size: int = 20) -> bytes:
    """Control of the upstream's own, which is not bounded as that of peers is."""
    return waiting_unit(Traffic.CONTROL, 2 * number + 1, size)


def test_576_kib_are_the_bound() -> None:
    assert URGENT_CHUNKS * (CHUNK + 8) == 320 * 1024
    assert _leaves.MAX_DATA_CHUNKS * (CHUNK + 8) == 256 * 1024


@pytest.mark.parametrize("size", [4, 5, 8, 20, 4072, 4073, 9000, 65_535])
def test_a_flood_of_media_keeps_the_newest(size: int) -> None:
    schedule = new_schedule()
    count = 2 * MEDIA_BYTES // size
    for number in range(count):
        # Those of 4 bytes carry no number: the moment tells them apart.
        assert schedule.put(NOW + number % 1000, waiting_unit(Traffic.MEDIA, number, size))
        assert schedule.chunks <= URGENT_CHUNKS
    held = schedule.chunks
    taken = schedule.take(NOW, MEDIA_BYTES + 65_536)
    assert held > 60
    newest = range(count - len(taken), count)
    assert [unit for _, unit, _ in taken] == [waiting_unit(Traffic.MEDIA, number, size) for number in newest]
    assert [arrived for arrived, _, _ in taken] == [NOW + number % 1000 for number in newest]
    assert schedule.drops == ((0, 0, 0, 0), (0, 0, count - len(taken), 0))
    # No memory is wasted but in the first chunk, where others were, and in the last.
    assert sum(len(padded) + HEADER for _, _, padded in taken) > (held - 2) * (CHUNK - HEADER) - size


@pytest.mark.parametrize("size", [5, 8, 20, 1200, 4072, 4073, 9000, 65_535])
def test_a_flood_of_data_keeps_the_oldest_and_leaves_the_others_alone(size: int) -> None:
    schedule = new_schedule()
    before = [waiting_unit(Traffic.MEDIA, number, 200) for number in range(20)]
    for unit in before:
        schedule.put(NOW, unit)
    beside = schedule.chunks
    count = 2 * DATA_BYTES // size
    for number in range(count):
        assert schedule.put(NOW, waiting_unit(Traffic.DATA, number, size))
        assert schedule.chunks <= beside + _leaves.MAX_DATA_CHUNKS
    taken = [unit for _, unit, _ in schedule.take(NOW, 1 << 30)]
    # One goes early, behind a quarter of the room, if that does not take all chunks.
    data = [waiting_unit(Traffic.DATA, number, size) for number in range(count)]
    early = next((at for at in range(count) if at * (size + -size % 4) > DATA_BYTES // 4), count)
    assert taken in (
        before + [one for at, one in enumerate(data) if at != early][: len(taken) - 20],
        before + data[: len(taken) - 20],
    )
    assert sum(len(unit) + HEADER + 3 for unit in taken[len(before) :]) > DATA_BYTES - 2 * size - CHUNK
    assert schedule.drops == ((0, 0, 0, 0), (0, 0, 0, count + len(before) - len(taken)))


def test_media_and_data_do_not_take_each_others_room() -> None:
    schedule = new_schedule()
    for number in range(60_000):
        schedule.put(NOW, waiting_unit(Traffic.MEDIA, number, 4))
        schedule.put(NOW, waiting_unit(Traffic.DATA, number, 5))
    assert schedule.chunks == _leaves.MAX_CHUNKS
    schedule.put(NOW, own_stun(1, 4096))
    assert URGENT_CHUNKS - 2 < schedule.chunks - _leaves.MAX_DATA_CHUNKS <= URGENT_CHUNKS


def test_control_of_a_peer_is_data_beyond_16_kib_a_second_and_beyond_half_of_the_room() -> None:
    schedule = new_schedule(control_bytes=40_000)
    flood = [waiting_unit(Traffic.CONTROL, 2 * number, 1024) for number in range(60)]
    for second in range(3):
        for unit in flood[20 * second : 20 * second + 20]:
            assert schedule.put(NOW + second * 1_000_000, unit)
    now = NOW + 2_000_000
    answers = [own_stun(number, 1000) for number in range(20)]
    for unit in answers:
        assert schedule.put(now, unit)
    taken = [unit for _, unit, _ in schedule.take(now, 1 << 30)]
    # 16 of the first second, 3 more until half of the room is taken, none of the third; then what is data and not too
    # old for that.
    assert taken == [*flood[:16], *flood[20:23], *answers, *flood[23:]]
    assert schedule.drops == ((0, 0, 0, 4), (0, 0, 0, 0))


def test_media_gives_way_to_control() -> None:
    schedule = new_schedule()
    for number in range(60_000):
        schedule.put(NOW, waiting_unit(Traffic.MEDIA, number, 4))
    assert schedule.chunks == URGENT_CHUNKS
    control = [own_stun(number) for number in range(CONTROL_BYTES // 20)]
    for unit in control:
        assert schedule.put(NOW, unit)
        assert schedule.chunks <= URGENT_CHUNKS
    assert not schedule.put(NOW, control[0])
    taken = schedule.take(NOW, 2 * MEDIA_BYTES)
    assert [unit for _, unit, _ in taken[: len(control)]] == control
    assert {unit for _, unit, _ in taken[len(control) :]} == {waiting_unit(Traffic.MEDIA, 0, 4)}


def test_control_that_fills_all_chunks_is_refused_and_media_drops_itself() -> None:
    """Bounds larger than a flow may hold: the chunks bound it all the same."""
    schedule = _leaves.Schedule(MAX_AGE_US, 1 << 30, 1 << 30, 1 << 30, DATA_AGE_US)
    accepted = 0
    while schedule.put(NOW, own_stun(accepted)):
        accepted += 1
    # A header is never split, and the bytes behind it may be.
    assert accepted >= URGENT_CHUNKS * ((CHUNK - HEADER) // (20 + HEADER))
    for traffic in (Traffic.MEDIA, Traffic.RTCP):
        assert schedule.put(NOW, waiting_unit(traffic, 0, 100))
    assert (schedule.chunks, schedule.drops) == (URGENT_CHUNKS, ((0, 0, 0, 0), (0, 1, 1, 0)))
    assert len(schedule.take(NOW, 1 << 30)) == accepted


@settings(repeatable, max_examples=examples(60))
@given(st.lists(st.tuples(traffics, st.one_of(st.integers(4, 40), sizes), st.integers(1, 400)), max_size=60))
def test_any_flood_is_bounded_and_nothing_is_lost_without_a_reason(floods: list[tuple[Traffic, int, int]]) -> None:
    schedule = new_schedule()
    put: Counter[Traffic] = Counter()
    for number, (traffic, size, count) in enumerate(floods):
        unit = waiting_unit(traffic, number, size)
        for _ in range(count):
            put[traffic_of(unit)] += schedule.put(NOW, unit)
            assert schedule.chunks <= _leaves.MAX_CHUNKS
    taken = Counter(traffic_of(unit) for _, unit, _ in schedule.take(NOW, 1 << 30))
    _, full = schedule.drops
    # Control of a peer that was too much is among the data.
    gone = {traffic: taken[traffic] + full[at] for at, traffic in enumerate(Traffic)}
    assert put[Traffic.MEDIA] == gone[Traffic.MEDIA]
    assert put[Traffic.RTCP] == gone[Traffic.RTCP]
    assert put[Traffic.CONTROL] >= gone[Traffic.CONTROL]
    assert put.total() == sum(gone.values())
    assert (schedule.chunks, schedule.waiting_bytes) == (0, 0)


# ---- No memory


@pytest.mark.parametrize("blocks", range(16))
@pytest.mark.parametrize("waiting", [0, 1, 10, 41])
def test_a_unit_for_which_there_is_no_memory_leaves_nothing_behind(blocks: int, waiting: int) -> None:
    schedule = new_schedule(control_bytes=100_000)
    before = [waiting_unit(traffic, number, 100) for traffic in Traffic for number in range(waiting)]
    for unit in before:
        schedule.put(NOW, unit)
    as_it_was = (schedule.waiting_bytes, schedule.chunks, schedule.oldest_age(NOW + 5))
    # The longest needs 17 chunks, or 16 behind the last one.
    _leaves.leave_memory(blocks)
    assert not schedule.put(NOW + 1, own_stun(0, 65_532))
    for traffic in (Traffic.MEDIA, Traffic.DATA):
        _leaves.leave_memory(blocks)
        assert schedule.put(NOW + 2, waiting_unit(traffic, 0, 65_535))
    assert (schedule.waiting_bytes, schedule.chunks, schedule.oldest_age(NOW + 5)) == as_it_was
    assert schedule.drops == ((0, 0, 0, 0), (0, 0, 1, 1))
    _leaves.leave_memory(-1)
    long = waiting_unit(Traffic.DATA, 1, 65_535)
    assert schedule.put(NOW + 3, long)
    assert [unit for _, unit, _ in schedule.take(NOW, 1 << 30)] == [*before, long]


def test_what_is_dropped_for_want_of_memory_has_not_dropped_others() -> None:
    schedule = new_schedule()
    _leaves.leave_memory(0)
    assert schedule.put(NOW, waiting_unit(Traffic.MEDIA, 0, 100))
    assert not schedule.put(NOW, own_stun(0, 100))
    assert (schedule.is_waiting, schedule.drops) == (False, ((0, 0, 0, 0), (0, 0, 1, 0)))
    assert schedule.take(NOW, 4096) == []
