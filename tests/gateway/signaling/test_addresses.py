"""Which addresses the name of an upstream may resolve to, and for how long an answer is used."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest

from relay.addresses import Address, canonical_host
from relay.gateway.routing import resolve
from relay.gateway.routing.resolve import MAX_OF_SOURCE, ResolveError
from relay.gateway.signaling import addresses
from relay.gateway.signaling.addresses import Addresses

SPECIAL = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "fc00::1",
    "fe80::1",
    "ff02::1",
]


def resolving(*answers: list[str]) -> Addresses:
    """Names resolve to these, one answer after the other."""
    left = list(answers)

    async def lookup(_: str) -> list[str]:
        return left.pop(0)

    return Addresses(lookup)


async def hosts_of(resolving: Addresses, host: str = "a.test") -> list[str]:
    return [found.host for found in await resolving.find(Address(host, 80))]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is used twice."""
    monkeypatch.setattr(addresses, "RESOLVED_FOR_S", 0.0)


@pytest.mark.parametrize("host", SPECIAL)
@pytest.mark.usefixtures("impatient")
async def test_names_of_special_addresses_are_refused(host: str) -> None:
    resolver = resolving([host], [host, "8.8.8.8"], [host])
    with pytest.raises(ResolveError, match="allowed_networks"):
        await hosts_of(resolver)
    # Only what was checked is connected to.
    assert await hosts_of(resolver) == ["8.8.8.8"]
    resolver.configure([ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")])
    assert await hosts_of(resolver) == [canonical_host(ipaddress.ip_address(host))]


@pytest.mark.usefixtures("impatient")
async def test_answer_that_changes_after_the_check_is_not_used() -> None:
    resolver = resolving(["8.8.8.8"], ["127.0.0.1"])
    [found] = await resolver.find(Address("a.test", 80))
    # Numbers, which are connected to without another look-up.
    assert found == Address("8.8.8.8", 80)
    assert found.is_literal
    with pytest.raises(ResolveError, match="allowed_networks"):
        await hosts_of(resolver)


async def test_names_of_both_families() -> None:
    both = ["8.8.8.8", "2001:4860:4860::8888"]
    assert await hosts_of(resolving(both)) == both
    assert await hosts_of(resolving(both[::-1])) == both[::-1]


async def test_resolver_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(_: str) -> list[str]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(resolve, "RESOLVE_TIMEOUT_S", 0.05)
    with pytest.raises(ResolveError, match="no answer within"):
        await hosts_of(Addresses(lookup))


async def test_an_answer_is_used_until_the_networks_change() -> None:
    resolver = resolving(["8.8.8.8"], ["9.9.9.9"])
    assert await hosts_of(resolver) == ["8.8.8.8"]
    assert await hosts_of(resolver) == ["8.8.8.8"]
    resolver.configure([])
    assert await hosts_of(resolver) == ["9.9.9.9"]


async def test_a_literal_address_is_the_operators_own_word() -> None:
    assert await hosts_of(resolving(), "127.0.0.1") == ["127.0.0.1"]


async def test_names_that_hang_leave_room_for_others() -> None:
    """However many names of upstreams are not answered, the next one is asked for."""
    asked = asyncio.Event()

    async def lookup(host: str) -> list[str]:
        if host == "answers.test":
            asked.set()
            return ["8.8.8.8"]
        await asyncio.Event().wait()
        return []

    resolver = Addresses(lookup)
    hanging = [asyncio.ensure_future(hosts_of(resolver, f"{number}.hangs.test")) for number in range(2 * MAX_OF_SOURCE)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(hosts_of(resolver, "answers.test"), 1.0) == ["8.8.8.8"]
    assert asked.is_set()
    for one in hanging:
        one.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
