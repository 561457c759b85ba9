"""TURN servers side by side: the emulator's two, a relay in front of one of them, with each plane, and coturn."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from relay.addresses import Address
from relay.demo.authority import Authority
from relay.emulator.turn import native, slow
from relay.turn.credentials import StaticCredentials
from relay.turn.server import ServerSettings
from tests.support.benches.gateway import SERVER_NAME, running_relay
from tests.support.peers.behind_turn import open_echo
from tests.support.peers.coturn import PASSWORD, REALM, USERNAME, open_coturn
from tests.support.peers.turn_asker import Outcome, Server, asking
from tests.support.turn_clauses import OF_A_QUOTA, QUOTA, Clause, Where

USERS = dict.fromkeys((USERNAME, "other", OF_A_QUOTA), PASSWORD)
ANY_PORT = Address("127.0.0.1", 0)
OURS = ("UDP", "UDP, Python", "TLS, compiled plane", "TLS, reference plane")
COTURNS = ("coturn UDP", "coturn TLS")


@dataclass(frozen=True)
class TurnServers:
    """All of them by name, ours first, and a peer that sends back what comes."""

    by_name: dict[str, Server]
    peer: Address

    async def outcome(self, name: str, clause: Clause) -> Outcome | Where:
        """What comes of a clause at one of them, or UDP_ONLY."""
        server = self.by_name[name]
        if server.trust is not None and clause.on_stream is Where.UDP_ONLY:
            return Where.UDP_ONLY
        try:
            async with asking(server, self.peer) as asker:
                return await clause.step(asker)
        except AssertionError as error:
            # What had to be there before the clause was not.
            return f"not tried: {error}".strip(": ")


def expected(name: str, clause: Clause) -> Outcome | Where:
    """What must come of a clause at one of ours."""
    return clause.on_stream if name.startswith("TLS") else clause.ours


@contextlib.asynccontextmanager
async def open_turn_servers(folder: Path) -> AsyncIterator[TurnServers]:
    """Start all, and wait until they answer."""
    settings = ServerSettings(realm=REALM, max_allocations_per_user=QUOTA, unauthenticated_answers_per_s=0)
    coturns = [f"user={user}:{password}" for user, password in USERS.items() if user != USERNAME]
    async with contextlib.AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(
                make(ANY_PORT, StaticCredentials(USERS), allow_loopback_peers=True, settings=settings)
            )
            for make in (native.TurnHost, slow.TurnHost)
        ]
        relays = {
            plane: await stack.enter_async_context(
                running_relay(_made(folder / plane), hosts[0].address, listen={"plane": plane})
            )
            for plane in ("compiled", "reference")
        }
        authority = Authority(_made(folder / "coturn"))
        certificate = authority.issue(SERVER_NAME, "127.0.0.1")
        options = [*coturns, f"user-quota={QUOTA}"]
        coturn = await stack.enter_async_context(open_coturn(certificate=certificate, options=options))
        assert coturn.tls_address is not None
        servers = (
            *(Server(host.address) for host in hosts),
            *(Server(relay.tls, relay.trust) for relay in relays.values()),
            *(Server(coturn.address), Server(coturn.tls_address, authority.client_context())),
        )
        peer = await stack.enter_async_context(open_echo())
        yield TurnServers(dict(zip((*OURS, *COTURNS), servers, strict=True)), peer)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
