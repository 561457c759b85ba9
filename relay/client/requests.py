"""Requests that are awaited. Until it is answered, each is known by its method and its peers."""

from __future__ import annotations

import asyncio

from relay import deadlines
from relay.addresses import Address
from relay.errors import UpstreamError
from relay.turn.events import Event, RequestFailed
from relay.wire.stun import Method

Key = tuple[Method, tuple[Address, ...]]


class TurnRequestError(UpstreamError):
    """A request was refused (``code`` is from ERROR-CODE, 300 to 699) or has failed in another way (``code`` is 0).

    ``answered`` is true if the server sent an answer, even a malformed one. ``alternate`` is the server that a 300 (Try
    Alternate) names, if it names one.
    """

    def __init__(
        self, method: Method, code: int, reason: str, *, answered: bool = False, alternate: Address | None = None
    ) -> None:
        super().__init__(f"{method.name}: {code} {reason}" if code else f"{method.name}: {reason}")
        self.method = method
        self.code = code
        self.reason = reason
        self.answered = answered
        self.alternate = alternate


class AwaitedRequests:
    """The futures that are waited for. Requests with the same key share the first answer, which is true for all."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Key, list[asyncio.Future[Event]]] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting

    def add(self, key: Key) -> asyncio.Future[Event]:
        """A future for ``wait``. Make it before the request is sent, so that no answer is missed."""
        answer: asyncio.Future[Event] = self._loop.create_future()
        self._waiting.setdefault(key, []).append(answer)
        return answer

    async def wait(self, key: Key, answer: asyncio.Future[Event], timeout_s: float) -> Event:
        """The answer. Raises TurnRequestError if the request fails, or is not answered within ``timeout_s``."""
        try:
            async with deadlines.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise TurnRequestError(key[0], 0, f"no answer within {timeout_s:g} s") from None
        finally:
            self._waiting[key].remove(answer)
            if not self._waiting[key]:
                del self._waiting[key]

    def answer(self, key: Key, event: Event) -> None:
        """Give this answer to all that wait for it."""
        for answer in self._waiting.get(key, ()):
            if not answer.done():
                answer.set_result(event)

    def fail(self, failed: RequestFailed) -> None:
        """Raise TurnRequestError in all that wait for this."""
        for answer in self._waiting.get((failed.method, failed.peers), ()):
            if not answer.done():
                answer.set_exception(
                    TurnRequestError(
                        failed.method,
                        failed.code,
                        failed.reason,
                        answered=failed.answered,
                        alternate=failed.alternate,
                    )
                )

    def fail_all(self, reason: str, cause: Exception | None = None) -> None:
        """Raise TurnRequestError, from ``cause`` if there is one, in all that wait for anything."""
        for (method, _), answers in self._waiting.items():
            for answer in answers:
                if not answer.done():
                    error = TurnRequestError(method, 0, reason)
                    error.__cause__ = cause
                    answer.set_exception(error)
