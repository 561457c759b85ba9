"""The TURN client over UDP, against the embedded host."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import unicodedata
from collections.abc import AsyncIterator

import pytest

from relay.addresses import Address, AddressFamily
from relay.client.requests import TurnRequestError
from relay.client.turn import open_turn_udp, take_turn_udp
from relay.emulator.turn.slow import TurnHost
from relay.errors import UpstreamError
from relay.turn.credentials import NonceMint, StaticCredentials
from relay.wire.stun import AttributeType, MessageClass, Method, parse_message
from tests.support.benches.turn import PASSWORDS, AnsweringServer, is_no_allocate_success
from tests.support.network.ports import reserved_address
from tests.support.peers.behind_turn import Inbox, echo_all_sizes, open_echo
from tests.support.peers.coturn import open_coturn
from tests.support.peers.responder import open_responder
from tests.support.waiting import becomes

CREDENTIALS = StaticCredentials({"trader": "secret"})


@contextlib.asynccontextmanager
async def open_host(nonces: NonceMint | None = None) -> AsyncIterator[TurnHost]:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True, nonces=nonces) as host:
        yield host


@pytest.mark.parametrize("by_channel", [True, False])
async def test_echo_is_byte_exact(by_channel: bool) -> None:
    inbox = Inbox()
    async with open_host() as host, open_echo() as peer:
        async with await open_turn_udp(host.address, "trader", "secret", on_data=inbox.put) as turn:
            await turn.allocate()
            await (turn.bind_channel(peer) if by_channel else turn.create_permission(peer))
            await echo_all_sizes(turn, inbox, peer)
        assert host.allocations == 0


async def test_binding_gives_the_mapped_address() -> None:
    async with open_host() as host, await open_turn_udp(host.address) as turn:
        assert await turn.binding() == turn.local_address


async def test_source_address_can_be_chosen() -> None:
    chosen = Address("127.0.0.77", 0)
    async with open_host() as host, await open_turn_udp(host.address, local_address=chosen) as turn:
        assert turn.local_address.host == "127.0.0.77"
        assert await turn.binding() == turn.local_address


async def test_server_by_name() -> None:
    async with open_host() as host, await open_turn_udp(Address("localhost", host.address.port)) as turn:
        assert await turn.binding() == turn.local_address


async def test_name_that_does_not_resolve() -> None:
    # An empty label: no resolver needs to be asked.
    with pytest.raises(UpstreamError, match=r"no\.\.where:3478"):
        await open_turn_udp(Address("no..where", 3478))


async def test_ipv6() -> None:
    async with TurnHost(Address("::1", 0), CREDENTIALS) as host, await open_turn_udp(host.address) as turn:
        assert await turn.binding() == turn.local_address
        assert turn.local_address.host == "::1"


async def test_allocate_and_release() -> None:
    async with open_host() as host, await open_turn_udp(host.address, "trader", "secret") as turn:
        relayed = await turn.allocate()
        assert turn.relayed_address == relayed
        assert await turn.refresh(900) == 900
        assert await turn.refresh(0) == 0
        assert host.allocations == 0


async def test_close_releases_unless_told_not_to() -> None:
    async with open_host() as host:
        for release, left in ((True, 0), (False, 1)):
            turn = await open_turn_udp(host.address, "trader", "secret")
            await turn.allocate()
            await turn.close(release=release)
            await turn.close()
            assert host.allocations == left


async def test_close_releases_what_an_unanswered_allocate_has_made() -> None:
    server = AnsweringServer(is_no_allocate_success)
    async with open_responder(server) as address:
        turn = await open_turn_udp(address, "ann", PASSWORDS["ann"])
        allocating = asyncio.ensure_future(turn.allocate())
        await becomes(lambda: server.allocations, 1)
        # The user has hung up meanwhile.
        allocating.cancel()
        await turn.close()
        assert turn.relayed_address is None
        await becomes(lambda: server.allocations, 0)
    assert server.granted == 1


async def test_close_sends_a_lost_release_again_although_a_renewal_is_answered() -> None:
    releases: list[bytes] = []

    def passes(message: bytes) -> bool:
        parsed = parse_message(message)
        if parsed.message_class is MessageClass.REQUEST and parsed.uint32(AttributeType.LIFETIME) == 0:
            releases.append(message)
            return len(releases) > 1
        return True

    server = AnsweringServer(passes)
    async with open_responder(server) as address:
        turn = await open_turn_udp(address, "ann", PASSWORDS["ann"], rto_s=0.05)
        await turn.allocate()
        renewing = asyncio.ensure_future(turn.refresh())
        await asyncio.sleep(0)
        await turn.close()
        await becomes(lambda: server.allocations, 0)
        await renewing
    assert len(releases) >= 2


@pytest.mark.parametrize(("username", "password"), [("trader", "wrong"), ("nobody", "secret"), ("", "")])
async def test_wrong_credentials(username: str, password: str) -> None:
    async with open_host() as host, await open_turn_udp(host.address, username, password) as turn:
        with pytest.raises(TurnRequestError, match="ALLOCATE: 401") as refused:
            await turn.allocate()
        assert (refused.value.method, refused.value.code) == (Method.ALLOCATE, 401)
        assert host.allocations == 0


async def test_stale_nonce_is_renewed_silently() -> None:
    # A nonce that is stale on its first use but one: each request is answered 438 once.
    class EveryNonceServesOnce(NonceMint):
        def accepts(self, nonce: str, client: Address, now: float) -> bool:
            fresh = nonce not in used
            used.add(nonce)
            return fresh and nonce.startswith("fresh")

        def mint(self, client: Address, now: float) -> str:
            return f"fresh-{len(used):08}"

    used: set[str] = set()
    async with open_host(EveryNonceServesOnce()) as host:
        async with await open_turn_udp(host.address, "trader", "secret") as turn:
            await turn.allocate()
            assert await turn.refresh(700) == 700
            assert await turn.refresh(800) == 800
        assert host.allocations == 0


async def test_refusals_reach_the_request_they_belong_to() -> None:
    async with open_host() as host, open_echo() as peer, await open_turn_udp(host.address, "trader", "secret") as turn:
        await turn.allocate()
        results = await asyncio.gather(
            turn.create_permission(Address("10.0.0.1", 1)),
            turn.create_permission(peer),
            turn.create_permission(Address("::1", 1)),
            turn.bind_channel(peer),
            return_exceptions=True,
        )
        codes = [result.code if isinstance(result, TurnRequestError) else result for result in results]
        assert codes == [403, None, 443, 0x4000]


async def test_requests_without_an_allocation_are_refused() -> None:
    async with open_host() as host, await open_turn_udp(host.address, "trader", "secret") as turn:
        with pytest.raises(TurnRequestError) as refused:
            await turn.create_permission(Address("127.0.0.1", 9))
        assert refused.value.code == 437


async def test_refused_port_fails_at_once() -> None:
    with reserved_address() as nobody:
        async with await open_turn_udp(nobody, "trader", "secret", timeout_s=60) as turn:
            with pytest.raises(TurnRequestError, match="refused") as refused:
                await turn.binding()
            assert refused.value.code == 0
            assert isinstance(refused.value.__cause__, ConnectionRefusedError)


async def test_server_that_comes_back_is_heard_again() -> None:
    with reserved_address() as server:
        async with await open_turn_udp(server, "trader", "secret", timeout_s=60) as turn:
            with pytest.raises(TurnRequestError, match="refused"):
                await turn.binding()
            async with TurnHost(server, CREDENTIALS):
                assert await turn.binding() == turn.local_address
                await turn.allocate()
                await turn.close()


async def test_silent_server_fails_at_the_deadline() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with await open_turn_udp(Address(*silent.getsockname()), timeout_s=0.05, rto_s=0.01) as turn:
            with pytest.raises(TurnRequestError, match=r"BINDING: no answer within 0\.05 s"):
                await turn.binding()
        silent.setblocking(False)
        first, second = silent.recv(1500), silent.recv(1500)
        assert first == second


async def test_host_that_forgot_the_allocation_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    # Renewed at half of its lifetime, which the standard puts at ten minutes or more.
    monkeypatch.setattr("relay.turn.allocate.DEFAULT_LIFETIME_S", 1)
    monkeypatch.setattr("relay.turn.allocate.MAX_LIFETIME_S", 1)
    async with open_host() as host:
        turn = await open_turn_udp(host.address, "trader", "secret")
        await turn.allocate()
    async with TurnHost(host.address, CREDENTIALS):
        with pytest.raises(UpstreamError, match="REFRESH: 437"):
            await turn.closed
    await turn.close()


async def test_socket_of_another_is_taken_over() -> None:
    async with open_host() as host:
        connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        connected.connect(host.address)
        turn = take_turn_udp(connected, "trader", "secret")
        await turn.allocate()
        assert host.allocations == 1
        assert await turn.refresh(0) == 0
        assert host.allocations == 0
        await turn.close(release=False)


async def test_closed_connection_refuses_requests_and_drops_data() -> None:
    async with open_host() as host:
        turn = await open_turn_udp(host.address, "trader", "secret")
        await turn.close()
        await turn.closed
        turn.send(Address("127.0.0.1", 9), b"into the void")
        assert turn.dropped == 1
        with pytest.raises(TurnRequestError, match="closed"):
            await turn.binding()


async def test_close_fails_those_who_wait() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        turn = await open_turn_udp(Address(*silent.getsockname()))
        asking = asyncio.ensure_future(turn.binding())
        await asyncio.sleep(0)
        await turn.close()
        with pytest.raises(TurnRequestError, match="closed"):
            await asking


async def test_many_at_once() -> None:
    async with open_host() as host, open_echo() as peer:

        async def call() -> None:
            inbox = Inbox()
            async with await open_turn_udp(host.address, "trader", "secret", on_data=inbox.put) as turn:
                await turn.allocate()
                await turn.bind_channel(peer)
                for number in range(5):
                    turn.send(peer, bytes([number]) * 182)
                    assert await inbox.get() == (peer, bytes([number]) * 182)

        await asyncio.gather(*(call() for _ in range(100)))
        assert (host.allocations, host.dropped) == (0, 0)


# Families and sizes, at a real coturn


async def test_both_families_through_coturn() -> None:
    inbox = Inbox()
    async with (
        open_coturn(options=("relay-ip=::1",)) as coturn,
        open_echo() as peer,
        open_echo("::1") as peer6,
        await open_turn_udp(coturn.address, coturn.username, coturn.password, on_data=inbox.put) as turn,
    ):
        assert not (await turn.allocate(family=AddressFamily.BOTH)).is_ipv6
        assert turn.additional_address is not None
        assert turn.additional_address.is_ipv6
        await turn.bind_channel(peer6)
        await turn.bind_channel(Address(f"::ffff:{peer.host}", peer.port))
        assert await turn.refresh() > 0
        for one in (peer, peer6):
            turn.send(one, b"voice")
            assert await inbox.get() == (one, b"voice")


@pytest.mark.parametrize("password", ["sésame", unicodedata.normalize("NFD", "sésame")])
async def test_coturn_hashes_the_password_as_it_is(password: str) -> None:
    async with (
        open_coturn(options=(f"user=ann:{password}",)) as coturn,
        await open_turn_udp(coturn.address, "ann", password) as turn,
    ):
        assert (await turn.allocate()).port


async def test_more_peers_than_fit_into_a_request() -> None:
    async with open_host() as host, await open_turn_udp(host.address, "trader", "secret") as turn:
        await turn.allocate()
        await turn.create_permission(*[Address(f"127.0.{number}.1", 9) for number in range(200)])


async def test_what_cannot_be_asked_or_sent() -> None:
    """Words of ours, and no ValueError of a codec."""
    name = Address("name.test", 9)
    async with open_host() as host, await open_turn_udp(host.address, "trader", "secret") as turn:
        await turn.allocate()
        for ask in (
            lambda: turn.bind_channel(name),
            lambda: turn.create_permission(Address("127.0.0.1", 70_000)),
            lambda: turn.refresh(-1),
            lambda: turn.allocate(((0x1_0000, b""),)),
        ):
            with pytest.raises(TurnRequestError):
                await ask()
        turn.send(name, b"to nobody")
        turn.send(Address("127.0.0.1", 9), bytes(2001))
        assert turn.dropped == 2
    for server in (Address("127.0.0.1", 70_000), Address("\udc80", 9), Address("a" * 64 + ".test", 9)):
        with pytest.raises(UpstreamError):
            await open_turn_udp(server)
