"""Who may and who may not, with real clients through the whole relay: over each carrier, on both planes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aioice import stun, turn

from relay.addresses import Address
from relay.client.carriers import open_turn_connect_udp, open_turn_websocket
from relay.client.session import Session, SessionError, open_session
from relay.client.turn import TurnConnection
from relay.emulator.turn.slow import TurnHost
from relay.errors import UpstreamError
from relay.gateway.entitlement.verdicts import VerdictOutcome
from relay.gateway.routing.flows import ResumeOutcome
from relay.gateway.sessions import sessions
from relay.plane.api import CloseReason
from relay.turn.credentials import RestCredentials, StaticCredentials, long_term_key, rest_password, rest_username
from relay.wire.stun import AttributeType, Message, MessageClass, Method, build_message, parse_message
from tests.support.benches.gateway import SERVER_NAME, Relay, running_relay, write_config
from tests.support.peers.behind_turn import open_echo, open_echo_pair
from tests.support.peers.coturn import Coturn, open_coturn
from tests.support.peers.tls_client import TlsClient
from tests.support.peers.uclient import Witness, run_uclient
from tests.support.peers.user_service import user_service
from tests.support.waiting import becomes, eventually

pytestmark = pytest.mark.parametrize("plane", ["compiled", "reference"])

PASSWORD = "pass"
USERS = {"ann": PASSWORD, "bob": PASSWORD, "cid@desk.example": PASSWORD}
SECRET = "s3cret"
TRANSACTION = b"transaction!"


def static(*users: dict[str, Any]) -> dict[str, Any]:
    return {"policy": "static", "users": list(users)}


@contextlib.asynccontextmanager
async def serving(
    folder: Path, plane: str, entitlement: dict[str, Any], *, region: str = "use1"
) -> AsyncIterator[tuple[Relay, TurnHost]]:
    """A relay before an embedded TURN host that knows all users."""
    host = TurnHost(Address("127.0.1.1", 0), StaticCredentials(USERS), allow_loopback_peers=True)
    async with host:
        upstream = {"address": host.address, "region": region}
        async with running_relay(folder, upstream, listen={"plane": plane}, entitlement=entitlement) as relay:
            yield relay, host


async def open_by(relay: Relay, carrier: str, host: TurnHost, user: str, password: str = PASSWORD) -> TurnConnection:
    url = f"{relay.tls}"
    if carrier == "turn":
        return await relay.open_turn(user, password)
    if carrier == "websocket":
        return await open_turn_websocket(
            f"wss://{url}/turn", user, password, ssl_context=relay.trust, server_hostname=SERVER_NAME
        )
    return await open_turn_connect_udp(
        f"https://{url}", host.address, user, password, ssl_context=relay.trust, server_hostname=SERVER_NAME
    )


CARRIERS = ["turn", "websocket", "connect-udp"]


def closed(relay: Relay, reason: CloseReason) -> int:
    return relay.gateway.plane.snapshot().closed.get(reason, 0)


def counts(relay: Relay) -> dict[str, int]:
    return {outcome.value: count for outcome, count in relay.gateway.entitlement.counts.items() if count}


# Real clients


async def test_coturns_client_calls_if_it_may(tmp_path: Path, plane: str) -> None:
    entitlement = static({"user": "tra*", "calls": 8, "regions": ["default"]})
    witness = Witness()
    async with (
        open_coturn() as coturn,
        open_echo_pair(on_datagram=witness.on_datagram) as peer,
        running_relay(tmp_path, coturn.address, listen={"plane": plane}, entitlement=entitlement) as relay,
    ):
        report = await run_uclient(
            relay.tls,
            coturn.username,
            coturn.password,
            peer=peer,
            clients=2,
            messages=5,
            options=["-t", "-S"],
            excuses=lambda report: witness.excuses(relay, report),
        )
        assert (report.sent, report.received) == (10, 10)
        # It has more allocations than clients.
        assert set(counts(relay)) == {"admitted"}
        assert counts(relay)["admitted"] >= 2
        await eventually(lambda: relay.gateway.entitlement.calls == 0, "places are left")


@pytest.mark.parametrize(
    ("entitlement", "told"),
    [
        (static({"user": "ann"}), "403 (Forbidden: not entitled to voice through this relay)"),
        (static({"user": "trader", "calls": 1}), "486 (Allocation Quota Reached: too many calls at once)"),
    ],
)
async def test_coturns_client_is_told_why_not(
    tmp_path: Path, plane: str, entitlement: dict[str, Any], told: str
) -> None:
    async with (
        open_coturn() as coturn,
        open_echo_pair() as peer,
        running_relay(tmp_path, coturn.address, listen={"plane": plane}, entitlement=entitlement) as relay,
    ):
        with pytest.raises(AssertionError) as ended:
            await run_uclient(
                relay.tls, coturn.username, coturn.password, peer=peer, clients=2, messages=1, options=["-t", "-S"]
            )
        assert told in str(ended.value)


async def test_aioice_calls_if_it_may(tmp_path: Path, plane: str) -> None:
    async with serving(tmp_path, plane, static({"user": "ann"})) as (relay, _), open_echo() as peer:
        transport, protocol = await turn.create_turn_endpoint(
            Received, server_addr=relay.tls, username="ann", password=PASSWORD, ssl=relay.trust, transport="tcp"
        )
        transport.sendto(b"hello", peer)
        assert await protocol.data.get() == b"hello"
        transport.close()
        await deleted()


async def test_aioice_takes_only_a_refusal_that_is_signed(
    tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It sends again even over TCP, and would do so for half a minute.
    monkeypatch.setattr(stun, "RETRY_MAX", 1)
    entitlement = static({"user": "bob"})
    async with serving(tmp_path, plane, entitlement) as (relay, _):
        with pytest.raises(stun.TransactionTimeout):
            await call_by_aioice(relay, "ann", PASSWORD)
        await eventually(lambda: closed(relay, CloseReason.NOT_ENTITLED) == 1)
    rest = TurnHost(Address("127.0.1.1", 0), RestCredentials(SECRET), allow_loopback_peers=True)
    (tmp_path / "rest").mkdir()
    async with rest:
        upstream = {"address": rest.address, "secret": SECRET}
        async with running_relay(
            tmp_path / "rest", upstream, listen={"plane": plane}, entitlement=entitlement
        ) as relay:
            ann, bob = (rest_username(user, int(time.time()) + 600) for user in ("ann", "bob"))
            with pytest.raises(stun.TransactionFailed) as refused:
                await call_by_aioice(relay, ann, rest_password(SECRET, ann))
            assert refused.value.response.attributes["ERROR-CODE"] == (
                403,
                "Forbidden: not entitled to voice through this relay",
            )
            await call_by_aioice(relay, bob, rest_password(SECRET, bob))


async def call_by_aioice(relay: Relay, user: str, password: str) -> None:
    transport, _ = await turn.create_turn_endpoint(
        Received, server_addr=relay.tls, username=user, password=password, ssl=relay.trust, transport="tcp"
    )
    transport.close()
    await deleted()


class Received(asyncio.DatagramProtocol):
    """What the peer sent back."""

    def __init__(self) -> None:
        self.data: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.data.put_nowait(data)


async def deleted() -> None:
    """aioice deletes its allocation in a task of its own: wait for what it leaves behind."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    mine = [task for task in others if "aioice" in repr(task)]
    if mine:
        await asyncio.wait(mine)


