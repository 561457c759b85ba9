"""A TURN server, and a client with it, in memory: time stands still until a test moves it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count

from relay.addresses import Address
from relay.turn.client import TurnClient
from relay.turn.commands import CloseRelayed, Command, OpenRelayed, SendToClient, SendToPeer
from relay.turn.credentials import CredentialStore, NonceMint, StaticCredentials, long_term_key
from relay.turn.events import Event
from relay.turn.server import ServerSettings, TurnServer
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import (
    AttributeType,
    Message,
    MessageClass,
    Method,
    build_message,
    build_uint32,
    build_xor_address,
    parse_message,
)

REALM = "cloud9"
PASSWORDS = {"ann": "sesame", "bob": "mellon"}
ANN = Address("192.168.1.10", 50000)
BOB = Address("192.168.1.11", 50000)
# Addresses that may be relayed to.
PEER = Address("8.0.0.1", 4000)
PEER_V6 = Address("2a00::1", 4000)
# The time of day, which only the expiry of credentials knows, while the other clock is at 0.
EPOCH = 1_700_000_000

Attributes = tuple[int, bytes]
UDP: Attributes = (AttributeType.REQUESTED_TRANSPORT, bytes([17, 0, 0, 0]))


class FixedPorts(random.Random):
    """Chooses what the test says; then the last value again and again, or at random."""

    def __init__(self, *ports: int, then_random: bool = False) -> None:
        super().__init__(0)
        self._ports = deque(ports)
        self._then_random = then_random

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        assert (start, stop) == (49152, 65536)
        if not self._ports:
            return super().randrange(start, stop)
        last = len(self._ports) == 1 and not self._then_random
        return self._ports[0] if last else self._ports.popleft()


def lifetime(seconds: int) -> Attributes:
    return AttributeType.LIFETIME, build_uint32(seconds)


def code_of(answer: Message) -> int:
    """The error code of an answer, 0 for a success."""
    if answer.message_class is MessageClass.SUCCESS:
        return 0
    assert answer.error is not None
    return answer.error.code


class ServerBench:
    """A server whose sockets open at once, and the messages that a client would send to it."""

    def __init__(
        self,
        settings: ServerSettings | None = None,
        credentials: CredentialStore | None = None,
        passwords: dict[str, str] | None = None,
        choose: random.Random | None = None,
        *,
        limited: bool = False,
    ) -> None:
        """Unless it is ``limited``, a test may ask for as many nonces as it likes."""
        self.now = 1000.0
        self.passwords = PASSWORDS if passwords is None else passwords
        settings = settings or ServerSettings(relayed_hosts=("192.0.2.1",))
        self.server = TurnServer(
            settings if limited else replace(settings, unauthenticated_answers_per_s=0),
            credentials or StaticCredentials(self.passwords),
            nonces=NonceMint(key=bytes(32)),
            choose=choose or random.Random(1),
            unix_time=lambda: EPOCH + self.now,
        )
        # Which relayed addresses the "kernel" lets the server open.
        self.can_open: Callable[[Address], bool] = lambda address: True
        self.open_relayed: set[Address] = set()
        self._ids = count(1)

    # Sending

    def send(self, data: bytes, client: Address = ANN) -> list[Command]:
        """Give a datagram to the server and open the sockets that it asks for; the other commands come back."""
        return self.perform(self.server.receive(self.now, client, data))

    def perform(self, commands: Iterable[Command]) -> list[Command]:
        waiting, done = deque(commands), list[Command]()
        while waiting:
            match waiting.popleft():
                case OpenRelayed(address) if self.can_open(address):
                    self.open_relayed.add(address)
                    waiting.extend(self.server.on_relayed_opened(self.now, address))
                case OpenRelayed(address):
                    waiting.extend(self.server.on_relayed_failed(self.now, address))
                case CloseRelayed(address) as close:
                    self.open_relayed.remove(address)
                    done.append(close)
                case other:
                    done.append(other)
        return done

    def ask(self, data: bytes, client: Address = ANN) -> Message:
        """Send what must be answered, with nothing but one datagram to the client."""
        (answer,) = (command for command in self.send(data, client) if not isinstance(command, CloseRelayed))
        assert isinstance(answer, SendToClient)
        assert answer.client == client
        return parse_message(answer.data)

    def call(
        self, method: Method, *attributes: Attributes, client: Address = ANN, user: str = "ann", nonce: bytes = b""
    ) -> Message:
        """Send an authentic request; its answer, with its integrity checked."""
        answer = self.ask(self.request(method, *attributes, client=client, user=user, nonce=nonce), client)
        assert answer.has_integrity(self.key(user))
        return answer

    def advance(self, seconds: float) -> list[Command]:
        """Let time pass; deadlines are kept on the way."""
        end = self.now + seconds
        done: list[Command] = []
        while (deadline := self.server.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            done += self.perform(self.server.on_deadline(self.now))
        self.now = end
        return done

    # Messages

    def new_id(self) -> bytes:
        return next(self._ids).to_bytes(12)

    def key(self, user: str) -> bytes:
        return long_term_key(user, REALM, self.passwords[user])

    def nonce(self, client: Address = ANN) -> bytes:
        """A fresh nonce, from a 401."""
        challenge = self.ask(build_message(Method.ALLOCATE, MessageClass.REQUEST, self.new_id(), [UDP]), client)
        assert code_of(challenge) == 401
        nonce = challenge.get(AttributeType.NONCE)
        assert nonce is not None
        return nonce

    def request(
        self,
        method: Method,
        *attributes: Attributes,
        client: Address = ANN,
        user: str = "ann",
        nonce: bytes = b"",
        transaction_id: bytes | None = None,
        integrity_kind: int = AttributeType.MESSAGE_INTEGRITY,
    ) -> bytes:
        """An authentic request; without a nonce it asks for a fresh one first."""
        return build_message(
            method,
            MessageClass.REQUEST,
            transaction_id or self.new_id(),
            [
                *attributes,
                (AttributeType.USERNAME, user.encode()),
                (AttributeType.REALM, REALM.encode()),
                (AttributeType.NONCE, nonce or self.nonce(client)),
            ],
            integrity_key=self.key(user),
            integrity_kind=integrity_kind,
        )

    # Whole steps

    def allocate(self, *attributes: Attributes, client: Address = ANN, user: str = "ann") -> Address:
        """The relayed address of a new allocation."""
        answer = self.call(Method.ALLOCATE, UDP, *attributes, client=client, user=user)
        assert code_of(answer) == 0
        relayed = answer.address(AttributeType.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        return relayed

    def permit(self, *peers: Address, client: Address = ANN, user: str = "ann") -> int:
        """CreatePermission; its error code, or 0."""
        transaction_id = self.new_id()
        values = [(AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, transaction_id)) for peer in peers]
        data = self.request(Method.CREATE_PERMISSION, *values, client=client, user=user, transaction_id=transaction_id)
        return code_of(self.ask(data, client))

    def bind_channel(self, number: int, peer: Address, client: Address = ANN, user: str = "ann") -> int:
        """ChannelBind; its error code, or 0."""
        transaction_id = self.new_id()
        values = [
            (AttributeType.CHANNEL_NUMBER, number.to_bytes(2) + bytes(2)),
            (AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, transaction_id)),
        ]
        data = self.request(Method.CHANNEL_BIND, *values, client=client, user=user, transaction_id=transaction_id)
        return code_of(self.ask(data, client))

    def send_indication(self, peer: Address, data: bytes, *more: Attributes, client: Address = ANN) -> list[Command]:
        transaction_id = self.new_id()
        attributes = [
            (AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, transaction_id)),
            (AttributeType.DATA, data),
            *more,
        ]
        return self.send(build_message(Method.SEND, MessageClass.INDICATION, transaction_id, attributes), client)

    def send_channel_data(self, number: int, data: bytes, client: Address = ANN) -> list[Command]:
        return self.send(build_channel_data(number, data), client)

    def from_peer(self, relayed: Address, peer: Address, data: bytes) -> list[Command]:
        return self.server.receive_from_peer(self.now, relayed, peer, data)


class ClientBench:
    """A client and a server, joined by a wire without delay; ``passes`` may lose what it wants."""

    def __init__(self, client: TurnClient, server: ServerBench | None = None, address: Address = ANN) -> None:
        self.client = client
        self.bench = server or ServerBench()
        self.address = address
        self.events: list[Event] = []
        # What the client sent, and what reached the peers.
        self.sent: list[bytes] = []
        self.at_peers: list[SendToPeer] = []
        self.passes: Callable[[bytes], bool] = lambda message: True

    @property
    def now(self) -> float:
        return self.bench.now

    def settle(self) -> list[Event]:
        """Carry messages to and fro until both are silent; the events that came of it."""
        first = len(self.events)
        while messages := self.client.take_messages():
            for message in messages:
                self.sent.append(message)
                if self.passes(message):
                    self.deliver(self.bench.send(message, self.address))
        return self.events[first:]

    def deliver(self, commands: Iterable[Command]) -> None:
        for command in commands:
            if isinstance(command, SendToPeer):
                self.at_peers.append(command)
            elif isinstance(command, SendToClient) and self.passes(command.data):
                self.events += self.client.receive(self.now, command.data)

    def advance(self, seconds: float) -> list[Event]:
        """Let time pass on both sides, from deadline to deadline."""
        end = self.now + seconds
        first = len(self.events)
        while (deadline := self.client.next_deadline()) is not None and deadline <= end:
            self.bench.advance(max(0.0, deadline - self.now))
            self.events += self.client.on_deadline(self.now)
            self.settle()
        self.bench.advance(end - self.now)
        return self.events[first:]

    def allocated(self) -> Address:
        """Allocate, and be sure of it."""
        self.client.allocate(self.now)
        self.settle()
        assert self.client.relayed_address is not None
        return self.client.relayed_address

    def data_to(self, peer: Address, data: bytes) -> list[SendToPeer]:
        """What reaches the peer when the client sends ``data``."""
        first = len(self.at_peers)
        self.deliver(self.bench.send(self.client.send_data(peer, data), self.address))
        return self.at_peers[first:]

    def data_from(self, peer: Address, data: bytes) -> list[Event]:
        """What the client hears when the peer sends ``data``."""
        assert self.client.relayed_address is not None
        first = len(self.events)
        self.deliver(self.bench.from_peer(self.client.relayed_address, peer, data))
        return self.events[first:]


class AnsweringServer:
    """A server for ``open_responder``, with one client. ``passes`` may lose what it wants, in both directions."""

    def __init__(self, passes: Callable[[bytes], bool]) -> None:
        self.bench = ServerBench()
        # How often it has allocated.
        self.granted = 0
        self._passes = passes

    @property
    def allocations(self) -> int:
        return self.bench.server.allocations

    def __call__(self, request: bytes) -> bytes | None:
        if not self._passes(request):
            return None
        before = self.allocations
        commands = self.bench.send(request)
        self.granted += self.allocations > before
        answers = [command.data for command in commands if isinstance(command, SendToClient)]
        return next(filter(self._passes, answers), None)


def is_no_allocate_success(message: bytes) -> bool:
    """What passes if only the success of an Allocate is lost."""
    parsed = parse_message(message)
    return (parsed.method, parsed.message_class) != (Method.ALLOCATE, MessageClass.SUCCESS)


def numbered_ids() -> Callable[[], bytes]:
    """Transaction ids 1, 2, 3…: a transcript can name them."""
    ids = count(1)
    return lambda: next(ids).to_bytes(12)


def new_client(username: str = "ann", password: str = PASSWORDS["ann"], *, reliable: bool = False) -> TurnClient:
    return TurnClient(username, password, reliable=reliable, new_transaction_id=numbered_ids())
