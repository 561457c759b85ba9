"""Streams, and the judgement of what comes back. A peer needs no server: datagrams go straight to a far end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest
from pylibsrtp import Policy, Session

from loadtest.engine.engine import Cause, Opened
from loadtest.engine.plans import Carrier, ClientPlan, PlanError, StreamPlan
from relay.addresses import Address
from tests.loadtest.engine.driver import Driver, running_engine

ANY_PORT = Address("127.0.0.1", 0)
ANY_PORT_6 = Address("::1", 0)
FAST = 0.002
# What is not lost by then is not lost at all: the machine may be busy.
PATIENCE = 10.0

# What a far end does with the Nth packet: what it sends back instead.
Fault = Callable[[int, bytes], list[bytes]]


@contextlib.asynccontextmanager
async def far_end(fault: Fault) -> AsyncIterator[Address]:
    """Sends back what the fault makes of each packet; they are counted from 0."""
    loop, packets = asyncio.get_running_loop(), 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
        end.bind(("127.0.0.1", 0))

        def on_readable() -> None:
            nonlocal packets
            data, sender = end.recvfrom(2048)
            answers = fault(packets, data)
            packets += 1
            for answer in answers:
                end.sendto(answer, sender)

        loop.add_reader(end, on_readable)
        try:
            yield Address(*end.getsockname())
        finally:
            loop.remove_reader(end)


async def open_peer(driver: Driver, *peers: Address, at: Address = ANY_PORT, reflects: bool = False) -> Opened:
    return await driver.opened(ClientPlan(at, Carrier.PEER, peers=peers, reflects=reflects))


def stream(client: int, **more: float) -> StreamPlan:
    return StreamPlan(
        client, interval_s=FAST, patience_s=more.get("patience_s", PATIENCE), late_s=more.get("late_s", 9)
    )


async def heard(fault: Fault, packets: int = 20, **more: float) -> dict[str, int]:
    """What is counted of a stream whose far end has this fault: what is not 0, and not sent."""
    async with far_end(fault) as far, running_engine() as driver:
        opened = await open_peer(driver, far)
        silenced = await driver.spoken(stream(opened.client, **more), packets)
        names = ("unsent", "received", "lost", "late", "duplicate", "reordered", "runs")
        counted = {name: getattr(silenced, name) for name in names}
        return {name: count for name, count in counted.items() if count}


# Peers


@pytest.mark.parametrize("at", [ANY_PORT, ANY_PORT_6], ids=["IPv4", "IPv6"])
async def test_two_peers_of_one_engine(at: Address) -> None:
    async with running_engine() as driver:
        one, other = await open_peer(driver, at=at), await open_peer(driver, at=at)
        assert one.relayed is not None
        assert other.relayed is not None
        assert one.relayed.host == at.host
        driver.engine.bind(one.client, other.relayed)
        plan = StreamPlan(one.client, receiver=other.client, interval_s=FAST, patience_s=PATIENCE)
        assert (await driver.spoken(plan, 10)).received == 10
        ended = await driver.closed(one.client)
        assert ended.cause is Cause.ASKED


async def test_a_peer_reflects() -> None:
    async with running_engine() as driver:
        mirror = await open_peer(driver, reflects=True)
        assert mirror.relayed is not None
        opened = await open_peer(driver, mirror.relayed)
        silenced = await driver.spoken(stream(opened.client), 10)
        assert silenced.received == 10
        assert driver.engine.window().counters["reflected"] == 10


async def test_an_address_that_is_taken() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        async with running_engine() as driver:
            ended = await driver.ended(ClientPlan(Address(*taken.getsockname()), Carrier.PEER))
            assert (ended.cause, ended.words) == (Cause.RESOURCES, "Address already in use")


# What comes back


async def test_all_of_it() -> None:
    assert await heard(lambda _, data: [data]) == {"received": 20}


async def test_lost_packets_and_their_runs() -> None:
    gone = {3, 4, 5, 11, 19}
    counted = await heard(lambda number, data: [] if number in gone else [data], patience_s=1.0)
    assert counted == {"received": 15, "lost": 5, "runs": 3}


async def test_late_packets_are_one_run() -> None:
    """None is faster than light."""
    assert await heard(lambda _, data: [data], late_s=0) == {"received": 20, "late": 20, "runs": 1}


async def test_packets_that_come_twice() -> None:
    assert await heard(lambda number, data: [data] * (2 if number % 10 == 4 else 1)) == {"received": 20, "duplicate": 2}


async def test_packets_that_changed_places() -> None:
    held: list[bytes] = []

    def fault(number: int, data: bytes) -> list[bytes]:
        if number % 10 == 4:
            held.append(data)
            return []
        return [data, held.pop()] if held else [data]

    assert await heard(fault) == {"received": 20, "reordered": 2}


async def test_what_comes_too_late_is_lost_all_the_same() -> None:
    held: list[tuple[bytes, int]] = []

    def fault(number: int, data: bytes) -> list[bytes]:
        if number == 0:
            held.append((data, 0))
            return []
        return [data]

    async with far_end(fault) as far, running_engine() as driver:
        opened = await open_peer(driver, far)
        driver.engine.talk(StreamPlan(opened.client, interval_s=FAST, patience_s=0.05))
        lost = expired = 0
        while not lost:
            lost += (await driver.window()).counters["lost"]
        late, _ = held.pop()
        assert opened.relayed is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.sendto(late, (opened.relayed.host, opened.relayed.port))
        while not expired:
            expired += (await driver.window()).counters["expired"]


async def test_what_comes_after_its_stream_has_ended_is_nobody_elses() -> None:
    """A slow server's packet is late, not one that went astray."""
    held: list[bytes] = []

    def fault(_: int, data: bytes) -> list[bytes]:
        held.append(data)
        return []

    async with far_end(fault) as far, running_engine() as driver:
        opened = await open_peer(driver, far)
        driver.engine.talk(StreamPlan(opened.client, packets=1, patience_s=0.05))
        ended = await driver.next_silenced()
        assert (ended.sent, ended.lost) == (1, 1)
        assert opened.relayed is not None
        foreign = expired = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.sendto(held[0], (opened.relayed.host, opened.relayed.port))
            again.sendto(held[0][:8] + bytes(4) + held[0][12:], (opened.relayed.host, opened.relayed.port))
        while foreign + expired < 2:
            counted = (await driver.window()).counters
            foreign, expired = foreign + counted["foreign"], expired + counted["expired"]
        assert (foreign, expired) == (1, 1)


