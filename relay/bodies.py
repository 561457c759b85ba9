"""Bodies of HTTP: of requests, for all servers of ours, and of the answers that our clients get."""

from __future__ import annotations

from aiohttp import ClientResponse, web


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


async def read_body(response: ClientResponse, most_bytes: int) -> bytes:
    """The body of an answer with status 200, of at most so many bytes. Raises ValueError for any other answer."""
    if response.status != 200:
        raise ValueError(f"expected status 200, but it is {response.status}")
    content = b""
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > most_bytes:
            raise ValueError(f"expected an answer of at most {most_bytes} bytes")
    return content
