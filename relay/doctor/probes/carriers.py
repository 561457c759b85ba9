"""The carriers of a relay, and of media hosts that take TURN over TLS: how each is opened, and whether it answers."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from relay.addresses import Address
from relay.client.carriers import open_turn_connect_udp, open_turn_websocket
from relay.client.connect import Proxy
from relay.client.requests import TurnRequestError
from relay.client.session import Session, SessionError, open_session
from relay.client.turn import OnData, TurnConnection, open_turn_tls
from relay.doctor.failures import failure_of
from relay.doctor.plan import Credentials, Site
from relay.doctor.probes.context import Context
from relay.doctor.seen import CarrierSeen, Failure, Step, way_name
from relay.errors import UpstreamError
from relay.logs import printable

Line = TurnConnection | Session
# Opens a line for these credentials, and hands on what comes.
OpenLine = Callable[[Credentials, OnData], Awaitable[Line]]
NOBODY = Credentials("", "")
# The relay may carry UDP only to its own upstreams: a refusal says nothing about the network.
_FORBIDDEN = 403


@dataclass(frozen=True)
class Carrier:
    """A carrier by one way. ``certain`` is false where nobody has documented that the host takes it."""

    name: str
    way: str
    open: OpenLine
    certain: bool = True


def relay_carriers(context: Context, proxy: Proxy | None) -> list[Carrier]:
    """All that the relay of the plan has. CONNECT-UDP needs to know whom to ask for."""
    plan = context.plan
    assert plan.relay is not None
    server, way = context.relay_server(proxy), way_name(proxy)
    given: dict[str, Any] = {
        "ssl_context": plan.trust,
        "server_hostname": plan.relay.name,
        "timeout_s": plan.limits.probe_s,
        "proxy": proxy,
    }
    carriers = [
        Carrier("TURN/TLS", way, functools.partial(_turn_tls, server, given)),
        Carrier("WebSocket", way, functools.partial(_websocket, server, given)),
        Carrier("session", way, functools.partial(_session, server, given)),
    ]
    if plan.relay.upstream is not None:
        connect_udp = functools.partial(_connect_udp, server, plan.relay.upstream, given)
        carriers.append(Carrier("CONNECT-UDP", way, connect_udp))
    return carriers


def media_carrier(context: Context, site: Site, proxy: Proxy | None) -> Carrier:
    """TURN over TLS at a media host of the vendor's."""
    given: dict[str, Any] = {
        "ssl_context": context.plan.trust,
        "server_hostname": site.name,
        "timeout_s": context.plan.limits.probe_s,
        "proxy": proxy,
    }
    server = context.server_of(site, proxy)
    return Carrier(f"TURN/TLS at {site.name}", way_name(proxy), functools.partial(_turn_tls, server, given), False)


async def _turn_tls(server: Address, given: dict[str, Any], who: Credentials, on_data: OnData) -> Line:
    return await open_turn_tls(server, who.username, who.password, on_data=on_data, **given)


async def _websocket(server: Address, given: dict[str, Any], who: Credentials, on_data: OnData) -> Line:
    return await open_turn_websocket(f"wss://{server}/turn", who.username, who.password, on_data=on_data, **given)


async def _session(server: Address, given: dict[str, Any], who: Credentials, on_data: OnData) -> Line:
    return await open_session(
        f"wss://{server}/media", username=who.username, password=who.password, on_data=on_data, **given
    )


async def _connect_udp(
    server: Address, upstream: Address, given: dict[str, Any], who: Credentials, on_data: OnData
) -> Line:
    return await open_turn_connect_udp(
        f"https://{server}", upstream, who.username, who.password, on_data=on_data, **given
    )


async def ask(context: Context, carrier: Carrier) -> CarrierSeen:
    """Open it, and ask for our address. A session is refused without credentials, which is an answer as well."""
    async with context.slots:
        try:
            line = await carrier.open(context.plan.credentials or NOBODY, lambda *_: None)
        except SessionError as error:
            return _answer(carrier, error.code, error)
        except UpstreamError as error:
            failure = failure_of(error)
            if failure.step is Step.UPGRADE and failure.status == _FORBIDDEN:
                return _seen(carrier, None, detail=f"the relay refuses it: {failure.text}")
            return _seen(carrier, failure)
        try:
            if isinstance(line, TurnConnection):
                await line.binding()
        except TurnRequestError as error:
            return _answer(carrier, error.answered, error)
        finally:
            await line.close()
    return _seen(carrier, None, answered=True)


def _seen(carrier: Carrier, failure: Failure | None, *, answered: bool = False, detail: str = "") -> CarrierSeen:
    return CarrierSeen(carrier.name, carrier.way, failure, answered, detail, carrier.certain)


def _answer(carrier: Carrier, answered: int, error: UpstreamError) -> CarrierSeen:
    """A refusal is an answer; silence is a failure."""
    text = printable(str(error))
    if answered:
        return _seen(carrier, None, answered=True, detail=text)
    return _seen(carrier, Failure(Step.FRAMES, text))