# Carriers


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_each_carrier_asks(tmp_path: Path, plane: str, carrier: str) -> None:
    async with serving(tmp_path, plane, static({"user": "*@desk.example"})) as (relay, host), open_echo() as peer:
        async with await open_by(relay, carrier, host, "cid@desk.example") as allowed:
            await allowed.allocate()
            await allowed.create_permission(peer)
        refused = await open_by(relay, carrier, host, "ann")
        with pytest.raises(UpstreamError):
            await refused.allocate()
        await eventually(lambda: closed(relay, CloseReason.NOT_ENTITLED) == 1)
        with contextlib.suppress(UpstreamError):
            await refused.close()
        await becomes(lambda: host.allocations, 0)
        assert counts(relay) == {"admitted": 1, "not_entitled": 1}


async def test_media_that_names_nobody_reaches_upstreams_only(tmp_path: Path, plane: str) -> None:
    async with serving(tmp_path, plane, static({"user": "ann"})) as (relay, _):
        with pytest.raises(UpstreamError, match="403"):
            await open_turn_connect_udp(
                f"https://{relay.tls}",
                Address("54.174.51.241", 20000),  # of the vendor's media networks
                "ann",
                PASSWORD,
                ssl_context=relay.trust,
                server_hostname=SERVER_NAME,
            )


