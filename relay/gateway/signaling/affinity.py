"""Which upstream holds a socket.io session, and so whom to ask for a request of that session.

In a cluster the other relays are told, because the client's next request may reach one of them, and they are asked for
a session that is not known here.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import NamedTuple
from zlib import crc32

from relay.gateway.cluster.sessions import SharedSessions
from relay.gateway.routing.upstreams import Health
from relay.gateway.signaling.pools import Pool, SignalingUpstream


class _Held(NamedTuple):
    """A session: who holds it, until when that is remembered, and when the other relays are to be told again."""

    upstream: SignalingUpstream
    until: float
    tell_at: float


class Affinity:
    """A table of socket.io sessions; it is bounded, and sessions that are not used are forgotten after ``idle_s``.

    The oldest are forgotten first when the table is full. ``now`` is in seconds of any clock that goes forward.
    """

    def __init__(self, shared: SharedSessions | None = None) -> None:
        """``shared`` are the sessions of other relays."""
        self.max_sessions = 1
        self.idle_s = 1.0
        self._shared = shared
        self._held: OrderedDict[tuple[str, str, str], _Held] = OrderedDict()
        self._turns = itertools.count()

    def __len__(self) -> int:
        return len(self._held)

    def learn(self, now: float, pool: Pool, sid: str, upstream: SignalingUpstream) -> None:
        """An upstream has opened a session, or has been asked for it."""
        key = pool.key_of(sid)
        before = self._held.get(key)
        tell_at = now if before is None or before.upstream is not upstream else before.tell_at
        self._held[key] = _Held(upstream, now + self.idle_s, tell_at)
        self._held.move_to_end(key)
        while len(self._held) > self.max_sessions or next(iter(self._held.values())).until <= now:
            self._held.popitem(last=False)

    async def tell(self, now: float, pool: Pool, sid: str) -> None:
        """Tell the other relays who holds a session, if they do not know, or would forget it soon."""
        key = pool.key_of(sid)
        held = self._held.get(key)
        # Where there is only one server, nothing depends on it.
        if self._shared is None or held is None or now < held.tell_at or len(pool.upstreams) == 1:
            return
        # They remember it for twice as long.
        self._held[key] = held._replace(tell_at=now + self.idle_s)
        await self._shared.keep(key, held.upstream.url, 2 * self.idle_s)

    async def look_up(self, now: float, pool: Pool, sid: str) -> None:
        """Ask the other relays who holds a session that is not known here."""
        if self._shared is None or not sid or len(pool.upstreams) == 1 or self.find(now, pool, sid) is not None:
            return
        urls = {one.url: one for one in pool.upstreams}
        url = await self._shared.find(pool.key_of(sid), urls)
        if url is not None and self.find(now, pool, sid) is None:
            self.learn(now, pool, sid, urls[url])

    def find(self, now: float, pool: Pool, sid: str) -> SignalingUpstream | None:
        """The upstream that holds the session, if it is known and still in the pool."""
        held = self._held.get(pool.key_of(sid))
        if held is None or held.until <= now or held.upstream not in pool.upstreams:
            return None
        self.learn(now, pool, sid, held.upstream)
        return held.upstream

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
