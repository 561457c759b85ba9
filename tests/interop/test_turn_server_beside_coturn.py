"""The embedded TURN server's answers beside coturn's, clause by clause: the same requests, one table of both codes.

Where the two differ, the row says why. A code of 0 is a success, None is silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from relay.addresses import Address
from relay.emulator.turn import native, slow
from relay.turn.credentials import StaticCredentials, long_term_key
from relay.turn.server import ServerSettings
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
from tests.support.benches.background import Background
from tests.support.peers.coturn import PASSWORD, REALM, USERNAME, open_coturn

pytestmark = pytest.mark.skipif(shutil.which("turnserver") is None, reason="coturn is not installed")

# UDP may lose a datagram: a request goes again. What is silent stays so for all of these.
TRIES = 4
WAIT_S = 0.5

Attributes = tuple[int, bytes]
UDP: Attributes = (AttributeType.REQUESTED_TRANSPORT, b"\x11\0\0\0")
IPV4: Attributes = (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x01\0\0\0")
IPV6: Attributes = (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x02\0\0\0")
BOTH: Attributes = (AttributeType.ADDITIONAL_ADDRESS_FAMILY, b"\x02\0\0\0")
EVEN: Attributes = (AttributeType.EVEN_PORT, b"\0")
EVEN_WITH_NEXT: Attributes = (AttributeType.EVEN_PORT, b"\x80")
TOKEN: Attributes = (AttributeType.RESERVATION_TOKEN, bytes(8))
CHANNEL: Attributes = (AttributeType.CHANNEL_NUMBER, b"\x40\0\0\0")
PEER = Address("127.0.0.1", 4000)


# An address of its own for each client. coturn keeps an allocation for a second after it is released, and a client that
# gets the same port from the kernel meanwhile would hear 437.
sources = (f"127.{second}.{third}.1" for second in range(64, 128) for third in range(256))


class Client:
    """One 5-tuple to a server. ``ask`` gives the code of the answer, with what must be signed checked."""

    def __init__(self, server: Address) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind((next(sources), 0))
        self._socket.connect(server)
        self._nonce = b""
        self.answer: Message | None = None

    def close(self) -> None:
        self._socket.close()

    async def send(self, request: bytes) -> int | None:
        """The code of the answer to these bytes, sent again while there is none; None for silence."""
        loop = asyncio.get_running_loop()
        for _ in range(TRIES):
            self._socket.send(request)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S):
                    while True:
                        data = await loop.sock_recv(self._socket, 65535)
                        if data[8:20] == request[8:20]:
                            return self._code(parse_message(data))
        return None

    def _code(self, answer: Message) -> int:
        self.answer = answer
        if answer.message_class is MessageClass.SUCCESS:
            return 0
        assert answer.error is not None
        return answer.error.code

    async def bare(self, method: int, *attributes: Attributes, transaction_id: bytes = b"") -> int | None:
        """A request without credentials."""
        return await self.send(
            build_message(method, MessageClass.REQUEST, transaction_id or os.urandom(12), attributes)
        )

    async def challenge(self) -> None:
        """Learn the nonce."""
        assert await self.bare(Method.ALLOCATE, UDP) == 401
        assert self.answer is not None
        self._nonce = self.answer.get(AttributeType.NONCE) or b""

    def signed(
        self,
        method: int,
        *attributes: Attributes,
        user: str = USERNAME,
        password: str = PASSWORD,
        nonce: bytes = b"",
        transaction_id: bytes = b"",
    ) -> bytes:
        """The bytes of a request with credentials."""
        return build_message(
            method,
            MessageClass.REQUEST,
            transaction_id or os.urandom(12),
            [
                *attributes,
                (AttributeType.USERNAME, user.encode()),
                (AttributeType.REALM, REALM.encode()),
                (AttributeType.NONCE, nonce or self._nonce),
            ],
            integrity_key=long_term_key(user, REALM, password),
        )

    async def ask(self, method: int, *attributes: Attributes, **how: str | bytes) -> int | None:
        """A request with credentials."""
        if not self._nonce:
            await self.challenge()
        return await self.send(self.signed(method, *attributes, **how))  # type: ignore[arg-type]

    async def release(self) -> None:
        """Let go of the allocation, if there is one: a server in this process has a socket for it."""
        if self._nonce:
            await self.ask(Method.REFRESH, (AttributeType.LIFETIME, build_uint32(0)))

    async def allocate(self, *attributes: Attributes) -> None:
        assert await self.ask(Method.ALLOCATE, UDP, *attributes) == 0

    async def about(self, method: int, *attributes: Attributes, peers: tuple[Address, ...] = (PEER,)) -> int | None:
        """A request about peers, on an allocation."""
        await self.allocate()
        transaction_id = os.urandom(12)
        values = [(int(AttributeType.XOR_PEER_ADDRESS), build_xor_address(peer, transaction_id)) for peer in peers]
        return await self.ask(method, *attributes, *values, transaction_id=transaction_id)


Step = Callable[[Client], Awaitable[int | None]]


@dataclass(frozen=True)
class Clause:
    """What is sent, what is answered, and why the two differ if they do."""

    what: str
    step: Step
    ours: int | None
    coturn: int | None
    why: str = ""


def bare(method: int, *attributes: Attributes) -> Step:
    return lambda client: client.bare(method, *attributes)


def ask(method: int, *attributes: Attributes, **how: str | bytes) -> Step:
    return lambda client: client.ask(method, *attributes, **how)


def on_allocation(method: int, *attributes: Attributes, **how: str | bytes) -> Step:
    async def step(client: Client) -> int | None:
        await client.allocate()
        return await client.ask(method, *attributes, **how)

    return step


def about(method: int, *attributes: Attributes, peers: tuple[Address, ...] = (PEER,)) -> Step:
    return lambda client: client.about(method, *attributes, peers=peers)


async def _copy_of_allocate(client: Client) -> int | None:
    await client.challenge()
    request = client.signed(Method.ALLOCATE, UDP)
    assert await client.send(request) == 0
    return await client.send(request)


async def _same_id_other_method(client: Client) -> int | None:
    await client.challenge()
    transaction_id = os.urandom(12)
    assert await client.send(client.signed(Method.ALLOCATE, UDP, transaction_id=transaction_id)) == 0
    code = await client.send(client.signed(Method.REFRESH, transaction_id=transaction_id))
    assert client.answer is not None
    return code if client.answer.method == Method.REFRESH else -1


async def _after_release(client: Client) -> int | None:
    await client.allocate()
    assert await client.ask(Method.REFRESH, (AttributeType.LIFETIME, build_uint32(0))) == 0
    return await client.ask(Method.REFRESH)


async def _second_channel_of_a_peer(client: Client) -> int | None:
    assert await client.about(Method.CHANNEL_BIND, CHANNEL) == 0
    transaction_id = os.urandom(12)
    peer = (AttributeType.XOR_PEER_ADDRESS, build_xor_address(PEER, transaction_id))
    other = (AttributeType.CHANNEL_NUMBER, b"\x40\x01\0\0")
    return await client.ask(Method.CHANNEL_BIND, other, peer, transaction_id=transaction_id)


async def _integrity_without(client: Client, missing: int) -> int | None:
    await client.challenge()
    whole = parse_message(client.signed(Method.ALLOCATE, UDP))
    kept = [attribute for attribute in whole.attributes if attribute.type != missing]
    key = long_term_key(USERNAME, REALM, PASSWORD)
    return await client.send(build_message(3, MessageClass.REQUEST, os.urandom(12), kept, integrity_key=key))


def integrity_without(missing: int) -> Step:
    return lambda client: _integrity_without(client, missing)


def lifetime_of(size: int) -> Attributes:
    return AttributeType.LIFETIME, bytes(size)


CLAUSES = [
    # RFC 8489: Binding, credentials, unknown attributes
    Clause("Binding", bare(Method.BINDING), 0, 0),
    Clause("Binding with an unknown required attribute", bare(Method.BINDING, (0x7FFE, b"")), 420, 420),
    Clause("Binding with an unknown optional attribute", bare(Method.BINDING, (0xFFFE, b"")), 0, 0),
    Clause(
        "an unknown method",
        bare(0x00A),
        None,
        401,
        "coturn asks for credentials before it looks at the method; a method that nobody has is malformed",
    ),
    Clause("Allocate without credentials", bare(Method.ALLOCATE, UDP), 401, 401),
    Clause("Refresh without credentials", bare(Method.REFRESH), 401, 401),
    Clause("a wrong password", ask(Method.ALLOCATE, UDP, password="wrong"), 401, 401),
    Clause("an unknown user", ask(Method.ALLOCATE, UDP, user="nobody"), 401, 401),
    Clause("a foreign nonce", ask(Method.ALLOCATE, UDP, nonce=b"f" * 16), 438, 438),
    Clause("integrity without USERNAME", integrity_without(AttributeType.USERNAME), 400, 400),
    Clause("integrity without REALM", integrity_without(AttributeType.REALM), 400, 400),
    Clause("integrity without NONCE", integrity_without(AttributeType.NONCE), 400, 400),
    Clause("an unknown required attribute", ask(Method.ALLOCATE, UDP, (0x7FFE, b"")), 420, 420),
    Clause("USERHASH", ask(Method.ALLOCATE, UDP, (AttributeType.USERHASH, bytes(32))), 420, 420),
    Clause("USE-CANDIDATE in a Refresh", on_allocation(Method.REFRESH, (AttributeType.USE_CANDIDATE, b"")), 420, 420),
    Clause(
        "PASSWORD-ALGORITHM alone",
        ask(Method.ALLOCATE, UDP, (AttributeType.PASSWORD_ALGORITHM, b"\0\1\0\0")),
        400,
        420,
        "coturn knows none of RFC 8489's algorithms; we know them, and that none were offered",
    ),
    # RFC 8656 section 7.2: Allocate
    Clause("Allocate", ask(Method.ALLOCATE, UDP), 0, 0),
    Clause("a copy of an Allocate", _copy_of_allocate, 0, 0),
    Clause("the id of an Allocate in a Refresh", _same_id_other_method, 0, 0),
    Clause("a second Allocate", on_allocation(Method.ALLOCATE, UDP), 437, 437),
    Clause("no REQUESTED-TRANSPORT", ask(Method.ALLOCATE), 400, 400),
    Clause(
        "REQUESTED-TRANSPORT of TCP",
        ask(Method.ALLOCATE, (AttributeType.REQUESTED_TRANSPORT, b"\x06\0\0\0")),
        442,
        400,
        "coturn relays TCP, but only for clients that come over TCP",
    ),
    Clause(
        "REQUESTED-TRANSPORT of 99",
        ask(Method.ALLOCATE, (AttributeType.REQUESTED_TRANSPORT, b"\x63\0\0\0")),
        442,
        400,
        "RFC 8656 section 7.2 asks for 442",
    ),
    Clause(
        "REQUESTED-TRANSPORT of one byte", ask(Method.ALLOCATE, (AttributeType.REQUESTED_TRANSPORT, b"\x11")), 400, 400
    ),
    Clause("LIFETIME of three bytes", ask(Method.ALLOCATE, UDP, lifetime_of(3)), 400, 400),
    Clause("LIFETIME of five bytes", ask(Method.ALLOCATE, UDP, lifetime_of(5)), 400, 400),
    Clause("EVEN-PORT", ask(Method.ALLOCATE, UDP, EVEN), 0, 0),
    Clause(
        "EVEN-PORT of four bytes",
        ask(Method.ALLOCATE, UDP, (AttributeType.EVEN_PORT, bytes(4))),
        400,
        0,
        "coturn reads the first byte only",
    ),
    Clause("EVEN-PORT with a reservation", ask(Method.ALLOCATE, UDP, EVEN_WITH_NEXT), 0, 0),
    Clause(
        "an unknown token",
        ask(Method.ALLOCATE, UDP, TOKEN),
        508,
        0,
        "coturn lets the token be; section 7.2 asks for 508",
    ),
    Clause("a token of seven bytes", ask(Method.ALLOCATE, UDP, (AttributeType.RESERVATION_TOKEN, bytes(7))), 400, 400),
    Clause(
        "a token with EVEN-PORT",
        ask(Method.ALLOCATE, UDP, TOKEN, EVEN),
        400,
        0,
        "coturn lets the token be; section 7.2 asks for 400",
    ),
    Clause(
        "a token with a family",
        ask(Method.ALLOCATE, UDP, TOKEN, IPV4),
        400,
        0,
        "coturn lets the token be; section 7.2 asks for 400",
    ),
    Clause("the family IPv4", ask(Method.ALLOCATE, UDP, IPV4), 0, 0),
    Clause("the family IPv6, which is not relayed", ask(Method.ALLOCATE, UDP, IPV6), 440, 440),
    Clause(
        "a family of 3", ask(Method.ALLOCATE, UDP, (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x03\0\0\0")), 440, 440
    ),
    Clause("an additional family, which is not relayed", ask(Method.ALLOCATE, UDP, BOTH), 0, 0),
    Clause(
        "an additional family with a family",
        ask(Method.ALLOCATE, UDP, BOTH, IPV4),
        400,
        0,
        "coturn lets one of them be; section 7.2 asks for 400",
    ),
    Clause(
        "an additional family with a reservation",
        ask(Method.ALLOCATE, UDP, BOTH, EVEN_WITH_NEXT),
        400,
        0,
        "coturn lets one of them be; section 7.2 asks for 400",
    ),
    Clause(
        "the additional family IPv4",
        ask(Method.ALLOCATE, UDP, (AttributeType.ADDITIONAL_ADDRESS_FAMILY, b"\x01\0\0\0")),
        400,
        0,
        "coturn lets it be; section 7.2 asks for 400",
    ),
    # Section 8.2: Refresh
    Clause("Refresh", on_allocation(Method.REFRESH), 0, 0),
    Clause("Refresh without an allocation", ask(Method.REFRESH), 437, 437),
    Clause(
        "Refresh after a release",
        _after_release,
        437,
        0,
        "coturn remembers the 5-tuple for a while; section 8.2 asks for 437",
    ),
    Clause("Refresh of another family", on_allocation(Method.REFRESH, IPV6), 443, 443),
    Clause("Refresh with LIFETIME of three bytes", on_allocation(Method.REFRESH, lifetime_of(3)), 400, 400),
    Clause("Refresh by another user", on_allocation(Method.REFRESH, user="other"), 441, 441),
    # Section 10.2: CreatePermission
    Clause("CreatePermission", about(Method.CREATE_PERMISSION), 0, 0),
    Clause("CreatePermission for port 0", about(Method.CREATE_PERMISSION, peers=(Address("127.0.0.1", 0),)), 0, 0),
    Clause("CreatePermission without a peer", about(Method.CREATE_PERMISSION, peers=()), 400, 400),
    Clause("CreatePermission for IPv6", about(Method.CREATE_PERMISSION, peers=(Address("2a00::1", 1),)), 443, 443),
    Clause(
        "CreatePermission for a multicast address",
        about(Method.CREATE_PERMISSION, peers=(Address("224.0.0.1", 1),)),
        403,
        0,
        "coturn refuses it only with no-multicast-peers",
    ),
    # Section 12.2: ChannelBind
    Clause("ChannelBind", about(Method.CHANNEL_BIND, CHANNEL), 0, 0),
    Clause("ChannelBind without a number", about(Method.CHANNEL_BIND), 400, 400),
    Clause("ChannelBind without a peer", about(Method.CHANNEL_BIND, CHANNEL, peers=()), 400, 400),
    Clause(
        "ChannelBind of 0x3FFF", about(Method.CHANNEL_BIND, (AttributeType.CHANNEL_NUMBER, b"\x3f\xff\0\0")), 400, 400
    ),
    Clause(
        "ChannelBind of two bytes",
        about(Method.CHANNEL_BIND, (AttributeType.CHANNEL_NUMBER, b"\x40\0")),
        400,
        0,
        "coturn reads the first two bytes only",
    ),
    Clause("ChannelBind to port 0", about(Method.CHANNEL_BIND, CHANNEL, peers=(Address("127.0.0.1", 0),)), 400, 400),
    Clause("a second channel of a peer", _second_channel_of_a_peer, 400, 400),
    Clause("ChannelBind to IPv6", about(Method.CHANNEL_BIND, CHANNEL, peers=(Address("2a00::1", 1),)), 443, 443),
]


@dataclass(frozen=True)
class Servers:
    ours: Address
    coturn: Address


@pytest.fixture(scope="module", params=[slow.TurnHost, native.TurnHost], ids=["slow", "native"])
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    users = {USERNAME: PASSWORD, "other": PASSWORD}
    host = request.param(
        Address("127.0.0.1", 0),
        StaticCredentials(users),
        allow_loopback_peers=True,
        settings=ServerSettings(realm=REALM),
    )
    with Background() as background:
        ours = background.enter(host).address
        yield Servers(ours, background.enter(open_coturn(options=[f"user=other:{PASSWORD}"])).address)


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.what)
async def test_clause(servers: Servers, clause: Clause) -> None:
    async def code_of(server: Address) -> int | None:
        with contextlib.closing(Client(server)) as client:
            try:
                return await clause.step(client)
            finally:
                await client.release()

    codes = await asyncio.gather(code_of(servers.ours), code_of(servers.coturn))
    assert tuple(codes) == (clause.ours, clause.coturn)
    assert (clause.ours != clause.coturn) == bool(clause.why), "a difference has a reason, and only a difference has"
