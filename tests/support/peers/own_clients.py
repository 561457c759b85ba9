"""The product's own clients: TURN over each carrier, and sessions."""

from __future__ import annotations

from typing import Any

from relay.addresses import Address
from relay.client.carriers import open_turn_connect_udp, open_turn_websocket
from relay.client.connect import Proxy
from relay.client.session import Session, open_session
from relay.client.turn import OnData, TurnConnection, open_turn_tls
from tests.support.benches.gateway import Relay
from tests.support.peers.behind_turn import Inbox
from tests.support.peers.coturn import PASSWORD, USERNAME


async def open_turn(
    carrier: str,
    relay: Relay,
    upstream: Address,
    *,
    on_data: OnData = lambda *_: None,
    proxy: Proxy | str | None = None,
    server: Address | None = None,
    timeout_s: float = 10.0,
) -> TurnConnection:
    """A connection over a carrier to the relay, or to another server in its place."""
    where = server or relay.tls
    trusted: dict[str, Any] = {"ssl_context": relay.trust, "server_hostname": "relay.test", "timeout_s": timeout_s}
    more: dict[str, Any] = {**trusted, "on_data": on_data, "proxy": proxy}
    if carrier == "tls":
        return await open_turn_tls(where, USERNAME, PASSWORD, **more)
    if carrier == "websocket":
        return await open_turn_websocket(f"wss://{where}/turn", USERNAME, PASSWORD, **more)
    return await open_turn_connect_udp(f"https://{where}", upstream, USERNAME, PASSWORD, **more)


async def opened_session(relay: Relay, inbox: Inbox, **more: Any) -> Session:
    """A session of the trader, whose data goes to ``inbox``."""
    given: dict[str, Any] = {"username": "trader", "password": "secret", "on_data": inbox.put, **more}
    return await open_session(
        f"wss://{relay.tls}/media", ssl_context=relay.trust, server_hostname="relay.test", **given
    )
