"""Admission on every plane: each Allocate of a user waits until control has said yes or no, and so does its grant."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.plane.api import (
    AllocateGranted,
    AllocateRequested,
    AllocationOrphaned,
    Carrier,
    CloseReason,
    ConnectionId,
    DropReason,
    Traffic,
    TurnOpened,
)
from relay.plane.settings import PlaneSettings
from relay.wire.capsule import build_datagram
from relay.wire.channeldata import build_channel_data, pad
from relay.wire.stun import (
    AttributeType,
    MessageClass,
    Method,
    build_message,
    build_uint32,
    build_xor_address,
    parse_message,
)
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.messages import HELLO, VOICE, allocated, answer, stun
from tests.support.peers.carriers import Carried, binary, carried
from tests.support.waiting import becomes

FRAME = build_channel_data(0x4001, VOICE)
FRAMED: dict[Carrier, Callable[[bytes], bytes]] = {
    Carrier.TURN: pad,
    Carrier.WEBSOCKET: binary,
    Carrier.CONNECT_UDP: build_datagram,
}

pytestmark = [
    pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys()),
    pytest.mark.parametrize("carrier", FRAMED),
]


def allocate(number: int, user: str | bytes | None, extra: int = 0) -> bytes:
    """An Allocate request; ``extra`` bytes of something else in it."""
    name = [] if user is None else [(AttributeType.USERNAME, user.encode() if isinstance(user, str) else user)]
    filler = [(AttributeType.SOFTWARE, bytes(extra))] if extra else []
    return build_message(Method.ALLOCATE, MessageClass.REQUEST, number.to_bytes(12), [*name, *filler])


@dataclass
class Client:
    """One client of any of the carriers, whose upstream asks for users."""

    bench: Bench
    carrier: Carrier
    carried: Carried
    flow: Address

    async def send(self, *units: bytes) -> None:
        """All in one record."""
        await self.carried.send(b"".join(map(FRAMED[self.carrier], units)))

    async def receive(self) -> bytes:
        """The next unit of the server."""
        if self.carrier is Carrier.TURN:
            return await self.carried.tls.receive_unit()
        return await (self.carried.binary() if self.carrier is Carrier.WEBSOCKET else self.carried.payload())

    async def asked(self, request: bytes) -> None:
        """Control must be asked about this request next."""
        event = await self.bench.event(AllocateRequested)
        assert (event.connection, event.request) == (self.carried.connection, request)

    async def asked_and_nothing_else(self, request: bytes) -> None:
        await self.asked(request)
        assert self.bench.upstream.received.empty()

    def admit(self) -> None:
        self.bench.plane.admit(self.carried.connection)

    def refuse(self, response: bytes) -> None:
        self.bench.plane.refuse(self.carried.connection, response)

    async def granted(self, response: bytes) -> None:
        """Control must hear of this answer of the upstream next."""
        event = await self.bench.event(AllocateGranted)
        assert (event.connection, event.response) == (self.carried.connection, response)

    async def allocate(self, request: bytes, response: bytes) -> None:
        """Have it admitted and granted; control has not answered yet."""
        await self.send(request)
        await self.asked(request)
        self.admit()
        await until(self, request)
        self.bench.upstream.send(self.flow, response)
        await self.granted(response)

    def answer(self, response: bytes) -> None:
        self.bench.plane.answer(self.carried.connection, response)

    def is_allocated(self) -> bool:
        return self.bench.plane.allocated(self.carried.connection)


@contextlib.asynccontextmanager
async def asking_client(
    make: MakePlane,
    folder: Path,
    carrier: Carrier,
    settings: PlaneSettings | None = None,
    *,
    asks: bool = True,
    releases: bool = False,
) -> AsyncIterator[Client]:
    async with plane_bench(make, folder, settings) as bench:
        bench.target = replace(bench.target, asks_for_users=asks, releases_allocations=releases)
        if carrier is not Carrier.TURN:
            async with carried(bench, carrier) as client:
                await client.send(FRAMED[carrier](HELLO))
                yield Client(bench, carrier, client, await bench.upstream.expect(HELLO))
        else:
            async with bench.flow(HELLO) as (tls, flow):
                opened = await bench.event(TurnOpened)
                yield Client(bench, carrier, Carried(tls, opened.connection), flow)


async def test_an_allocate_waits_until_it_is_admitted(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        request = allocate(1, "alice")
        await client.send(FRAME, request, FRAME)
        await client.bench.upstream.expect(FRAME)
        await client.asked_and_nothing_else(request)
        # The other direction goes on.
        client.bench.upstream.send(client.flow, FRAME)
        assert await client.receive() == FRAME
        (snapshot,) = client.bench.plane.snapshot().flows
        assert snapshot.username == ""
        client.admit()
        await client.bench.upstream.expect(request)
        await client.bench.upstream.expect(FRAME)
        (snapshot,) = client.bench.plane.snapshot().flows
        assert snapshot.username == "alice"
        client.bench.upstream.send(client.flow, allocated(request))
        await client.granted(allocated(request))
        client.answer(allocated(request))
        assert await client.receive() == allocated(request)


async def test_each_allocate_of_a_user_is_asked_for(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        await client.send(allocate(1, "alice"))
        await client.asked(allocate(1, "alice"))
        client.admit()
        await client.bench.upstream.expect(allocate(1, "alice"))
        client.bench.upstream.send(client.flow, answer(allocate(1, "alice"), error=438))
        assert await client.receive() == answer(allocate(1, "alice"), error=438)
        for number, user in ((2, "alice"), (2, "alice"), (3, "bob"), (4, "alice"), (5, "alicf"), (6, "alic"), (7, "")):
            await client.send(allocate(number, user))
            await client.asked(allocate(number, user))
            client.admit()
            await until(client, allocate(number, user))
        assert not [event for event in client.bench.events if isinstance(event, AllocateRequested)]


KEY = b"key"
REFUSAL = build_message(Method.ALLOCATE, MessageClass.ERROR, bytes(12), [(AttributeType.ERROR_CODE, b"\0\0\4\3")])
# What servers differ about, and what would let somebody slip by if control were not asked.
NAMELESS = {
    "userhash": build_message(
        Method.ALLOCATE, MessageClass.REQUEST, bytes(12), [(AttributeType.USERHASH, bytes(32))], integrity_key=KEY
    ),
    "integrity": build_message(Method.ALLOCATE, MessageClass.REQUEST, bytes(12), integrity_key=KEY),
    "sha256": build_message(
        Method.ALLOCATE,
        MessageClass.REQUEST,
        bytes(12),
        integrity_key=KEY,
        integrity_kind=AttributeType.MESSAGE_INTEGRITY_SHA256,
    ),
    "name behind": build_message(
        Method.ALLOCATE,
        MessageClass.REQUEST,
        bytes(12),
        [(AttributeType.MESSAGE_INTEGRITY, bytes(20)), (AttributeType.USERNAME, b"mallory")],
    ),
    "bad fingerprint": build_message(
        Method.ALLOCATE,
        MessageClass.REQUEST,
        bytes(12),
        [(AttributeType.USERNAME, b"mallory"), (AttributeType.FINGERPRINT, bytes(4))],
    ),
    "bad attribute": build_message(
        Method.ALLOCATE,
        MessageClass.REQUEST,
        bytes(12),
        [(AttributeType.PRIORITY, b"1"), (AttributeType.USERNAME, b"mallory")],
    ),
}


@pytest.mark.parametrize("form", NAMELESS)
async def test_nobody_slips_by(make: MakePlane, tmp_path: Path, carrier: Carrier, form: str) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        await client.send(allocate(1, "alice"))
        await client.asked(allocate(1, "alice"))
        client.admit()
        await client.bench.upstream.expect(allocate(1, "alice"))
        request = NAMELESS[form]
        await client.send(request)
        await client.asked(request)
        client.refuse(REFUSAL)
        assert await client.receive() == REFUSAL
        await client.send(request)
        await client.asked(request)
        client.admit()
        await until(client, request)


async def until(client: Client, request: bytes) -> None:
    """Wait for this request at the upstream, which may get earlier ones again."""
    while (await client.bench.upstream.receive())[0] != request:
        pass


async def test_a_refusal_answers_the_client_and_nothing_else(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        for number in (1, 2):
            request = allocate(number, "mallory")
            await client.send(request, FRAME)
            await client.asked_and_nothing_else(request)
            client.refuse(answer(request, error=403))
            assert await client.receive() == answer(request, error=403)
            await client.bench.upstream.expect(FRAME)
        # The last FRAME is counted when it has been sent.
        await becomes(lambda: client.bench.plane.snapshot().totals.uplink_packets, 3)
        (snapshot,) = client.bench.plane.snapshot().flows
        assert snapshot.username == ""


async def test_what_is_no_allocate_of_a_user_passes(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    named = [(AttributeType.USERNAME, b"alice")]
    units = [
        allocate(1, None),
        build_message(Method.REFRESH, MessageClass.REQUEST, bytes(12), named),
        build_message(Method.BINDING, MessageClass.REQUEST, bytes(11) + b"\1", named),
        build_message(Method.ALLOCATE, MessageClass.INDICATION, bytes(12), named),
        build_channel_data(0x4001, allocate(2, "alice")),
    ]
    async with asking_client(make, tmp_path, carrier) as client:
        await client.send(*units)
        for unit in units:
            await client.bench.upstream.expect(unit)


async def test_nobody_is_asked_where_nobody_wants_to_know(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier, asks=False) as client:
        await client.send(allocate(1, "alice"))
        await client.bench.upstream.expect(allocate(1, "alice"))
        client.admit()  # does nothing
        client.refuse(HELLO)
        client.bench.upstream.send(client.flow, allocated(allocate(1, "alice")))
        assert await client.receive() == allocated(allocate(1, "alice"))
        client.answer(HELLO)
        await client.send(FRAME)
        await until(client, FRAME)


async def test_control_must_answer(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    settings = bounds(control_timeout_s=0.3)
    async with asking_client(make, tmp_path, carrier, settings) as client:
        await client.send(allocate(1, "alice"))
        if carrier is Carrier.WEBSOCKET:
            await client.carried.expect_close(1011, "control_timeout")
        else:
            assert await client.carried.tls.closed_by_server()
        assert (await client.bench.closed()).reason is CloseReason.CONTROL_TIMEOUT
        assert client.bench.upstream.received.empty()


async def test_an_answer_ends_the_deadline(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    # Time enough to answer in, on a machine that stands still for a moment.
    settings = bounds(control_timeout_s=1.5)
    async with asking_client(make, tmp_path, carrier, settings) as client:
        await client.send(stun(9, message_class=MessageClass.INDICATION), allocate(1, "alice"))
        await client.bench.upstream.expect(stun(9, message_class=MessageClass.INDICATION))
        await client.asked(allocate(1, "alice"))
        client.refuse(answer(allocate(1, "alice"), error=403))
        await client.receive()
        await asyncio.sleep(2)  # the deadline that must not come
        await client.send(FRAME)
        await client.bench.upstream.expect(FRAME)


@pytest.mark.parametrize("how", ["admit", "refuse"])
async def test_the_end_of_a_client_waits_too(make: MakePlane, tmp_path: Path, carrier: Carrier, how: str) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        request = allocate(1, "alice")
        await client.send(request, FRAME)
        await client.carried.tls.end()
        await client.asked(request)
        if how == "admit":
            client.admit()
            await client.bench.upstream.expect(request)
        else:
            client.refuse(answer(request, error=486))
            assert await client.receive() == answer(request, error=486)
        await client.bench.upstream.expect(FRAME)
        assert (await client.bench.closed()).reason is CloseReason.CLIENT_CLOSED


async def test_a_reset_does_not_wait(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        await client.send(allocate(1, "alice"))
        await client.asked(allocate(1, "alice"))
        client.bench.plane.close(client.carried.connection, CloseReason.NOT_ENTITLED)
        client.admit()
        assert (await client.bench.closed()).reason is CloseReason.NOT_ENTITLED
        assert client.bench.upstream.received.empty()


async def test_a_request_is_sent_again_once_it_is_admitted(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    """Not by CONNECT-UDP, whose client does that."""
    async with asking_client(make, tmp_path, carrier, bounds(initial_rto_s=0.5)) as client:
        request = allocate(1, "alice")
        await client.send(request)
        await client.asked(request)
        client.admit()
        await until(client, request)
        if carrier is not Carrier.CONNECT_UDP:
            await until(client, request)


async def test_names_are_compared_whole(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    long = "x" * 500
    async with asking_client(make, tmp_path, carrier) as client:
        users: list[str | bytes] = [long + "a", long + "b", b"\xff\xfe"]
        for number, user in enumerate(users):
            await client.send(allocate(number, user))
            await client.asked(allocate(number, user))
            client.admit()
            await until(client, allocate(number, user))
        (snapshot,) = client.bench.plane.snapshot().flows
        assert snapshot.username == "\ufffd\ufffd"


async def test_an_allocate_may_be_2048_bytes_long(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    longest = allocate(1, "alice", 2048 - 20 - 12 - 4)
    assert len(longest) == 2048
    async with asking_client(make, tmp_path, carrier) as client:
        await client.send(longest)
        await client.asked(longest)
        client.admit()
        await client.bench.upstream.expect(longest)
        if carrier is not Carrier.TURN:
            return  # their messages end there
        too_long = allocate(2, "robin", 2048 - 20 - 12)
        assert len(too_long) == 2052
        await client.send(too_long, FRAME)
        await until(client, FRAME)
        totals = client.bench.plane.snapshot().totals
        assert (totals.drops, totals.drops_by_traffic) == ({DropReason.UPLINK_OVERSIZE: 1}, {Traffic.CONTROL: 1})
        assert not [event for event in client.bench.events if isinstance(event, AllocateRequested)]


async def test_a_reader_behind_an_allocate_that_waits_is_bounded(
    make: MakePlane, tmp_path: Path, carrier: Carrier
) -> None:
    """What a client says meanwhile stays in the kernel: TCP stops it, and all of it comes through afterwards."""
    loop = asyncio.get_running_loop()
    async with asking_client(make, tmp_path, carrier) as client:
        await client.send(allocate(1, "alice"))
        await client.asked(allocate(1, "alice"))
        record = b"".join(map(FRAMED[carrier], [FRAME] * 80))
        wire = b"".join(client.carried.tls.record(record) for _ in range(1500))  # 20 MB
        sending = asyncio.ensure_future(loop.sock_sendall(client.carried.tls.socket, wire))
        done, _ = await asyncio.wait([sending], timeout=1)
        assert not done
        client.bench.plane.close(client.carried.connection, CloseReason.NOT_ENTITLED)
        with contextlib.suppress(OSError):
            await sending
        assert (await client.bench.closed()).totals.uplink_packets == 1


# What the upstream has granted


async def test_a_grant_waits_until_control_has_answered(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        request = allocate(1, "alice")
        await client.allocate(request, allocated(request))
        # The client does not know it; everything else goes on.
        client.bench.upstream.send(client.flow, FRAME)
        assert await client.receive() == FRAME
        await client.send(FRAME)
        await until(client, FRAME)
        client.answer(allocated(request))
        assert await client.receive() == allocated(request)
        (snapshot,) = client.bench.plane.snapshot().flows
        assert snapshot.allocated
        assert client.is_allocated()


async def test_control_may_answer_a_grant_with_an_error(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        request = allocate(1, "alice")
        await client.allocate(request, allocated(request))
        client.answer(answer(request, error=486))
        client.bench.plane.close(client.carried.connection, CloseReason.NOT_ENTITLED)
        assert await client.receive() == answer(request, error=486)
        assert (await client.bench.closed()).reason is CloseReason.NOT_ENTITLED
        # There is nothing else to answer.
        client.answer(allocated(request))


async def test_an_allocation_that_control_has_refused_is_left_to_it(
    make: MakePlane, tmp_path: Path, carrier: Carrier
) -> None:
    async with asking_client(make, tmp_path, carrier, releases=True) as client:
        request = allocate(1, "alice")
        await client.allocate(request, allocated(request))
        client.answer(answer(request, error=486))
        client.bench.plane.close(client.carried.connection, CloseReason.NOT_ENTITLED)
        orphan = await client.bench.event(AllocationOrphaned)
        os.close(orphan.fd)
        assert orphan.request == request


async def test_errors_of_the_upstream_pass(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        for number, error in ((1, 401), (2, 438), (3, 441), (4, 486)):
            request = allocate(number, "alice")
            await client.send(request)
            await client.asked(request)
            client.admit()
            await until(client, request)
            client.bench.upstream.send(client.flow, answer(request, error=error))
            assert await client.receive() == answer(request, error=error)
        assert not client.is_allocated()
        assert not [event for event in client.bench.events if isinstance(event, AllocateGranted)]


async def test_grants_at_once_are_one_event(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    """An upstream that answers twice, or again and again, does not keep control busy."""
    async with asking_client(make, tmp_path, carrier) as client:
        request = allocate(1, "alice")
        await client.allocate(request, allocated(request))
        for _ in range(100):
            client.bench.upstream.send(client.flow, allocated(request))
        client.bench.upstream.send(client.flow, FRAME)
        assert await client.receive() == FRAME
        assert client.bench.plane.snapshot().totals.drops == {DropReason.DOWNLINK_DUPLICATE: 100}
        assert not [event for event in client.bench.events if isinstance(event, AllocateGranted)]
        client.answer(allocated(request))
        assert await client.receive() == allocated(request)


async def test_a_grant_that_nobody_was_asked_about_waits_as_well(
    make: MakePlane, tmp_path: Path, carrier: Carrier
) -> None:
    """Of an upstream that wants no credentials."""
    async with asking_client(make, tmp_path, carrier) as client:
        request = allocate(1, None)
        await client.send(request)
        await client.bench.upstream.expect(request)
        client.bench.upstream.send(client.flow, allocated(request))
        await client.granted(allocated(request))


async def test_control_must_answer_a_grant(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier, bounds(control_timeout_s=1)) as client:
        request = allocate(1, "alice")
        await client.allocate(request, allocated(request))
        assert (await client.bench.closed()).reason is CloseReason.CONTROL_TIMEOUT


async def test_a_request_and_a_grant_wait_side_by_side(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier, bounds(control_timeout_s=1)) as client:
        first, second = allocate(1, "alice"), allocate(2, "bob")
        await client.allocate(first, allocated(first))
        await client.send(second, FRAME)
        await client.asked(second)
        client.answer(allocated(first))
        assert await client.receive() == allocated(first)
        # The other one waits still, and what was said after it.
        client.refuse(answer(second, error=486))
        assert await client.receive() == answer(second, error=486)
        await until(client, FRAME)
        await asyncio.sleep(1.5)  # the deadline that must not come
        await client.send(FRAME)
        await until(client, FRAME)


async def test_a_refresh_that_takes_over_an_allocation_waits(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    attributes = [(AttributeType.USERNAME, b"alice"), (AttributeType.MOBILITY_TICKET, b"ticket")]
    refresh = build_message(Method.REFRESH, MessageClass.REQUEST, (5).to_bytes(12), attributes)
    async with asking_client(make, tmp_path, carrier) as client:
        await client.send(refresh, FRAME)
        await client.asked_and_nothing_else(refresh)
        response = build_message(
            Method.REFRESH, MessageClass.ERROR, (5).to_bytes(12), [(AttributeType.ERROR_CODE, b"\0\0\4\5")]
        )
        client.refuse(response)
        assert await client.receive() == response
        await client.bench.upstream.expect(FRAME)


def refresh(number: int, lifetime_s: int) -> tuple[bytes, bytes]:
    """A Refresh, and the success for it."""
    lifetime = (AttributeType.LIFETIME, build_uint32(lifetime_s))
    request = build_message(Method.REFRESH, MessageClass.REQUEST, number.to_bytes(12), [lifetime])
    return request, answer(request, lifetime)


async def test_a_refresh_that_brings_an_allocation_back_waits(
    make: MakePlane, tmp_path: Path, carrier: Carrier
) -> None:
    """coturn keeps an allocation that was given up for a second, while its place goes to another call."""
    async with asking_client(make, tmp_path, carrier) as client:
        request = allocate(1, "alice")
        await client.allocate(request, allocated(request))
        client.answer(allocated(request))
        assert await client.receive() == allocated(request)
        for number, lifetime_s, allocated_after in ((2, 600, True), (3, 0, False), (4, 0, False)):
            again, response = refresh(number, lifetime_s)
            await client.send(again)
            await until(client, again)
            client.bench.upstream.send(client.flow, response)
            assert await client.receive() == response
            assert client.is_allocated() == allocated_after
        back, response = refresh(5, 600)
        await client.send(back)
        await until(client, back)
        client.bench.upstream.send(client.flow, response)
        await client.granted(response)
        refusal = answer(back, error=486)
        client.answer(refusal)
        assert await client.receive() == refusal


async def test_who_gives_up_one_address_of_two_keeps_the_allocation(
    make: MakePlane, tmp_path: Path, carrier: Carrier
) -> None:
    """RFC 8656 section 7.2: a Refresh may end one family of an allocation, and its answer does not say which."""
    async with asking_client(make, tmp_path, carrier) as client:
        request = allocate(1, "alice")
        ipv6 = build_xor_address(Address("2001:db8::1", 50000), request[8:20])
        both = answer(request, *parse_message(allocated(request)).attributes, (AttributeType.XOR_RELAYED_ADDRESS, ipv6))
        await client.allocate(request, both)
        client.answer(both)
        assert await client.receive() == both
        again, response = refresh(2, 0)
        await client.send(again)
        await until(client, again)
        client.bench.upstream.send(client.flow, response)
        assert await client.receive() == response
        assert client.is_allocated()


@pytest.mark.parametrize("asks", [True, False])
async def test_what_cannot_be_read_goes_to_no_upstream_that_asks(
    make: MakePlane, tmp_path: Path, carrier: Carrier, *, asks: bool
) -> None:
    """Servers take DTLS on the same port, and an Allocate in it."""
    if carrier is not Carrier.CONNECT_UDP:
        return  # a TURN stream has nothing but TURN in it
    hello, rtp = b"\x16\xfe\xfd" + bytes(60), b"\x80\x60" + bytes(20)
    async with asking_client(make, tmp_path, carrier, asks=asks) as client:
        await client.send(hello, rtp, b"", FRAME)
        if not asks:
            await client.bench.upstream.expect(hello)
            await client.bench.upstream.expect(rtp)
        await client.bench.upstream.expect(b"")
        await client.bench.upstream.expect(FRAME)
        drops = {DropReason.UPLINK_MALFORMED: 2} if asks else {}
        assert client.bench.plane.snapshot().totals.drops == drops


async def test_an_allocation_is_seen_to_begin_and_to_end(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        assert not client.is_allocated()
        request = allocate(1, "alice")
        await client.allocate(request, allocated(request))
        assert client.is_allocated()
        client.answer(allocated(request))
        await client.receive()
        refresh = build_message(Method.REFRESH, MessageClass.REQUEST, (2).to_bytes(12))
        await client.send(refresh)
        await until(client, refresh)
        released = build_message(
            Method.REFRESH, MessageClass.SUCCESS, (2).to_bytes(12), [(AttributeType.LIFETIME, bytes(4))]
        )
        client.bench.upstream.send(client.flow, released)
        assert await client.receive() == released
        assert not client.is_allocated()
        assert not client.bench.plane.allocated(ConnectionId(1))
