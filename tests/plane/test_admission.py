"""Admission on every plane: the first Allocate of each user waits until control has said yes or no."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.plane.api import (
    AllocateRequested,
    Carrier,
    CloseReason,
    DropReason,
    PlaneSettings,
    Traffic,
    TurnOpened,
)
from relay.wire.capsule import build_datagram
from relay.wire.channeldata import build_channel_data, pad
from relay.wire.stun import AttributeType, MessageClass, Method, build_message
from tests.plane.test_contract import VOICE, allocated, answer, stun
from tests.support.carriers import HELLO, Carried, binary, carried
from tests.support.plane import PLANES, Bench, MakePlane, bounds, plane_bench
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


@contextlib.asynccontextmanager
async def asking_client(
    make: MakePlane, folder: Path, carrier: Carrier, settings: PlaneSettings | None = None, *, asks: bool = True
) -> AsyncIterator[Client]:
    async with plane_bench(make, folder, settings) as bench:
        bench.target = replace(bench.target, asks_for_users=asks)
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
        assert await client.receive() == allocated(request)


async def test_who_is_admitted_is_not_asked_for_again(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        await client.send(allocate(1, "alice"))
        await client.asked(allocate(1, "alice"))
        client.admit()
        await client.bench.upstream.expect(allocate(1, "alice"))
        client.bench.upstream.send(client.flow, answer(allocate(1, "alice"), error=438))
        assert await client.receive() == answer(allocate(1, "alice"), error=438)
        await client.send(allocate(2, "alice"))
        await client.bench.upstream.expect(allocate(2, "alice"))
        # Another user is; and then the first one again, for only the last one counts.
        for number, user in ((3, "bob"), (4, "alice"), (5, "alicf"), (6, "alic"), (7, "")):
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
        # The one before is let in still, and only a name is remembered.
        await client.send(allocate(2, "alice"))
        await until(client, allocate(2, "alice"))
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


async def test_a_refusal_leaves_the_one_before_admitted(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    async with asking_client(make, tmp_path, carrier) as client:
        await client.send(allocate(1, "alice"))
        await client.asked(allocate(1, "alice"))
        client.admit()
        await client.bench.upstream.expect(allocate(1, "alice"))
        await client.send(allocate(2, "mallory"))
        await client.asked(allocate(2, "mallory"))
        client.refuse(answer(allocate(2, "mallory"), error=403))
        await client.receive()
        await client.send(allocate(3, "alice"))
        await until(client, allocate(3, "alice"))


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
        await client.send(FRAME)
        await until(client, FRAME)


async def test_control_must_answer(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    settings = bounds(attach_timeout_s=0.3)
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
    settings = bounds(attach_timeout_s=1.5)
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
        assert (totals.drops, totals.dropped) == ({DropReason.UPLINK_OVERSIZE: 1}, {Traffic.CONTROL: 1})
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
