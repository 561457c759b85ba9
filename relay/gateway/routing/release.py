"""Releases the allocations of clients that vanished, where the upstream's shared secret is known.

Without it an upstream holds such an allocation for up to ten minutes, and a login storm leaves thousands.
"""

from __future__ import annotations

import socket
import time

from relay.client.turn import take_turn_udp
from relay.errors import UpstreamError
from relay.gateway.lines import Lines
from relay.gateway.routing.health import credentials_for
from relay.gateway.routing.upstreams import UpstreamState
from relay.plane.api import AllocationOrphaned
from relay.tasks import Tasks
from relay.wire.stun import AttributeType, StunError, parse_message

# At the same time. A whole floor that loses its network leaves a few hundred allocations. Those beyond this bound end
# by themselves.
MAX_RELEASES = 512
RELEASE_TIMEOUT_S = 2.0
# For each upstream, because clients can leave allocations behind as often as they like.
LINES_PER_S = 5


class AllocationReleaser:
    """Owns the sockets that it is given until the upstream has answered, or has not answered in time."""

    def __init__(self) -> None:
        self._tasks = Tasks()
        self._lines = Lines(LINES_PER_S)

    def release(self, orphan: AllocationOrphaned, state: UpstreamState | None) -> None:
        """Send Refresh with lifetime 0 in the client's name, over the flow's own socket; closes the socket."""
        left_behind = socket.socket(fileno=orphan.fd)
        username = _username(orphan.request)
        if state is None or state.settings.secret is None or not username:
            left_behind.close()
            return
        self.release_own(left_behind, *credentials_for(state.settings, username, time.time()), state.name)

    def release_own(self, left_behind: socket.socket, username: str, password: str, upstream: str) -> None:
        """The same with credentials that are known; closes the socket."""
        if len(self._tasks) >= MAX_RELEASES:
            left_behind.close()
            return
        left_behind.setblocking(False)
        self._tasks.start(self._release(left_behind, (username, password), upstream), "release")

    async def _release(self, left_behind: socket.socket, credentials: tuple[str, str], upstream: str) -> None:
        turn = take_turn_udp(left_behind, *credentials, timeout_s=RELEASE_TIMEOUT_S)
        try:
            await turn.refresh(0)
        except UpstreamError as error:
            self._lines.info("allocation not released", upstream, upstream=upstream, cause=str(error))
        finally:
            await turn.close(release=False)

    async def stop(self) -> None:
        """Wait for the releases under way; each has a deadline."""
        await self._tasks.finish()


def _username(request: bytes) -> str:
    try:
        return parse_message(request).text(AttributeType.USERNAME) or ""
    except StunError:
        return ""
