"""The body of a request on its way to the upstream. The answer may begin, and even end, before the body does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import ClientError, web

from relay import deadlines
from relay.config import SignalingSettings
from relay.gateway.signaling.connections import Lost, UpstreamConnection
from relay.gateway.signaling.http_rules import Accepted, BadRequest
from relay.tasks import Tasks


class Upload:
    """``start`` it with a connection; it ends by itself, and ``stop`` ends it at once.

    Each piece has deadlines of its own: ``body_timeout_s`` to come, ``response_timeout_s`` to be taken.
    """

    def __init__(self, request: web.BaseRequest, accepted: Accepted, settings: SignalingSettings) -> None:
        # What was wrong with the body. Then the connection is of no further use: the upstream has not seen an end.
        self.fault: BadRequest | None = None
        # The upstream has not taken the body in time.
        self.stalled = False
        self.complete = accepted.body_bytes == 0
        self.begun = False
        self._request = request
        self._accepted = accepted
        self._settings = settings
        self._tasks = Tasks()
        self._task: asyncio.Task[None] | None = None

    def start(self, connection: UpstreamConnection) -> None:
        """Send what comes, from now on."""
        if not self.complete:
            self._task = self._tasks.start(self._send(connection), "upload")

    @property
    def running(self) -> bool:
        """True while there is more to come."""
        return self._task is not None and not self._task.done()

    async def finish(self, *others: asyncio.Task[object]) -> None:
        """Wait until the body has gone, or cannot go; or until one of ``others`` is done."""
        if self._task is not None:
            await asyncio.wait({self._task, *others}, return_when=asyncio.FIRST_COMPLETED)

    async def stop(self) -> None:
        """Send no more."""
        await self._tasks.cancel()

    async def _send(self, connection: UpstreamConnection) -> None:
        chunked = self._accepted.body_bytes is None
        try:
            async for piece in self._pieces():
                connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                async with deadlines.timeout(self._settings.response_timeout_s):
                    await connection.drain()
            if chunked:
                connection.write(b"0\r\n\r\n")
            self.complete = True
        except BadRequest as fault:
            self.fault = fault
            connection.abort()
        except TimeoutError:
            self.stalled = True
            connection.abort()
        except Lost:
            pass  # the task that waits for the answer hears of it as well
        except BaseException:
            # ``Tasks`` logs the mistake. The exchange must not wait for the rest of the body meanwhile.
            connection.abort()
            raise

    async def _pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises BadRequest."""
        settings, sent = self._settings, 0
        # A client that has asked whether it may go on waits for the upstream first.
        wait_s = settings.body_timeout_s + (settings.response_timeout_s if self._accepted.expects else 0.0)
        try:
            while True:
                async with deadlines.timeout(wait_s):
                    piece = await self._request.content.readany()
                if not piece:
                    return
                self.begun, wait_s = True, settings.body_timeout_s
                sent += len(piece)
                if sent > settings.max_body_bytes:
                    raise BadRequest(413, f"the body is larger than {settings.max_body_bytes} bytes")
                yield piece
        except TimeoutError:
            raise BadRequest(408, "the body did not come in time") from None
        # aiohttp puts a ConnectionResetError into the body when the client's connection is lost.
        except (ClientError, ConnectionError, web.RequestPayloadError, ValueError) as error:
            raise BadRequest(400, f"the body is broken: {type(error).__name__}") from None
