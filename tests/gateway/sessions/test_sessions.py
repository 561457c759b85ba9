"""Sessions through a whole relay on both planes: allocations, failover, coming back, and all that is refused."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.emulator.turn.hosts import TurnHosts
from relay.emulator.turn.slow import TurnHost
from relay.gateway.routing.flows import FailoverOutcome, ResumeOutcome
from relay.gateway.routing.upstreams import Health
from relay.gateway.sessions import channels, parking
from relay.gateway.sessions import session as session_module
from relay.gateway.sessions import sessions as sessions_module
from relay.plane.api import Carrier, CloseReason, ConnectionId
from relay.plane.taps import TappedDatagram
from tests.support.benches.gateway import CREDENTIALS, Relay, fall_silent, relay_with_hosts, running_relay
from tests.support.benches.turn import PASSWORDS, AnsweringServer, is_no_allocate_success
from tests.support.peers.behind_turn import SIZES, open_echo
from tests.support.peers.raw_session import OPEN, Json, RawSession, echoes, raw_session
from tests.support.peers.responder import open_responder
from tests.support.peers.scripted_upstream import scripted_upstream
from tests.support.waiting import becomes, eventually

pytestmark = pytest.mark.parametrize("plane", ["compiled", "reference"])


async def ended(relay: Relay, hosts: TurnHosts) -> None:
    """All is let go of, at the upstreams too."""
    sessions = relay.gateway._sessions
    await eventually(lambda: not relay.connections and not len(relay.gateway.flows) and not len(sessions))
    await eventually(lambda: not sessions._tokens and not sessions._left, "sessions were left")
    await eventually(lambda: not sum(host.allocations for host in hosts), "allocations were left")


async def test_a_whole_session(tmp_path: Path, plane: str) -> None:
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            opened = await session.ask(**OPEN, region="use1", id=1)
            assert set(opened) == {"type", "relayed", "mapped", "upstream", "token", "resume_within_s", "id"}
            assert (opened["type"], opened["id"], opened["resume_within_s"]) == ("opened", 1, 10)
            assert len(opened["token"]) == 22
            assert opened["relayed"].startswith(f"{hosts[opened['upstream']].address.host}:")
            bound = await session.ask(type="bind", peer=str(peer), id="a")
            assert bound == {"type": "bound", "peer": str(peer), "channel": 0x4000, "id": "a"}
            # Again: the same; and by number: the same.
            again = await session.ask(type="bind", peer=str(peer), channel=0x4000, id="a")
            assert again == bound
            for size in SIZES:
                await echoes(session, 0x4000, bytes(index & 0xFF for index in range(size)))
            (flow,) = relay.gateway.plane.snapshot().flows
            assert (flow.carrier, flow.upstream.name) == (Carrier.SESSION, opened["upstream"])
            assert (flow.username, flow.server_name) == ("trader", "relay.test")
            await becomes(lambda: hosts[opened["upstream"]].allocations, 1)
            assert await session.ask(type="close", id=2) == {"type": "closed", "id": 2}
            await session.say_goodbye()
            assert await session.hear_close() == (1000, "")
        await ended(relay, hosts)
        assert not relay.gateway.flows.tally.parked
        await becomes(lambda: relay.gateway.plane.snapshot().closed.get(CloseReason.CLIENT_CLOSED), 1)


async def test_with_a_websocket_of_others(tmp_path: Path, plane: str) -> None:
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(
                f"wss://{relay.tls}/media",
                protocols=["media.v1", "media.v2"],
                compress=15,  # asked for, and not granted
                ssl=relay.trust,
                server_hostname="relay.test",
                origin="https://desk.example",
            ) as websocket,
        ):
            assert (websocket.protocol, websocket.compress) == ("media.v1", 0)
            await websocket.send_json(OPEN)
            assert (await websocket.receive_json())["type"] == "opened"
            await websocket.send_json({"type": "bind", "peer": str(peer)})
            assert (await websocket.receive_json())["channel"] == 0x4000
            await websocket.send_bytes(b"\x40\x00voice")
            assert await websocket.receive_bytes() == b"\x40\x00voice"
            await websocket.close()
        await ended(relay, hosts)


async def test_what_is_refused_and_leaves_the_session_as_it_was(tmp_path: Path, plane: str) -> None:
    async with open_echo() as peer, open_echo() as other, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            for said, code in (
                ({"type": "bind", "peer": str(peer), "id": 1}, 409),
                ({"type": "resume", "token": "x" * 22, "id": 2}, 404),
                ({"type": "nonsense", "id": 3}, 400),
                ({"type": "open", "id": 4}, 401),
            ):
                heard = await session.ask(**said)
                assert (heard["type"], heard["code"], heard["id"]) == ("error", code, said["id"])
            await session.say("{")
            assert (await session.hear())["code"] == 400
            assert (await session.ask(**OPEN))["type"] == "opened"
            for said, code in (
                ({**OPEN, "id": 5}, 409),
                ({"type": "resume", "token": "x" * 22, "id": 6}, 409),
                ({"type": "bind", "peer": "10.1.1.1:9", "id": 7}, 403),
            ):
                heard = await session.ask(**said)
                assert (heard["type"], heard["code"], heard["id"]) == ("error", code, said["id"])
            assert (await session.ask(type="bind", peer=str(peer), channel=0x4005))["channel"] == 0x4005
            heard = await session.ask(type="bind", peer=str(peer), channel=0x4006)
            assert (heard["code"], heard["reason"]) == (409, "bind: the peer has channel 0x4005 already")
            heard = await session.ask(type="bind", peer=str(other), channel=0x4005)
            assert (heard["code"], heard["reason"]) == (409, "bind: channel 0x4005 belongs to another peer")
            assert (await session.ask(type="bind", peer=str(other)))["channel"] == 0x4000
            await echoes(session, 0x4005)
            await session.say_goodbye()
        await ended(relay, hosts)


async def test_channels_are_bounded(tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_CHANNELS", 3)
    async with relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            await session.ask(**OPEN)
            for port in (7001, 7002, 7003):
                assert (await session.ask(type="bind", peer=f"127.0.0.1:{port}"))["type"] == "bound"
            heard = await session.ask(type="bind", peer="127.0.0.1:7004")
            assert (heard["code"], heard["reason"]) == (429, "bind: expected at most 3 channels")
            await session.say_goodbye()
        await ended(relay, hosts)


async def test_credentials_that_the_upstream_refuses(tmp_path: Path, plane: str) -> None:
    async with relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            heard = await session.ask(type="open", username="trader", password="wrong", id=1)
            assert (heard["type"], heard["code"], heard["id"]) == ("error", 401, 1)
            assert await session.hear_close() == (1008, "not_entitled")
        await ended(relay, hosts)


async def test_own_credentials_where_the_operator_says_so(tmp_path: Path, plane: str) -> None:
    async with TurnHost(Address("127.0.0.1", 0), CREDENTIALS) as host:
        upstream = {"address": host.address, "username": "trader", "password": "secret"}
        sections = {"listen": {"plane": plane}, "media": {"own_credentials": True}}
        async with running_relay(tmp_path, upstream, **sections) as relay:
            async with raw_session(relay) as session:
                assert (await session.ask(type="open"))["type"] == "opened"
                await session.say_goodbye()
            await eventually(lambda: not relay.connections)


async def test_region_and_no_upstream(tmp_path: Path, plane: str) -> None:
    routes = [{"server_name": "use1.relay.test", "region": "use1"}]
    async with relay_with_hosts(tmp_path, plane, routes=routes) as (relay, hosts):
        async with raw_session(relay, "use1.relay.test") as session:
            heard = await session.ask(**OPEN, region="euc1")
            assert (heard["code"], heard["reason"]) == (503, "this name serves only the region use1")
            assert await session.hear_close() == (1013, "no_upstream")
        async with raw_session(relay) as session:
            heard = await session.ask(**OPEN, region="nowhere")
            assert (heard["code"], heard["reason"]) == (503, "no upstream of the region nowhere is up")
            assert await session.hear_close() == (1013, "no_upstream")
        await ended(relay, hosts)


async def test_client_that_says_nothing(tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "OPEN_TIMEOUT_S", 0.2)
    async with relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            heard = await session.hear()
            assert (heard["code"], heard["reason"]) == (408, "expected open or resume within 0.2 s")
            with contextlib.suppress(EOFError):
                await session.hear_close()
        await ended(relay, hosts)
        await becomes(lambda: relay.gateway.plane.snapshot().closed.get(CloseReason.FIRST_BYTES_TIMEOUT), 1)


async def test_client_that_only_tries_tokens(tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong one lets it begin anew, but not for ever: a client that opens nothing is closed."""
    monkeypatch.setattr(session_module, "OPEN_TIMEOUT_S", 3600.0)
    monkeypatch.setattr(session_module, "NEW_TIMEOUT_S", 0.2)
    async with relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            assert (await session.ask(type="resume", token="A" * 22))["code"] == 404
            assert (await session.hear())["code"] == 408
            # A client that leaves first has closed the connection itself.
            with contextlib.suppress(EOFError):
                await session.hear_close()
        await ended(relay, hosts)
        await becomes(lambda: relay.gateway.plane.snapshot().closed.get(CloseReason.FIRST_BYTES_TIMEOUT), 1)


