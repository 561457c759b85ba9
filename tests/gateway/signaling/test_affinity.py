"""Which upstream holds a socket.io session."""

from __future__ import annotations

from relay.config import HealthSettings, SignalingSettings
from relay.gateway.signaling.affinity import Affinity
from relay.gateway.signaling.pools import Pool, Pools, SignalingUpstream

ONE, TWO = "http://192.0.2.1:80", "http://192.0.2.2:80"


def pool_of(*urls: str) -> Pool:
    pools = Pools()
    pools.configure(SignalingSettings(upstreams=urls), HealthSettings())
    found = pools.match("a.test", "/")
    assert found is not None
    return found


def affinity_of(max_sessions: int = 10, idle_s: float = 60.0) -> Affinity:
    affinity = Affinity()
    affinity.max_sessions, affinity.idle_s = max_sessions, idle_s
    return affinity


def test_session_is_found_until_it_is_idle() -> None:
    pool, affinity = pool_of(ONE, TWO), affinity_of()
    one = pool.upstreams[0]
    affinity.learn(0.0, pool, "sid", one)
    assert affinity.find(59.0, pool, "sid") is one
    # Use counts.
    assert affinity.find(118.0, pool, "sid") is one
    assert affinity.find(179.0, pool, "sid") is None
    assert affinity.find(0.0, pool, "other") is None


def test_session_belongs_to_its_route_and_upstream() -> None:
    pool, affinity = pool_of(ONE, TWO), affinity_of()
    affinity.learn(0.0, pool, "sid", pool.upstreams[0])
    assert affinity.find(0.0, pool._replace(path="/other"), "sid") is None
    assert affinity.find(0.0, pool._replace(upstreams=pool.upstreams[1:]), "sid") is None
    affinity.forget(pool, "sid")
    assert affinity.find(0.0, pool, "sid") is None


def test_table_is_bounded() -> None:
    pool, affinity = pool_of(ONE), affinity_of(max_sessions=3)
    one: SignalingUpstream = pool.upstreams[0]
    for number in range(100):
        affinity.learn(0.0, pool, f"sid{number}", one)
    assert len(affinity) == 3
    assert affinity.find(0.0, pool, "sid99") is one
    assert affinity.find(0.0, pool, "sid0") is None
    # What has expired goes without being asked for.
    affinity.learn(1000.0, pool, "new", one)
    assert len(affinity) == 1


def test_the_holder_of_a_session_is_asked_first() -> None:
    pool, affinity = pool_of(ONE, TWO), affinity_of()
    one, two = pool.upstreams
    affinity.learn(0.0, pool, "sid", two)
    assert [affinity.candidates(0.0, pool, "sid") for _ in range(3)] == [[two, one]] * 3
    # A holder that is down has lost the session.
    two.on_failure("refused", certain=True)
    assert affinity.candidates(0.0, pool, "sid")[0] is one
    assert affinity.find(0.0, pool, "sid") is None


def test_requests_of_an_unknown_session_go_the_same_way() -> None:
    pool, affinity = pool_of(ONE, TWO), affinity_of()
    for sid in ("sid", "other", "third"):
        assert len({affinity.candidates(0.0, pool, sid)[0] for _ in range(10)}) == 1
    assert len({affinity.candidates(0.0, pool, f"sid{number}")[0] for number in range(100)}) == 2


def test_requests_without_a_session_go_in_turn() -> None:
    pool, affinity = pool_of(ONE, TWO), affinity_of()
    one, two = pool.upstreams
    assert [affinity.candidates(0.0, pool, "")[0] for _ in range(4)] == [one, two, one, two]
