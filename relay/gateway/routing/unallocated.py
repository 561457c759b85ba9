"""Flows without an allocation: each holds a UDP socket and carries nothing, so one source may have only so many.

TURN is carried as it is, and nobody tells control of an allocation. So the plane is asked when a source has reached its
bound, and then about its oldest flows: those of a client that works have their allocation by then.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from relay.addresses import source_of
from relay.plane.api import ConnectionId

# Flows that the plane is asked about when another one comes. More than one, so that a source with many calls is soon
# known for what it is; few, because a client that floods makes the relay ask each time.
ASKED_AT_ONCE = 16


class Unallocated:
    """The flows of each source that may be without an allocation.

    ``carries`` asks the plane about one. For hosts that are exempt nothing is counted.
    """

    def __init__(self, carries: Callable[[ConnectionId], bool], is_exempt: Callable[[str], bool]) -> None:
        self.bound = 0  # for each source; 0 for none
        self._carries = carries
        self._is_exempt = is_exempt
        self._sources: dict[ConnectionId, str] = {}
        # The oldest first, by when they came or when the plane was last asked.
        self._flows: dict[str, dict[ConnectionId, None]] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def enter(self, connection: ConnectionId, host: str) -> bool:
        """Count a flow that begins. Returns False if its source has too many that have no allocation."""
        if not self.bound or self._is_exempt(host):
            return True
        source = source_of(host)
        flows = self._flows.get(source, {})
        if len(flows) >= self.bound:
            self._ask(flows)
        if len(flows) >= self.bound:
            return False
        self._flows.setdefault(source, {})[connection] = None
        self._sources[connection] = source
        return True

    def _ask(self, flows: dict[ConnectionId, None]) -> None:
        for connection in list(islice(flows, ASKED_AT_ONCE)):
            del flows[connection]
            if self._carries(connection):
                del self._sources[connection]
            else:
                flows[connection] = None

    def leave(self, connection: ConnectionId) -> None:
        """A connection has ended. May be repeated."""
        source = self._sources.pop(connection, None)
        if source is not None:
            flows = self._flows[source]
            del flows[connection]
            if not flows:
                del self._flows[source]
