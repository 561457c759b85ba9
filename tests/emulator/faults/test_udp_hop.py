"""The bad line over UDP: what a TURN client behind it sees, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from relay import catalog
from relay.addresses import Address
from relay.client.turn import TurnConnection, open_turn_udp
from relay.emulator.faults import udp_hop
from relay.emulator.faults.board import FaultBoard
from relay.emulator.faults.kinds import FaultSetting, Hop, Kind
from relay.emulator.faults.udp_hop import Line, UdpHop
from relay.emulator.turn.slow import TurnHost
from relay.errors import OperatorError, UpstreamError
from relay.turn.credentials import StaticCredentials
from tests.support.peers.behind_turn import Inbox, echo_all_sizes, open_echo
from tests.support.waiting import becomes, eventually

CREDENTIALS = StaticCredentials({"trader": "secret"})
ANY = Address("127.0.0.1", 0)
NAME, REGION = "use1-stun1.xhoot.com", "use1"


@dataclass
class Bench:
    board: FaultBoard
    hop: UdpHop
    turn: TurnConnection
    inbox: Inbox
    peer: Address

    def put(self, kind: Kind, **setting: object) -> None:
        self.board.put(Hop.DESK_UDP, kind, FaultSetting.model_validate(setting))

    def say(self, count: int) -> list[bytes]:
        """Numbered packets to the echo."""
        packets = [number.to_bytes(4) for number in range(count)]
        for packet in packets:
            self.turn.send(self.peer, packet)
        return packets


@contextlib.asynccontextmanager
async def behind_a_bad_line(*, seed: int | None = None, waiting: udp_hop.Waiting | None = None) -> AsyncIterator[Bench]:
    board, inbox = FaultBoard(catalog.load()), Inbox()
    async with TurnHost(ANY, CREDENTIALS, allow_loopback_peers=True) as host, open_echo() as peer:
        hop = UdpHop(Line(NAME, REGION, host.address), board, waiting=waiting, seed=seed)
        hop.start(ANY)
        try:
            async with await open_turn_udp(hop.address, "trader", "secret", on_data=inbox.put) as turn:
                await turn.allocate()
                await turn.bind_channel(peer)
                yield Bench(board, hop, turn, inbox, peer)
                board.clear()
                await turn.close()
        finally:
            hop.close()
            hop.close()
            board.close()


async def test_without_faults_everything_passes() -> None:
    async with behind_a_bad_line() as bench:
        await echo_all_sizes(bench.turn, bench.inbox, bench.peer)
        assert bench.hop.clients == 1
        assert set(bench.hop.counts) == {"passed"}


async def test_blocked_udp_is_silence_to_the_client() -> None:
    async with behind_a_bad_line() as bench:
        bench.put(Kind.UDP_BLOCKED, target=REGION)
        sent = bench.say(3)
        await becomes(lambda: bench.hop.counts["blocked"], len(sent))
        with pytest.raises(UpstreamError, match="no answer within"):
            async with await open_turn_udp(bench.hop.address, "trader", "secret", timeout_s=0.3) as other:
                await other.allocate()
        assert bench.inbox.empty
        bench.board.clear()
        bench.turn.send(bench.peer, b"again")
        assert await bench.inbox.get() == (bench.peer, b"again")


async def test_a_fault_of_another_region_concerns_nobody_here() -> None:
    async with behind_a_bad_line() as bench:
        bench.put(Kind.UDP_BLOCKED, target="euc1")
        bench.put(Kind.LOSS, target="euc1-stun1.xhoot.com", percent=100)
        await echo_all_sizes(bench.turn, bench.inbox, bench.peer)


async def test_loss_is_random_and_repeats_with_its_seed() -> None:
    heard: list[list[bytes]] = []
    for _ in range(2):
        async with behind_a_bad_line(seed=7) as bench:
            bench.put(Kind.LOSS, percent=30)
            sent = bench.say(200)
            await eventually(functools.partial(gone_or_back, bench.hop.counts, 200))
            bench.board.clear()
            bench.turn.send(bench.peer, b"last")
            came: list[bytes] = []
            while not came or came[-1] != b"last":
                came.append((await bench.inbox.get())[1])
            heard.append(came)
            # What the user hears is what the line did not lose.
            assert len(came) - 1 == 200 - bench.hop.counts["lost"]
            assert set(came[:-1]) < set(sent)
    assert 20 < 200 - len(heard[0]) < 180


def gone_or_back(counts: Counter[str], sent: int) -> bool:
    """Each packet was lost on its way up, lost on its way down, or passed both."""
    return counts["lost"] > 0 and counts["passed"] + 2 * counts["lost"] >= 2 * sent


async def test_losing_all_is_losing_all() -> None:
    async with behind_a_bad_line() as bench:
        bench.put(Kind.LOSS, percent=100)
        bench.say(5)
        await becomes(lambda: bench.hop.counts["lost"], 5)
        assert bench.inbox.empty


async def test_delay_is_in_both_directions() -> None:
    async with behind_a_bad_line() as bench:
        loop = asyncio.get_running_loop()
        bench.put(Kind.DELAY, delay_ms=100)
        before = loop.time()
        sent = bench.say(20)
        assert [(await bench.inbox.get())[1] for _ in sent] == sent
        assert loop.time() - before >= 0.2


async def test_a_stall_holds_everything_and_then_lets_go_in_order() -> None:
    async with behind_a_bad_line() as bench:
        bench.put(Kind.STALL, seconds=0.3)
        fault = bench.board.find(Hop.DESK_UDP, Kind.STALL)
        assert fault is not None
        sent = bench.say(20)
        assert [(await bench.inbox.get())[1] for _ in sent] == sent
        assert asyncio.get_running_loop().time() >= (fault.until or 0)


async def test_a_stall_that_is_taken_off_ends_at_once() -> None:
    async with behind_a_bad_line() as bench:
        bench.put(Kind.STALL, seconds=3600)
        before = bench.hop.counts["passed"]
        sent = bench.say(3)
        await eventually(lambda: len(bench.hop._held) == len(sent))
        assert bench.hop.counts["passed"] == before
        bench.board.clear()
        assert [(await bench.inbox.get())[1] for _ in sent] == sent


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_hop, "MAX_HELD", 10)
    async with behind_a_bad_line() as bench:
        bench.put(Kind.STALL, seconds=3600)
        bench.say(25)
        await becomes(lambda: bench.hop.counts["overflow"], 15)


async def test_the_bytes_that_wait_on_all_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = udp_hop.Waiting()
    async with behind_a_bad_line(waiting=waiting) as first, behind_a_bad_line(waiting=waiting) as second:
        monkeypatch.setattr(udp_hop, "MAX_HELD_BYTES", 10 * (1000 + udp_hop.OVERHEAD_BYTES + 100))
        for bench in (first, second):
            bench.put(Kind.STALL, seconds=3600)
        for _ in range(10):
            first.turn.send(first.peer, bytes(1000))
        await eventually(lambda: len(first.hop._held) == 10)
        second.turn.send(second.peer, bytes(1400))
        await becomes(lambda: second.hop.counts["overflow"], 1)
        first.board.clear()
        assert waiting.size == 0
        second.turn.send(second.peer, bytes(1400))
        await eventually(lambda: len(second.hop._held) == 1)
    assert waiting.size == 0


async def test_clients_are_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_hop, "MAX_CLIENTS", 2)
    async with behind_a_bad_line() as bench:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                desk = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                desk.sendto(b"hello", bench.hop.address)
            await becomes(lambda: bench.hop.counts["too_many_clients"], 2)
        assert bench.hop.clients == 2
        monkeypatch.setattr(udp_hop, "FORGET_S", 0.0)
        bench.hop._forget()
        assert bench.hop.clients == 0
        monkeypatch.undo()
        # Whoever speaks again has a new address at the host.
        bench.turn.send(bench.peer, b"who am I?")
        await becomes(lambda: bench.hop.clients, 1)


async def test_a_host_that_is_gone_is_silence() -> None:
    board = FaultBoard(catalog.load())
    with socket.socket(type=socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        nobody = Address(*gone.getsockname())
    hop = UdpHop(Line(NAME, REGION, nobody), board)
    hop.start(ANY)
    with socket.socket(type=socket.SOCK_DGRAM) as desk:
        for _ in range(20):
            desk.sendto(b"hello", hop.address)
        await becomes(lambda: hop.counts["passed"] + hop.counts["refused"], 20)
    hop.close()
    board.close()


async def test_a_taken_port_is_an_operator_error() -> None:
    board = FaultBoard(catalog.load())
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(OperatorError, match="bad line on"):
            UdpHop(Line(NAME, REGION, ANY), board).start(Address(*other.getsockname()))
    board.close()
