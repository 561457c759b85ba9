"""Bodies of HTTP requests, for all servers of ours."""

from __future__ import annotations

from aiohttp import web


class BodyFaults(web.RequestHandler):
    """aiohttp's connection. If a body turns out to be broken, its reader gets an error: it would wait for the rest."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        super().data_received(data)
        request = self._current_request
        if request is not None and not request.content.is_eof() and self._messages:
            # The body is not whole, so the next message can only be the fault that the parser has found in it.
            request.content.set_exception(web.RequestPayloadError("broken body"))