async def test_upstream_that_dies_in_the_middle_of_a_call(tmp_path: Path, plane: str) -> None:
    async with open_echo() as peer, open_echo() as other, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            opened = await session.ask(**OPEN)
            assert (await session.ask(type="bind", peer=str(peer), channel=0x4123))["channel"] == 0x4123
            assert (await session.ask(type="bind", peer=str(other)))["channel"] == 0x4000
            await echoes(session, 0x4123)
            await hosts[opened["upstream"]].stop()
            await session.send(0x4123, b"into the void")  # ICMP comes back
            moved = await session.hear()
            assert set(moved) == {"type", "relayed", "upstream"}
            assert moved["type"] == "moved"
            assert moved["upstream"] != opened["upstream"]
            assert moved["relayed"].startswith(f"{hosts[moved['upstream']].address.host}:")
            await echoes(session, 0x4123, b"there")
            await echoes(session, 0x4000, b"and there")
            await becomes(lambda: relay.gateway.flows.tally.failovers, {FailoverOutcome.MOVED: 1})
            states = {state.name: state.flows for state in relay.gateway.upstreams}
            assert states == {opened["upstream"]: 0, moved["upstream"]: 1}
            await hosts[moved["upstream"]].stop()
            await session.send(0x4123, b"into the void")
            heard = await session.hear()
            assert (heard["type"], heard["code"]) == ("error", 503)
            assert await session.hear_close() == (1013, "no_upstream")
            await becomes(lambda: relay.gateway.flows.tally.failovers[FailoverOutcome.NO_UPSTREAM], 1)
        await ended(relay, hosts)