# What is sent


async def test_the_far_end_verifies_it_with_pylibsrtp() -> None:
    came: list[bytes] = []
    key = bytes(range(30))

    def fault(_: int, data: bytes) -> list[bytes]:
        came.append(data)
        return [data]

    async with far_end(fault) as far, running_engine() as driver:
        opened = await open_peer(driver, far)
        plan = StreamPlan(opened.client, interval_s=FAST, patience_s=PATIENCE, send_key=key)
        await driver.spoken(plan, 20)
    profile = Policy.SRTP_PROFILE_AES128_CM_SHA1_80
    session = Session(Policy(key=key, ssrc_type=Policy.SSRC_ANY_INBOUND, srtp_profile=profile))
    packets = [session.unprotect(data) for data in came]
    sequences, timestamps = zip(*(struct.unpack_from("!HI", packet, 2) for packet in packets), strict=True)
    assert [sequence - sequences[0] for sequence in sequences] == list(range(20))
    # 2 ms of a clock of 8 kHz.
    assert timestamps == tuple(range(0, 320, 16))
    assert {len(packet) for packet in packets} == {172}


async def test_talk_spurts() -> None:
    """Its clock goes on while it is silent, and the first packet of each spurt is marked (RFC 3551 section 4.1)."""
    heads: list[tuple[bool, int]] = []

    def fault(_: int, data: bytes) -> list[bytes]:
        marker, timestamp = struct.unpack_from("!xBxxI", data)
        heads.append((marker >= 0x80, timestamp))
        return [data]

    async with far_end(fault) as far, running_engine() as driver:
        opened = await open_peer(driver, far)
        plan = StreamPlan(opened.client, interval_s=FAST, talk_s=0.01, pause_s=0.01, patience_s=PATIENCE)
        await driver.spoken(plan, 100)
    assert heads[0] == (True, 0)
    steps = [after - before for (_, before), (_, after) in pairwise(heads)]
    assert all(step % 16 == 0 for step in steps)
    # A pause may be shorter than an interval.
    assert all(marked or step == 16 for (marked, _), step in zip(heads[1:], steps, strict=True))
    # The probability that not one of a hundred packets ends a spurt or begins a pause that can be seen is 1e-6.
    assert any(step > 16 for step in steps)