async def test_a_browser_is_told_by_close_1008(tmp_path: Path, plane: str) -> None:
    async with (
        serving(tmp_path, plane, static({"user": "bob"})) as (relay, _),
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"https://{relay.tls}/turn", protocols=["turn"], ssl=relay.trust, server_hostname=SERVER_NAME
        ) as socket,
    ):
        attributes = [(AttributeType.USERNAME, b"ann"), (AttributeType.REALM, b"firm.example")]
        request = build_message(Method.ALLOCATE, MessageClass.REQUEST, TRANSACTION, attributes, integrity_key=b"key")
        await socket.send_bytes(request)
        refusal = parse_message(await socket.receive_bytes())
        assert refusal.error is not None
        assert (refusal.error.code, refusal.transaction_id) == (403, TRANSACTION)
        message = await socket.receive()
        assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 1008, "not_entitled")


async def test_calls_at_once_over_all_carriers(tmp_path: Path, plane: str) -> None:
    async with serving(tmp_path, plane, static({"user": "ann", "calls": 3})) as (relay, host):
        calls = [await open_by(relay, carrier, host, "ann") for carrier in CARRIERS]
        for call in calls:
            await call.allocate()
        await becomes(lambda: relay.gateway.entitlement.calls, 3)
        for carrier in CARRIERS:
            fourth = await open_by(relay, carrier, host, "ann")
            with pytest.raises(UpstreamError):
                await fourth.allocate()
            with contextlib.suppress(UpstreamError):
                await fourth.close()
        await calls.pop().close()
        await eventually(lambda: relay.gateway.entitlement.calls == 2)
        async with await open_by(relay, "turn", host, "ann") as another:
            await another.allocate()
        for call in calls:
            await call.close()
        await eventually(lambda: relay.gateway.entitlement.calls == 0)
        assert counts(relay) == {"admitted": 4, "too_many_calls": 3}


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_wrong_password_takes_no_place(tmp_path: Path, plane: str, carrier: str) -> None:
    async with serving(tmp_path, plane, static({"user": "ann", "calls": 1})) as (relay, host):
        strangers = [await open_by(relay, carrier, host, "ann", "guess") for _ in range(3)]
        for stranger in strangers:
            with pytest.raises(UpstreamError, match="401"):
                await stranger.allocate()
        assert relay.gateway.entitlement.calls == 0
        async with await relay.open_turn("ann", PASSWORD) as ann:
            await ann.allocate()
            assert relay.gateway.entitlement.calls == 1
            second = await open_by(relay, carrier, host, "ann")
            with pytest.raises(UpstreamError):
                await second.allocate()
        for client in (*strangers, second):
            with contextlib.suppress(UpstreamError):
                await client.close()
        assert counts(relay) == {"admitted": 1, "too_many_calls": 1}


async def test_a_call_that_is_released_frees_its_place(tmp_path: Path, plane: str) -> None:
    async with serving(tmp_path, plane, static({"user": "ann", "calls": 1})) as (relay, host):
        async with await relay.open_turn("ann", PASSWORD) as ann:
            await ann.allocate()
            await ann.refresh()
            second = await relay.open_turn("ann", PASSWORD)
            with pytest.raises(UpstreamError):
                await second.allocate()
            # Without the allocation the place is free, though the connection is there.
            await ann.refresh(0)
            await becomes(lambda: host.allocations, 0)
            async with await relay.open_turn("ann", PASSWORD) as third:
                await third.allocate()
                assert not ann.closed.done()
        await second.close()


