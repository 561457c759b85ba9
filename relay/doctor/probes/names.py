"""Looks names up, in DNS and /etc/hosts, without a thread that could hang."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping

import aiodns
import pycares

from relay import deadlines
from relay.doctor.seen import NameSeen

# The first wait for an answer; it doubles. With the deadline of a probe this is three tries.
TRY_S = 0.7
TRIES = 3
# Questions at once. A resolver at home drops more.
AT_ONCE = 20


async def look_up(names: Iterable[str], timeout_s: float, nameservers: tuple[str, ...] = ()) -> Mapping[str, NameSeen]:
    """What DNS says of each name. ``nameservers`` are asked instead of the system's, as ``address:port``."""
    resolver = aiodns.DNSResolver(list(nameservers) or None, timeout=TRY_S, tries=TRIES)
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> NameSeen:
        async with slots:
            return await _ask(resolver, name, timeout_s)

    wanted = list(dict.fromkeys(names))
    try:
        return dict(zip(wanted, await asyncio.gather(*map(one, wanted)), strict=True))
    finally:
        await resolver.close()


async def _ask(resolver: aiodns.DNSResolver, name: str, timeout_s: float) -> NameSeen:
    try:
        async with deadlines.timeout(timeout_s):
            found = await resolver.getaddrinfo(name, type=socket.SOCK_STREAM)
    except TimeoutError:
        return NameSeen(fault=f"DNS gives no answer within {timeout_s:g} s")
    except aiodns.error.DNSError as error:
        code, text = error.args
        return NameSeen(fault="DNS does not answer" if code == aiodns.error.ARES_ETIMEOUT else str(text))
    except pycares.AresError as error:
        return NameSeen(fault=str(error))
    addresses = dict.fromkeys(node.addr[0].decode() for node in found.nodes)
    return NameSeen(tuple(addresses)) if addresses else NameSeen(fault="DNS has no address of it")