async def test_a_stream_begins_when_it_is_told() -> None:
    async with running_engine() as driver:
        mirror = await open_peer(driver, reflects=True)
        assert mirror.relayed is not None
        opened = await open_peer(driver, mirror.relayed)
        began_s = asyncio.get_running_loop().time()
        plan = StreamPlan(opened.client, interval_s=FAST, start_s=began_s + 0.2, patience_s=PATIENCE)
        await driver.spoken(plan, 3)
        assert asyncio.get_running_loop().time() >= began_s + 0.2


# What Python is shown


async def test_streams_that_go_on_are_shown() -> None:
    async with running_engine() as driver:
        mirror = await open_peer(driver, reflects=True)
        assert mirror.relayed is not None
        opened = await open_peer(driver, mirror.relayed)
        numbers = {driver.engine.talk(stream(opened.client)) for _ in range(3)}
        shown = driver.engine.window(streams=True).streams
        while not (shown.keys() == numbers and all(one.received for one in shown.values())):
            before = shown
            await asyncio.sleep(FAST)
            shown = driver.engine.window(streams=True).streams
            assert all(shown[number].sent >= totals.sent for number, totals in before.items())
        assert all(0 < one.mean_delay_s <= one.max_delay_s for one in shown.values())
        assert driver.engine.window().streams == {}


async def test_numbers_are_given_again() -> None:
    """Far more streams than there is room for at once."""
    async with running_engine() as driver:
        mirror = await open_peer(driver, reflects=True)
        assert mirror.relayed is not None
        opened = await open_peer(driver, mirror.relayed)
        for _ in range(3):
            for _ in range(16):
                driver.engine.talk(StreamPlan(opened.client, interval_s=FAST, packets=2, patience_s=PATIENCE))
            with pytest.raises(PlanError, match="streams: expected fewer"):
                driver.engine.talk(StreamPlan(opened.client))
            for _ in range(16):
                assert (await driver.next_silenced()).received == 2


async def test_what_has_just_been_sent_is_not_lost() -> None:
    """Streams that are late: all is sent, and the ends are due, in one turn of the thread."""
    async with running_engine() as driver:
        mirror = await open_peer(driver, reflects=True)
        assert mirror.relayed is not None
        opened = await open_peer(driver, mirror.relayed)
        for _ in range(40):
            begun_s = asyncio.get_running_loop().time() - 1
            for _ in range(16):
                driver.engine.talk(
                    StreamPlan(opened.client, interval_s=FAST, start_s=begun_s, packets=2, patience_s=PATIENCE)
                )
            for _ in range(16):
                assert (await driver.next_silenced()).lost == 0


async def test_a_stream_is_not_that_of_the_next_client_with_its_number() -> None:
    async with running_engine(clients=2) as driver:
        mirror = await open_peer(driver, reflects=True)
        assert mirror.relayed is not None
        opened = await open_peer(driver, mirror.relayed)
        number = driver.engine.talk(stream(opened.client))
        while not (await driver.window()).counters["received"]:
            pass
        await driver.closed(opened.client)
        again = await open_peer(driver, mirror.relayed)
        assert again.client == opened.client
        driver.engine.window()
        while (counted := (await driver.window()).counters)["unsent"] < 5:
            assert counted["sent"] == 0
        driver.engine.silence(number)
        await driver.next_silenced()
