"""Names to addresses: everything of the SSRF table is refused, in every spelling and behind every name."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import NEVER_RELAYED, Address, RelayPolicy
from relay.gateway import resolve
from relay.gateway.resolve import MAX_ANSWERS, MAX_LOOKUPS, ResolveError, ResolveFailure, Resolver, system_lookup
from tests.support.ssrf_table import PERMITTED, PROHIBITED, PROHIBITED_LITERALS, PROHIBITED_SPELLINGS, FakeDns

DNS_ERROR, DNS_TIMEOUT = ResolveFailure.DNS_ERROR, ResolveFailure.DNS_TIMEOUT
PROHIBITED_IP = ResolveFailure.DESTINATION_IP_PROHIBITED
NAME = "stun.example.com"


def resolver(dns: resolve.Lookup | None = None, *allowed: str) -> Resolver:
    return Resolver(RelayPolicy(ipaddress.ip_network(one) for one in allowed), dns or FakeDns())


async def refusal(host: str, lookup: resolve.Lookup | None = None) -> ResolveError:
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


async def test_lookups_at_once_are_bounded() -> None:
    running, most, full, release = 0, 0, asyncio.Event(), asyncio.Event()

    async def slow(_: str) -> Sequence[str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == MAX_LOOKUPS:
            full.set()
        await release.wait()
        running -= 1
        return ["8.8.8.8"]

    names = resolver(slow)
    waiting = asyncio.gather(*(names.resolve(NAME, 443) for _ in range(3 * MAX_LOOKUPS)))
    await full.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    release.set()
    assert len(await waiting) == 3 * MAX_LOOKUPS
    assert most == MAX_LOOKUPS


# The system's resolver


async def test_slow_names_of_clients_leave_threads_for_those_of_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when their clients have gone: nothing ends a lookup in the system."""
    loop, full, go_on, really = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), socket.getaddrinfo
    asked = itertools.count(1)

    def hang(host: str, *rest: Any, **more: Any) -> Any:
        if next(asked) == MAX_LOOKUPS:
            loop.call_soon_threadsafe(full.set)
        go_on.wait()
        return really("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    names = resolver(resolve.client_lookup)
    try:
        waiting = [asyncio.ensure_future(names.resolve(NAME, 443)) for _ in range(MAX_LOOKUPS)]
        await full.wait()
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        async with asyncio.timeout(30):
            assert await system_lookup("localhost")
            assert await asyncio.to_thread(str, "the loop's own") == "the loop's own"
    finally:
        go_on.set()


async def test_the_system_answers_literal_addresses() -> None:
    found = await system_lookup("localhost")
    assert found
    assert all(ipaddress.ip_address(one).is_loopback for one in found)
    assert (await refusal("localhost", system_lookup)).failure is PROHIBITED_IP


async def test_the_system_would_read_the_spellings() -> None:
    # Why they are refused before: this is what an allow-list of names would let through.
    assert set(await system_lookup("2130706433")) == {"127.0.0.1"}
    assert set(await system_lookup("0x7f.1")) == {"127.0.0.1"}
