"""Names to addresses: everything of the SSRF table is refused, in every spelling and behind every name."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import NEVER_RELAYED, Address, RelayPolicy
from relay.gateway.routing import resolve
from relay.gateway.routing.lookups import Lookup, SystemLookup
from relay.gateway.routing.resolve import (
    MAX_ANSWERS,
    MAX_OF_SERVICE,
    MAX_OF_SOURCE,
    ResolveError,
    ResolveFailure,
    Resolver,
)
from tests.support.ssrf_table import PERMITTED, PROHIBITED, PROHIBITED_LITERALS, PROHIBITED_SPELLINGS, FakeDns

DNS_ERROR, DNS_TIMEOUT = ResolveFailure.DNS_ERROR, ResolveFailure.DNS_TIMEOUT
PROHIBITED_IP = ResolveFailure.DESTINATION_IP_PROHIBITED
NAME = "stun.example.com"


def resolver(dns: Lookup | None = None, *allowed: str) -> Resolver:
    return Resolver(RelayPolicy(ipaddress.ip_network(one) for one in allowed), dns or FakeDns())


async def refusal(host: str, lookup: Lookup | None = None) -> ResolveError:
    with pytest.raises(ResolveError) as raised:
        await resolver(lookup).resolve(host, 443)
    return raised.value


# The table


def test_the_table_has_every_network() -> None:
    literals = {ipaddress.ip_address(text.partition("%")[0]) for text in PROHIBITED_LITERALS.values()}
    assert all(any(literal in network for literal in literals) for network in NEVER_RELAYED)
    assert len(PROHIBITED) > 200


@pytest.mark.parametrize("host", PROHIBITED.values(), ids=PROHIBITED)
async def test_what_a_client_writes_is_refused_without_a_lookup(host: str) -> None:
    dns = FakeDns()
    error = await refusal(host, dns)
    assert error.failure is PROHIBITED_IP
    assert error.status == 403
    assert error.proxy_status == "relay; error=destination_ip_prohibited"
    assert dns.asked == []


@pytest.mark.parametrize("answer", PROHIBITED_LITERALS.values(), ids=PROHIBITED_LITERALS)
async def test_a_name_that_resolves_to_it_is_refused(answer: str) -> None:
    error = await refusal(NAME, FakeDns({NAME: [[answer]]}))
    assert error.failure is PROHIBITED_IP
    assert error.refused == (answer,)


@pytest.mark.parametrize("answer", PROHIBITED_LITERALS.values(), ids=PROHIBITED_LITERALS)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
async def test_of_mixed_answers_it_is_left_out(answer: str, *, first: bool) -> None:
    answers = [answer, "8.8.8.8"] if first else ["8.8.8.8", answer]
    assert await resolver(FakeDns({NAME: [answers]})).resolve(NAME, 443) == [Address("8.8.8.8", 443)]


@pytest.mark.parametrize(("written", "connected"), PERMITTED.values(), ids=PERMITTED)
async def test_what_may_be_connected_to(written: str, connected: str) -> None:
    assert await resolver().resolve(written, 3478) == [Address(connected, 3478)]
    assert await resolver(FakeDns({NAME: [[written]]})).resolve(NAME, 3478) == [Address(connected, 3478)]


@pytest.mark.parametrize("text", PROHIBITED_SPELLINGS.values(), ids=PROHIBITED_SPELLINGS)
async def test_an_answer_that_is_no_literal_is_refused(text: str) -> None:
    assert (await refusal(NAME, FakeDns({NAME: [[text]]}))).failure is PROHIBITED_IP


@given(st.ip_addresses())
def test_what_comes_back_is_always_permitted(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    policy, failures = RelayPolicy(), set[ResolveFailure]()

    async def both() -> list[Address]:
        found: list[Address] = []
        for host in (str(address), NAME):
            try:
                found += await Resolver(policy, FakeDns({NAME: [[str(address)]]})).resolve(host, 1)
            except ResolveError as error:
                failures.add(error.failure)
        return found

    found = asyncio.run(both())
    assert all(one.is_literal and policy.permits(one.host) for one in found)
    assert failures <= {PROHIBITED_IP}
    assert len(found) == (2 if policy.permits(str(address)) else 0)


# Change between check and connect


async def test_an_answer_that_changes_is_judged_each_time_and_asked_once() -> None:
    dns = FakeDns({NAME: [["8.8.8.8"], ["127.0.0.1"], ["8.8.4.4"]]})
    names = resolver(dns)
    assert await names.resolve(NAME, 443) == [Address("8.8.8.8", 443)]
    assert dns.asked == [NAME]
    with pytest.raises(ResolveError):
        await names.resolve(NAME, 443)
    assert await names.resolve(NAME, 443) == [Address("8.8.4.4", 443)]
    assert dns.asked == [NAME] * 3


# What the operator lists


async def test_allowed_networks() -> None:
    allowed = resolver(FakeDns({NAME: [["10.1.2.3", "10.2.0.1", "::ffff:10.1.9.9"]]}), "10.1.0.0/16")
    assert await allowed.resolve(NAME, 443) == [Address("10.1.2.3", 443), Address("10.1.9.9", 443)]
    assert await allowed.resolve("10.1.0.1", 443) == [Address("10.1.0.1", 443)]
    with pytest.raises(ResolveError):
        await allowed.resolve("10.2.0.1", 443)


async def test_a_new_policy_counts_at_once() -> None:
    names = resolver()
    with pytest.raises(ResolveError):
        await names.resolve("127.0.0.1", 443)
    names.policy = RelayPolicy([ipaddress.ip_network("127.0.0.0/8")])
    assert await names.resolve("127.0.0.1", 443) == [Address("127.0.0.1", 443)]
    # Allowing IPv4 loopback allows neither its spellings nor ::1.
    with pytest.raises(ResolveError):
        await names.resolve("2130706433", 443)
    with pytest.raises(ResolveError):
        await names.resolve("::1", 443)


# Names that do not resolve


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "a" * 64 + ".test",
        "a." * 127 + "a",
        "a b",
        "a\x00b.test",
        "käse.test",
        "a..b",
        "[::1]",
        "a/b",
        "a@b",
        "\r\n",
    ],
    ids=repr,
)
async def test_what_is_no_name_is_never_asked_for(host: str) -> None:
    dns = FakeDns()
    error = await refusal(host, dns)
    assert error.failure is DNS_ERROR
    assert error.status == 502
    assert dns.asked == []
    assert str(error).isprintable()
    assert len(str(error)) < 200


async def test_a_name_that_does_not_exist_or_has_no_address() -> None:
    error = await refusal(NAME)
    assert error.failure is DNS_ERROR
    assert error.proxy_status == "relay; error=dns_error"
    assert "not known" in str(error)
    assert (await refusal(NAME, FakeDns({NAME: [[]]}))).failure is DNS_ERROR


async def test_the_final_dot_of_a_name() -> None:
    dns = FakeDns({"example.com.": [["8.8.8.8"]]})
    assert await resolver(dns).resolve("example.com.", 443) == [Address("8.8.8.8", 443)]


async def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "RESOLVE_TIMEOUT_S", 0.05)

    async def hang(_: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    error = await refusal(NAME, hang)
    assert error.failure is DNS_TIMEOUT
    assert error.status == 504
    assert error.proxy_status == "relay; error=dns_timeout"


# Bounds


async def test_of_many_answers_the_first_count() -> None:
    many = [f"8.8.{number}.1" for number in range(100)]
    assert len(await resolver(FakeDns({NAME: [many]})).resolve(NAME, 443)) == MAX_ANSWERS
    # The permitted one comes too late, and the error does not list them all.
    refused = await refusal(NAME, FakeDns({NAME: [["10.0.0.1"] * 1000 + ["8.8.8.8"]]}))
    assert len(refused.refused) == MAX_ANSWERS


async def test_an_answer_twice_is_one_address() -> None:
    dns = FakeDns({NAME: [["8.8.8.8", "8.8.8.8", "::ffff:8.8.8.8"]]})
    assert await resolver(dns).resolve(NAME, 443) == [Address("8.8.8.8", 443)]


class Held:
    """A lookup that answers when it is told to, unless the name is ``ready``."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.asked: list[str] = []
        self.go_on = asyncio.Event()

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if host == "ready.test":
            return ["8.8.8.8"]
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
        finally:
            self.running -= 1
        return ["8.8.4.4"]


