"""Which upstream holds a socket.io session, and so whom to ask for a request of that session."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from zlib import crc32

from relay.gateway.routing.upstreams import Health
from relay.gateway.signaling.pools import Pool, SignalingUpstream


class Affinity:
    """A table of socket.io sessions; it is bounded, and sessions that are not used are forgotten after ``idle_s``.

    The oldest are forgotten first when the table is full. ``now`` is in seconds of any clock that goes forward.
    """

    def __init__(self) -> None:
        self.max_sessions = 1
        self.idle_s = 1.0
        self._held: OrderedDict[tuple[str, str, str], tuple[SignalingUpstream, float]] = OrderedDict()
        self._turns = itertools.count()

    def __len__(self) -> int:
        return len(self._held)

    def learn(self, now: float, pool: Pool, sid: str, upstream: SignalingUpstream) -> None:
        """An upstream has opened a session, or has been asked for it."""
        key = pool.key_of(sid)
        self._held[key] = (upstream, now + self.idle_s)
        self._held.move_to_end(key)
        while len(self._held) > self.max_sessions or next(iter(self._held.values()))[1] <= now:
            self._held.popitem(last=False)

    def find(self, now: float, pool: Pool, sid: str) -> SignalingUpstream | None:
        """The upstream that holds the session, if it is known and still in the pool."""
        held = self._held.get(pool.key_of(sid))
        if held is None or held[1] <= now or held[0] not in pool.upstreams:
            return None
        self.learn(now, pool, sid, held[0])
        return held[0]

    def forget(self, pool: Pool, sid: str) -> None:
        """The upstream that held the session has gone, and the session with it."""
        self._held.pop(pool.key_of(sid), None)

    def candidates(self, now: float, pool: Pool, sid: str) -> list[SignalingUpstream]:
        """All servers of the pool in the order in which to ask them. ``sid`` is empty for a request without a session.

        The holder of the session comes first. Any other server only tells the client to begin anew.
        """
        order = pool.order(next(self._turns))
        holder = self.find(now, pool, sid) if sid else None
        if holder is not None:
            if holder.health is Health.DOWN:
                self.forget(pool, sid)
            else:
                order.remove(holder)
                order.insert(0, holder)
        elif sid:
            # Nothing is known of a session that began before our start. At least all of its requests go the same way.
            order.sort(key=lambda one: (one.health is Health.DOWN, crc32(f"{sid} {one.url}".encode())))
        return order
