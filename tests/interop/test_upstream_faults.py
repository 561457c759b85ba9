"""Upstreams that lose, that are dead, and that die: what the client sees of it, and when."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from relay.errors import UpstreamError
from relay.gateway.routing.upstreams import Health
from relay.plane.api import CloseReason
from relay.turn.credentials import StaticCredentials
from relay.wire.stun import MessageClass, is_stun, split_message_type
from tests.support.benches.gateway import running_relay
from tests.support.network.ports import reserved_address
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.waiting import becomes, eventually

pytestmark = pytest.mark.parametrize("plane", ["compiled", "reference"])

CREDENTIALS = StaticCredentials({"trader": "secret"})
FAR_OFF_S = 3600


def turn_host(name: str = "127.0.1.1") -> TurnHost:
    return TurnHost(Address(name, 0), CREDENTIALS, allow_loopback_peers=True)


class LossyWay:
    """A UDP forwarder in front of an upstream that swallows the first copy of every request."""

    def __init__(self, upstream: Address) -> None:
        self.swallowed = 0
        self._upstream = upstream
        self._seen: set[bytes] = set()
        self._loop = asyncio.get_running_loop()
        self._front = self._open(self._on_client)
        self._front.bind(("127.0.0.1", 0))
        self._backs: dict[Address, socket.socket] = {}
        self.address = Address(*self._front.getsockname())

    def _open(self, on_data: Callable[[bytes, Address], object]) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

        def on_readable() -> None:
            with contextlib.suppress(OSError):
                data, sender = opened.recvfrom(65536)
                on_data(data, Address(*sender))

        self._loop.add_reader(opened, on_readable)
        return opened

    def _on_client(self, data: bytes, client: Address) -> None:
        if is_stun(data) and split_message_type(data[0] << 8 | data[1])[1] is MessageClass.REQUEST:
            key = data[8:20]
            if key not in self._seen:
                self._seen.add(key)
                self.swallowed += 1
                return
        if client not in self._backs:
            self._backs[client] = self._open(lambda answer, _: self._front.sendto(answer, client))
        self._backs[client].sendto(data, self._upstream)

    def close(self) -> None:
        for opened in (self._front, *self._backs.values()):
            self._loop.remove_reader(opened)
            opened.close()


@contextlib.asynccontextmanager
async def lossy_way(upstream: Address) -> AsyncIterator[LossyWay]:
    way = LossyWay(upstream)
    try:
        yield way
    finally:
        way.close()


async def test_allocate_completes_when_every_first_copy_is_swallowed(tmp_path: Path, plane: str) -> None:
    """Over TCP the client sends each request once: the copies that are answered are the relay's, one RTO later each."""
    async with (
        turn_host() as host,
        lossy_way(host.address) as way,
        running_relay(tmp_path, way.address, listen={"plane": plane}) as relay,
        await relay.open_turn("trader", "secret") as turn,
    ):
        await turn.allocate()
        # Both requests, the one without credentials and the one with them, were lost once.
        assert way.swallowed >= 2
        assert relay.gateway.plane.snapshot().totals.retransmissions >= 2


@contextlib.contextmanager
def black_hole() -> Iterator[Address]:
    """An address that takes everything and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hole:
        hole.bind(("127.0.0.1", 0))
        yield Address(*hole.getsockname())


@pytest.mark.parametrize("dead", ["silent", "refusing"])
async def test_a_dead_upstream_closes_the_client(tmp_path: Path, plane: str, dead: str) -> None:
    # Where nobody listens datagrams are refused.
    with black_hole() as silent, reserved_address() as refusing:
        address = silent if dead == "silent" else refusing
        # The probe must not find out first: the client itself meets the dead upstream.
        sections = {"health": {"fall": 100}, "limits": {"upstream_silence_s": 1.0}, "listen": {"plane": plane}}
        async with running_relay(tmp_path, address, **sections) as relay:
            try:
                # Its own patience would end this otherwise, and what it says then is another error.
                async with await relay.open_turn("trader", "secret", timeout_s=FAR_OFF_S) as turn:
                    with pytest.raises(UpstreamError):
                        await turn.allocate()
                    assert isinstance(turn.closed.exception(), UpstreamError)
            except UpstreamError:
                assert dead == "refusing"  # known to be down already: closed before the first request
            if dead == "silent":
                await becomes(lambda: relay.gateway.plane.snapshot().closed, {CloseReason.UPSTREAM_SILENT: 1})


async def test_new_connections_go_to_a_healthy_upstream(tmp_path: Path, plane: str) -> None:
    with black_hole() as dead:
        async with turn_host() as host, running_relay(tmp_path, dead, host.address, listen={"plane": plane}) as relay:
            upstreams = relay.gateway.upstreams
            await eventually(lambda: [upstream.health for upstream in upstreams] == [Health.DOWN, Health.UP])
            for calls in range(1, 4):
                turn = await relay.open_turn("trader", "secret")
                await turn.allocate()
                await becomes(lambda: host.allocations, calls)
                await turn.close(release=False)


async def test_a_running_call_leaves_an_upstream_that_dies(tmp_path: Path, plane: str) -> None:
    """The upstream falls silent in the middle of a call: the client is closed, and comes back elsewhere."""
    inbox = Inbox()
    async with turn_host() as first, turn_host("127.0.1.2") as second, open_echo() as peer:
        upstreams = {"stun1": first, "stun2": second}
        async with running_relay(tmp_path, first.address, second.address, listen={"plane": plane}) as relay:
            turn = await relay.open_turn("trader", "secret", on_data=inbox.put)
            await turn.allocate()
            await turn.bind_channel(peer)
            turn.send(peer, b"hello")
            assert await inbox.get() == (peer, b"hello")
            (flow,) = relay.gateway.plane.snapshot().flows
            dying = upstreams[flow.upstream.name]
            address = dying.address
            await dying.stop()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hole:
                hole.bind(address)
                with pytest.raises(UpstreamError):
                    await turn.closed
                async with await relay.open_turn("trader", "secret") as again:
                    await again.allocate()
                    (flow,) = relay.gateway.plane.snapshot().flows
                    assert upstreams[flow.upstream.name] is not dying
            await turn.close()
            await eventually(lambda: not relay.gateway.plane.snapshot().flows)