async def test_a_call_that_moves_stays_in_its_region_while_it_can(tmp_path: Path, plane: str) -> None:
    """Its user is entitled to no other, however much nearer or less loaded that is."""
    users = [{"user": "trader", "regions": ["use1"]}]
    async with TurnHosts({"use1": ["stun1", "stun2"], "euc1": ["stun3"]}, CREDENTIALS) as hosts:
        regions = {host.name: "euc1" if host.name == "stun3" else "use1" for host in hosts}
        upstreams = [{"name": one.name, "region": regions[one.name], "address": one.address} for one in hosts]
        async with running_relay(
            tmp_path, *upstreams, listen={"plane": plane}, entitlement={"policy": "static", "users": users}
        ) as relay:
            states = {state.name: state for state in relay.gateway.upstreams}
            await eventually(lambda: all(state.health == "up" for state in states.values()))
            states["stun3"].flows += 7
            async with raw_session(relay) as session:
                opened = await session.ask(**OPEN)
                states["stun3"].flows -= 7
                for state in states.values():
                    state.flows += 7 * (state.name != "stun3")
                await hosts[opened["upstream"]].stop()
                await session.say(type="bind", peer="127.0.0.1:9")
                while (moved := await session.hear())["type"] != "moved":
                    pass
                assert {opened["upstream"], moved["upstream"]} == {"stun1", "stun2"}
                # No upstream is left there, and the user may not go elsewhere.
                await hosts[moved["upstream"]].stop()
                await eventually(lambda: states[opened["upstream"]].health == "down")
                await session.say(type="bind", peer="127.0.0.1:10")
                while (heard := await session.hear())["reason"] != "Forbidden: not entitled to this region":
                    pass
                assert heard["code"] == 403
                assert (await session.hear_close())[0] == 1008
            await eventually(lambda: not relay.connections)
            await becomes(lambda: relay.gateway.entitlement.calls, 0)


