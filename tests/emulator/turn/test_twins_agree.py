"""Both twins do the same with the same random datagrams: what arrives, what is answered, and every count."""

from __future__ import annotations

import contextlib
import random
import socket
from collections import Counter
from dataclasses import dataclass

import pytest

from relay.addresses import Address
from relay.emulator.turn import native, slow
from relay.emulator.turn.counters import Counters
from relay.turn.credentials import StaticCredentials
from relay.turn.drops import Drop
from relay.turn.server import ServerSettings
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import AttributeType, MessageClass, Method, build_message, build_xor_address, parse_message
from tests.support.network.bursts import give_room
from tests.support.peers.raw_turn import RawTurn
from tests.support.waiting import becomes

Make = type[slow.TurnHost] | type[native.TurnHost]

# The requests among the datagrams must not depend on the time that a twin takes.
SETTINGS = ServerSettings(unauthenticated_answers_per_s=0)
ROUNDS = 150
BOUND = 0x4000
LAST_WORDS = b"the last words of a peer"


@dataclass
class Outcome:
    """What one twin has done. Two ways of a packet may overtake each other, so the order does not count."""

    counters: Counters
    at_peer: Counter[bytes]
    at_client: Counter[bytes]


def open_peer(host: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    give_room(opened)
    opened.bind((host, 0))
    return opened


def take_all(source: socket.socket) -> list[bytes]:
    taken: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            taken.append(source.recv(65535))
    return taken


class Sender:
    """Makes datagrams: most are nearly right."""

    def __init__(self, seed: int, peers: list[Address]) -> None:
        self._random = random.Random(seed)
        self._peers = peers

    def next(self) -> bytes:
        kinds = [self._channel_data, self._channel_data, self._send, self._send, self._send, self._noise, self._request]
        data = self._random.choice(kinds)()
        if self._random.random() < 0.1:
            return data[: self._random.randrange(len(data) + 1)]
        if data and self._random.random() < 0.1:
            place = self._random.randrange(min(len(data), 48))
            return data[:place] + bytes([data[place] ^ 1 << self._random.randrange(8)]) + data[place + 1 :]
        return data

    def _bytes(self) -> bytes:
        return self._random.randbytes(self._random.choice([0, 1, 2, 3, 4, 12, 182, 300]))

    def _channel_data(self) -> bytes:
        number = self._random.choice([BOUND, BOUND, BOUND, BOUND + 1, 0x4FFF, 0x7FFF])
        return build_channel_data(number, self._bytes()) + self._random.choice([b"", b"", bytes(3), b"more"])

    def _send(self) -> bytes:
        chance = self._random.random
        transaction_id = self._random.randbytes(12)
        hosts = [*self._peers, *self._peers, Address(f"::ffff:{self._peers[0].host}", 4000), Address("2001:db8::1", 1)]
        peer = self._random.choice(hosts)
        attributes: list[tuple[int, bytes]] = []
        for _ in range(self._random.choice([1, 1, 1, 1, 2])):
            value = build_xor_address(peer, transaction_id)
            attributes.append((AttributeType.XOR_PEER_ADDRESS, value if chance() < 0.9 else value[:-1]))
        if chance() < 0.9:
            attributes.append((AttributeType.DATA, self._bytes()))
        extras = (0x8022, 0x8002, 0x8000, 0x8001, 0x8028, 0x001A, 0x0006, 0x0024, 0x0008, 0x001C, 0x7FFE, 0x000D)
        if chance() < 0.4:
            attributes.insert(self._random.randrange(len(attributes) + 1), (self._random.choice(extras), self._bytes()))
        return build_message(
            self._random.choice([Method.SEND] * 8 + [Method.DATA, Method.BINDING, 0x0FF]),
            self._random.choice([MessageClass.INDICATION] * 8 + [MessageClass.SUCCESS]),
            transaction_id,
            attributes,
            fingerprint=chance() < 0.3,
            integrity_key=b"key" if chance() < 0.1 else None,
        )

    def _request(self) -> bytes:
        method = self._random.choice([Method.BINDING, Method.ALLOCATE, Method.REFRESH, 0x00A])
        return build_message(method, MessageClass.REQUEST, self._random.randbytes(12))

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.choice([0, 1, 3, 4, 19, 20, 21, 100]))


def told(data: bytes) -> bytes:
    """What a client is told, without what is random: the identifiers of indications, and nonces."""
    if data[0] & 0x40:
        return data
    message = parse_message(data)
    if message.method == Method.DATA:
        peer = message.address(AttributeType.XOR_PEER_ADDRESS)
        return f"{peer}".encode() + (message.get(AttributeType.DATA) or b"")
    return data[:2] + message.transaction_id


async def play(make: Make, seed: int, peers: list[socket.socket]) -> Outcome:
    addresses = [Address(*peer.getsockname()) for peer in peers]
    sender = Sender(seed, addresses)
    host = make(Address("127.0.0.1", 0), StaticCredentials({"u": "p"}), allow_loopback_peers=True, settings=SETTINGS)
    async with host:
        with RawTurn(host.address, "u", "p") as client:
            relayed = await client.allocate()
            await client.bind(BOUND, addresses[0])
            await client.permit(addresses[1])
            for number in range(ROUNDS):
                client.send(sender.next())
                peers[number % len(peers)].sendto(bytes(number), relayed)
            at_client = await end_of(client, relayed, peers[0])
            data = sum(one[0] >= 0x40 or one[:2] == b"\x00\x17" for one in at_client)
            await becomes(lambda: host.counters.downlink_packets, data)
            at_peer = Counter(data for peer in peers for data in take_all(peer))
            return Outcome(host.counters, at_peer, Counter(map(told, at_client)))


async def end_of(client: RawTurn, relayed: Address, bound: socket.socket) -> list[bytes]:
    """All that the client hears: until its last request is answered, and the last words of the bound peer have come."""
    heard: list[bytes] = []
    last = client.signed(Method.BINDING)
    client.send(last)
    while not any(one[8:20] == last[8:20] and one[0] < 0x40 for one in heard[-1:]):
        heard.append(await client.receive())
    bound.sendto(LAST_WORDS, relayed)
    while LAST_WORDS not in heard[-1]:
        heard.append(await client.receive())
    return [one for one in heard if one[8:20] != last[8:20]]


@pytest.mark.parametrize("seed", range(30))
async def test_both_do_the_same(seed: int) -> None:
    with contextlib.ExitStack() as stack:
        # The first has a channel, the second only a permission, the third nothing.
        peers = [stack.enter_context(open_peer(f"127.0.0.{number}")) for number in (5, 6, 9)]
        expected = await play(slow.TurnHost, seed, peers)
        got = await play(native.TurnHost, seed, peers)
    assert got == expected
    assert min(expected.counters.uplink_packets, expected.counters.downlink_packets, len(expected.at_peer)) > 0


async def test_the_random_datagrams_reach_every_reason() -> None:
    """Otherwise the comparison would prove less than it says."""
    reasons: set[Drop] = set()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(open_peer(f"127.0.0.{number}")) for number in (5, 6, 9)]
        for seed in range(5):
            reasons |= set((await play(native.TurnHost, seed, peers)).counters.drops)
    assert reasons == {Drop.MALFORMED, Drop.NO_CHANNEL, Drop.NOT_PERMITTED}
