"""c-ares as the system's resolver, against a DNS server on loopback and this machine's own /etc/hosts."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import aiodns
import pycares
import pytest

from relay.gateway.routing import lookups
from relay.gateway.routing.lookups import MAX_LOOKUPS, RESOLVE_TIMEOUT_S, TRIES, TRY_S, SystemLookup
from tests.support.peers.dns import dns_server
from tests.support.waiting import eventually

NAMES = {
    "server.test": ["192.0.2.7", "192.0.2.8"],
    "six.test": ["2001:db8::7"],
    "both.test": ["192.0.2.9", "2001:db8::9"],
}


@contextlib.asynccontextmanager
async def looking_up(*nameservers: str) -> AsyncIterator[SystemLookup]:
    lookup = SystemLookup(nameservers)
    try:
        yield lookup
    finally:
        await lookup.close()


async def test_names_of_either_family() -> None:
    async with dns_server(NAMES) as server, looking_up(server.address) as lookup:
        assert sorted(await lookup("server.test")) == ["192.0.2.7", "192.0.2.8"]
        assert await lookup("six.test") == ["2001:db8::7"]
        assert sorted(await lookup("both.test")) == ["192.0.2.9", "2001:db8::9"]
        assert set(server.asked) == set(NAMES)


async def test_a_name_that_nobody_knows() -> None:
    async with dns_server() as server, looking_up(server.address) as lookup:
        with pytest.raises(OSError, match="not found") as raised:
            await lookup("nowhere.test")
        assert not isinstance(raised.value, TimeoutError)


def hosts() -> list[tuple[str, str]]:
    """(name, address) of this machine's /etc/hosts."""
    found = []
    for line in Path("/etc/hosts").read_text(encoding="ascii", errors="ignore").splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        found += [(name, address) for name in names]
    return found


async def test_etc_hosts_is_read_first() -> None:
    """No DNS server is asked for a name that stands there."""
    named = [(name, address) for name, address in hosts() if not name.startswith(("ip6-", "localhost"))]
    async with dns_server() as server, looking_up(server.address) as lookup:
        assert all(ipaddress.ip_address(one).is_loopback for one in await lookup("localhost"))
        for name, address in named:
            assert address in await lookup(name)
        assert not server.asked


async def test_a_server_that_is_gone_or_silent_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async with looking_up("127.0.0.1:1") as lookup:
        with pytest.raises(OSError, match="not contact"):
            await lookup("server.test")
        assert await lookup("localhost")
    monkeypatch.setattr(lookups, "TRY_S", 0.05)
    async with dns_server() as server, looking_up(server.address) as lookup:
        with pytest.raises(TimeoutError):
            await lookup("a.slow")
        # Both families, sent again.
        assert len(server.asked) > 2
    # What c-ares does by itself fits into the deadline.
    assert sum(TRY_S * 2**number for number in range(TRIES)) <= RESOLVE_TIMEOUT_S


async def test_a_deadline_that_c_ares_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "RESOLVE_TIMEOUT_S", 0.05)
    async with dns_server(NAMES) as server, looking_up(server.address) as lookup:
        with pytest.raises(TimeoutError):
            await lookup("a.slow")
        monkeypatch.undo()
        assert await lookup("six.test")


async def test_slow_names_take_no_thread_and_leave_room() -> None:
    async with dns_server(NAMES) as server, looking_up(server.address) as lookup:
        assert await lookup("six.test")
        threads = threading.active_count()
        slow = [asyncio.ensure_future(lookup(f"n{number}.slow")) for number in range(MAX_LOOKUPS - 1)]
        waiting = [asyncio.ensure_future(lookup("server.test")) for _ in range(3)]
        done, _ = await asyncio.wait([*slow, *waiting], return_when=asyncio.FIRST_COMPLETED)
        assert done <= set(waiting)
        assert threading.active_count() == threads
        for one in slow:
            one.cancel()
        for one in waiting:
            assert sorted(await one) == ["192.0.2.7", "192.0.2.8"]
        await asyncio.wait(slow)


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """c-ares would keep every answer; descriptors and lookups of the resolver before end with it."""
    monkeypatch.setattr(lookups, "MAX_REMEMBERED", 3)
    monkeypatch.setattr(lookups, "RESOLVE_TIMEOUT_S", 0.5)
    async with dns_server(NAMES) as server, looking_up(server.address) as lookup:
        slow = asyncio.ensure_future(lookup("a.slow"))
        await asyncio.gather(*(lookup("six.test") for _ in range(20)))
        # 21 lookups, three each: the last resolver is in use.
        assert len(lookup._tasks) == 6
        with pytest.raises(TimeoutError):
            await slow
        await lookup._tasks.finish()


async def test_a_resolver_that_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pycares.AresError("Failed to initialize c-ares channel")

    async with looking_up() as lookup:
        with monkeypatch.context() as patched:
            patched.setattr(aiodns, "DNSResolver", fail)
            with pytest.raises(OSError, match="Failed to initialize"):
                await lookup("localhost")
        assert await lookup("localhost")


async def test_close_ends_lookups_and_may_be_repeated() -> None:
    async with dns_server() as server:
        lookup = SystemLookup([server.address])
        await lookup.close()
        slow = asyncio.ensure_future(lookup("a.slow"))
        await eventually(lambda: server.asked)
        await lookup.close()
        await lookup.close()
        with pytest.raises(OSError, match="cancel"):
            await slow
