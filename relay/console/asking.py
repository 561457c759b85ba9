"""Asks the admin listener of a running relay, and says in words what is wrong if there is no answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from relay.console.listener import WITHOUT_TOKEN, AdminListener
from relay.errors import OperatorError

# The listener is near, and answers in milliseconds.
TIMEOUT_S = 5.0
# At most this much of an error is shown.
MAX_REASON_BYTES = 4096
# To prevent DNS rebinding, the listener answers to few names (421).
OTHER_NAME = "use an address, or add it to listen.admin_hosts"
_IS_IT_THE_RELAY = "is this the relay's admin listener?"

Json = dict[str, Any]


def open_client(listener: AdminListener, timeout_s: float = TIMEOUT_S) -> aiohttp.ClientSession:
    """A client for the listener, to be closed. Each answer has this long. Needs a running loop."""
    return listener.open(aiohttp.ClientTimeout(total=timeout_s))


async def get(
    http_client: aiohttp.ClientSession, listener: AdminListener, path: str, query: Mapping[str, str], expected: str
) -> Json:
    """The JSON at this path; ``expected`` is a key that it must have. Raises OperatorError if there is none."""
    url = listener.shown(path)
    try:
        async with http_client.get(listener.url_of(path), params=query) as answer:
            if answer.status == 421:
                raise OperatorError(f"{url} does not answer to this name: {OTHER_NAME}")
            if answer.status != 200:
                raise OperatorError(f"{url} answers {answer.status}: {await reason_of(answer)}")
            found = await answer.json()
    except TimeoutError:
        raise OperatorError(f"{url} does not answer within {http_client.timeout.total or 0:g} s") from None
    except (aiohttp.ClientError, ValueError) as error:
        raise OperatorError(f"{url} cannot be read ({error}): is the relay running, and listen.admin there?") from None
    if not isinstance(found, dict) or expected not in found:
        raise OperatorError(f"{url} answers something else: {_IS_IT_THE_RELAY}")
    return found


async def reason_of(answer: aiohttp.ClientResponse) -> str:
    """What an answer says of an error, or a guess."""
    if answer.status == 401:
        return WITHOUT_TOKEN
    told: object = None
    with contextlib.suppress(ValueError, aiohttp.ClientError):
        body = await answer.content.read(MAX_REASON_BYTES)
        told = json.loads(body)
    if isinstance(told, dict) and isinstance(told.get("error"), str):
        return str(told["error"])
    return _IS_IT_THE_RELAY
