"""Sessions with IPv4, IPv6 and both, at a real coturn: opened, spoken through, moved and resumed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address, AddressFamily
from relay.client.session import Session, SessionError, open_session
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.coturn import Coturn, open_coturn
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("plane", ["compiled", "reference"])
BOTH_FAMILIES = ("relay-ip=::1",)  # beside the one of its own address


@contextlib.asynccontextmanager
async def relay_at(folder: Path, plane: str, *upstreams: Coturn) -> AsyncIterator[Relay]:
    addresses = [upstream.address for upstream in upstreams]
    async with running_relay(folder, *addresses, listen={"plane": plane}) as relay:
        await eventually(lambda: all(one.health == "up" for one in relay.gateway.upstreams))
        yield relay


async def opened(relay: Relay, inbox: Inbox, family: AddressFamily | None = None, **more: Any) -> Session:
    return await open_session(
        f"wss://{relay.tls}/media",
        username="trader",
        password="secret",
        family=family,
        ssl_context=relay.trust,
        server_hostname="relay.test",
        on_data=inbox.put,
        **more,
    )


async def talk_until(session: Session, inbox: Inbox, peer: Address) -> None:
    """Speak until the echo of this peer is there: UDP loses packets, and a cut does."""
    while True:
        session.send(peer, b"voice")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                while (await inbox.get())[0] != peer:
                    pass
                return


def is_ipv6(*addresses: Address | None) -> list[bool | None]:
    return [None if address is None else address.is_ipv6 for address in addresses]


@pytest.mark.parametrize("family", [None, AddressFamily.IPV6, AddressFamily.BOTH])
async def test_upstream_with_ipv6_only(tmp_path: Path, plane: str, family: AddressFamily | None) -> None:
    inbox = Inbox()
    async with (
        open_coturn(host="::1") as coturn,
        open_echo("::1") as peer,
        relay_at(tmp_path, plane, coturn) as relay,
        await opened(relay, inbox, family) as session,
    ):
        assert is_ipv6(session.relayed_address, session.additional_address) == [True, None]
        await session.bind(peer)
        await talk_until(session, inbox, peer)


async def test_upstream_with_ipv6_only_has_no_ipv4(tmp_path: Path, plane: str) -> None:
    async with open_coturn(host="::1") as coturn, relay_at(tmp_path, plane, coturn) as relay:
        with pytest.raises(SessionError, match=r"440 the upstream refuses: .*[Ff]amily"):
            await opened(relay, Inbox(), AddressFamily.IPV4)
        await eventually(lambda: not relay.connections)


async def test_upstream_with_both(tmp_path: Path, plane: str) -> None:
    inbox = Inbox()
    async with (
        open_coturn(options=BOTH_FAMILIES) as coturn,
        open_echo() as peer,
        open_echo("::1") as peer6,
        relay_at(tmp_path, plane, coturn) as relay,
    ):
        async with await opened(relay, inbox, AddressFamily.BOTH) as session:
            assert is_ipv6(session.relayed_address, session.additional_address) == [False, True]
            await session.bind(Address(f"::ffff:{peer.host}", peer.port))
            await session.bind(peer6)
            await talk_until(session, inbox, peer)
            await talk_until(session, inbox, peer6)
            # A cut: the same allocation, with both its addresses.
            before = session.relayed_address, session.additional_address
            assert session._link is not None
            session._link.abort()
            session.on_lost(session._link, SessionError(0, "cut"))
            await eventually(lambda: session.resumptions == 1)
            assert (session.relayed_address, session.additional_address) == before
            await talk_until(session, inbox, peer)
            await talk_until(session, inbox, peer6)
        # One family of it is to be had as well; and a peer of the other is refused in words.
        async with await opened(relay, inbox) as session:
            assert is_ipv6(session.relayed_address, session.additional_address) == [False, None]
            with pytest.raises(SessionError, match=r"443 .*open with family ipv6 or both for IPv6 peers"):
                await session.bind(peer6)
        async with await opened(relay, inbox, AddressFamily.IPV6) as session:
            assert is_ipv6(session.relayed_address, session.additional_address) == [True, None]
            await session.bind(peer6)
            await talk_until(session, inbox, peer6)


async def test_upstream_with_ipv4_only(tmp_path: Path, plane: str) -> None:
    inbox = Inbox()
    async with open_coturn() as coturn, open_echo() as peer, relay_at(tmp_path, plane, coturn) as relay:
        async with await opened(relay, inbox, AddressFamily.BOTH) as session:
            assert is_ipv6(session.relayed_address, session.additional_address) == [False, None]
            await session.bind(peer)
            await talk_until(session, inbox, peer)
        with pytest.raises(SessionError, match=r"440 the upstream refuses: .*[Ff]amily"):
            await opened(relay, inbox, AddressFamily.IPV6)


async def test_family_is_looked_for_among_the_upstreams(tmp_path: Path, plane: str) -> None:
    """Whichever is asked first, the one that has it is found."""
    async with (
        open_coturn() as ipv4,
        open_coturn(options=BOTH_FAMILIES) as both,
        relay_at(tmp_path, plane, ipv4, both) as relay,
    ):
        for _ in range(4):
            async with await opened(relay, Inbox(), AddressFamily.IPV6) as session:
                assert session.upstream == "stun2"


async def test_move_keeps_both(tmp_path: Path, plane: str) -> None:
    inbox, moved = Inbox(), asyncio.Event()
    async with (
        open_coturn(options=BOTH_FAMILIES) as one,
        contextlib.AsyncExitStack() as dying,
        open_echo() as peer,
        open_echo("::1") as peer6,
    ):
        other = await dying.enter_async_context(open_coturn(options=BOTH_FAMILIES))
        async with relay_at(tmp_path, plane, one, other) as relay:
            for state in relay.gateway.upstreams:
                state.flows += 5 * (state.name == "stun1")
            told = lambda _: moved.set()  # noqa: E731
            async with await opened(relay, inbox, AddressFamily.BOTH, on_moved=told) as session:
                assert session.upstream == "stun2"
                await session.bind(peer)
                await session.bind(peer6)
                await talk_until(session, inbox, peer6)
                await dying.aclose()
                session.send(peer, b"into the void")
                await moved.wait()
                assert session.upstream == "stun1"
                assert is_ipv6(session.relayed_address, session.additional_address) == [False, True]
                await talk_until(session, inbox, peer)
                await talk_until(session, inbox, peer6)