async def test_upstream_that_falls_silent(tmp_path: Path, plane: str) -> None:
    """It answers nothing from one moment on, and no ICMP says so: probes find it, or the next request does."""
    async with (
        open_echo() as peer,
        scripted_upstream() as silent,
        TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host,
    ):
        limits = {"upstream_silence_s": 0.5}
        health = {"interval_s": 60.0, "timeout_s": 60.0}
        upstreams = [{"address": silent.address}, {"address": host.address}]
        async with running_relay(tmp_path, *upstreams, listen={"plane": plane}, limits=limits, health=health) as relay:
            await eventually(lambda: relay.gateway.upstreams.get("stun2").health == "up")  # type: ignore[union-attr]
            # As if it had answered until now.
            relay.gateway.upstreams.get("stun2").life.health = Health.UNKNOWN  # type: ignore[union-attr]
            relay.gateway.upstreams.get("stun2").flows = 7  # type: ignore[union-attr]
            async with raw_session(relay) as session:
                opened = await session.ask(**OPEN)
                assert opened["upstream"] == "stun2"  # the first was tried, and found silent
                assert (await session.ask(type="bind", peer=str(peer)))["type"] == "bound"
                await echoes(session, 0x4000)
                await session.say_goodbye()
            await eventually(lambda: not relay.connections)


async def test_upstream_that_falls_silent_in_the_middle_of_a_call(tmp_path: Path, plane: str) -> None:
    limits = {"upstream_silence_s": 0.5}
    async with (
        open_echo() as peer,
        open_echo() as other,
        relay_with_hosts(tmp_path, plane, limits=limits) as (relay, hosts),
        raw_session(relay) as session,
    ):
        opened = await session.ask(**OPEN)
        await session.ask(type="bind", peer=str(peer), channel=0x4123)
        await echoes(session, 0x4123)
        fall_silent(hosts[opened["upstream"]])
        # Asked of the silent one, answered by the next.
        bound = await session.ask(type="bind", peer=str(other), id="late")
        assert (bound["type"], bound["channel"], bound["id"]) == ("bound", 0x4000, "late")
        moved = await session.hear()
        assert (moved["type"], moved["upstream"] != opened["upstream"]) == ("moved", True)
        await echoes(session, 0x4123)
        await echoes(session, 0x4000)
        # The other one, too: there is nobody left.
        fall_silent(hosts[moved["upstream"]])
        fall_silent(hosts[opened["upstream"]])
        heard = await session.ask(type="bind", peer="127.0.0.1:9", id="in vain")
        assert (heard["type"], heard["code"]) in {("error", 503), ("error", 504)}
        assert (await session.hear_close())[0] == 1013


async def test_probes_that_find_an_upstream_down(tmp_path: Path, plane: str) -> None:
    """Nothing is asked of the upstream, and nothing comes: only the probes know."""
    health = {"interval_s": 0.1, "timeout_s": 0.1}
    async with (
        open_echo() as peer,
        relay_with_hosts(tmp_path, plane, health=health) as (relay, hosts),
        raw_session(relay) as session,
    ):
        opened = await session.ask(**OPEN)
        await session.ask(type="bind", peer=str(peer))
        fall_silent(hosts[opened["upstream"]])
        # It is left two seconds after it was last heard of.
        moved = await session.hear()
        assert moved["upstream"] != opened["upstream"]
        await echoes(session, 0x4000)


