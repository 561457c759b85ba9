"""What all flows of one user may carry in a second, and how control learns who the user is, on every plane."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from relay.addresses import Address
from relay.plane.api import AllocationNamed, Carrier, CloseReason, ConnectionId, DropReason, TurnOpened, Upstream
from relay.plane.reference.allowance import Allowance, UserAllowance
from relay.plane.reference.naming import MAX_NAME_BYTES, MAX_NAMED, NAMED_S, Naming
from relay.wire.capsule import build_datagram
from relay.wire.channeldata import pad
from relay.wire.stun import AttributeType, MessageClass, Method, build_message
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, commands_are_taken, plane_bench
from tests.support.messages import HELLO, allocated, answer, stun, voice
from tests.support.peers.carriers import Carried, binary, carried, move
from tests.support.peers.scripted_upstream import scripted_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually

every_plane = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())
FLOWS = 8
COUNT, SIZE = 100, 200
RATES: list[dict[str, Any]] = [{"packets_per_second_per_user": 20}, {"bytes_per_second_per_user": 20 * SIZE}]
FRAMED: dict[Carrier, Callable[[bytes], bytes]] = {
    Carrier.TURN: pad,
    Carrier.WEBSOCKET: binary,
    Carrier.CONNECT_UDP: build_datagram,
}


def allocate(number: int, user: bytes | None) -> bytes:
    name = [] if user is None else [(AttributeType.USERNAME, user)]
    return build_message(Method.ALLOCATE, MessageClass.REQUEST, number.to_bytes(12), name)


# Who it is


@dataclass
class Client:
    """One client of any of the carriers."""

    bench: Bench
    carrier: Carrier
    carried: Carried
    flow: Address

    async def send(self, *units: bytes) -> None:
        await self.carried.send(b"".join(map(FRAMED[self.carrier], units)))

    async def reaches(self, *units: bytes) -> None:
        """These must be the next that the upstream hears."""
        for unit in units:
            await self.bench.upstream.expect(unit)

    def grant(self, request: bytes) -> None:
        self.bench.upstream.send(self.flow, allocated(request))

    async def named(self) -> str:
        return (await self.bench.event(AllocationNamed, lambda one: one.connection == self.carried.connection)).username

    async def nobody_is_named(self) -> None:
        """What comes after it in order has come."""
        await self.send(HELLO)
        await self.reaches(HELLO)
        await commands_are_taken(self.bench)
        assert not [event for event in self.bench.events if isinstance(event, AllocationNamed)]


@contextlib.asynccontextmanager
async def client_of(
    make: MakePlane, folder: Path, carrier: Carrier, *, asks: bool = False, **rates: int
) -> AsyncIterator[Client]:
    settings = bounds(**(rates or {"packets_per_second_per_user": 1000}))
    async with plane_bench(make, folder, settings) as bench:
        bench.target = replace(bench.target, asks_for_users=asks)
        if carrier is Carrier.TURN:
            async with bench.flow(HELLO) as (tls, flow):
                opened = await bench.event(TurnOpened)
                yield Client(bench, carrier, Carried(tls, opened.connection), flow)
        else:
            async with carried(bench, carrier) as client:
                await client.send(FRAMED[carrier](HELLO))
                yield Client(bench, carrier, client, await bench.upstream.expect(HELLO))


every_carrier = pytest.mark.parametrize("carrier", FRAMED)


@every_plane
@every_carrier
async def test_the_upstream_proves_who_it_is(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with client_of(make, tmp_path, carrier) as client:
        wrong, right = allocate(1, b"mallory"), allocate(2, b"ann")
        await client.send(wrong, right)
        await client.reaches(wrong, right)
        # A client may ask for several at once: the name belongs to the request that is granted.
        client.grant(right)
        assert await client.named() == "ann"
        client.bench.upstream.send(client.flow, answer(wrong, error=401))
        await client.nobody_is_named()


@every_plane
@every_carrier
async def test_a_name_is_a_claim_until_then(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with client_of(make, tmp_path, carrier) as client:
        claim, nameless = allocate(1, b"ann"), allocate(2, None)
        await client.send(claim, nameless)
        await client.reaches(claim, nameless)
        client.bench.upstream.send(client.flow, answer(claim, error=401))
        client.grant(nameless)
        await client.nobody_is_named()


@every_plane
@every_carrier
async def test_one_id_stands_for_one_name(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with client_of(make, tmp_path, carrier) as client:
        first, second = allocate(1, b"mallory"), allocate(1, b"ann")
        await client.send(first, second, HELLO)
        await client.reaches(first, HELLO)
        # An error does not free the id.
        client.bench.upstream.send(client.flow, answer(first, error=401))
        await client.send(second, HELLO)
        await client.reaches(HELLO)
        totals = client.bench.plane.snapshot().totals
        assert totals.drops[DropReason.UPLINK_RATE] == 2


@every_plane
@every_carrier
async def test_only_so_many_names_wait(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with client_of(make, tmp_path, carrier) as client:
        requests = [allocate(number, b"ann") for number in range(1, MAX_NAMED + 2)]
        await client.send(*requests, HELLO)
        await client.reaches(*requests[:-1], HELLO)
        client.grant(requests[0])
        assert await client.named() == "ann"
        # There is room again.
        await client.send(requests[-1])
        await client.reaches(requests[-1])


@every_plane
@every_carrier
@pytest.mark.parametrize("name", [b"a" * 512, b"\xff\xfe", "sch\u00f6n".encode()])
async def test_any_name(make: MakePlane, tmp_path: Path, carrier: Carrier, name: bytes) -> None:
    async with client_of(make, tmp_path, carrier) as client:
        await client.send(allocate(1, name))
        await client.reaches(allocate(1, name))
        client.grant(allocate(1, name))
        assert await client.named() == name[:MAX_NAME_BYTES].decode(errors="replace")


@every_plane
@every_carrier
@pytest.mark.parametrize("options", [{"packets_per_second_per_flow": 1000}, {"asks": True}])
async def test_nothing_is_told_where_nobody_wants_to_know(
    make: MakePlane, tmp_path: Path, carrier: Carrier, options: dict[str, Any]
) -> None:
    async with client_of(make, tmp_path, carrier, **options) as client:
        request = allocate(1, b"ann" if "asks" not in options else None)
        await client.send(request)
        await client.reaches(request)
        client.grant(request)
        await client.nobody_is_named()


# What they share


async def shared_flows(bench: Bench, stack: contextlib.AsyncExitStack, user: str) -> list[tuple[TlsClient, Address]]:
    """Some flows of one user, whom every worker knows."""
    flows = []
    for _ in range(FLOWS):
        flows.append(await stack.enter_async_context(bench.flow(HELLO)))
        bench.plane.share((await bench.event(TurnOpened)).connection, user)
    await commands_are_taken(bench)
    return flows


@every_plane
@pytest.mark.parametrize("rate", RATES)
async def test_uplink(make: MakePlane, tmp_path: Path, rate: dict[str, int]) -> None:
    async with plane_bench(make, tmp_path, bounds(**rate)) as bench, contextlib.AsyncExitStack() as stack:
        flows = await shared_flows(bench, stack, "ann")
        other, _ = await stack.enter_async_context(bench.flow(HELLO))
        before, began = bench.plane.snapshot().totals.uplink_packets, time.monotonic()
        for client, _ in flows:
            await client.send(*(voice(number, SIZE) for number in range(COUNT)))

        def counted() -> tuple[int, int]:
            totals = bench.plane.snapshot().totals
            return totals.uplink_packets - before, totals.drops.get(DropReason.UPLINK_USER_RATE, 0)

        await becomes(lambda: sum(counted()), FLOWS * COUNT)
        # So many in each second that has begun, however long it took; and a few that two workers have let by at once.
        seconds = int(time.monotonic() - began) + 2
        assert 20 <= counted()[0] <= 20 * seconds + FLOWS
        # The client would not send this again.
        request = stun(1, Method.REFRESH)
        await flows[0][0].send(request)
        # Others have their own.
        await other.send(*(voice(number, SIZE) for number in range(COUNT)))
        heard = set[str]()
        while len(heard) < 2:
            unit, source = await bench.upstream.receive()
            if unit == request:
                heard.add("request")
            elif unit == voice(COUNT - 1, SIZE) and source not in {flow for _, flow in flows}:
                heard.add("the last of the other")


@every_plane
@pytest.mark.parametrize("rate", RATES)
async def test_downlink(make: MakePlane, tmp_path: Path, rate: dict[str, int]) -> None:
    async with plane_bench(make, tmp_path, bounds(**rate)) as bench, contextlib.AsyncExitStack() as stack:
        flows = await shared_flows(bench, stack, "ann")
        client, flow = flows[0]
        request = stun(1)
        await client.send(request)
        await bench.upstream.expect(request)
        for number in range(COUNT):
            for _, one in flows:
                bench.upstream.send(one, voice(number, SIZE))
        await eventually(lambda: bench.plane.snapshot().totals.drops.get(DropReason.DOWNLINK_USER_RATE, 0) > 10)
        # What the upstream itself says is not of a peer.
        bench.upstream.send(flow, answer(request))
        while await client.receive_unit() != answer(request):
            pass


@every_plane
async def test_a_session_keeps_its_user_when_it_moves(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(packets_per_second_per_user=20)
    async with (
        plane_bench(make, tmp_path, settings) as bench,
        scripted_upstream() as second,
        carried(bench, Carrier.SESSION) as client,
    ):

        def dropped() -> int:
            return bench.plane.snapshot().totals.drops.get(DropReason.UPLINK_USER_RATE, 0)

        bench.plane.share(client.connection, "ann")
        for upstream in (bench.upstream, second):
            await move(bench, client, Upstream("scripted", upstream.address), upstream)
            before = dropped()
            await client.send(*(binary(b"\x40\x01" + voice(number, SIZE)[4:]) for number in range(COUNT)))
            await eventually(lambda before=before: dropped() > before + 10)  # type: ignore[misc]


@every_plane
async def test_a_flow_may_get_another_user_and_an_end_leaves_nothing(make: MakePlane, tmp_path: Path) -> None:
    """The bench asserts that nothing is alive at the end."""
    async with plane_bench(make, tmp_path, bounds(packets_per_second_per_user=20)) as bench:
        async with bench.flow(HELLO) as (client, _):
            opened = await bench.event(TurnOpened)
            for user in ("ann", "ben", "ann", "cid"):
                bench.plane.share(opened.connection, user)
            await client.send(allocate(1, b"waits"), HELLO)
            await bench.upstream.expect(allocate(1, b"waits"))
            await bench.upstream.expect(HELLO)
        await bench.closed()
        # Too late, and about nobody.
        bench.plane.share(opened.connection, "ann")
        bench.plane.share(ConnectionId(12345), "ann")
        async with bench.flow(HELLO):
            opened = await bench.event(TurnOpened)
            bench.plane.share(opened.connection, "ann")
            bench.plane.close(opened.connection, CloseReason.DRAINING)
            bench.plane.share(opened.connection, "ben")
            await bench.closed()


# The twin by itself


def test_flows_of_a_user_count_together() -> None:
    user = UserAllowance(Allowance(max_packets=2), Allowance(max_packets=1))
    assert [user.sent.takes(now, b"\x80") for now in (0.0, 0.5, 0.4)] == [True, True, False]
    assert [user.received.takes(0.0, b"\x80"), user.received.takes(0.0, b"\x80")] == [True, False]


def test_names_are_forgotten_after_a_minute() -> None:
    naming = Naming()
    assert naming.note(0.0, b"1", b"ann")
    assert naming.note(1.0, b"1", b"ann")
    assert not naming.note(1.0, b"1", b"ben")
    for number in range(2, MAX_NAMED + 1):
        assert naming.note(2.0, bytes([number]), b"ann")
    assert not naming.note(NAMED_S - 1, b"last", b"ann")
    assert naming.note(NAMED_S, b"last", b"ben")
    assert (naming.take(b"last"), naming.take(b"last"), naming.take(b"1")) == (b"ben", None, None)
