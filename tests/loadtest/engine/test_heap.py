"""The heap of what is due, beside a dictionary."""

from __future__ import annotations

import random

from tests.loadtest.engine._parts import Heap


def test_agrees_with_a_dictionary() -> None:
    chance = random.Random(1)
    heap, due = Heap(64), dict[int, int]()
    for _ in range(20_000):
        number = chance.randrange(64)
        if chance.random() < 0.3:
            heap.clear_due(number)
            due.pop(number, None)
        else:
            due[number] = chance.randrange(1000)
            heap.set_due(number, due[number])
        assert len(heap) == len(due)
        if due:
            us, first = heap.first()
            assert due[first] == us == min(due.values())


def test_comes_out_in_order() -> None:
    heap = Heap(500)
    for number in range(500):
        heap.set_due(number, number * 7919 % 500)
    order = []
    while len(heap):
        us, number = heap.first()
        order.append(us)
        heap.clear_due(number)
    assert order == list(range(500))