async def test_upstream_that_has_forgotten_the_allocation(tmp_path: Path, plane: str) -> None:
    """It has started anew on the same port: the next renewal is answered 437, and another allocation made there."""
    async with (
        open_echo() as peer,
        relay_with_hosts(tmp_path, plane, 1) as (relay, hosts),
        raw_session(relay) as session,
    ):
        opened = await session.ask(**OPEN)
        await session.ask(type="bind", peer=str(peer))
        await hosts["stun1"].stop()
        async with TurnHost(hosts["stun1"].address, CREDENTIALS, allow_loopback_peers=True) as again:
            (one,) = relay.gateway._sessions._sessions.values()
            assert one.allocation is not None
            one.allocation.turn.refresh(one._now())
            one._flush()
            moved = await session.hear()
            assert (moved["type"], moved["upstream"]) == ("moved", "stun1")
            assert moved["relayed"] != opened["relayed"]
            await echoes(session, 0x4000)
            await session.say_goodbye()
            await eventually(lambda: not relay.connections and not again.allocations)


async def test_a_call_waits_for_its_only_upstream_to_come_back(tmp_path: Path, plane: str) -> None:
    health = {"interval_s": 0.05, "timeout_s": 0.2}
    async with (
        open_echo() as peer,
        relay_with_hosts(tmp_path, plane, 1, health=health) as (relay, hosts),
        raw_session(relay) as session,
    ):
        await session.ask(**OPEN)
        await session.ask(type="bind", peer=str(peer))
        await hosts["stun1"].stop()
        await session.say(type="bind", peer="127.0.0.1:9")
        (one,) = relay.gateway._sessions._sessions.values()
        await eventually(lambda: one.waits)
        async with TurnHost(hosts["stun1"].address, CREDENTIALS, allow_loopback_peers=True) as again:
            while (moved := await session.hear())["type"] != "moved":
                pass
            assert moved["upstream"] == "stun1"
            await echoes(session, 0x4000)
            await session.say_goodbye()
            await eventually(lambda: not relay.connections and not again.allocations)


# Coming back


async def opened_and_bound(session: RawSession, peer: Address) -> Json:
    opened = await session.ask(**OPEN)
    assert (await session.ask(type="bind", peer=str(peer), channel=0x4123))["type"] == "bound"
    await echoes(session, 0x4123)
    return opened


async def parked(relay: Relay, count: int = 1) -> None:
    await eventually(lambda: relay.gateway.flows.tally.parked == count and not relay.connections)


async def test_cut_and_resumed(tmp_path: Path, plane: str) -> None:
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            opened = await opened_and_bound(session, peer)
            sent_from = await five_tuple(relay)
            # What the other side says meanwhile is stale when the client is back.
            for _ in range(5):
                await session.send(0x4123, b"stale")
            session.cut()
        await parked(relay)
        token = opened["token"]
        for _ in range(3):
            async with raw_session(relay) as session:
                resumed = await session.ask(type="resume", token=token, id=9)
                assert set(resumed) == {"type", "relayed", "upstream", "token", "resume_within_s", "id"}
                assert (resumed["relayed"], resumed["upstream"]) == (opened["relayed"], opened["upstream"])
                assert resumed["token"] != token
                token = resumed["token"]
                await echoes(session, 0x4123, b"again")
                assert (await session.ask(type="bind", peer=str(peer)))["channel"] == 0x4123
                assert await five_tuple(relay) == sent_from
                session.cut()
            await parked(relay)
        async with raw_session(relay) as session:
            assert (await session.ask(type="resume", token=token))["type"] == "resumed"
            await session.say_goodbye()
        await ended(relay, hosts)
        await becomes(lambda: relay.gateway.flows.tally.resumptions, {ResumeOutcome.RESUMED: 4})


async def test_cut_before_the_upstream_has_answered(tmp_path: Path, plane: str) -> None:
    """What was asked of it is asked again on the way back."""
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane, 1) as (relay, hosts):
        async with raw_session(relay) as session:
            opened = await session.ask(**OPEN)
            fall_silent(hosts["stun1"])
            await session.say(type="bind", peer=str(peer))
            (one,) = relay.gateway._sessions._sessions.values()
            await eventually(lambda: one._channels.asked)
            session.cut()
        await parked(relay)
        host = hosts["stun1"]
        # What it was asked has been lost on the way.
        host.paused = False
        async with raw_session(relay) as session:
            assert (await session.ask(type="resume", token=opened["token"]))["type"] == "resumed"
            assert (await session.ask(type="bind", peer=str(peer)))["channel"] == 0x4000
            await echoes(session, 0x4000)
            await session.say_goodbye()
        await ended(relay, hosts)