def allocate_as(user: str, nonce: bytes, transaction: bytes) -> bytes:
    """An Allocate that a client with another password would send."""
    attributes = [
        (AttributeType.REQUESTED_TRANSPORT, b"\x11\0\0\0"),
        (AttributeType.USERNAME, user.encode()),
        (AttributeType.REALM, b"relay.test"),
        (AttributeType.NONCE, nonce),
    ]
    return build_message(Method.ALLOCATE, MessageClass.REQUEST, transaction, attributes, integrity_key=b"a guess")


async def test_a_running_call_cannot_go_over_to_another_user(tmp_path: Path, plane: str) -> None:
    async with serving(tmp_path, plane, static({"user": "*", "calls": 1})) as (relay, host):
        async with await relay.open_turn("ann", PASSWORD) as ann:
            await ann.allocate()
            [flow] = relay.gateway.plane.snapshot().flows
            sent = flow.totals.uplink_packets
            ann._link.send(allocate_as("bob", b"nonce", TRANSACTION))  # the upstream refuses it
            await eventually(lambda: relay.gateway.plane.snapshot().flows[0].totals.uplink_packets > sent)
            await ann.refresh()  # and its answer has come by now
            assert relay.gateway.entitlement.calls == 1
            # bob never called, and may; ann has her call, and may not place another.
            async with await relay.open_turn("bob", PASSWORD) as bob:
                await bob.allocate()
                second = await relay.open_turn("ann", PASSWORD)
                with pytest.raises(UpstreamError):
                    await second.allocate()
                await second.close()
            assert not ann.closed.done()
        await becomes(lambda: host.allocations, 0)


def coturns_key(coturn: Coturn) -> bytes:
    return long_term_key(coturn.username, coturn.realm, coturn.password)


async def ask_as(relay: Relay, coturn: Coturn, name: bytes) -> Message:
    """The answer to an Allocate that names ``name``, and is signed with the key of coturn's user."""
    client = await TlsClient.open(relay.tls, relay.trust)
    try:
        transport = (AttributeType.REQUESTED_TRANSPORT, b"\x11\0\0\0")
        await client.send(build_message(Method.ALLOCATE, MessageClass.REQUEST, TRANSACTION, [transport]))
        asked = parse_message(await client.receive_unit())
        told = [(kind, asked.get(kind) or b"") for kind in (AttributeType.REALM, AttributeType.NONCE)]
        attributes = [transport, (AttributeType.USERNAME, name), *told]
        key = coturns_key(coturn)
        request = build_message(Method.ALLOCATE, MessageClass.REQUEST, b"second_asked", attributes, integrity_key=key)
        await client.send(request)
        return parse_message(await client.receive_unit())
    finally:
        await client.close()


async def test_a_user_has_one_name(tmp_path: Path, plane: str) -> None:
    """coturn reads a name up to its first NUL: each of these is the same user to it."""
    entitlement = static({"user": "*", "calls": 1})
    async with (
        open_coturn() as coturn,
        running_relay(tmp_path, coturn.address, listen={"plane": plane}, entitlement=entitlement) as relay,
        await relay.open_turn(coturn.username, coturn.password) as first,
    ):
        await first.allocate()
        for name, code in ((b"trader", 486), (b"trader\0", 400), (b"trader\0one", 400), (b"trader\0two", 400)):
            answered = await ask_as(relay, coturn, name)
            assert answered.error is not None
            assert answered.error.code == code
        assert relay.gateway.entitlement.calls == 1


