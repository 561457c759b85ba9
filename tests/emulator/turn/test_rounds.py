"""What connections of TCP and TLS take of a turn of the loop: one bound for all, in turns."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from relay.emulator.turn.rounds import COST_A_TURN, PIECE_BYTES, Intake, Rounds
from tests.support.waiting import eventually

COST = 10
# The last piece of a turn may go beyond the bound.
PIECES_A_TURN = -(-COST_A_TURN // (COST + 1))


class _Client:
    """A connection that brings bytes, each piece of which costs COST."""

    def __init__(self, rounds: Rounds) -> None:
        self.taken = b""
        self.reading = True
        self.aborted = False
        self.fails = False
        self.intake = Intake(rounds, cast("asyncio.Transport", self), self._take)

    @property
    def pieces(self) -> int:
        return -(-len(self.taken) // PIECE_BYTES)

    def _take(self, data: bytes) -> int:
        if self.fails:
            raise ValueError("a fault of ours")
        self.taken += data
        return COST

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("count", [1, 60])
async def test_all_together_have_one_bound_and_fair_shares(count: int) -> None:
    rounds = Rounds()
    clients = [_Client(rounds) for _ in range(count)]
    data = b"".join(number.to_bytes(4) for number in range(16 * PIECE_BYTES))
    for client in clients:
        client.intake.receive(data)
    served = [sum(client.pieces for client in clients)]
    while any(client.intake.holds for client in clients):
        await asyncio.sleep(0)
        served.append(sum(client.pieces for client in clients))
        begun = [client.pieces for client in clients[1:]]
        assert max(begun, default=0) - min(begun, default=0) <= 1
    assert max(after - before for before, after in zip([0, *served], served, strict=False)) <= PIECES_A_TURN
    assert all(client.taken == data and client.reading for client in clients)


async def test_what_comes_meanwhile_waits_in_order_and_is_not_read() -> None:
    client = _Client(Rounds())
    client.intake.receive(bytes(100 * PIECE_BYTES))
    assert not client.reading
    client.intake.receive(b"last")
    await eventually(lambda: client.reading)
    assert client.taken == bytes(100 * PIECE_BYTES) + b"last"


async def test_nothing_is_taken_after_close() -> None:
    client = _Client(Rounds())
    client.intake.receive(bytes(100 * PIECE_BYTES))
    before = client.taken
    client.intake.close()
    client.intake.receive(b"more")
    for _ in range(5):
        await asyncio.sleep(0)
    assert client.taken == before


async def test_a_fault_ends_its_connection_and_the_others_go_on() -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    rounds = Rounds()
    broken, other = _Client(rounds), _Client(rounds)
    for client in (broken, other):
        client.intake.receive(bytes(100 * PIECE_BYTES))
    broken.fails = True
    await eventually(lambda: len(other.taken) == 100 * PIECE_BYTES)
    assert broken.aborted
    assert len(faults) == 1