async def five_tuple(relay: Relay) -> Address:
    """The address of the relay's that the upstream sees."""
    (flow,) = relay.gateway.plane.snapshot().flows
    tap = relay.gateway.plane.tap(flow.connection)
    assert tap is not None
    (session,) = relay.gateway._sessions._sessions.values()
    assert session.allocation is not None
    session.allocation.turn.refresh(session._now())
    session._flush()
    found: list[TappedDatagram] = []

    def take() -> bool:
        found.extend(tap.take(1))
        return bool(found)

    await eventually(take)
    tap.close()
    local: Address = found[0].local
    return local


async def test_tokens_that_are_wrong_used_or_late(tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Time enough to come back in.
    monkeypatch.setattr(sessions_module, "RESUME_WITHIN_S", 1.5)
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            opened = await opened_and_bound(session, peer)
            session.cut()
        await parked(relay)
        async with raw_session(relay) as session:
            wrong = await session.ask(type="resume", token="A" * 22, id=1)
            assert (wrong["code"], wrong["id"]) == (404, 1)
            resumed = await session.ask(type="resume", token=opened["token"])
            assert resumed["type"] == "resumed"
            async with raw_session(relay) as thief:
                assert (await thief.ask(type="resume", token=opened["token"]))["code"] == 404
                # Who comes too late may begin anew on the same connection.
                assert (await thief.ask(**OPEN))["type"] == "opened"
                await thief.say_goodbye()
                await thief.hear_close()
            await echoes(session, 0x4123)
            session.cut()
        await eventually(lambda: relay.gateway.flows.tally.resumptions[ResumeOutcome.EXPIRED] == 1)
        async with raw_session(relay) as session:
            assert (await session.ask(type="resume", token=resumed["token"]))["code"] == 404
            await session.say_goodbye()
        # Nobody came: it is released.
        await ended(relay, hosts)


async def test_who_says_goodbye_does_not_come_back(tmp_path: Path, plane: str) -> None:
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        for code in (1000, None):
            async with raw_session(relay) as session:
                opened = await opened_and_bound(session, peer)
                await session.say_goodbye(code)
                await session.hear_close()
            await ended(relay, hosts)
            async with raw_session(relay) as session:
                assert (await session.ask(type="resume", token=opened["token"]))["code"] == 404
                await session.say_goodbye()
        assert not relay.gateway.flows.tally.parked


async def test_who_is_gone_before_the_plane_has_the_socket_leaves_no_allocation(
    tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            opened = await opened_and_bound(session, peer)
            session.cut()
        await parked(relay)
        plane_of_relay = relay.gateway.plane
        move = plane_of_relay.move

        def move_too_late(connection: ConnectionId, *given: Any) -> None:
            plane_of_relay.close(connection, CloseReason.DRAINING)
            move(connection, *given)

        monkeypatch.setattr(plane_of_relay, "move", move_too_late)
        async with raw_session(relay) as session:
            await session.say(type="resume", token=opened["token"])
            await ended(relay, hosts)


async def test_two_come_back_at_once(tmp_path: Path, plane: str) -> None:
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            opened = await opened_and_bound(session, peer)
            session.cut()
        await parked(relay)
        async with raw_session(relay) as one, raw_session(relay) as two:
            answers = await asyncio.gather(*(each.ask(type="resume", token=opened["token"]) for each in (one, two)))
            assert sorted(answer["type"] for answer in answers) == ["error", "resumed"]
            winner = one if answers[0]["type"] == "resumed" else two
            await echoes(winner, 0x4123)
            await winner.say_goodbye()
            await winner.hear_close()
        await ended(relay, hosts)


async def test_come_back_while_the_old_connection_seems_alive(tmp_path: Path, plane: str) -> None:
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as old, raw_session(relay) as new:
            opened = await opened_and_bound(old, peer)
            resumed = await new.ask(type="resume", token=opened["token"])
            assert (resumed["type"], resumed["relayed"]) == ("resumed", opened["relayed"])
            assert await old.hear_close() == (1000, "resumed")
            await echoes(new, 0x4123)
            assert sum(host.allocations for host in hosts) == 1
            await new.say_goodbye()
        await ended(relay, hosts)


async def test_come_back_when_cut_on_the_way_to_another_upstream(tmp_path: Path, plane: str) -> None:
    health = {"interval_s": 60.0, "timeout_s": 60.0}
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane, health=health) as (relay, hosts):
        async with raw_session(relay) as session:
            opened = await opened_and_bound(session, peer)
            (other,) = (host for host in hosts if host.name != opened["upstream"])
            fall_silent(other)
            await hosts[opened["upstream"]].stop()
            await session.send(0x4123, b"into the void")
            (seen,) = relay.gateway._sessions._sessions.values()
            await eventually(lambda: seen.state is session_module.State.MOVING)
            session.cut()
        await parked(relay)
        other.paused = False
        async with raw_session(relay) as session:
            resumed = await session.ask(type="resume", token=opened["token"])
            assert (resumed["type"], resumed["upstream"]) == ("resumed", other.name)
            await echoes(session, 0x4123)
            await session.say_goodbye()
        # What was asked for on the way is granted late, and nobody holds it: it expires by itself.
        await eventually(lambda: not relay.connections and not len(relay.gateway.flows))
        await eventually(lambda: not relay.gateway._sessions._tokens)


async def test_who_is_gone_before_the_allocation_is_granted_leaves_none(tmp_path: Path, plane: str) -> None:
    upstream = AnsweringServer(is_no_allocate_success)
    async with open_responder(upstream) as address, running_relay(tmp_path, address, listen={"plane": plane}) as relay:
        async with raw_session(relay) as session:
            await session.say(**{**OPEN, "username": "ann", "password": PASSWORDS["ann"]})
            await becomes(lambda: upstream.allocations, 1)
            session.cut()
        await becomes(lambda: upstream.allocations, 0)
        await eventually(lambda: not relay.connections and not len(relay.gateway.flows))


async def test_come_back_when_the_upstream_has_died(tmp_path: Path, plane: str) -> None:
    async with open_echo() as peer, relay_with_hosts(tmp_path, plane) as (relay, hosts):
        async with raw_session(relay) as session:
            opened = await opened_and_bound(session, peer)
            session.cut()
        await parked(relay)
        await hosts[opened["upstream"]].stop()
        async with raw_session(relay) as session:
            assert (await session.ask(type="resume", token=opened["token"]))["type"] == "resumed"
            await session.send(0x4123, b"into the void")
            assert (await session.hear())["type"] == "moved"
            await echoes(session, 0x4123)
            await session.say_goodbye()
        await ended(relay, hosts)


async def test_parked_sessions_are_bounded_and_released_at_the_end(
    tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "MAX_PARKED", 2)
    async with TurnHosts({"use1": ["stun1"]}, CREDENTIALS, allow_loopback_peers=True) as hosts:
        host = hosts["stun1"]
        async with running_relay(tmp_path, host.address, listen={"plane": plane}) as relay:
            tokens = []
            for count in (1, 2, 2):
                async with raw_session(relay) as session:
                    tokens.append((await session.ask(**OPEN))["token"])
                    session.cut()
                await parked(relay, count)
            async with raw_session(relay) as session:
                assert (await session.ask(type="resume", token=tokens[0]))["code"] == 404
                assert (await session.ask(type="resume", token=tokens[1]))["type"] == "resumed"
                # One runs and one is parked when the relay stops.
                await relay.gateway.stop()
                assert await session.hear_close() == (1001, "stopped")
        await becomes(lambda: host.allocations, 0)


async def test_clients_that_fail_on_purpose_do_not_fill_the_log(
    tmp_path: Path, plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "LINES_PER_S", 1e-9)  # one, and no other
    async with relay_with_hosts(tmp_path, plane) as (relay, _):
        with capture_logs() as lines:
            for _ in range(10):
                async with raw_session(relay) as session:
                    assert (await session.ask(**OPEN, region="nowhere"))["code"] == 503
            async with raw_session(relay) as session:
                assert (await session.ask(**{**OPEN, "password": "guess"}))["code"] == 401
        failed = [line["code"] for line in lines if line["event"] == "session failed"]
        assert failed == [503, 401]
        assert relay.gateway._sessions.lines._left_out == {"session failed 503": 9}
