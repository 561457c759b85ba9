"""A client of a web proxy, byte by byte, and a way through the proxy for clients that cannot use one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from relay.addresses import Address
from relay.gateway.web_proxy.tunnel import TunnelBytes, carry, configure_socket
from relay.tasks import Tasks

PATIENT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What a proxy answered, whole; ``fields`` in lower case."""

    status: int
    fields: dict[str, str] = field(default_factory=dict)
    body: str = ""


def connect_request(target: str, *fields: str) -> bytes:
    """A CONNECT and its fields, such as ``Proxy-Authorization: ...``."""
    return "\r\n".join([f"CONNECT {target} HTTP/1.1", f"Host: {target}", *fields, "", ""]).encode()


async def open_socket(server: Address) -> socket.socket:
    """A connected, non-blocking TCP socket."""
    family = socket.AF_INET6 if server.is_ipv6 else socket.AF_INET
    connected = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        configure_socket(connected)
        await asyncio.get_running_loop().sock_connect(connected, server)
    except BaseException:
        connected.close()
        raise
    return connected


async def receive_all(connected: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = bytearray()
    while chunk := await asyncio.get_running_loop().sock_recv(connected, 65536):
        received += chunk
    return bytes(received)


async def ask(proxy: Address, *parts: bytes) -> Answer:
    """Send these bytes, part by part, and read the one answer until the proxy closes."""
    with await open_socket(proxy) as connected:
        for part in parts:
            await asyncio.get_running_loop().sock_sendall(connected, part)
        return parse(await receive_all(connected))


def parse(received: bytes) -> Answer:
    """One whole answer; nothing may come after it."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert len(body) == int(fields["content-length"]) or not body
    return Answer(int(first.split()[1]), fields, body.decode())


async def refused(proxy: Address, target: str, *fields: str) -> Answer:
    """The answer to a CONNECT that is not granted."""
    return await ask(proxy, connect_request(target, *fields))


async def open_connect(proxy: Address, target: str, *fields: str, behind: bytes = b"") -> socket.socket:
    """A CONNECT that is granted; ``behind`` goes in the same segment. Nothing after the answer is read."""
    loop, connected = asyncio.get_running_loop(), await open_socket(proxy)
    try:
        await loop.sock_sendall(connected, connect_request(target, *fields) + behind)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = await loop.sock_recv(connected, 1)
            assert byte, f"closed behind {head!r}"
            head += byte
        assert head.startswith(b"HTTP/1.1 200 "), head
    except BaseException:
        connected.close()
        raise
    return connected


@contextlib.asynccontextmanager
async def behind_proxy(proxy: Address, target: str, *, together: int = 0) -> AsyncIterator[Address]:
    """Where a client that knows no proxy may connect, to come out at ``target`` by CONNECT.

    So many of the client's first bytes go in one segment with the CONNECT.
    """
    loop, tasks = asyncio.get_running_loop(), Tasks()

    async def bring(client: socket.socket) -> None:
        with client:
            first = await loop.sock_recv(client, 65536)
            with await open_connect(proxy, target, behind=first[:together]) as server:
                await loop.sock_sendall(server, first[together:])
                await carry(client, server, PATIENT_S, TunnelBytes())

    async def accept(listener: socket.socket) -> None:
        while True:
            client, _ = await loop.sock_accept(listener)
            configure_socket(client)
            tasks.start(bring(client), "behind proxy")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        tasks.start(accept(listener), "accept behind proxy")
        try:
            yield Address(*listener.getsockname())
        finally:
            await tasks.cancel()


class Listener:
    """A TCP server whose connections the test takes one by one; if it does not listen, the kernel refuses them."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, listens: bool = True) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind((host, port))
            if listens:
                self._socket.listen()
        except OSError:
            self._socket.close()
            raise
        self.address = Address(*self._socket.getsockname())

    async def accept(self) -> socket.socket:
        """The next connection."""
        accepted, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        configure_socket(accepted)
        return accepted

    @property
    def untouched(self) -> bool:
        """True if nobody waits to be accepted."""
        try:
            accepted, _ = self._socket.accept()
        except BlockingIOError:
            return True
        accepted.close()
        return False

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@contextlib.contextmanager
def same_port(*, listens: bool = True) -> Iterator[tuple[Listener, Listener]]:
    """A port at 127.0.0.1 and at 127.0.0.2, nobody else's at either; the first ``listens``, the second always."""
    while True:
        with Listener("127.0.0.2") as second:
            try:
                first = Listener("127.0.0.1", second.address.port, listens=listens)
            except OSError:  # another process has it there
                continue
            with first:
                yield first, second
            return