async def test_a_call_that_was_given_up_does_not_come_back_beyond_the_bound(tmp_path: Path, plane: str) -> None:
    """coturn keeps an allocation for a second after it was given up, and a Refresh brings it back."""
    entitlement = static({"user": "*", "calls": 1})
    async with (
        open_coturn() as coturn,
        running_relay(tmp_path, coturn.address, listen={"plane": plane}, entitlement=entitlement) as relay,
    ):
        user, password = coturn.username, coturn.password
        first, second = await relay.open_turn(user, password), await relay.open_turn(user, password)
        await first.allocate()
        assert await first.refresh(0) == 0
        await second.allocate()
        with pytest.raises(UpstreamError, match=r"486|437"):  # the second where a second has passed
            await first.refresh()
        assert relay.gateway.entitlement.calls == 1
        assert await second.refresh() > 0
        for client in (first, second):
            with contextlib.suppress(UpstreamError):
                await client.close()


@pytest.mark.parametrize("carrier", [*CARRIERS, "session"])
async def test_of_calls_at_once_those_beyond_the_bound_are_released(tmp_path: Path, plane: str, carrier: str) -> None:
    """All are let through to the upstream together, which grants them all."""
    user = rest_username("ann", int(time.time()) + 600)
    password = rest_password(SECRET, user)
    host = TurnHost(Address("127.0.1.1", 0), RestCredentials(SECRET), allow_loopback_peers=True)
    async with user_service() as service, host:
        upstream = {"address": host.address, "secret": SECRET}
        entitlement = {"policy": "http", "url": service.url}
        async with running_relay(tmp_path, upstream, listen={"plane": plane}, entitlement=entitlement) as relay:
            service.hang({"allowed": True, "calls": 2})

            async def call() -> TurnConnection | Session:
                if carrier == "session":
                    return await open_media(relay, user, password)
                client = await open_by(relay, carrier, host, user, password)
                try:
                    await client.allocate()
                except UpstreamError:
                    with contextlib.suppress(UpstreamError):
                        await client.close()
                    raise
                return client

            calling = [asyncio.ensure_future(call()) for _ in range(6)]
            # All six wait for the one answer.
            await becomes(lambda: len(relay.gateway.entitlement._tasks), 6)
            service.release()
            called = await asyncio.gather(*calling, return_exceptions=True)
            calls = [one for one in called if not isinstance(one, BaseException)]
            assert len(calls) == 2
            assert all("486" in str(one) for one in called if isinstance(one, BaseException))
            assert counts(relay) == {"admitted": 2, "too_many_calls": 4}
            await becomes(lambda: relay.gateway.entitlement.calls, 2)
            await becomes(lambda: host.allocations, 2)
            for one in calls:
                await one.close()
            await becomes(lambda: host.allocations, 0)
            await becomes(lambda: relay.gateway.entitlement.calls, 0)


async def test_the_region_of_the_upstream_counts(tmp_path: Path, plane: str) -> None:
    users = static({"user": "ann", "regions": ["use1"]}, {"user": "*"})
    host = TurnHost(Address("127.0.1.1", 0), StaticCredentials(USERS), allow_loopback_peers=True)
    async with host:
        upstreams = [{"address": host.address, "region": region} for region in ("use1", "euc1")]
        routes = [{"server_name": f"{region}.relay.test", "region": region} for region in ("use1", "euc1")]
        async with running_relay(
            tmp_path, *upstreams, listen={"plane": plane}, entitlement=users, routes=routes
        ) as relay:
            for user, region, may in (("ann", "use1", True), ("ann", "euc1", False), ("bob", "euc1", True)):
                client = await relay.open_turn(user, PASSWORD, server_name=f"{region}.relay.test")
                if may:
                    await client.allocate()
                else:
                    with pytest.raises(UpstreamError):
                        await client.allocate()
                await client.close()
            assert counts(relay) == {"admitted": 2, "region": 1}


# Sessions


async def open_media(relay: Relay, user: str, password: str = PASSWORD) -> Session:
    url = f"wss://{relay.tls}/media"
    return await open_session(
        url, username=user, password=password, ssl_context=relay.trust, server_hostname=SERVER_NAME
    )


