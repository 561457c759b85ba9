"""The state machines of TURN against whatever a peer says: no datagram may end them, and what they say is whole."""

from __future__ import annotations

import ipaddress
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from relay.addresses import Address, RelayPolicy
from relay.turn.client import TurnClient
from relay.turn.commands import CloseRelayed, Command, OpenRelayed, SendToClient
from relay.turn.credentials import NonceMint, StaticCredentials, long_term_key
from relay.turn.events import AllocationCreated
from relay.turn.server import ServerSettings, TurnServer
from relay.wire.channeldata import build_channel_data, is_channel_data
from relay.wire.stun import (
    MAGIC_COOKIE_BYTES,
    AttributeType,
    MessageClass,
    Method,
    build_message,
    build_xor_address,
    parse_message,
)

# Beyond, a scenario is longer but not different.
MAX_STEPS = 100
USER, PASSWORD, REALM = "trader", "secret", "cloud9"
CLIENTS = tuple(Address("192.0.2.1", 50_000 + number) for number in range(3))
PEERS = tuple(Address("198.51.100.1", 4000 + number) for number in range(3))
EPOCH = 1_700_000_000
METHODS = (Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND, Method.BINDING, Method.SEND)
# With values that are good, so that a scenario gets somewhere. All others have the scenario's own.
GOOD: tuple[tuple[int, bytes], ...] = (
    (AttributeType.REQUESTED_TRANSPORT, b"\x11\0\0\0"),
    (AttributeType.LIFETIME, bytes(4)),
    (AttributeType.EVEN_PORT, b"\x80"),
    (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\1\0\0\0"),
    (AttributeType.CHANNEL_NUMBER, b"\x40\0\0\0"),
    *((AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, bytes(12))) for peer in PEERS),
)
# What proves who has sent a message is no part of a scenario.
PROOFS = {AttributeType.MESSAGE_INTEGRITY, AttributeType.MESSAGE_INTEGRITY_SHA256, AttributeType.FINGERPRINT}
KINDS = tuple(sorted(set(AttributeType) - PROOFS))
Attributes = Sequence[tuple[int, bytes]]


def _steps(data: bytes) -> Iterator[tuple[int, bytes]]:
    """A byte for what happens, one for how many bytes belong to it, and those."""
    at = 0
    for _ in range(MAX_STEPS):
        if at >= len(data):
            return
        size = data[at + 1] if at + 1 < len(data) else 0
        yield data[at], data[at + 2 : at + 2 + size]
        at += 2 + size


