"""What the engine's clients ask a server for, and what they do when it is slow, stale, or has forgotten them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.engine.engine import Cause, Opened, Phase
from loadtest.engine.plans import ClientPlan
from relay.addresses import Address
from relay.turn.credentials import long_term_key
from relay.wire.stun import AttributeType, Message, Method, parse_message
from tests.loadtest.engine.driver import running_engine
from tests.support.messages import allocated, answer
from tests.support.peers.scripted_upstream import ScriptedUpstream, scripted_upstream

PEER = Address("192.0.2.7", 16384)
KEY = long_term_key("trader", "cloud9", "secret")
CHALLENGE = ((AttributeType.REALM, b"cloud9"), (AttributeType.NONCE, b"n1"))


def plan(server: ScriptedUpstream, *peers: Address, rebind_s: float = 240) -> ClientPlan:
    return ClientPlan(server.address, username="trader", password="secret", peers=peers, rebind_s=rebind_s)


async def asked(server: ScriptedUpstream, method: Method) -> tuple[bytes, Message, Address]:
    """The next request, which must be of this method."""
    request, sender = await server.receive()
    message = parse_message(request)
    assert message.method == method
    return request, message, sender


async def test_a_lost_request_is_sent_again_and_unchanged() -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(plan(server))
        first, _ = await server.receive()
        again, sender = await server.receive()
        assert again == first
        server.send(sender, allocated(again))
        opened = await driver.next(Opened)
        assert opened.relayed == Address("192.0.2.1", 50000)
        # The first, 500 ms later than it was sent.
        assert opened.seconds[Phase.ALLOCATE] >= 0.5


async def test_requests_are_signed_once_the_server_asks() -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(plan(server))
        request, message, sender = await asked(server, Method.ALLOCATE)
        assert message.get(AttributeType.MESSAGE_INTEGRITY) is None
        server.send(sender, answer(request, *CHALLENGE, error=401))
        request, message, sender = await asked(server, Method.ALLOCATE)
        assert message.has_integrity(KEY)
        assert message.get(AttributeType.NONCE) == b"n1"
        server.send(sender, allocated(request, key=KEY))
        await driver.next(Opened)


@pytest.mark.parametrize("key", [None, bytes(16)], ids=["none", "another"])
async def test_an_answer_that_does_not_know_the_password_is_ignored(key: bytes | None) -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(plan(server))
        request, _, sender = await asked(server, Method.ALLOCATE)
        server.send(sender, answer(request, *CHALLENGE, error=401))
        request, _, _ = await asked(server, Method.ALLOCATE)
        server.send(sender, allocated(request, key=key))
        # It asks again, as if nothing had come.
        assert (await server.receive())[0] == request
        server.send(sender, allocated(request, key=KEY))
        await driver.next(Opened)
        assert driver.engine.window().counters["forged"] == 1


async def test_a_server_that_never_knows_the_password_is_named() -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(replace(plan(server), patience_s=0.2))
        request, _, sender = await asked(server, Method.ALLOCATE)
        server.send(sender, answer(request, *CHALLENGE, error=401))
        request, _, _ = await asked(server, Method.ALLOCATE)
        server.send(sender, allocated(request, key=bytes(16)))
        ended = await driver.next_ended()
        assert (ended.cause, ended.words) == (Cause.TIMEOUT, "no answer with the MESSAGE-INTEGRITY of the password")


async def test_a_peer_of_ipv6() -> None:
    relayed, peer = Address("2001:db8::1", 50000), Address("2001:db8::7", 16384)
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(plan(server, peer))
        request, message, sender = await asked(server, Method.ALLOCATE)
        assert message.get(AttributeType.REQUESTED_ADDRESS_FAMILY) == b"\2\0\0\0"
        server.send(sender, allocated(request, address=relayed))
        request, message, _ = await asked(server, Method.CHANNEL_BIND)
        assert message.address(AttributeType.XOR_PEER_ADDRESS) == peer
        server.send(sender, answer(request))
        assert (await driver.next(Opened)).relayed == relayed


async def test_an_allocation_is_refreshed_with_a_stale_nonce_too() -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(plan(server))
        request, _, sender = await asked(server, Method.ALLOCATE)
        server.send(sender, answer(request, *CHALLENGE, error=401))
        request, _, _ = await asked(server, Method.ALLOCATE)
        server.send(sender, allocated(request, lifetime_s=1, key=KEY))
        await driver.next(Opened)
        request, message, _ = await asked(server, Method.REFRESH)
        assert message.get(AttributeType.LIFETIME) is None
        stale = ((AttributeType.REALM, b"cloud9"), (AttributeType.NONCE, b"n2"))
        server.send(sender, answer(request, *stale, error=438))
        request, message, _ = await asked(server, Method.REFRESH)
        assert message.get(AttributeType.NONCE) == b"n2"
        # One second again.
        server.send(sender, answer(request, (AttributeType.LIFETIME, bytes([0, 0, 0, 1])), key=KEY))
        await asked(server, Method.REFRESH)


async def test_a_channel_is_bound_again_in_time() -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(plan(server, PEER, rebind_s=0.05))
        request, _, sender = await asked(server, Method.ALLOCATE)
        server.send(sender, allocated(request))
        for number in range(3):
            request, message, _ = await asked(server, Method.CHANNEL_BIND)
            assert message.address(AttributeType.XOR_PEER_ADDRESS) == PEER
            assert message.get(AttributeType.CHANNEL_NUMBER) == b"\x40\0\0\0"
            server.send(sender, answer(request))
            if not number:
                await driver.next(Opened)


async def test_an_allocation_of_an_earlier_client_is_left_alone() -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(plan(server))
        request, _, before = await asked(server, Method.ALLOCATE)
        server.send(before, answer(request, error=437))
        request, _, sender = await asked(server, Method.ALLOCATE)
        assert sender != before
        server.send(sender, allocated(request))
        await driver.next(Opened)


async def test_a_client_that_goes_says_so() -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        client = driver.engine.open(plan(server))
        request, _, sender = await asked(server, Method.ALLOCATE)
        server.send(sender, allocated(request))
        await driver.next(Opened)
        driver.engine.close(client)
        request, message, _ = await asked(server, Method.REFRESH)
        assert message.get(AttributeType.LIFETIME) == bytes(4)
        server.send(sender, answer(request))
        assert (await driver.next_ended()).cause is Cause.ASKED


@pytest.mark.parametrize("code", [400, 403, 486, 508])
async def test_a_refused_refresh_ends_a_client(code: int) -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(plan(server))
        request, _, sender = await asked(server, Method.ALLOCATE)
        server.send(sender, allocated(request, lifetime_s=1))
        await driver.next(Opened)
        request, _, _ = await asked(server, Method.REFRESH)
        server.send(sender, answer(request, error=code))
        ended = await driver.next_ended()
        assert (ended.cause, ended.code, ended.phase) == (Cause.STUN, code, Phase.READY)


@pytest.mark.parametrize("data", [b"", b"x", bytes(20), b"\x40\x01\0\x08voice", b"\x80" * 200])
async def test_datagrams_that_are_nothing_do_no_harm(data: bytes) -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(plan(server))
        request, _, sender = await asked(server, Method.ALLOCATE)
        server.send(sender, data)
        server.send(sender, allocated(request))
        await driver.next(Opened)


async def test_an_answer_to_nothing_does_no_harm() -> None:
    async with scripted_upstream() as server, running_engine() as driver:
        driver.engine.open(plan(server))
        request, _, sender = await asked(server, Method.ALLOCATE)
        other = bytearray(allocated(request))
        other[8] ^= 1
        server.send(sender, bytes(other))
        server.send(sender, answer(request, error=508))
        assert (await driver.next_ended()).code == 508
