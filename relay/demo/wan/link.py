"""One direction of a link, as a model without I/O or clock: a bounded queue, a rate, then loss, delay and jitter.

A packet's life: it waits in the queue, tail drop beyond the bound; it is sent at the link's rate, one after the other,
but not while the link is stalled; then it may be lost; then it is on the way, and arrives after those before it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Link:
    """What a direction does to packets. Sizes are of IP packets, with all headers from IP on.

    ``jitter_s`` adds a random time up to it to the delay; order is kept. ``loss`` is a probability. ``rate_bps`` is in
    bits a second, None for no limit. ``queue_bytes`` bounds what waits to be sent: a router's tail drop.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    rate_bps: float | None = None
    queue_bytes: int = 256 * 1024

    def __post_init__(self) -> None:
        if min(self.delay_s, self.jitter_s) < 0 or not 0 <= self.loss <= 1 or self.queue_bytes < 0:
            raise ValueError(f"no link is like this: {self}")
        if self.rate_bps is not None and self.rate_bps <= 0:
            raise ValueError(f"a rate of {self.rate_bps} bit/s carries nothing; stall the link instead")


@dataclass(slots=True)
class LinkCounters:
    """What became of packets: those that came in were delivered, lost or dropped, or are still inside."""

    packets_in: int = 0
    bytes_in: int = 0
    delivered_packets: int = 0
    delivered_bytes: int = 0
    lost_packets: int = 0  # by chance
    dropped_packets: int = 0  # for want of room in the queue
    queued_bytes: int = 0  # now
    max_queued_bytes: int = 0


@dataclass(slots=True)
class LinkModel:
    """Time in seconds is an argument and must not go back. The same seed decides the same for the Nth packet sent.

    Packets that are sent while there is no loss do not count for that.
    """

    link: Link
    seed: int = 0
    counters: LinkCounters = field(default_factory=LinkCounters)
    _queue: deque[tuple[float, bytes]] = field(default_factory=deque)  # (came, packet)
    _on_the_way: deque[tuple[float, bytes]] = field(default_factory=deque)  # (arrives, packet)
    _free_at: float = -math.inf  # when the last packet had been sent
    _stalled_until: float = -math.inf
    _loss: random.Random = field(init=False)
    # Apart, so that the fate of a packet does not depend on whether there is jitter.
    _jitter: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._loss, self._jitter = random.Random(self.seed), random.Random(self.seed)  # noqa: S311

    def offer(self, packet: bytes, now: float) -> None:
        """A packet comes in."""
        self._advance(now)
        counters = self.counters
        counters.packets_in += 1
        counters.bytes_in += len(packet)
        if counters.queued_bytes + len(packet) > self.link.queue_bytes:
            counters.dropped_packets += 1
            return
        self._queue.append((now, packet))
        counters.queued_bytes += len(packet)
        counters.max_queued_bytes = max(counters.max_queued_bytes, counters.queued_bytes)

    def take(self, now: float) -> list[bytes]:
        """The packets that have arrived by now."""
        self._advance(now)
        arrived = []
        while self._on_the_way and self._on_the_way[0][0] <= now:
            arrived.append(self._on_the_way.popleft()[1])
        self.counters.delivered_packets += len(arrived)
        self.counters.delivered_bytes += sum(map(len, arrived))
        return arrived

    def next_deadline(self) -> float:
        """When to call ``take``; infinite if nothing will happen by itself."""
        arrival = self._on_the_way[0][0] if self._on_the_way else math.inf
        return min(arrival, self._head_sent_at() if self._queue else math.inf)

    def change(self, link: Link, now: float) -> None:
        """Be another link from now on; what is on the way arrives as it would have."""
        self._advance(now)
        self.link = link

    def stall(self, seconds: float, now: float) -> None:
        """Send nothing for this long, ``math.inf`` until ``release``. What is being sent now is sent again."""
        self._advance(now)
        self._stalled_until = max(self._stalled_until, now + seconds)

    def release(self, now: float) -> None:
        """End a stall."""
        self._advance(now)
        self._stalled_until = min(self._stalled_until, now)

    def _head_sent_at(self) -> float:
        came, packet = self._queue[0]
        begins = max(came, self._free_at, self._stalled_until)
        return begins if self.link.rate_bps is None else begins + 8 * len(packet) / self.link.rate_bps

    def _advance(self, now: float) -> None:
        """Send what is sent by now."""
        while self._queue and (sent_at := self._head_sent_at()) <= now:
            _, packet = self._queue.popleft()
            self.counters.queued_bytes -= len(packet)
            self._free_at = sent_at
            if self.link.loss and self._loss.random() < self.link.loss:
                self.counters.lost_packets += 1
                continue
            arrives = sent_at + self.link.delay_s + self.link.jitter_s * self._jitter.random()
            if self._on_the_way:
                arrives = max(arrives, self._on_the_way[-1][0])
            self._on_the_way.append((arrives, packet))
