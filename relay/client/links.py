"""Links: how a TURN client's messages travel, over a connected UDP socket or a TLS stream.

A link moves whole messages. Of TURN it knows only their framing. It reports to its owner.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import ssl
import sys
import termios
from typing import Any, Protocol, cast

from relay.addresses import Address
from relay.client.connect import Proxy, TlsProtocol, connect_tls
from relay.errors import UpstreamError
from relay.plane.uplink import Fate, Uplink
from relay.sockaddr import from_sockaddr, to_sockaddr
from relay.wire.channeldata import pad
from relay.wire.stream import StreamCutter

# The longest datagram there is, so that none is cut off.
MAX_DATAGRAM_BYTES = 65535
# Datagrams that are taken before other sockets have their turn: 16 take well under a millisecond.
MAX_DATAGRAMS_PER_WAKE_UP = 16
# A packet of media may have this many bytes, on every carrier alike; longer ones are dropped. A relay takes 2,048 bytes
# in a WebSocket message and in a capsule, and 48 of them are the head of a Send indication to an IPv6 peer.
MAX_DATA_BYTES = 2000
# This much may wait on the way to the server, in the kernel's buffer too, before data is dropped. It is 7 s of one
# voice, or what is under way at 10 Mbit/s and 50 ms. The kernel alone would take 4 MB.
MAX_BACKLOG_BYTES = 64 * 1024
# What TLS adds to data, which is one record: header, nonce and tag, of which TLS 1.2 has the most (29 bytes).
MAX_RECORD_OVERHEAD_BYTES = 32
# How long the server may take to answer close_notify before the stream is cut off.
TLS_CLOSE_TIMEOUT_S = 1.0


class LinkOwner(Protocol):
    """Hears what happens on a link."""

    def on_opened(self, link: Link) -> None:
        """The link is open."""

    def on_message(self, message: bytes) -> None:
        """A whole message came, ChannelData without padding."""

    def on_unreachable(self, error: OSError) -> None:
        """ICMP says that nobody listens at the server. The link goes on."""

    def on_lost(self, error: UpstreamError) -> None:
        """The link has ended, but not because of ``close``."""


class Link(Protocol):
    """A way to the server. ``dropped`` counts the messages that could not be sent."""

    dropped: int

    @property
    def not_sent(self) -> OSError | None:
        """Why our own machine did not send the last message; None if it did."""

    @property
    def local_address(self) -> Address:
        """Our end."""

    def send(self, message: bytes) -> None:
        """Send a STUN message."""

    def send_data(self, message: bytes) -> None:
        """Send a message that carries data, or drop it rather than wait."""

    def close(self) -> None:
        """Begin to close. The owner hears nothing more."""

    async def wait_closed(self) -> None:
        """Wait until the socket is closed."""


class UdpLink:
    """A connected UDP socket, with one message in each datagram."""

    def __init__(self, connected: socket.socket, owner: LinkOwner) -> None:
        self.dropped = 0
        self._socket = connected
        self._uplink = Uplink(connected, from_sockaddr(connected.getpeername()))
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._watch()
        owner.on_opened(self)

    @property
    def local_address(self) -> Address:
        """The address that the server sees, if no NAT translates it."""
        return from_sockaddr(self._socket.getsockname())

    def _watch(self) -> None:
        if not self._closing:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def send(self, message: bytes) -> None:
        """Send a message. If our own kernel does not take it, it is dropped, as a network would do."""
        if self._closing:
            self.dropped += 1
            return
        fate, _, code = self._uplink.send(self._loop.time(), message)
        if fate is not Fate.SENT:
            self.dropped += 1
            self._on_error(fate, code)

    send_data = send

    @property
    def not_sent(self) -> OSError | None:
        """Why our own machine did not send the last message; None if it did."""
        code = self._uplink.refused_for
        return OSError(code, os.strerror(code)) if code else None

    def _on_error(self, fate: Fate, code: int) -> None:
        # uvloop forgets a socket that has an error: watch it again, after that.
        self._loop.call_soon(self._watch)
        if fate is Fate.GONE:
            self._owner.on_unreachable(OSError(code, os.strerror(code)))

    def _on_readable(self) -> None:
        for _ in range(MAX_DATAGRAMS_PER_WAKE_UP):
            try:
                message = self._socket.recv(MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                fate, _, code = self._uplink.judge(self._loop.time(), error.errno or 0)
                self._on_error(fate, code)
                return
            self._owner.on_message(message)
            if self._closing:
                return

    def close(self) -> None:
        """Close the socket."""
        if not self._closing:
            self._closing = True
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    async def wait_closed(self) -> None:
        """A UDP socket is closed at once."""


class StreamLink(TlsProtocol):
    """What all links over TLS have in common: a backlog beyond which data is dropped, and an end to wait for."""

    def __init__(self) -> None:
        self.dropped = 0
        self._lost = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport

    @property
    def not_sent(self) -> OSError | None:
        """TCP sends again itself."""
        return None

    @property
    def local_address(self) -> Address:
        """Our end of the TCP connection."""
        return from_sockaddr(self._transport.get_extra_info("sockname"))

    @property
    def backlog_bytes(self) -> int:
        """Bytes on the way to the server: in TLS, in the transport below it, and unacknowledged in the kernel."""
        waiting = self._transport.get_write_buffer_size() + self.tcp.get_write_buffer_size()
        return waiting + _unacknowledged(self._transport.get_extra_info("socket"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream has ended, from either side."""
        if not self._lost.done():
            self._lost.set_result(None)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def _write_or_drop(self, data: bytes) -> bool:
        """Write, unless too much waits already. Returns False if it was dropped."""
        more_bytes = len(data) + MAX_RECORD_OVERHEAD_BYTES
        if self._transport.is_closing() or self.backlog_bytes + more_bytes > MAX_BACKLOG_BYTES:
            return False
        self._transport.write(data)
        return True

    def _write_data_or_drop(self, data: bytes) -> None:
        self.dropped += not self._write_or_drop(data)

    def _ended(self, exc: Exception | None) -> UpstreamError:
        """What the owner is told when the stream has ended."""
        who = "the server" if self.proxy is None else f"the server or the proxy {self.proxy.address}"
        return UpstreamError(f"{who} closed the connection: {exc or 'end of stream'}")

    async def wait_closed(self) -> None:
        """Wait for the server's end, but not long."""
        await asyncio.wait([self._lost], timeout=TLS_CLOSE_TIMEOUT_S)
        if not self._lost.done():
            self._transport.abort()
            await self._lost


