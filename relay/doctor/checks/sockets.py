"""Checks of socket.io and WebSocket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relay.doctor.checks.base import Check, Remedy, areas_of
from relay.doctor.plan import Plan
from relay.doctor.report import Actor, Item, Status
from relay.doctor.seen import DIRECT, Frames, Seen, Step, Untested, WebSocketSeen

# What is reported by the checks of proxies and of TLS.
_EARLIER = frozenset({Step.NAME, Step.TCP, Step.PROXY, Step.TLS})


class SocketIoPolling(Check):
    """Signaling works by polling.

    **Tested:** the first poll of socket.io at every signaling host, which a server answers at once.

    **Why:** socket.io begins with polling, and stays there if WebSocket does not pass. Without it there is no
    signaling: no line rings.

    **Change:** let requests to `/socket.io/` pass, with their query and without caching.
    """

    code = "SOCKETIO-POLLING"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each signaling host that was reached."""
        for each in seen.polling:
            if each.failure is None:
                yield self.item(each.site, areas_of(plan, each.site), Status.OK, each.way)
            elif each.failure.step not in _EARLIER:
                yield self.item(each.site, areas_of(plan, each.site), Status.FAILED, each.failure.text)

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The proxy, if there is one."""
        who = Actor.WEB_PROXY if any(one.way != DIRECT for one in seen.polling) else Actor.VENDOR
        return Remedy(who, "Let requests to /socket.io/ pass unchanged, with their query and uncached.")


class WebSocketUpgrade(Check):
    """WebSockets are opened.

    **Tested:** the upgrade to WebSocket at every signaling host, and at the relay if one is named.

    **Why:** proxies that inspect TLS often drop the Upgrade header, or answer it themselves. socket.io then stays
    with polling, which works, with more delay. Voice over WebSocket does not work at all.

    **Change:** let the web proxy pass `Upgrade: websocket` for these names, or exempt them from TLS inspection.
    """

    code = "WEBSOCKET-UPGRADE"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each WebSocket that was asked for."""
        for each in seen.websockets:
            areas = areas_of(plan, each.site)
            if each.failure is None:
                yield self.item(each.site, areas, Status.OK, each.way)
            elif each.failure.step not in _EARLIER:
                status = Status.WARNING if goes_otherwise(seen, each) else Status.FAILED
                yield self.item(each.site, areas, status, each.failure.text)

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The proxy, seen or unseen, that changes requests."""
        return Remedy(
            Actor.WEB_PROXY,
            "Pass the headers Upgrade and Connection for these names, or exempt the names from TLS inspection.",
        )


class WebSocketFrames(Check):
    """Frames of WebSockets pass in both directions, at once.

    **Tested:** a question over each WebSocket whose answer is known. If none comes, pings fill both directions: an
    answer that comes only then was held back in a buffer.

    **Why:** some proxies pass the 101, and swallow what follows, or hold it until 4 KiB have gathered. A client
    then believes that it is connected, and hears nothing.

    **Change:** switch off buffering and scanning of WebSocket traffic for these names, or exempt them from TLS
    inspection.
    """

    code = "WEBSOCKET-FRAMES"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each WebSocket that was opened."""
        for each in seen.websockets:
            if each.frames is None:
                continue
            if each.frames is Frames.BOTH_WAYS:
                yield self.item(each.site, areas_of(plan, each.site), Status.OK, f"frames {each.frames}")
                continue
            # socket.io probes a WebSocket before it leaves polling. A carrier of voice cannot do that.
            status = Status.WARNING if goes_otherwise(seen, each) else Status.FAILED
            yield self.item(each.site, areas_of(plan, each.site), status, f"frames {each.frames}")

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The proxy that scans."""
        return Remedy(
            Actor.WEB_PROXY,
            "Do not buffer or scan WebSocket traffic of these names, or exempt the names from TLS inspection.",
        )


def goes_otherwise(seen: Seen, socket: WebSocketSeen) -> bool:
    """Whether there is another way than this WebSocket: polling, or another carrier of the relay."""
    if any(one.site == socket.site and one.failure is None for one in seen.polling):
        return True
    if isinstance(seen.carriers, Untested) or any(one.site == socket.site for one in seen.polling):
        return False
    return any(one.answered for one in seen.carriers)
