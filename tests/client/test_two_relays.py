"""A session whose relay is killed goes on at another one: two real relays, and a balancer in front of them."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from relay.addresses import Address
from relay.client.session import open_session
from relay.emulator.turn.slow import TurnHost
from tests.support.benches.gateway import CREDENTIALS
from tests.support.benches.serving import Served, kill, serving
from tests.support.peers.balancer import open_balancer
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.waiting import EVENTUALLY_S, eventually


def trust_of(relays: Sequence[Served]) -> ssl.SSLContext:
    """What trusts all of them: each has a certificate of its own authority."""
    trust = ssl.create_default_context()
    for relay in relays:
        trust.load_verify_locations(relay.path.parent / "ca.pem")
    return trust


async def test_a_killed_relay_moves_its_sessions_to_another_one(tmp_path: Path) -> None:
    inbox, moved = Inbox(), list[Address]()
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    async with (
        TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host,
        serving(folders[0], host.address) as one,
        serving(folders[1], host.address) as two,
        open_balancer(one.tls, two.tls) as balancer,
        open_echo() as peer,
        open_echo() as other,
    ):
        for relay in (one, two):
            await relay.becomes_ready()
        async with await open_session(
            f"wss://{balancer.address}/media",
            username="trader",
            password="secret",
            ssl_context=trust_of((one, two)),
            server_hostname="relay.test",
            on_data=inbox.put,
            on_moved=moved.append,
        ) as session:
            # It tries until the machine has done all this.
            session._resume_within_s, before = EVENTUALLY_S, session.relayed_address
            assert (await session.bind(peer), await session.bind(other, 0x4777)) == (0x4000, 0x4777)
            await kill(one.process)
            await eventually(lambda: session.reopenings)
            for channel, where in ((0x4000, peer), (0x4777, other)):
                session.send(channel, b"voice")
                assert await inbox.get() == (where, b"voice")
            assert moved == [session.relayed_address] != [before]
            assert (session.reopenings, session.resumptions, session.closed.done()) == (1, 0, False)
