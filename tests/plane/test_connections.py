"""What the compiled plane remembers in Python: flows of sessions that move, and adopted connections."""

from __future__ import annotations

from relay.addresses import Address
from relay.plane.api import Carrier, CloseReason, ConnectionId, Upstream
from relay.plane.compiled.connections import Adoptions, Flow


def flow(name: str) -> Flow:
    upstream = Upstream(name, Address("127.0.0.1", 3478))
    return Flow(ConnectionId(1), Address("127.0.0.1", 1), "relay.test", Carrier.SESSION, upstream, 40_000)


def moved(before: Flow | None, name: str, *, worker_at: int) -> Flow:
    after = flow(name)
    after.follow(before, worker_at)
    return after


def test_a_worker_that_has_not_heard_of_moves_still_has_the_flow_before_them() -> None:
    first = moved(None, "first", worker_at=0)
    second = moved(first, "second", worker_at=1)
    third = moved(second, "third", worker_at=1)
    assert [each.moves for each in (first, second, third)] == [1, 2, 3]
    assert [third.after(moves) for moves in (1, 2, 3)] == [first, second, third]


def test_what_no_worker_can_ask_for_is_forgotten() -> None:
    flows = [moved(None, "0", worker_at=0)]
    for moves in range(1, 100):
        flows.append(moved(flows[-1], str(moves), worker_at=moves))
    assert flows[-1].before is flows[-2]
    assert flows[-2].before is None


def test_a_session_that_never_moved_has_one_flow() -> None:
    only = moved(None, "only", worker_at=0)
    assert only.after(0) is only


def test_an_adopted_connection_has_two_numbers() -> None:
    adoptions = Adoptions()
    connection = adoptions.new_id()
    adoptions.await_worker(connection)
    assert adoptions.identity_of(connection) == connection
    assert adoptions.on_taken(connection, 7) is None
    assert (adoptions.identity_of(connection), adoptions.connection_of(7)) == (7, connection)
    adoptions.forget(7)
    assert (adoptions.identity_of(connection), adoptions.connection_of(7)) == (connection, 7)


def test_an_adopted_connection_is_closed_once_a_worker_has_it() -> None:
    adoptions = Adoptions()
    connection = adoptions.new_id()
    adoptions.await_worker(connection)
    assert adoptions.close_when_taken(connection, CloseReason.DRAINING)
    assert adoptions.on_taken(connection, 7) is CloseReason.DRAINING
    assert not adoptions.close_when_taken(connection, CloseReason.DRAINING)


def test_other_connections_have_one_number() -> None:
    adoptions = Adoptions()
    assert not adoptions.close_when_taken(ConnectionId(9), CloseReason.DRAINING)
    assert (adoptions.identity_of(ConnectionId(9)), adoptions.connection_of(9)) == (9, 9)
