"""The tap of the reference plane: copies of a flow's datagrams. Its bounds are the ones in ``tap.pxd``."""

from __future__ import annotations

import time
from collections import deque

from relay.addresses import Address
from relay.plane.api import Upstream
from relay.plane.taps import TappedDatagram
from relay.quality.stream import Direction

MAX_WAITING_BYTES = 1 << 20
# What a copy costs in addition to its bytes.
RECORD_BYTES = 24


class FlowTap:
    """Both ends of the tap: the flow puts and ends, control takes and closes."""

    def __init__(self, client: Address, server_name: str, upstream: Upstream) -> None:
        self.client = client
        self.server_name = server_name
        self.upstream = upstream
        self.missed = 0
        self.ended = False
        self._waiting: deque[TappedDatagram] = deque()
        self._waiting_bytes = 0
        self._missed_told = 0

    def put(self, direction: Direction, local: Address, data: bytes) -> None:
        """Copy one datagram, or count it if there is no room."""
        if self.ended:
            return
        if self._waiting_bytes + RECORD_BYTES + len(data) > MAX_WAITING_BYTES:
            self.missed += 1
            return
        missed, self._missed_told = self.missed - self._missed_told, self.missed
        self._waiting.append(TappedDatagram(time.monotonic_ns() // 1000, direction, local, missed, data))
        self._waiting_bytes += RECORD_BYTES + len(data)

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = True

    def take(self, limit: int) -> list[TappedDatagram]:
        """What has come, in order, at most this many."""
        taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        self._waiting_bytes -= sum(RECORD_BYTES + len(one.data) for one in taken)
        return taken

    def close(self) -> None:
        """Copy no more. May be repeated."""
        self.ended = True
        self._waiting.clear()
        self._waiting_bytes = 0
