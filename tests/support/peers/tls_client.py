"""A TLS client that decides what goes into which record, and which bytes into which segment."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from relay.addresses import Address
from relay.wire.stream import StreamCutter


class TlsClient:
    """One connection; ``open`` it, and close it in the end."""

    def __init__(
        self,
        connected: socket.socket,
        context: ssl.SSLContext,
        server_name: str | None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.socket = connected
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        # Debian 12's Python would take a bare end for one that was said in TLS.
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name, session=session)
        self._cutter = StreamCutter()
        self._units: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(
        cls,
        server: Address,
        context: ssl.SSLContext,
        server_name: str | None = "relay.test",
        *,
        byte_by_byte: bool = False,
        receive_buffer: int | None = None,
        session: ssl.SSLSession | None = None,
        source: str | None = None,
    ) -> TlsClient:
        """Connect and shake hands. Raises ssl.SSLError or OSError where the server refuses."""
        family = socket.AF_INET6 if server.is_ipv6 else socket.AF_INET
        connected = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if receive_buffer is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = cls(connected, context, server_name, session)
        try:
            if source is not None:
                connected.bind((source, 0))
            await client._loop.sock_connect(connected, server)
            await client.shake_hands(byte_by_byte=byte_by_byte)
        except BaseException:
            client.abort()
            raise
        return client

    async def shake_hands(self, *, byte_by_byte: bool = False) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush(byte_by_byte=byte_by_byte)
                await self._fill()
            else:
                await self.flush(byte_by_byte=byte_by_byte)
                return

    async def flush(self, *, byte_by_byte: bool = False) -> None:
        data = self._outgoing.read()
        for part in [data[i : i + 1] for i in range(len(data))] if byte_by_byte else [data]:
            await self.send_wire(part)

    async def send_wire(self, data: bytes) -> None:
        """Send bytes as they are, past TLS."""
        if data:
            await self._loop.sock_sendall(self.socket, data)

    def record(self, plain: bytes) -> bytes:
        """The bytes of the wire for one write, which is one record up to 16 KiB."""
        self.tls.write(plain)
        return self._outgoing.read()

    async def send(self, *plain: bytes) -> None:
        """Send each as a record of its own, all in one go."""
        await self.send_wire(b"".join(self.record(data) for data in plain))

    async def _fill(self) -> None:
        data = await self._loop.sock_recv(self.socket, 65536)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def receive(self) -> bytes:
        """The next plain bytes; empty at the end. A connection that ends without close_notify raises."""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    async def receive_unit(self) -> bytes:
        """The next STUN or ChannelData message. Raises EOFError at the end."""
        while not self._units:
            data = await self.receive()
            if not data:
                raise EOFError
            self._units = self._cutter.feed(data)
            assert self._cutter.fault is None
        return self._units.pop(0)

    async def receive_exactly(self, size: int) -> bytes:
        """So many plain bytes."""
        data = b""
        while len(data) < size:
            chunk = await self.receive()
            assert chunk, "the server closed the connection"
            data += chunk
        assert len(data) == size
        return data

    async def closed_by_server(self) -> bool:
        """Wait for the end; True if the server said so in TLS, False for a bare end or reset."""
        try:
            while await self.receive():
                pass
        except (ssl.SSLError, ConnectionResetError):
            return False
        return True

    async def end(self) -> None:
        """Say that no more comes, in TLS and in TCP, and stay to listen."""
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        with contextlib.suppress(OSError):
            await self.flush()
            self.socket.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """End in order."""
        await self.end()
        self.abort()

    def abort(self) -> None:
        """Close the socket and nothing else."""
        self.socket.close()

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()
