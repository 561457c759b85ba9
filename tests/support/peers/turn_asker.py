"""Asks a TURN server one thing at a time, over UDP or through TLS, and says what came of it: a code, or what else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from relay.addresses import Address
from relay.turn.credentials import long_term_key
from relay.wire.channeldata import pad
from relay.wire.stun import (
    AttributeType,
    Message,
    MessageClass,
    Method,
    StunError,
    build_message,
    build_uint32,
    build_xor_address,
    parse_message,
)
from tests.support.peers.coturn import PASSWORD, REALM, USERNAME
from tests.support.peers.tls_client import TlsClient

Attributes = tuple[int, bytes]
# An error code, 0 for a success, None for silence, or words.
Outcome = int | str | None
CLOSED, MALFORMED = "closed", "malformed"
# UDP may lose a datagram: a request goes again. What is silent stays so for all of these.
TRIES = 4
WAIT_S = 0.5
UDP: Attributes = (AttributeType.REQUESTED_TRANSPORT, b"\x11\0\0\0")
# An address of its own for each client. coturn keeps an allocation for a second after it is released, and a client that
# gets the same port from the kernel meanwhile would hear 437.
_sources = (f"127.{second}.{third}.1" for second in range(64, 128) for third in range(256))


class Line(Protocol):
    """A 5-tuple to a server."""

    # Over a stream the server may end it, and nothing needs to be sent again.
    is_stream: bool

    async def send(self, data: bytes) -> None:
        """Send a message."""

    async def receive(self) -> bytes:
        """The next message. Raises EOFError or OSError if the line has ended."""

    def close(self) -> None:
        """Let it go."""


class UdpLine:
    """By datagrams."""

    is_stream = False

    def __init__(self, server: Address) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind((next(_sources), 0))
        self._socket.connect(server)

    async def send(self, data: bytes) -> None:
        """As ``Line`` says."""
        self._socket.send(data)

    async def receive(self) -> bytes:
        """As ``Line`` says."""
        return await asyncio.get_running_loop().sock_recv(self._socket, 65535)

    def close(self) -> None:
        """As ``Line`` says."""
        self._socket.close()


class TlsLine:
    """By a TURN stream within TLS."""

    is_stream = True

    def __init__(self, tls: TlsClient) -> None:
        self._tls = tls

    async def send(self, data: bytes) -> None:
        """As ``Line`` says. Padded, as a stream has it."""
        await self._tls.send(pad(data))

    async def receive(self) -> bytes:
        """As ``Line`` says."""
        try:
            return await self._tls.receive_unit()
        except ssl.SSLError:
            raise EOFError from None

    def close(self) -> None:
        """As ``Line`` says."""
        self._tls.abort()


@dataclass(frozen=True)
class Server:
    """Where a server is; with a context it is reached through TLS."""

    address: Address
    trust: ssl.SSLContext | None = None
    server_name: str = "relay.test"

    async def open_line(self) -> Line:
        """A new 5-tuple."""
        if self.trust is None:
            return UdpLine(self.address)
        return TlsLine(await TlsClient.open(self.address, self.trust, self.server_name, source=next(_sources)))


class Asker:
    """One client. ``answer`` is what was heard last, with what must be signed checked by who asks."""

    def __init__(self, server: Server, line: Line, peer: Address) -> None:
        self.server = server
        self.peer = peer
        self.answer: Message | None = None
        self.key = long_term_key(USERNAME, REALM, PASSWORD)
        self.nonce = b""
        # Whose the allocation is.
        self._user: str | bytes = USERNAME
        self._line = line

    @property
    def is_stream(self) -> bool:
        return self._line.is_stream

    def another(self) -> contextlib.AbstractAsyncContextManager[Asker]:
        """One more client of the same server."""
        return asking(self.server, self.peer)

    async def send(self, request: bytes) -> Outcome:
        """What comes of these bytes: they are sent again over UDP while nothing does."""
        tries, wait_s = (1, TRIES * WAIT_S) if self.is_stream else (TRIES, WAIT_S)
        try:
            for _ in range(tries):
                await self._line.send(request)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        return self._code(await self._answer_to(request[8:20]))
        except (EOFError, ConnectionError):
            return CLOSED
        return None

    async def _answer_to(self, transaction_id: bytes) -> bytes:
        while True:
            data = await self._line.receive()
            if data[8:20] == transaction_id:
                return data

    def _code(self, answer: bytes) -> Outcome:
        try:
            self.answer = parse_message(answer)
        except StunError:
            return MALFORMED
        if self.answer.message_class is MessageClass.SUCCESS:
            return 0
        assert self.answer.error is not None
        return self.answer.error.code

    async def say(self, message: bytes) -> None:
        """Send what has no answer."""
        await self._line.send(message)

    async def hears(self, data: bytes) -> bool:
        """Whether this comes, in whatever message."""
        with contextlib.suppress(TimeoutError, EOFError, ConnectionError):
            async with asyncio.timeout(2 * WAIT_S):
                while True:
                    if data in await self._line.receive():
                        return True
        return False

    async def bare(self, method: int, *attributes: Attributes, transaction_id: bytes = b"") -> Outcome:
        """A request without credentials."""
        return await self.send(
            build_message(method, MessageClass.REQUEST, transaction_id or os.urandom(12), attributes)
        )

    async def challenge(self) -> None:
        """Learn the nonce."""
        assert await self.bare(Method.ALLOCATE, UDP) == 401
        assert self.answer is not None
        self.nonce = self.answer.get(AttributeType.NONCE) or b""

    def signed(
        self,
        method: int,
        *attributes: Attributes,
        user: str = USERNAME,
        password: str = PASSWORD,
        nonce: bytes = b"",
        transaction_id: bytes = b"",
        fingerprint: bool = False,
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
                (AttributeType.NONCE, nonce or self.nonce),
            ],
            integrity_key=long_term_key(user, REALM, password),
            fingerprint=fingerprint,
        )

    async def ask(self, method: int, *attributes: Attributes, **how: str | bytes) -> Outcome:
        """A request with credentials."""
        if not self.nonce:
            await self.challenge()
        outcome = await self.send(self.signed(method, *attributes, **how))  # type: ignore[arg-type]
        if method == Method.ALLOCATE and outcome == 0:
            self._user = how.get("user", USERNAME)
        return outcome

    async def release(self) -> None:
        """Let go of the allocation, if there is one: a server in this process has a socket for it."""
        if self.nonce:
            await self.ask(Method.REFRESH, (AttributeType.LIFETIME, build_uint32(0)), user=self._user)

    async def allocate(self, *attributes: Attributes, **how: str | bytes) -> Address:
        """Raises AssertionError if it is refused. Returns the relayed address."""
        outcome = await self.ask(Method.ALLOCATE, UDP, *attributes, **how)
        assert outcome == 0, outcome
        assert self.answer is not None
        relayed = self.answer.address(AttributeType.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        return relayed

    async def about(self, method: int, *attributes: Attributes, peers: tuple[Address, ...]) -> Outcome:
        """A request about peers, on the allocation that there is."""
        transaction_id = os.urandom(12)
        values = [(int(AttributeType.XOR_PEER_ADDRESS), build_xor_address(peer, transaction_id)) for peer in peers]
        return await self.ask(method, *attributes, *values, transaction_id=transaction_id)

    async def send_to_peer(self, data: bytes) -> None:
        """A Send indication."""
        transaction_id = os.urandom(12)
        where = (AttributeType.XOR_PEER_ADDRESS, build_xor_address(self.peer, transaction_id))
        attributes = (where, (AttributeType.DATA, data))
        await self.say(build_message(Method.SEND, MessageClass.INDICATION, transaction_id, attributes))


@contextlib.asynccontextmanager
async def asking(server: Server, peer: Address) -> AsyncIterator[Asker]:
    """A client with a 5-tuple of its own, which lets go of its allocation in the end."""
    line = await server.open_line()
    asker = Asker(server, line, peer)
    try:
        yield asker
        with contextlib.suppress(EOFError, ConnectionError, AssertionError):
            await asker.release()
    finally:
        line.close()