def _unacknowledged(connected: socket.socket | None) -> int:
    """Bytes in the kernel that the other side has not acknowledged; 0 if the kernel cannot be asked."""
    try:
        answer = fcntl.ioctl(-1 if connected is None else connected.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(answer, sys.byteorder)


class TlsLink(StreamLink):
    """A TLS stream of messages, ChannelData padded to four bytes (RFC 8656 section 12.5)."""

    def __init__(self, owner: LinkOwner) -> None:
        super().__init__()
        self._owner = owner
        self._cutter = StreamCutter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done."""
        super().connection_made(transport)
        self._owner.on_opened(self)

    def data_received(self, data: bytes) -> None:
        """Cut the stream into messages. After a broken one nothing more is cut."""
        for unit in self._cutter.feed(data):
            if self._transport.is_closing():
                return  # the owner has closed it meanwhile, and hears nothing more
            self._owner.on_message(unit)
        if self._cutter.fault is not None:
            self._owner.on_lost(UpstreamError(f"the server broke the stream's framing: {self._cutter.fault.value}"))
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream has ended, from either side."""
        super().connection_lost(exc)
        self._owner.on_lost(self._ended(exc))

    def send(self, message: bytes) -> None:
        """Send a STUN message, however much waits before it: over a stream it is sent only once."""
        self._write(message)

    def send_data(self, message: bytes) -> None:
        """Send data, or drop it if 64 KiB wait already: voice that waits is of no use."""
        self._write_data_or_drop(pad(message))

    def close(self) -> None:
        """Flush what waits, send close_notify and close."""
        self._transport.close()


async def open_udp_link(server: Address, owner: LinkOwner, local_address: Address | None) -> None:
    """Connect a UDP socket. Raises UpstreamError if the name does not resolve or no route leads there."""
    if not 0 < server.port <= 65535:
        raise UpstreamError(f"{server}: expected a port from 1 to 65535")
    try:
        family, address = await _find(server)
        connected = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    except (OSError, ValueError, OverflowError) as error:
        raise UpstreamError(f"{server}: {error}") from error
    try:
        if local_address is not None:
            connected.bind(to_sockaddr(local_address))
        connected.connect(address)
    except (OSError, ValueError, OverflowError) as error:
        connected.close()
        raise UpstreamError(f"{server}: {error}") from error
    UdpLink(connected, owner)


async def _find(server: Address) -> tuple[int, Any]:
    """Family and address for ``connect``. Only names are looked up. Raises OSError, UnicodeError."""
    if server.is_literal:
        return socket.AF_INET6 if server.is_ipv6 else socket.AF_INET, to_sockaddr(server)
    loop = asyncio.get_running_loop()
    family, _, _, _, address = (await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM))[0]
    return family, address


async def open_tls_link(
    server: Address,
    owner: LinkOwner,
    local_address: Address | None,
    *,
    ssl_context: ssl.SSLContext,
    server_hostname: str | None,
    timeout_s: float,
    proxy: Proxy | None = None,
) -> None:
    """Connect and shake hands within ``timeout_s``. Raises UpstreamError, from the OSError or ssl.SSLError."""
    await connect_tls(
        lambda: TlsLink(owner),
        server,
        ssl_context=ssl_context,
        server_hostname=server_hostname,
        timeout_s=timeout_s,
        local_address=local_address,
        proxy=proxy,
    )
