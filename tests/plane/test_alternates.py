"""300 Try Alternate: the flow goes on at the server that an upstream names, on both planes and each carrier of TURN."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from relay.addresses import Address, RelayPolicy
from relay.plane.alternates import MAX_HOPS
from relay.plane.api import Carrier
from relay.wire.capsule import build_datagram
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import AttributeType, Method, build_plain_address
from tests.support.benches.plane import PLANES, Bench, MakePlane, plane_bench
from tests.support.messages import allocated, answer, stun
from tests.support.peers.carriers import binary, carried
from tests.support.peers.scripted_upstream import ScriptedUpstream, scripted_upstream

POLICY = RelayPolicy([ipaddress.ip_network("127.0.0.0/8")])
FRAME = build_channel_data(0x4001, b"voice and more..")
ALLOCATE = stun(1, Method.ALLOCATE)
TURN_CARRIERS = (Carrier.TURN, Carrier.WEBSOCKET)

pytestmark = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())


def alternate(request: bytes, *addresses: Address) -> bytes:
    """300, with these addresses."""
    named = [(AttributeType.ALTERNATE_SERVER, build_plain_address(one)) for one in addresses]
    return answer(request, *named, (AttributeType.ALTERNATE_DOMAIN, b"turn.example"), error=300)


@dataclass
class Client:
    """A client of any carrier: one whole unit each time."""

    say: Callable[[bytes], Awaitable[object]]
    hear: Callable[[], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def client_of(bench: Bench, carrier: Carrier) -> AsyncIterator[Client]:
    if carrier is Carrier.TURN:
        async with bench.client() as stream:
            yield Client(stream.send, stream.receive_unit)
        return
    async with carried(bench, carrier) as client:
        if carrier is Carrier.WEBSOCKET:
            yield Client(lambda unit: client.send(binary(unit)), client.binary)
        else:
            yield Client(lambda unit: client.send(build_datagram(unit)), client.payload)


@contextlib.asynccontextmanager
async def following(
    make: MakePlane, folder: Path, policy: RelayPolicy | None = POLICY
) -> AsyncIterator[tuple[Bench, ScriptedUpstream]]:
    async with plane_bench(make, folder) as bench, scripted_upstream() as other:
        bench.target = replace(bench.target, alternates=policy)
        yield bench, other


@pytest.mark.parametrize("carrier", TURN_CARRIERS)
async def test_the_allocate_goes_to_the_alternate_and_all_that_follows(
    make: MakePlane, tmp_path: Path, carrier: Carrier
) -> None:
    async with following(make, tmp_path) as (bench, other), client_of(bench, carrier) as client:
        await client.say(ALLOCATE)
        front = await bench.upstream.expect(ALLOCATE)
        bench.upstream.send(front, alternate(ALLOCATE, other.address))
        flow = await other.expect(ALLOCATE)
        # What it does not know of the first server's credentials it says like any other.
        other.send(flow, answer(ALLOCATE, error=438))
        assert await client.hear() == answer(ALLOCATE, error=438)
        again = stun(2, Method.ALLOCATE)
        await client.say(again)
        assert await other.expect(again) == flow
        other.send(flow, allocated(again))
        assert await client.hear() == allocated(again)
        await client.say(FRAME)
        assert await other.expect(FRAME) == flow
        other.send(flow, FRAME)
        assert await client.hear() == FRAME
        (snapshot,) = bench.plane.snapshot().flows
        assert snapshot.upstream == replace(bench.target, address=other.address)
        assert snapshot.allocated
        assert bench.upstream.received.empty()
        # With an allocation of its own a further Allocate is the client's affair.
        third = stun(3, Method.ALLOCATE)
        await client.say(third)
        await other.expect(third)
        other.send(flow, alternate(third, bench.upstream.address))
        assert await client.hear() == alternate(third, bench.upstream.address)


async def test_over_connect_udp_the_client_sends_its_allocate_again(make: MakePlane, tmp_path: Path) -> None:
    async with following(make, tmp_path) as (bench, other), client_of(bench, Carrier.CONNECT_UDP) as client:
        await client.say(ALLOCATE)
        front = await bench.upstream.expect(ALLOCATE)
        for _ in range(2):
            bench.upstream.send(front, alternate(ALLOCATE, other.address))
        # A client repeats what is not answered; until the relay has gone on, it is the front that hears it.
        while other.received.empty():
            await client.say(ALLOCATE)
            await asyncio.sleep(0.01)
        flow = await other.expect(ALLOCATE)
        other.send(flow, allocated(ALLOCATE))
        assert await client.hear() == allocated(ALLOCATE)


@pytest.mark.parametrize("carrier", TURN_CARRIERS)
async def test_loops_end_with_the_client(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with following(make, tmp_path) as (bench, other), client_of(bench, carrier) as client:
        await client.say(ALLOCATE)
        here, there = bench.upstream, other
        for _ in range(MAX_HOPS):
            here.send(await here.expect(ALLOCATE), alternate(ALLOCATE, there.address))
            here, there = there, here
        here.send(await here.expect(ALLOCATE), alternate(ALLOCATE, there.address))
        assert await client.hear() == alternate(ALLOCATE, there.address)
        # It goes on where it is.
        await client.say(stun(2))
        await here.expect(stun(2))


async def test_a_stale_port_at_the_alternate_is_left_too(make: MakePlane, tmp_path: Path) -> None:
    async with following(make, tmp_path) as (bench, other), client_of(bench, Carrier.TURN) as client:
        await client.say(ALLOCATE)
        bench.upstream.send(await bench.upstream.expect(ALLOCATE), alternate(ALLOCATE, other.address))
        stale = await other.expect(ALLOCATE)
        other.send(stale, answer(ALLOCATE, error=437))
        fresh = await other.expect(ALLOCATE)
        assert fresh != stale
        other.send(fresh, allocated(ALLOCATE))
        assert await client.hear() == allocated(ALLOCATE)


REFUSED: dict[str, tuple[RelayPolicy | None, Callable[[bytes, Address], bytes]]] = {
    "nobody may be sent on": (None, alternate),
    "not permitted": (RelayPolicy(), alternate),
    "no address": (POLICY, lambda request, _: alternate(request)),
    "no port": (POLICY, lambda request, other: alternate(request, Address(other.host, 0))),
    "the first counts": (POLICY, lambda request, other: alternate(request, Address("10.0.0.1", 3478), other)),
    "another code": (
        POLICY,
        lambda request, other: answer(request, (AttributeType.ALTERNATE_SERVER, build_plain_address(other)), error=301),
    ),
}


@pytest.mark.parametrize("carrier", [*TURN_CARRIERS, Carrier.CONNECT_UDP])
@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_not_followed_reaches_the_client(
    make: MakePlane, tmp_path: Path, carrier: Carrier, case: str
) -> None:
    policy, build = REFUSED[case]
    async with following(make, tmp_path, policy) as (bench, other), client_of(bench, carrier) as client:
        await client.say(ALLOCATE)
        flow = await bench.upstream.expect(ALLOCATE)
        said = build(ALLOCATE, other.address)
        bench.upstream.send(flow, said)
        assert await client.hear() == said
        await client.say(stun(2))
        assert await bench.upstream.expect(stun(2)) == flow
        assert other.received.empty()


async def test_what_nobody_has_asked_is_not_followed(make: MakePlane, tmp_path: Path) -> None:
    """A transaction id that no Allocate of the client has."""
    async with following(make, tmp_path) as (bench, other), client_of(bench, Carrier.TURN) as client:
        await client.say(ALLOCATE)
        flow = await bench.upstream.expect(ALLOCATE)
        said = alternate(stun(9, Method.ALLOCATE), other.address)
        bench.upstream.send(flow, said)
        assert await client.hear() == said
        bench.upstream.send(flow, allocated(ALLOCATE))
        assert await client.hear() == allocated(ALLOCATE)
