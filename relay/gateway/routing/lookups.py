"""Looks names up as the system would, without a thread for each: c-ares asks, and each lookup ends at its deadline.

It reads /etc/hosts and /etc/resolv.conf, with search domains, and sees when they change. Of nsswitch.conf it knows
``files`` and ``dns``. It asks for every name that it is given: its callers judge which names are worth asking for.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

import aiodns
import pycares

from relay import deadlines
from relay.tasks import Tasks

# A resolver that takes longer is as good as none.
RESOLVE_TIMEOUT_S = 5.0
# The first wait for an answer. It doubles, so three of them end just before the deadline.
TRY_S = 0.7
TRIES = 3
# Lookups at once, by all services together. Each takes two queries of some kilobytes. A service may have fewer
# (``resolve``).
MAX_LOOKUPS = 256
# c-ares remembers answers for as long as they are valid, without a bound. It starts afresh after this many lookups.
MAX_REMEMBERED = 4096

Lookup = Callable[[str], Awaitable[Sequence[str]]]


class SystemLookup:
    """A Lookup: gives literal addresses, within RESOLVE_TIMEOUT_S. One serves a whole gateway; ``close`` it."""

    def __init__(self, nameservers: Sequence[str] = ()) -> None:
        """``nameservers`` are asked instead of the system's, as ``address:port``."""
        self._nameservers = list(nameservers)
        self._resolver: aiodns.DNSResolver | None = None
        self._asked = 0
        self._slots = asyncio.Semaphore(MAX_LOOKUPS)
        self._tasks = Tasks()

    async def __call__(self, host: str) -> list[str]:
        """The addresses of a name. Raises OSError; TimeoutError is one."""
        try:
            async with deadlines.timeout(RESOLVE_TIMEOUT_S), self._slots:
                found = await self._channel().getaddrinfo(host, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            code, text = error.args
            if code == aiodns.error.ARES_ETIMEOUT:
                raise TimeoutError(text) from None
            raise OSError(text) from None
        except pycares.AresError as error:  # it could not even begin: no memory, no descriptors
            raise OSError(str(error)) from None
        return [node.addr[0].decode() for node in found.nodes]

    def _channel(self) -> aiodns.DNSResolver:
        if self._resolver is not None and self._asked >= MAX_REMEMBERED:
            self._tasks.start(_retire(self._resolver), "lookups")
            self._resolver = None
        if self._resolver is None:
            self._asked = 0
            self._resolver = aiodns.DNSResolver(self._nameservers or None, timeout=TRY_S, tries=TRIES)
        self._asked += 1
        return self._resolver

    async def close(self) -> None:
        """End the lookups that still run. May be repeated."""
        await self._tasks.cancel()
        if self._resolver is not None:
            await self._resolver.close()
            self._resolver = None


async def _retire(resolver: aiodns.DNSResolver) -> None:
    """Close it once every lookup that it has begun has ended."""
    try:
        await asyncio.sleep(RESOLVE_TIMEOUT_S)
    finally:
        await resolver.close()
