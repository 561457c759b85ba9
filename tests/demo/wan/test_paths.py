"""The simulated path with real sockets: what goes over it comes late, or not at all, and nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from relay.addresses import Address
from relay.demo.wan import paths
from relay.demo.wan.link import Link
from relay.demo.wan.paths import TcpPath, UdpPath
from relay.emulator.turn.sockets import open_udp_socket
from tests.support.waiting import becomes, eventually

SHORT = Link(delay_s=0.002)
ANY = Address("127.0.0.1", 0)


def address_of(opened: socket.socket) -> Address:
    return Address(*opened.getsockname())


@contextlib.contextmanager
def udp(*clients: socket.socket, link: Link = SHORT) -> Iterator[tuple[UdpPath, socket.socket]]:
    """A server and a path to it; all is closed at the end."""
    server = open_udp_socket(ANY)
    path = UdpPath(address_of(server), link, seed=1)
    for client in clients:
        client.connect(path.address)
    try:
        yield path, server
    finally:
        path.close()
        for one in (server, *clients):
            one.close()


async def received(at: socket.socket) -> tuple[bytes, Address]:
    """The next datagram, and who sent it."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(at.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(at.fileno())
    data, sender = at.recvfrom(65536)
    return data, Address(*sender)


async def exchanged(client: socket.socket, server: socket.socket, data: bytes) -> Address:
    """Send something, and get it back. Returns the client's address as the server sees it."""
    client.send(data)
    came, sender = await received(server)
    assert came == data
    server.sendto(data + b" back", sender)
    assert (await received(client))[0] == data + b" back"
    return sender


async def test_datagrams_come_after_the_delay_each_way() -> None:
    client, loop = open_udp_socket(ANY), asyncio.get_running_loop()
    with udp(client, link=Link(delay_s=0.05)) as (_, server):
        began = loop.time()
        await exchanged(client, server, b"there")
        assert loop.time() - began >= 0.1 - 0.002


async def test_each_client_has_an_address_of_its_own_and_only_so_many_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MAX_CLIENTS", 2)
    clients = [open_udp_socket(ANY) for _ in range(3)]
    with udp(*clients) as (_, server):
        first = await exchanged(clients[0], server, b"one")
        assert await exchanged(clients[1], server, b"two") != first
        clients[2].send(b"one too many")
        assert await exchanged(clients[0], server, b"again") == first
        with pytest.raises(BlockingIOError):
            server.recv(1)


async def test_loss_begins_and_ends_when_it_is_told_to() -> None:
    client = open_udp_socket(ANY)
    with udp(client) as (path, server):
        sender = await exchanged(client, server, b"good")
        path.set_loss(1.0)
        for _ in range(5):
            client.send(b"up")
            server.sendto(b"down", sender)
        await becomes(lambda: path.lost_packets, 5)
        path.set_loss(0.0)
        await exchanged(client, server, b"good again")


async def test_a_server_that_is_gone_and_comes_back_is_found_again() -> None:
    client = open_udp_socket(ANY)
    with udp(client) as (_, server):
        await exchanged(client, server, b"x")
        address = address_of(server)
        server.close()
        client.send(b"nobody is there, says ICMP")
        with open_udp_socket(address) as again:

            def came() -> bool:
                client.send(b"y")
                with contextlib.suppress(BlockingIOError):
                    return again.recv(65536) == b"y"
                return False

            await eventually(came)


@contextlib.asynccontextmanager
async def tcp(
    link: Link, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[TcpPath]:
    """A server and a path to it."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, TcpPath(Address(*server.sockets[0].getsockname()), link, seed=1) as path:
        yield path


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_stream_comes_whole_after_the_delay_each_way() -> None:
    loop = asyncio.get_running_loop()
    async with tcp(Link(delay_s=0.05), echo) as path:
        reader, writer = await asyncio.open_connection(*path.address)
        began = loop.time()
        writer.write(b"there and back")
        assert await reader.readexactly(14) == b"there and back"
        assert loop.time() - began >= 0.1 - 0.002
        # The end is passed on, too.
        writer.write_eof()
        assert await reader.read() == b""
        await hang_up(writer)


async def test_a_stream_comes_whole_whatever_is_lost() -> None:
    """More than may wait at once: whoever writes has to wait."""
    data = os.urandom(4 * paths.MAX_WAITING_BYTES)
    async with tcp(Link(delay_s=0.002), echo) as path:
        reader, writer = await asyncio.open_connection(*path.address)
        path.set_loss(0.05)
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == data
        assert path.lost_packets > 0
        await hang_up(writer)


async def test_a_server_that_cuts_off_is_seen_by_the_client() -> None:
    async def cut_off(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with tcp(SHORT, cut_off) as path:
        reader, writer = await asyncio.open_connection(*path.address)
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        await hang_up(writer)


async def test_a_server_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with TcpPath(address_of(taken), SHORT, seed=1) as path:
            reader, writer = await asyncio.open_connection(*path.address)
            assert await reader.read() == b""
            await hang_up(writer)


async def test_only_so_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MAX_CLIENTS", 1)
    async with tcp(SHORT, echo) as path:
        reader, writer = await asyncio.open_connection(*path.address)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        other_reader, other_writer = await asyncio.open_connection(*path.address)
        assert await other_reader.read() == b""
        await hang_up(other_writer)
        await hang_up(writer)


async def test_the_end_of_a_path_cuts_off_its_clients() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await echo(reader, writer)
        ended.set()

    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(serve, "127.0.0.1", 0))
        path = TcpPath(Address(*server.sockets[0].getsockname()), SHORT, seed=1)
        async with path:
            reader, writer = await asyncio.open_connection(*path.address)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        await ended.wait()
        await hang_up(writer)
        await eventually(lambda: not path._clients)
