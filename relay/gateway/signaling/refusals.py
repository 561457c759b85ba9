"""What the relay answers to a request by itself, instead of an upstream: pages that say why, counted by reason."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from aiohttp import web

from relay.gateway.lines import Lines
from relay.gateway.signaling.http_rules import BadRequest

# What engine.io servers answer to a request they do not understand; clients know it.
_ENGINEIO_BAD_REQUEST = '{"code":3,"message":"Bad request"}'


class RefusalReason(StrEnum):
    """Why the relay answered by itself."""

    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    NO_ROUTE = "no_route"
    NO_UPGRADE = "no_upgrade"
    POLLING_ONLY = "polling_only"
    NO_DESCRIPTORS = "no_descriptors"
    NO_MEMORY = "no_memory"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"


class Refusals:
    """Makes the pages. ``counts`` has how many there were for each reason."""

    def __init__(self, lines: Lines) -> None:
        self.counts: Counter[RefusalReason] = Counter()
        self._lines = lines

    def refuse(self, reason: RefusalReason, status: int, text: str) -> web.Response:
        """A plain page that says why. The connection ends with it, and what the client sent after it is not read."""
        return self._page(reason, status, f"{status}: {text}\n", "text/plain")

    def refuse_upgrade(self, reason: RefusalReason) -> web.Response:
        """The answer after which clients of socket.io stay with polling."""
        return self._page(reason, 400, _ENGINEIO_BAD_REQUEST, "application/json")

    def refuse_bad(self, refused: BadRequest, client: str, connection: str | None = None) -> web.Response:
        """The page for a request that is not forwarded. A line in the log says so, unless there have been many."""
        large = refused.status in {413, 414, 431}
        reason = RefusalReason.TOO_LARGE if large else RefusalReason.BAD_REQUEST
        self._lines.info(
            "signaling request refused",
            reason.value,
            connection=connection,
            cause=refused.reason,
            client=client,
            status=refused.status,
        )
        return self.refuse(reason, refused.status, refused.reason)

    def _page(self, reason: RefusalReason, status: int, text: str, content_type: str) -> web.Response:
        self.counts[reason] += 1
        response = web.Response(status=status, text=text, content_type=content_type)
        response.headers["Cache-Control"] = "no-store"
        response.force_close()
        return response
