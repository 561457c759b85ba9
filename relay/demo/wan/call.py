"""One call over one way: the trader and the other side say the sentence to each other, and hear what comes through."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from relay import deadlines
from relay.addresses import Address
from relay.client.turn import TurnConnection
from relay.demo.wan.playout import Arrival
from relay.demo.wan.voice import Ear, Talker
from relay.demo.wan.way import LOSS, Way
from relay.emulator.softphone.pacer import Pacer
from relay.emulator.turn.sockets import MAX_DATAGRAM_BYTES

# The path loses nothing at the end, and a stream that stalls goes on within seconds.
GOODBYE_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Heard:
    """One direction of a call that has ended. ``wrong`` packets are not among the arrivals."""

    sent: int
    arrivals: Sequence[Arrival]
    wrong: int


@dataclass(frozen=True)
class Conversation:
    """A call that has ended: what both sides heard, and how many packets the path lost on the way to the trader."""

    way: str
    trader: Heard
    other: Heard
    path_lost: int


class _Party:
    """One side: it says this many packets, one with each tick, and then goodbye until the call is over."""

    def __init__(self, payloads: Sequence[bytes], packets: int) -> None:
        self.talker = Talker(payloads)
        self.said = asyncio.Event()
        self.leaves = False
        self.send: Callable[[bytes], None]
        self.ear: Ear
        self._packets = packets

    def tick(self) -> None:
        """Send what is next."""
        if len(self.talker.sent_ns) < self._packets:
            self.send(self.talker.next_packet())
        elif self.leaves:
            self.send(self.talker.goodbye())
        else:
            self.said.set()

    def heard(self) -> Heard:
        """What came of the other side."""
        return Heard(self._packets, tuple(self.ear.arrivals), self.ear.wrong)


async def place_call(way: Way, payloads: Sequence[bytes], packets: int, on_tick: Callable[[], None]) -> Conversation:
    """Say this many packets, both ways. ``on_tick`` is called every 20 ms meanwhile, in any thread.

    Raises UpstreamError if the call cannot be set up, or is cut off.
    """
    return await way.run(lambda: _call(way, payloads, packets, on_tick))


async def _call(way: Way, payloads: Sequence[bytes], packets: int, on_tick: Callable[[], None]) -> Conversation:
    trader, other = _Party(payloads, packets), _Party(payloads, packets)
    trader.ear, other.ear = Ear(other.talker), Ear(trader.talker)
    far_address = Address(*way.far.getsockname())
    with _hearing(way.far, other.ear.hear):
        async with await way.connect(lambda _, data: trader.ear.hear(data)) as turn:
            relayed = await turn.allocate()
            await turn.bind_channel(far_address)
            trader.send = lambda packet: turn.send(far_address, packet)
            other.send = lambda packet: _send(way.far, packet, relayed)
            way.set_loss(LOSS)
            await _unless_cut_off(turn, _converse(way, trader, other, on_tick))
    return Conversation(way.name, trader.heard(), other.heard(), way.lost_packets())


async def _converse(way: Way, trader: _Party, other: _Party, on_tick: Callable[[], None]) -> None:
    pacer = Pacer()
    try:
        for tick in (on_tick, trader.tick, other.tick):
            pacer.add(tick)
        await asyncio.gather(trader.said.wait(), other.said.wait())
        pacer.discard(on_tick)
        way.set_loss(0.0)
        trader.leaves = other.leaves = True
        # If no goodbye comes, what came until now is what was heard.
        with contextlib.suppress(TimeoutError):
            async with deadlines.timeout(GOODBYE_TIMEOUT_S):
                await asyncio.gather(trader.ear.ended.wait(), other.ear.ended.wait())
    finally:
        await pacer.close()


async def _unless_cut_off(turn: TurnConnection, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, unless the connection ends before. Raises its UpstreamError then."""
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait([working, turn.closed], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            turn.closed.result()
        await working
    finally:
        working.cancel()
        await asyncio.wait([working])


@contextlib.contextmanager
def _hearing(far: socket.socket, hear: Callable[[bytes], None]) -> Iterator[None]:
    """Hand on each datagram that comes, one in each turn of the loop."""

    def on_readable() -> None:
        # Another reader, or ICMP: an earlier one did not arrive.
        with contextlib.suppress(OSError):
            hear(far.recv(MAX_DATAGRAM_BYTES))

    loop = asyncio.get_running_loop()
    loop.add_reader(far.fileno(), on_readable)
    try:
        yield
    finally:
        loop.remove_reader(far.fileno())


def _send(far: socket.socket, packet: bytes, to: Address) -> None:
    """Send a datagram. A full socket loses it, as the network might."""
    with contextlib.suppress(OSError):
        far.sendto(packet, to)
