"""The schedule of one flow, with a clock that the test turns, against a model that is too slow to be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.plane.api import DropReason, Totals, Traffic
from relay.plane.reference.schedule import PEER_CONTROL_BYTES, Room, Schedule
from relay.plane.reference.traffic import traffic_of
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import AttributeType, MessageClass, Method, build_message
from tests.support.properties import repeatable

RANKS = {Traffic.CONTROL: 0, Traffic.RTCP: 1, Traffic.MEDIA: 2, Traffic.DATA: 3}
BINDING = build_message(Method.BINDING, MessageClass.REQUEST, bytes(12))


def media(number: int, size: int = 100) -> bytes:
    """ChannelData that is ``size`` bytes long on the stream."""
    return build_channel_data(0x4001, b"\x80\x00" + number.to_bytes(4) + bytes(size - 10))


def rtcp(number: int, size: int = 100) -> bytes:
    return build_channel_data(0x4001, b"\x81\xc8" + number.to_bytes(4) + bytes(size - 10))


def dtls(number: int, size: int = 100) -> bytes:
    return build_channel_data(0x4001, b"\x16\xfe" + number.to_bytes(4) + bytes(size - 10))


def data(number: int, size: int = 100) -> bytes:
    return build_channel_data(0x4001, b"\x17\xfe" + number.to_bytes(4) + bytes(size - 10))


def own_stun(number: int, size: int = 100) -> bytes:
    """What the upstream says itself."""
    return b"\x01\x01" + (size - 20).to_bytes(2) + b"\x21\x12\xa4\x42" + number.to_bytes(12) + bytes(size - 20)


def new_schedule(
    totals: Totals, max_age_s: float = 1.0, room: int = 10_000, data_age_s: float | None = None
) -> Schedule:
    """``room`` bytes of each class, and data for no longer than media unless this is said."""
    return Schedule(max_age_s, Room(room, room, room, max_age_s if data_age_s is None else data_age_s), totals)


def indication(payload: bytes) -> bytes:
    return build_message(Method.DATA, MessageClass.INDICATION, bytes(12), [(AttributeType.DATA, payload)])


@pytest.mark.parametrize(
    ("unit", "traffic"),
    [
        (BINDING, Traffic.CONTROL),
        (build_message(Method.ALLOCATE, MessageClass.ERROR, bytes(12)), Traffic.CONTROL),
        (build_message(Method.SEND, MessageClass.INDICATION, bytes(12)), Traffic.CONTROL),
        (build_message(Method.DATA, MessageClass.INDICATION, bytes(12)), Traffic.MEDIA),
        (build_message(Method.DATA, MessageClass.REQUEST, bytes(12)), Traffic.CONTROL),
        (build_channel_data(0x4001, BINDING), Traffic.CONTROL),
        # As STUN begins, but without a cookie, too long, too short, or of a length that STUN does not have.
        (build_channel_data(0x7FFF, b"\x03"), Traffic.DATA),
        (build_channel_data(0x4001, BINDING[:4] + bytes(16)), Traffic.DATA),
        (build_channel_data(0x4001, BINDING + bytes(4)), Traffic.DATA),
        (build_channel_data(0x4001, BINDING[:-1]), Traffic.DATA),
        (build_channel_data(0x4001, b"\0\1\0\1" + BINDING[4:] + b"\0"), Traffic.DATA),
        (build_channel_data(0x4001, b"\x04"), Traffic.DATA),
        (build_channel_data(0x4001, b"\x13"), Traffic.DATA),
        (build_channel_data(0x4001, b"\x14"), Traffic.CONTROL),
        (build_channel_data(0x4001, b"\x15"), Traffic.CONTROL),
        (build_channel_data(0x4001, b"\x16"), Traffic.CONTROL),
        (build_channel_data(0x4001, b"\x17\xfe\xfd"), Traffic.DATA),
        (build_channel_data(0x4001, b"\x18"), Traffic.DATA),
        (build_channel_data(0x4001, b"\x3f"), Traffic.DATA),
        (build_channel_data(0x4001, b"\x40\xc8"), Traffic.DATA),
        (build_channel_data(0x4001, b"\x7f\xc8"), Traffic.DATA),
        (build_channel_data(0x4001, b"\x80\xbf"), Traffic.MEDIA),
        (build_channel_data(0x4001, b"\x80\xc0"), Traffic.RTCP),
        (build_channel_data(0x4001, b"\xbf\xdf"), Traffic.RTCP),
        (build_channel_data(0x4001, b"\xbf\xe0"), Traffic.MEDIA),
        (build_channel_data(0x4001, b"\xc0\xc8"), Traffic.DATA),
        (build_channel_data(0x4001, b"\x80"), Traffic.MEDIA),
        (build_channel_data(0x4001, b""), Traffic.MEDIA),
        # Neither control nor in front of media, whatever a peer without a channel sends.
        (indication(BINDING), Traffic.MEDIA),
        (indication(b"\x16\xfe\xfd"), Traffic.MEDIA),
        (indication(b"\x80\x6f"), Traffic.MEDIA),
        (indication(b""), Traffic.MEDIA),
        (indication(b"\x17\xfe\xfd"), Traffic.DATA),
        (indication(b"\0\1\0\0"), Traffic.DATA),
        (indication(b"QUIC"), Traffic.DATA),
    ],
)
def test_what_a_unit_is(unit: bytes, traffic: Traffic) -> None:
    assert traffic_of(unit) is traffic


def test_control_goes_first_then_rtcp_then_media_then_data_each_in_its_order() -> None:
    schedule = new_schedule(Totals())
    units = [data(1), media(1), rtcp(1), dtls(1), media(2), dtls(2), data(2), rtcp(2)]
    for unit in units:
        assert schedule.put(0.0, unit)
    expected = [dtls(1), dtls(2), rtcp(1), rtcp(2), media(1), media(2), data(1), data(2)]
    assert [frame.unit for frame in schedule.take(0.0, 10_000)] == expected
    assert schedule.waiting_bytes == 0


def test_what_is_exactly_as_old_as_allowed_stays() -> None:
    totals = Totals()
    schedule = new_schedule(totals, 0.5)
    for unit in (media(1), rtcp(1), dtls(1)):
        schedule.put(1.0, unit)
    schedule.put(1.5, media(2))
    assert (schedule.oldest_age(1.5), schedule.waiting_bytes, totals.drops) == (0.5, 400, {})
    schedule.put(1.75, media(3))
    assert totals.drops == {DropReason.DOWNLINK_OLD: 2}
    assert totals.drops_by_traffic == {Traffic.RTCP: 1, Traffic.MEDIA: 1}
    assert [frame.unit for frame in schedule.take(9.0, 10_000)] == [dtls(1)]
    assert totals.drops == {DropReason.DOWNLINK_OLD: 4}
    assert schedule.oldest_age(9.0) == 0.0


def test_the_oldest_media_makes_room_and_rtcp_only_where_there_is_no_media() -> None:
    totals = Totals()
    schedule = new_schedule(totals, room=400)
    for unit in (rtcp(1), media(1), media(2), media(3), media(4)):
        schedule.put(0.0, unit)
    assert totals.drops_by_traffic == {Traffic.MEDIA: 1}
    for number in (2, 3, 4, 5):
        schedule.put(0.0, rtcp(number))
    assert totals.drops_by_traffic == {Traffic.MEDIA: 4, Traffic.RTCP: 1}
    assert totals.drops == {DropReason.DOWNLINK_FULL: 5}
    assert [frame.unit for frame in schedule.take(0.0, 1000)] == [rtcp(2), rtcp(3), rtcp(4), rtcp(5)]


def test_a_unit_longer_than_all_room_drops_itself_and_nothing_else() -> None:
    totals = Totals()
    schedule = new_schedule(totals, room=400)
    schedule.put(0.0, media(1))
    assert schedule.put(0.0, media(2, 404))
    assert totals.drops == {DropReason.DOWNLINK_FULL: 1}
    assert [frame.unit for frame in schedule.take(0.0, 1000)] == [media(1)]


def test_control_is_refused_beyond_its_bound_and_keeps_what_waits() -> None:
    totals = Totals()
    schedule = new_schedule(totals, room=400)
    assert all(schedule.put(0.0, own_stun(number)) for number in range(4))
    assert not schedule.put(0.0, own_stun(4))
    assert schedule.put(0.0, media(1))
    assert (schedule.waiting_bytes, totals.drops) == (500, {})


def test_data_drops_the_newest_where_it_is_too_much_and_the_oldest_where_it_is_too_old() -> None:
    totals = Totals()
    schedule = new_schedule(totals, room=400, data_age_s=3.0)
    schedule.put(0.0, media(1))
    for number in range(6):
        assert schedule.put(0.0, data(number))
    assert (totals.drops, totals.drops_by_traffic) == ({DropReason.DOWNLINK_FULL: 2}, {Traffic.DATA: 2})
    assert schedule.put(0.0, data(6, 404))
    assert [frame.unit for frame in schedule.take(0.0, 300)] == [media(1), data(0), data(1)]
    assert schedule.oldest_age(2.5) == 2.5
    assert [frame.unit for frame in schedule.take(3.0, 100)] == [data(2)]
    assert schedule.take(3.5, 1000) == []
    assert totals.drops == {DropReason.DOWNLINK_FULL: 3, DropReason.DOWNLINK_OLD: 1}
    assert totals.drops_by_traffic == {Traffic.DATA: 4}
    assert schedule.waiting_bytes == 0


def test_beyond_a_quarter_of_the_room_one_packet_of_data_is_dropped_each_half_second() -> None:
    totals = Totals()
    schedule = new_schedule(totals, room=4000, max_age_s=9.0)
    dropped = []
    for number in range(30):
        before = totals.drops.get(DropReason.DOWNLINK_FULL, 0)
        assert schedule.put(1.0 + number / 16, data(number))
        if totals.drops.get(DropReason.DOWNLINK_FULL, 0) > before:
            dropped.append(number)
    # Ten and one fill more than a quarter; eight come in half a second.
    assert dropped == [11, 19, 27]
    assert [frame.unit for frame in schedule.take(3.0, 4000)] == [data(n) for n in range(30) if n not in dropped]


def test_data_can_be_left_where_it_is() -> None:
    schedule = new_schedule(Totals())
    for unit in (data(1), media(1), data(2)):
        schedule.put(0.0, unit)
    assert schedule.is_urgent
    assert [frame.unit for frame in schedule.take(0.0, 1000, with_data=False)] == [media(1)]
    assert (schedule.is_urgent, schedule.waiting_bytes) == (False, 200)
    assert schedule.take(0.0, 1000, with_data=False) == []
    assert [frame.unit for frame in schedule.take(0.0, 1000)] == [data(1), data(2)]


@pytest.mark.parametrize("make", [dtls, lambda number, size: build_channel_data(0x4001, own_stun(number, size - 4))])
def test_control_of_a_peer_is_data_beyond_its_bound_of_each_second(make: Callable[[int, int], bytes]) -> None:
    totals = Totals()
    schedule = new_schedule(totals, room=10 * PEER_CONTROL_BYTES, max_age_s=9.0)
    assert all(schedule.put(0.0, make(number, 1024)) for number in range(20))
    assert all(schedule.put(1.0, make(number, 1024)) for number in range(20, 40))
    sorted_out = [*range(16), *range(20, 36), *range(16, 20), *range(36, 40)]
    taken = schedule.take(1.0, 1 << 20)
    assert [frame.unit for frame in taken] == [make(number, 1024) for number in sorted_out]
    assert [frame.traffic for frame in taken] == [Traffic.CONTROL] * 32 + [Traffic.DATA] * 8
    assert totals.drops == {}


def test_control_of_a_peer_takes_half_of_the_room_and_never_fills_it() -> None:
    totals = Totals()
    schedule = new_schedule(totals, room=400)
    assert all(schedule.put(float(second), dtls(second)) for second in range(9))
    assert all(schedule.put(9.0, own_stun(number)) for number in range(2))
    assert not schedule.put(9.0, own_stun(2))
    assert all(schedule.put(10.0, dtls(number)) for number in range(9))
    # What became data grew too old or found no room.
    assert set(totals.drops_by_traffic) == {Traffic.DATA}
    assert [frame.traffic for frame in schedule.take(10.0, 400)][:4] == [Traffic.CONTROL] * 4


def test_over_connect_udp_all_is_a_peers() -> None:
    schedule = Schedule(1.0, Room(400, 400, 400, 1.0), Totals(), from_peers=True)
    assert all(schedule.put(0.0, own_stun(number)) for number in range(9))
    assert [frame.traffic for frame in schedule.take(0.0, 1000)] == [Traffic.CONTROL] * 2 + [Traffic.DATA] * 4


def test_a_record_takes_whole_frames_and_the_first_even_if_it_is_longer() -> None:
    schedule = new_schedule(Totals())
    for unit in (media(1), media(2), media(3, 96), media(4, 600), media(5)):
        schedule.put(0.0, unit)
    assert [frame.unit for frame in schedule.take(0.0, 296)] == [media(1), media(2), media(3, 96)]
    assert [frame.unit for frame in schedule.take(0.0, 296)] == [media(4, 600)]
    assert [frame.unit for frame in schedule.take(0.0, 99)] == [media(5)]
    assert schedule.take(0.0, 99) == []


def test_padding_counts() -> None:
    schedule = new_schedule(Totals())
    schedule.put(0.0, build_channel_data(0x4001, b"\x80"))
    assert schedule.waiting_bytes == 8
    assert schedule.take(0.0, 8)[0].framed == build_channel_data(0x4001, b"\x80", padded=True)


# ---- Any order of what may happen

AGE_S, MEDIA_BYTES, CONTROL_BYTES, DATA_BYTES, DATA_AGE_S = 4, 1000, 600, 500, 6


@dataclass
class Model:
    """One list of (arrival, unit), searched from the front for everything."""

    waiting: list[tuple[int, bytes]] = field(default_factory=list)
    early_drop_at: int = 0
    drops: Counter[tuple[DropReason, Traffic]] = field(default_factory=Counter)

    def size(self, *traffics: Traffic) -> int:
        return sum(len(unit) for _, unit in self.waiting if traffic_of(unit) in traffics)

    def drop(self, index: int, reason: DropReason) -> None:
        _, unit = self.waiting.pop(index)
        self.drops[reason, traffic_of(unit)] += 1

    def expire(self, now: int) -> None:
        for index in reversed(range(len(self.waiting))):
            arrived, unit = self.waiting[index]
            traffic = traffic_of(unit)
            if traffic is not Traffic.CONTROL and now - arrived > (DATA_AGE_S if traffic is Traffic.DATA else AGE_S):
                self.drop(index, DropReason.DOWNLINK_OLD)

    def put(self, now: int, unit: bytes) -> bool:
        self.expire(now)
        traffic = traffic_of(unit)
        if traffic is Traffic.CONTROL and self.size(Traffic.CONTROL) + len(unit) > CONTROL_BYTES:
            return False
        self.waiting.append((now, unit))
        if traffic is Traffic.DATA:
            if self.size(Traffic.DATA) > DATA_BYTES:
                self.drop(-1, DropReason.DOWNLINK_FULL)
            elif self.size(Traffic.DATA) - len(unit) > DATA_BYTES // 4 and now - self.early_drop_at >= 2:
                self.early_drop_at = now
                self.drop(-1, DropReason.DOWNLINK_FULL)
        elif traffic is not Traffic.CONTROL and len(unit) > MEDIA_BYTES:
            self.drop(-1, DropReason.DOWNLINK_FULL)
        while self.size(Traffic.RTCP, Traffic.MEDIA) > MEDIA_BYTES:
            # The newest never goes: it stands behind the others of its kind, and fits.
            kinds = [traffic_of(other) for _, other in self.waiting[:-1]]
            victim = Traffic.MEDIA if Traffic.MEDIA in kinds else Traffic.RTCP
            self.drop(kinds.index(victim), DropReason.DOWNLINK_FULL)
        return True

    def take(self, now: int, room: int) -> list[bytes]:
        self.expire(now)
        taken: list[bytes] = []
        for entry in sorted(self.waiting, key=lambda entry: RANKS[traffic_of(entry[1])]):
            if taken and sum(map(len, taken)) + len(entry[1]) > room:
                break
            taken.append(entry[1])
            self.waiting.remove(entry)
        return taken


@dataclass(frozen=True)
class Put:
    make: int
    size: int


@dataclass(frozen=True)
class Take:
    room: int


steps = st.one_of(
    st.builds(Put, st.integers(0, 3), st.integers(3, 75).map(lambda words: 4 * words)),
    st.builds(Put, st.integers(0, 3), st.sampled_from([1000, 1004])),
    st.builds(Take, st.integers(0, 700)),
)


@settings(repeatable, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 2), steps), max_size=60))
def test_it_does_what_the_model_does(script: list[tuple[int, Put | Take]]) -> None:
    totals, model, now = Totals(), Model(), 0
    schedule = Schedule(AGE_S, Room(MEDIA_BYTES, CONTROL_BYTES, DATA_BYTES, DATA_AGE_S, early_drop_period_s=2), totals)
    put = gone = 0
    for number, (passed, step) in enumerate(script):
        now += passed
        if isinstance(step, Put):
            unit = (media, rtcp, own_stun, data)[step.make](number, max(20, step.size))
            accepted = schedule.put(now, unit)
            assert accepted == model.put(now, unit)
            put += accepted
        else:
            taken = schedule.take(now, step.room)
            assert [frame.unit for frame in taken] == model.take(now, step.room)
            gone += len(taken)
        assert schedule.waiting_bytes == model.size(*Traffic) <= MEDIA_BYTES + CONTROL_BYTES + DATA_BYTES
        assert schedule.oldest_age(now) == max((now - arrived for arrived, _ in model.waiting), default=0)
        reasons: Counter[DropReason] = Counter()
        traffics: Counter[Traffic] = Counter()
        for (reason, traffic), count in model.drops.items():
            reasons[reason] += count
            traffics[traffic] += count
        assert (totals.drops, totals.drops_by_traffic) == (dict(reasons), dict(traffics))
        # Nothing is lost without a reason.
        assert put == gone + len(model.waiting) + sum(totals.drops.values())