def _attributes(data: bytes) -> list[tuple[int, bytes]]:
    """A byte for a good attribute; or one for a kind, one for a length, and the value."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if data[at] < 128:
            found.append(GOOD[data[at] % len(GOOD)])
            at += 1
            continue
        size = data[at + 1] % 24 if at + 1 < len(data) else 0
        found.append((KINDS[data[at] % len(KINDS)], data[at + 2 : at + 2 + size]))
        at += 2 + size
    return found


class _Server:
    """A server, with sockets that always open, or never."""

    def __init__(self) -> None:
        self.nonces = NonceMint(key=bytes(32))
        self.now = 1000.0
        self.relayed: list[Address] = []
        self.ours = TurnServer(
            ServerSettings(
                realm=REALM,
                policy=RelayPolicy([ipaddress.ip_network("198.51.100.0/24")]),
                max_allocations=2,
                unauthenticated_answers_per_s=0,
            ),
            StaticCredentials({USER: PASSWORD}),
            nonces=self.nonces,
            choose=random.Random(1),
            unix_time=lambda: EPOCH,
        )

    def request(self, client: Address, method: int, attributes: Attributes, transaction_id: bytes) -> bytes:
        """An authentic one."""
        proof = [
            (AttributeType.USERNAME, USER.encode()),
            (AttributeType.REALM, REALM.encode()),
            (AttributeType.NONCE, self.nonces.mint(client, self.now).encode()),
        ]
        key = long_term_key(USER, REALM, PASSWORD)
        return build_message(
            method, MessageClass.REQUEST, transaction_id, [*attributes, *proof], integrity_key=key, fingerprint=True
        )

    def carry_out(self, commands: Sequence[Command], *, opens: bool) -> None:
        left = deque(commands)
        while left:
            command = left.popleft()
            match command:
                case OpenRelayed(address) if opens:
                    self.relayed.append(address)
                    left += self.ours.on_relayed_opened(self.now, address)
                case OpenRelayed(address):
                    left += self.ours.on_relayed_failed(self.now, address)
                case CloseRelayed(address):
                    self.relayed.remove(address)
                case SendToClient(_, answer):
                    assert is_channel_data(answer) or not parse_message(answer).fault
                case _:
                    assert command.relayed_address in self.relayed


def check_turn_server(data: bytes) -> None:
    """Bytes: steps, as ``_steps`` reads them, of three clients, their peers, and time."""
    server = _Server()
    for verb, body in _steps(data):
        client, opens = CLIENTS[(verb >> 3) % 3], verb < 224
        commands = _step(server, client, verb, body)
        server.carry_out(commands, opens=opens)
        assert server.ours.allocations <= 2
        assert sum(server.ours.serves(server.now, one) for one in CLIENTS) <= server.ours.allocations
    # In the end all of them expire, and nothing is left.
    server.now += 4000
    server.carry_out(server.ours.on_deadline(server.now), opens=True)
    assert (server.ours.allocations, server.relayed, server.ours.next_deadline()) == (0, [], None)


def _step(server: _Server, client: Address, verb: int, body: bytes) -> Sequence[Command]:
    ours, now, first = server.ours, server.now, body[0] if body else 0
    match verb % 8:
        case 0:
            return ours.receive(now, client, body)
        case 1:
            method = METHODS[first % len(METHODS)]
            kind = MessageClass.INDICATION if verb & 128 else MessageClass.REQUEST
            return ours.receive(now, client, build_message(method, kind, bytes(12), _attributes(body[1:])))
        case 2 | 3 | 4:
            # The same bytes again are the same request again.
            transaction_id = bytes([verb % 8, first]) + bytes(10)
            method = METHODS[first % len(METHODS)]
            return ours.receive(now, client, server.request(client, method, _attributes(body[1:]), transaction_id))
        case 5:
            return ours.receive(now, client, build_channel_data(0x4000 + first % 4, body))
        case 6 if server.relayed:
            return ours.receive_from_peer(now, server.relayed[-1], PEERS[first % 3], body)
        case 7 if first:
            server.now += first * (10 if verb & 128 else 1)
            return ours.on_deadline(server.now)
    return ours.on_client_closed(client) if verb % 8 == 7 else []


def check_turn_client(data: bytes) -> None:
    """Bytes: steps, as ``_steps`` reads them, of what the server answers to the requests of a client."""
    numbers = iter(range(1 << 30))
    client = TurnClient(USER, PASSWORD, new_transaction_id=lambda: next(numbers).to_bytes(12))
    now, asked = 1000.0, deque[bytes]([], 16)
    client.allocate(now)
    for verb, body in _steps(data):
        asked += client.take_messages()
        request = asked[-1 - (verb >> 4) % len(asked)] if asked else bytes(20)
        first = body[0] if body else 0
        match verb % 8:
            case 0:
                events = client.receive(now, body)
            case 1:
                events = client.receive(now, request[:2] + len(body).to_bytes(2) + MAGIC_COOKIE_BYTES + body)
            case 2 | 3 | 4:
                events = client.receive(now, _answer(request, verb, first, body[1:]))
            case 5:
                events = client.receive(now, build_channel_data(0x4000 + first % 4, body))
            case 6:
                _ask(client, now, first)
                events = []
            case _:
                now += first * 10
                events = client.on_deadline(now)
        if any(isinstance(event, AllocationCreated) for event in events):
            assert client.may_have_allocation
    # In the end nothing is left that it would do.
    client.release(now)
    for _ in range(MAX_STEPS):
        if (deadline := client.next_deadline()) is not None:
            client.on_deadline(max(now, deadline))
    assert client.next_deadline() is None


def _answer(request: bytes, verb: int, first: int, body: bytes) -> bytes:
    """A success or an error, mostly authentic: a server knows the key."""
    asked = parse_message(request)
    kind = MessageClass.ERROR if verb & 8 else MessageClass.SUCCESS
    code = (300, 400, 401, 437, 438, 440, 441, 486)[first % 8]
    error = [(AttributeType.ERROR_CODE, bytes([0, 0, code // 100, code % 100]))] if verb & 8 else []
    where = build_xor_address(PEERS[0], asked.transaction_id)
    granted = [(AttributeType.XOR_RELAYED_ADDRESS, where), (AttributeType.LIFETIME, b"\0\0\2\x58")] if first & 1 else []
    challenge = [(AttributeType.REALM, REALM.encode()), (AttributeType.NONCE, bytes([65 + first % 26]))]
    attributes = [*error, *granted, *(challenge if first & 2 else []), *_attributes(body)]
    key = long_term_key(USER, REALM, PASSWORD) if verb % 8 != 4 else None
    return build_message(asked.method, kind, asked.transaction_id, attributes, integrity_key=key)


def _ask(client: TurnClient, now: float, first: int) -> None:
    peer = PEERS[first % 3]
    ask: tuple[Callable[[], object], ...] = (
        lambda: client.bind(now),
        lambda: client.allocate(now),
        lambda: client.refresh(now),
        lambda: client.create_permission(now, peer),
        lambda: client.bind_channel(now, peer),
        lambda: client.send_data(peer, b"voice"),
    )
    sent = ask[first // 3 % len(ask)]()
    if isinstance(sent, bytes):
        assert is_channel_data(sent) or parse_message(sent).get(AttributeType.DATA) == b"voice"


MACHINES: dict[str, Callable[[bytes], None]] = {"turn_server": check_turn_server, "turn_client": check_turn_client}
