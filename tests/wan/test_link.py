"""The model of a link: what it does to packets, with a clock that the test moves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.demo.wan.link import Link, LinkModel


def packets(count: int, size: int = 100) -> list[bytes]:
    """Packets that differ."""
    return [number.to_bytes(4) + bytes(size - 4) for number in range(count)]


def offer_all(model: LinkModel, offered: list[bytes], now: float = 0.0) -> None:
    for packet in offered:
        model.offer(packet, now)


def arrivals(model: LinkModel) -> list[tuple[float, bytes]]:
    """All that is inside, with the time it arrives, found by going from deadline to deadline."""
    found = []
    while (now := model.next_deadline()) < math.inf:
        found += [(now, packet) for packet in model.take(now)]
    return found


def survivors(link: Link, seed: int, count: int = 1000, interval: float = 0.0) -> list[bytes]:
    """What comes out of a link."""
    model = LinkModel(link, seed)
    for number, packet in enumerate(packets(count)):
        model.offer(packet, number * interval)
    return [packet for _, packet in arrivals(model)]


def test_a_perfect_link_passes_everything_at_once() -> None:
    model = LinkModel(Link())
    offer_all(model, packets(5))
    assert model.next_deadline() == 0
    assert model.take(0) == packets(5)
    assert model.next_deadline() == math.inf


def test_delay() -> None:
    model = LinkModel(Link(delay_s=0.02))
    model.offer(b"first", 1.0)
    model.offer(b"second", 1.01)
    assert model.take(1.0199) == []
    assert model.next_deadline() == 1.02
    assert model.take(1.02) == [b"first"]
    assert model.take(1.03) == [b"second"]


def test_jitter_adds_to_the_delay_and_keeps_the_order() -> None:
    model = LinkModel(Link(delay_s=0.1, jitter_s=0.05), seed=3)
    offered = packets(200)
    for number, packet in enumerate(offered):
        model.offer(packet, number / 1000)
    came = arrivals(model)
    assert [packet for _, packet in came] == offered
    delays = [when - number / 1000 for number, (when, _) in enumerate(came)]
    assert 0.1 <= min(delays) < 0.12
    assert 0.14 < max(delays) <= 0.15


def test_rate_counts_the_bits_of_whole_packets() -> None:
    """1000 bits each at 10 kbit/s: a tenth of a second each, one after the other."""
    model = LinkModel(Link(rate_bps=10_000, delay_s=1))
    offer_all(model, packets(3, size=125))
    assert [when for when, _ in arrivals(model)] == pytest.approx([1.1, 1.2, 1.3])


def test_a_link_that_was_idle_does_not_save_its_rate_up() -> None:
    model = LinkModel(Link(rate_bps=10_000))
    model.take(100)
    offer_all(model, packets(2, size=125), now=100)
    assert [when for when, _ in arrivals(model)] == pytest.approx([100.1, 100.2])


def test_the_queue_is_bounded_in_bytes_and_drops_the_newest() -> None:
    model = LinkModel(Link(rate_bps=8000, queue_bytes=350))
    offered = packets(5)
    offer_all(model, offered)
    assert model.counters.dropped_packets == 2
    assert model.counters.queued_bytes == model.counters.max_queued_bytes == 300
    assert model.take(0.1) == [offered[0]]
    model.offer(b"there is room again", 0.1)
    assert [packet for _, packet in arrivals(model)] == [*offered[1:3], b"there is room again"]
    assert model.counters.queued_bytes == 0


def test_loss_is_as_often_as_it_says() -> None:
    assert 9600 < len(survivors(Link(loss=0.03), seed=1, count=10_000)) < 9800
    assert survivors(Link(loss=0), seed=1) == packets(1000)
    assert survivors(Link(loss=1), seed=1) == []


def test_the_same_seed_loses_the_same_packets_whatever_else_the_link_does() -> None:
    expected = survivors(Link(loss=0.1), seed=7)
    assert expected != survivors(Link(loss=0.1), seed=8)
    slow = Link(loss=0.1, delay_s=0.1, jitter_s=0.1, rate_bps=1e6)
    assert survivors(slow, seed=7, interval=0.01) == expected


def test_what_is_lost_has_taken_its_time_on_the_link() -> None:
    model = LinkModel(Link(loss=1, rate_bps=10_000))
    offer_all(model, packets(2, size=125))
    model.take(0.1)
    model.change(Link(loss=0, rate_bps=10_000), 0.1)
    assert [when for when, _ in arrivals(model)] == pytest.approx([0.2])


def test_a_stall_holds_what_comes_and_lets_what_is_on_the_way_arrive() -> None:
    model = LinkModel(Link(delay_s=1))
    model.offer(b"before", 0)
    model.stall(3, 0.5)
    model.offer(b"during", 0.6)
    assert model.take(3.4) == [b"before"]
    assert model.counters.queued_bytes == len(b"during")
    model.offer(b"after", 3.6)
    assert arrivals(model) == [(4.5, b"during"), (4.6, b"after")]


def test_a_stall_keeps_to_the_bound_of_the_queue() -> None:
    model = LinkModel(Link(queue_bytes=250))
    model.stall(1, 0)
    offer_all(model, packets(5))
    assert model.counters.dropped_packets == 3
    assert model.take(1) == packets(5)[:2]


def test_the_longer_of_two_stalls_counts() -> None:
    model = LinkModel(Link())
    model.stall(2, 0)
    model.stall(1, 0)
    model.offer(b"x", 0)
    assert model.next_deadline() == 2


def test_an_endless_stall_ends_when_it_is_released() -> None:
    model = LinkModel(Link())
    model.stall(math.inf, 0)
    model.offer(b"x", 0)
    assert model.next_deadline() == math.inf
    assert model.take(1e9) == []
    model.release(1e9)
    assert model.take(1e9) == [b"x"]


def test_a_change_is_for_what_still_waits() -> None:
    model = LinkModel(Link(rate_bps=10_000))
    offer_all(model, packets(3, size=125))
    model.change(Link(rate_bps=20_000, delay_s=1), 0.1)
    assert [when for when, _ in arrivals(model)] == pytest.approx([0.1, 1.15, 1.2])


@pytest.mark.parametrize(
    "values", [{"delay_s": -1}, {"jitter_s": -1}, {"loss": 1.1}, {"rate_bps": 0}, {"queue_bytes": -1}]
)
def test_no_link_is_like_this(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values)).partition("_")[0]):
        Link(**values)  # type: ignore[arg-type]


links = st.builds(
    Link,
    delay_s=st.floats(0, 0.1),
    jitter_s=st.floats(0, 0.1),
    loss=st.sampled_from([0, 0.3, 1]),
    rate_bps=st.none() | st.floats(1e3, 1e7),
    queue_bytes=st.integers(0, 2000),
)
steps = st.lists(
    st.tuples(st.floats(0, 0.2), st.one_of(st.integers(1, 600), links, st.sampled_from(["stall", "release"])))
)


@given(links, steps)
def test_nothing_is_made_up_and_nothing_is_forgotten(link: Link, script: list[tuple[float, int | Link | str]]) -> None:
    """Whatever happens: order is kept, each packet has one fate, and no deadline is without effect."""
    model, now, number, came = LinkModel(link), 0.0, 0, list[bytes]()
    for wait_s, step in script:
        now += wait_s
        match step:
            case int():
                model.offer(number.to_bytes(4) + bytes(step), now)
                number += 1
                assert model.counters.queued_bytes <= max(model.counters.max_queued_bytes, model.link.queue_bytes)
            case Link():
                model.change(step, now)
            case "stall":
                model.stall(wait_s, now)
            case _:
                model.release(now)
        came += model.take(now)
        assert model.next_deadline() > now
    came += [packet for _, packet in arrivals(model)]
    numbers = [int.from_bytes(packet[:4]) for packet in came]
    assert numbers == sorted(set(numbers))
    counters = model.counters
    assert counters.packets_in == number
    assert counters.delivered_packets == len(came)
    assert counters.delivered_bytes == sum(map(len, came))
    assert number == counters.delivered_packets + counters.lost_packets + counters.dropped_packets
    assert counters.queued_bytes == 0