async def test_sessions_are_told_why_not(tmp_path: Path, plane: str) -> None:
    users = static({"user": "ann", "calls": 1}, {"user": "bob", "regions": ["euc1"]})
    host = TurnHost(Address("127.0.1.1", 0), StaticCredentials(USERS), allow_loopback_peers=True)
    async with host:
        upstreams = [{"address": host.address, "region": region} for region in ("use1", "euc1")]
        route = {"server_name": SERVER_NAME, "region": "use1"}
        async with running_relay(
            tmp_path, *upstreams, listen={"plane": plane}, entitlement=users, routes=[route]
        ) as relay:
            async with await open_media(relay, "ann"):
                await becomes(lambda: relay.gateway.entitlement.calls, 1)
                for user, code in (("ann", 486), ("bob", 403), ("cid@desk.example", 403)):
                    with pytest.raises(SessionError) as refused:
                        await open_media(relay, user)
                    assert refused.value.code == code
                with pytest.raises(UpstreamError):
                    await (await relay.open_turn("ann", PASSWORD)).allocate()
            await eventually(lambda: relay.gateway.entitlement.calls == 0)
            # A wrong password ends a session at once, and with it its place.
            with pytest.raises(SessionError) as wrong:
                await open_media(relay, "ann", "guess")
            assert wrong.value.code == 401
            assert relay.gateway.entitlement.calls == 0
            async with await open_media(relay, "ann"):
                pass
            await eventually(lambda: host.allocations == 0)
            assert counts(relay) == {"admitted": 2, "region": 1, "not_entitled": 1, "too_many_calls": 2}


