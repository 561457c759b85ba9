"""Two phones on sessions with real SRTP, while an upstream dies and a connection is cut: the call goes on by itself."""

from __future__ import annotations

import asyncio
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.client.session import Session, open_session
from relay.emulator.softphone.voice import PACKETS_PER_SECOND, Listener, Speaker
from relay.emulator.turn.hosts import TurnHosts
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.connect_proxy import ConnectProxy, connect_proxy
from tests.support.waiting import becomes, eventually

USERNAME, PASSWORD = "trader", "a-password-that-no-log-has"
PLANES = ("compiled", "reference")


class Desk:
    """A phone, and the signaling between the two: who has moved tells the other, who binds the new address."""

    def __init__(self) -> None:
        self.speaker = Speaker()
        self.other: Desk
        self.session: Session
        self.peer = Address("", 0)
        self.binding: list[asyncio.Task[None]] = []

    @cached_property
    def listener(self) -> Listener:
        """What this phone hears."""
        return Listener(self.other.speaker.ssrc, self.other.speaker.master_key)

    async def open(self, relay: Relay, proxy: ConnectProxy, region: str) -> None:
        trusted: dict[str, Any] = {"ssl_context": relay.trust, "server_hostname": "relay.test"}
        self.session = await open_session(
            f"wss://{relay.tls}/media",
            username=USERNAME,
            password=PASSWORD,
            region=region,
            proxy=proxy.url,
            on_data=lambda _, packet: self.listener.hear(packet),
            on_moved=self.other.on_told,
            **trusted,
        )

    def on_told(self, relayed: Address) -> None:
        """The other side has a new address."""
        self.binding.append(asyncio.ensure_future(self._dial(relayed)))

    async def _dial(self, relayed: Address) -> None:
        await self.session.bind(relayed)
        self.peer = relayed

    async def dial(self) -> None:
        """Bind the other's address."""
        await self._dial(self.other.session.relayed_address)


async def heard_by_both(desks: tuple[Desk, Desk], more: int) -> None:
    """Talk until each has heard so many more packets of the other."""
    wanted = [desk.listener.received + more for desk in desks]
    while any(desk.listener.received < count for desk, count in zip(desks, wanted, strict=True)):
        for desk in desks:
            desk.session.send(desk.peer, desk.speaker.next_packet())
        await asyncio.sleep(1 / PACKETS_PER_SECOND)


@pytest.mark.parametrize("plane", PLANES)
async def test_call_that_loses_its_upstream_and_its_connection(
    tmp_path: Path, plane: str, capfd: pytest.CaptureFixture[str]
) -> None:
    credentials = StaticCredentials({USERNAME: PASSWORD})
    desks = a, b = Desk(), Desk()
    a.other, b.other = b, a
    async with (
        TurnHosts({"use1": ["use1a", "use1b"], "euc1": ["euc1a"]}, credentials, allow_loopback_peers=True) as hosts,
        connect_proxy() as proxy,
        running_relay(
            tmp_path,
            *[{"name": host.name, "region": host.region, "address": host.address} for host in hosts],
            listen={"plane": plane},
        ) as relay,
    ):
        await eventually(lambda: all(one.health == "up" for one in relay.gateway.upstreams))
        await a.open(relay, proxy, "use1")
        await b.open(relay, proxy, "euc1")
        try:
            for desk in desks:
                await desk.dial()
            await heard_by_both(desks, 25)
            assert not a.listener.wrong + b.listener.wrong
            # The last of them may still be on their way.
            for desk in desks:
                await becomes(lambda desk=desk: desk.listener.received, desk.other.speaker.sent)  # type: ignore[misc]
            # A's upstream dies; B is told the new address by A, and binds it.
            before = a.session.upstream
            await hosts[before].stop()
            await heard_by_both(desks, 25)
            assert (a.session.upstream != before, a.session.upstream[:4]) == (True, "use1")
            # The web proxy restarts: both are cut, and come back to their allocations.
            addresses = [desk.session.relayed_address for desk in desks]
            proxy.cut()
            await heard_by_both(desks, 25)
            await eventually(lambda: all(desk.session.resumptions for desk in desks))
            assert [desk.session.relayed_address for desk in desks] == addresses
            assert not a.listener.wrong + b.listener.wrong
            flows = relay.gateway.plane.snapshot().flows
            assert {flow.carrier.value for flow in flows} == {"session"}
            assert all(flow.streams for flow in flows)
        finally:
            for desk in desks:
                await asyncio.gather(*desk.binding)
                await desk.session.close()
        await eventually(lambda: not relay.connections)
        tokens = [desk.session._token for desk in desks]
    said = "".join(capfd.readouterr())
    assert "session moved" in said
    assert "session resumed" in said
    assert all(secret not in said for secret in (PASSWORD, *tokens))