async def settle() -> None:
    """Until everything that can go on has stopped."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_lookups_at_once_are_bounded_for_a_service() -> None:
    lookup = Held()
    names = resolver(lookup)
    sources = [f"192.0.2.{number}" for number in range(3 * MAX_OF_SERVICE)]
    waiting = asyncio.gather(*(names.resolve(f"{one}.test", 443, one) for one in sources))
    await settle()
    assert lookup.running == MAX_OF_SERVICE
    lookup.go_on.set()
    assert len(await waiting) == len(sources)
    assert lookup.most == MAX_OF_SERVICE
    assert not names._sources
    assert not names._asked


async def test_slow_names_of_one_client_leave_room_for_others() -> None:
    """Also for the same name, which waits for its turn with the one who asks for too many."""
    lookup = Held()
    names = resolver(lookup)
    slow = [asyncio.ensure_future(names.resolve(f"{number}.test", 443, "192.0.2.1")) for number in range(100)]
    late = asyncio.ensure_future(names.resolve("ready.test", 443, "192.0.2.1"))
    await settle()
    assert lookup.running == MAX_OF_SOURCE
    assert not late.done()
    assert await names.resolve("ready.test", 443, "192.0.2.2") == [Address("8.8.8.8", 443)]
    for one in slow:
        one.cancel()
    await asyncio.wait(slow)
    assert await late == [Address("8.8.8.8", 443)]
    assert not names._sources


async def test_all_addresses_of_an_ipv6_network_are_one_client() -> None:
    lookup = Held()
    names = resolver(lookup)
    slow = [
        asyncio.ensure_future(names.resolve(f"{n}.test", 443, f"2001:db8::{n:x}")) for n in range(3 * MAX_OF_SOURCE)
    ]
    await settle()
    assert lookup.running == MAX_OF_SOURCE
    assert await names.resolve("ready.test", 443, "2001:db8:0:1::1") == [Address("8.8.8.8", 443)]
    for one in slow:
        one.cancel()
    await asyncio.wait(slow)


async def test_clients_that_ask_for_the_same_name_share_a_lookup() -> None:
    """One slow name that a whole firm asks for, from the one address of its web proxy, leaves room for the others."""
    lookup = Held()
    names = resolver(lookup)
    waiting = [asyncio.ensure_future(names.resolve(NAME, 443, "192.0.2.1")) for _ in range(500)]
    await settle()
    assert lookup.asked == [NAME]
    assert await names.resolve("ready.test", 443, "192.0.2.1") == [Address("8.8.8.8", 443)]
    # Whoever asked first goes: the others do not lose their answer.
    waiting[0].cancel()
    await settle()
    assert lookup.asked == [NAME, "ready.test", NAME]
    lookup.go_on.set()
    assert await asyncio.gather(*waiting[1:]) == [[Address("8.8.4.4", 443)]] * 499


async def test_a_shared_lookup_that_fails_fails_for_all() -> None:
    dns = FakeDns()
    names = resolver(dns)
    failed = await asyncio.gather(*(names.resolve(NAME, 443) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(one, ResolveError) and one.failure is DNS_ERROR for one in failed)


# The system's resolver


async def test_the_system_answers_literal_addresses() -> None:
    lookup = SystemLookup()
    try:
        assert all(ipaddress.ip_address(one).is_loopback for one in await lookup("localhost"))
        assert (await refusal("localhost", lookup)).failure is PROHIBITED_IP
    finally:
        await lookup.close()