async def test_a_session_that_waits_for_its_upstream_keeps_nobody_out(tmp_path: Path, plane: str) -> None:
    """Whoever knows a name can open sessions with it: they hold nothing until the upstream has granted them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        users = static({"user": "ann", "calls": 1})
        host = TurnHost(Address("127.0.1.1", 0), StaticCredentials(USERS), allow_loopback_peers=True)
        async with host:
            upstreams = [
                {"address": Address("127.0.0.1", silent.getsockname()[1]), "region": "euc1"},
                {"address": host.address, "region": "use1"},
            ]
            routes = [{"server_name": f"{region}.relay.test", "region": region} for region in ("use1", "euc1")]
            async with running_relay(
                tmp_path,
                *upstreams,
                listen={"plane": plane},
                entitlement=users,
                routes=routes,
                health={"interval_s": 60.0},
            ) as relay:
                url = f"wss://{relay.tls}/media"
                opening = asyncio.ensure_future(
                    open_session(
                        url,
                        username="ann",
                        password="guess",
                        ssl_context=relay.trust,
                        server_hostname="euc1.relay.test",
                    )
                )
                await becomes(lambda: len(relay.gateway.flows), 1)
                async with await relay.open_turn("ann", PASSWORD, server_name="use1.relay.test") as ann:
                    await ann.allocate()
                    assert relay.gateway.entitlement.calls == 1
                opening.cancel()
                with contextlib.suppress(asyncio.CancelledError, UpstreamError):
                    await opening


async def test_a_session_that_is_cut_keeps_its_place_until_nobody_comes_back(
    tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, plane, static({"user": "ann", "calls": 1})) as (relay, host):
        session = await open_media(relay, "ann")
        relayed = session.relayed_address
        assert session._link is not None
        session._link._transport.abort()
        await eventually(lambda: relay.gateway.flows.tally.resumptions[ResumeOutcome.RESUMED] == 1)
        assert (session.relayed_address, relay.gateway.entitlement.calls) == (relayed, 1)
        assert counts(relay) == {"admitted": 1}
        await session.close()
        await eventually(lambda: relay.gateway.entitlement.calls == 0)
        monkeypatch.setattr(sessions, "RESUME_WITHIN_S", 0.2)
        gone = await open_media(relay, "ann")
        monkeypatch.setattr(gone, "_token", "", raising=True)
        assert gone._link is not None
        gone._link._transport.abort()
        await eventually(lambda: relay.gateway.flows.tally.resumptions[ResumeOutcome.EXPIRED] == 1)
        await eventually(lambda: relay.gateway.entitlement.calls == 0)
        await gone.close()
        await eventually(lambda: host.allocations == 0)


async def test_a_session_waits_for_the_service(tmp_path: Path, plane: str) -> None:
    async with (
        user_service() as service,
        serving(tmp_path, plane, {"policy": "http", "url": service.url}) as (relay, _),
    ):
        service.hang()
        opening = asyncio.ensure_future(open_media(relay, "ann"))
        await eventually(lambda: service.asked)
        assert dict(service.asked[0].query) == {"user": "ann", "region": "use1", "client": "127.0.0.1"}
        service.release()
        async with await opening:
            await becomes(lambda: relay.gateway.entitlement.calls, 1)
        # One that goes while its user is asked for gets no place.
        service.hang()
        opening = asyncio.ensure_future(open_media(relay, "bob"))
        await eventually(lambda: "bob" in service.users)
        opening.cancel()
        await eventually(lambda: relay.connections == 0)
        service.release()
        await eventually(lambda: relay.gateway.entitlement.calls == 0)


# A service


@pytest.mark.parametrize("fail", ["closed", "open"])
async def test_a_service_that_hangs(tmp_path: Path, plane: str, fail: str) -> None:
    async with user_service() as service:
        entitlement = {"policy": "http", "url": service.url, "fail": fail, "timeout_s": 0.2}
        async with serving(tmp_path, plane, entitlement) as (relay, _):
            service.hang()
            client = await relay.open_turn("ann", PASSWORD)
            if fail == "open":
                await client.allocate()
            else:
                with pytest.raises(UpstreamError):
                    await client.allocate()
            await client.close()
            assert counts(relay) == {"admitted_unasked" if fail == "open" else "unavailable": 1}
            await check_shown(relay, "no answer within 0.2 s")


async def check_shown(relay: Relay, trouble: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{relay.admin}/api/summary") as response:
            shown = json.loads(await response.read())["entitlement"]
        assert (shown["policy"], shown["trouble"]) == ("http", trouble)
        async with session.get(f"http://{relay.admin}/metrics") as response:
            lines = (await response.text()).splitlines()
    for outcome in VerdictOutcome:
        count = shown["verdicts"][outcome.value]
        assert f'relay_entitlement_verdicts_total{{verdict="{outcome.value}"}} {count:.1f}' in lines
    assert "relay_entitlement_trouble 1.0" in lines


async def test_many_that_log_in_at_once(tmp_path: Path, plane: str) -> None:
    async with (
        user_service() as service,
        serving(tmp_path, plane, {"policy": "http", "url": service.url}) as (relay, _),
    ):
        clients = await asyncio.gather(*(relay.open_turn("ann", PASSWORD) for _ in range(20)))
        await asyncio.gather(*(client.allocate() for client in clients))
        assert service.users == ["ann"]
        await becomes(lambda: relay.gateway.entitlement.calls, 20)
        await asyncio.gather(*(client.close() for client in clients))


async def test_a_reload_counts_for_the_next_call(tmp_path: Path, plane: str) -> None:
    async with serving(tmp_path, plane, {"policy": "none"}) as (relay, _):
        before = await relay.open_turn("ann", PASSWORD)
        await before.allocate()
        assert counts(relay) == {}  # nobody was asked
        users = tmp_path / "users.toml"
        users.write_text("[[users]]\nuser = 'bob'\n")
        write_config(relay.config_file, {**relay.tree, "entitlement": {"policy": "file", "file": "users.toml"}})
        relay.gateway.reload(relay.config_file)
        await before.refresh()
        after = await relay.open_turn("ann", PASSWORD)
        with pytest.raises(UpstreamError):
            await after.allocate()
        users.write_text("[[users]]\nuser = 'ann'\n")
        relay.gateway.reload(relay.config_file)
        async with await relay.open_turn("ann", PASSWORD) as later:
            await later.allocate()
        await before.close()
        await after.close()
        assert counts(relay) == {"admitted": 1, "not_entitled": 1}
