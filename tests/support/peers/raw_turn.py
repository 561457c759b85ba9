"""A TURN client over UDP or TCP that hides nothing: it signs and awaits requests, all other bytes are the caller's."""

from __future__ import annotations

import asyncio
import os
import socket
from types import TracebackType
from typing import Self

from relay.addresses import Address
from relay.turn.credentials import long_term_key
from relay.wire.stream import measure_unit
from relay.wire.stun import (
    AttributeType,
    Message,
    MessageClass,
    Method,
    build_message,
    build_xor_address,
    parse_message,
)
from tests.support.network.bursts import give_room

Attributes = tuple[int, bytes]
UDP: Attributes = (AttributeType.REQUESTED_TRANSPORT, b"\x11\0\0\0")
# UDP may lose a datagram, so a request is sent again.
RETRY_S = 1.0


class Refused(Exception):
    """The server has answered with this error."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code


class RawTurn:
    """One 5-tuple. Use it as a context manager."""

    KIND = socket.SOCK_DGRAM

    def __init__(self, server: Address, username: str, password: str, source: str = "127.0.0.1") -> None:
        self.socket = socket.socket(socket.AF_INET, self.KIND)
        self._prepare()
        self.socket.bind((source, 0))
        self.socket.connect(server)
        self.socket.setblocking(False)
        self._username, self._password = username, password
        self._realm = self._nonce = b""
        self.relayed = Address("", 0)

    def _prepare(self) -> None:
        give_room(self.socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    @property
    def address(self) -> Address:
        return Address(*self.socket.getsockname())

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, 65535)

    def signed(self, method: int, *attributes: Attributes, transaction_id: bytes = b"") -> bytes:
        """A request with credentials, once the server has asked for them; without before."""
        transaction_id = transaction_id or os.urandom(12)
        if not self._nonce:
            return build_message(method, MessageClass.REQUEST, transaction_id, attributes)
        credentials = [
            (AttributeType.USERNAME, self._username.encode()),
            (AttributeType.REALM, self._realm),
            (AttributeType.NONCE, self._nonce),
        ]
        key = long_term_key(self._username, self._realm.decode(), self._password)
        return build_message(
            method, MessageClass.REQUEST, transaction_id, [*attributes, *credentials], integrity_key=key
        )

    async def ask(self, request: bytes) -> Message:
        """The answer to these bytes. What else comes meanwhile is lost."""
        while True:
            self.send(request)
            try:
                async with asyncio.timeout(RETRY_S):
                    while (data := await self.receive())[8:20] != request[8:20]:
                        pass
                    return parse_message(data)
            except TimeoutError:
                continue

    async def request(self, method: int, *attributes: Attributes) -> Message:
        """A success. Raises Refused."""
        answer = await self.ask(self.signed(method, *attributes))
        if answer.error is not None and answer.error.code in {401, 438} and not self._nonce:
            self._realm, self._nonce = (answer.get(kind) or b"" for kind in (AttributeType.REALM, AttributeType.NONCE))
            answer = await self.ask(self.signed(method, *attributes))
        if answer.error is not None:
            raise Refused(*answer.error)
        return answer

    async def allocate(self, *attributes: Attributes) -> Address:
        answer = await self.request(Method.ALLOCATE, UDP, *attributes)
        self.relayed = answer.address(AttributeType.XOR_RELAYED_ADDRESS) or self.relayed
        return self.relayed

    async def permit(self, peer: Address) -> None:
        await self._about(Method.CREATE_PERMISSION, peer)

    async def bind(self, number: int, peer: Address) -> None:
        await self._about(Method.CHANNEL_BIND, peer, (AttributeType.CHANNEL_NUMBER, number.to_bytes(2) + bytes(2)))

    async def _about(self, method: int, peer: Address, *attributes: Attributes) -> None:
        # IPv4 addresses are masked with the cookie alone.
        await self.request(method, *attributes, (AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, bytes(12))))

    async def binding(self) -> Address | None:
        """Also a proof that all that was sent before has been looked at."""
        return (await self.request(Method.BINDING)).address(AttributeType.XOR_MAPPED_ADDRESS)


class RawTcpTurn(RawTurn):
    """The same over TCP. ``send`` takes bytes of the stream, ``receive`` gives one unit with its padding."""

    KIND = socket.SOCK_STREAM

    def __init__(self, server: Address, username: str, password: str, *, receive_bytes: int = 0) -> None:
        """``receive_bytes`` is what the kernel may hold for the client, in place of what it chooses."""
        self._receive_bytes = receive_bytes
        super().__init__(server, username, password)
        self._held = b""

    def _prepare(self) -> None:
        # Before the connection is made, so that the window is never larger than that.
        if self._receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)

    async def receive(self) -> bytes:
        while True:
            measured = measure_unit(self._held[:8])
            if isinstance(measured, tuple) and len(self._held) >= measured[1]:
                unit, self._held = self._held[: measured[1]], self._held[measured[1] :]
                return unit
            more = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            if not more:
                raise EOFError
            self._held += more

    async def ended(self) -> None:
        """Wait until the server has closed the connection."""
        try:
            while await asyncio.get_running_loop().sock_recv(self.socket, 65536):
                pass
        except ConnectionError:
            pass
