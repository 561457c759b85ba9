"""What clients say to a relay, in whole conversations: each carrier, sessions, HTTP, balancers, a web proxy's clients.

Every word passes through a ``Spoiler`` on its way. A talk goes on as long as the relay listens, whatever it answers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from relay.addresses import Address
from relay.errors import PeerError
from relay.turn.client import TurnClient
from relay.wire.capsule import CapsuleCutter, build_datagram
from relay.wire.channeldata import pad
from relay.wire.media_v1 import Bind, Close, Open, Resume, build_control, build_media
from relay.wire.rtp import RtpHeader, build_packet
from relay.wire.stream import StreamCutter
from relay.wire.upgrade import build_connect_udp_request, build_websocket_request
from relay.wire.websocket import MessageCutter, Opcode, build_close, build_frame
from tests.fuzz.spoiling import Spoiler
from tests.support.peers.tls_client import TlsClient

SERVER_NAME = "relay.test"
USERNAME, PASSWORD = "trader", "secret"
# An answer comes at once, or not at all.
HEAR_S = 0.3
# A talk that takes longer hangs.
TALK_S = 60.0
OTHER_PEER = Address("127.0.0.1", 9)
# What ends a talk, and is no fault of the relay: it has closed, or has said what this client does not understand.
ENDS = (OSError, ssl.SSLError, EOFError, PeerError)


@dataclass(frozen=True)
class Doors:
    """Where a relay is reached, and what is behind it."""

    tls: Address
    behind_a_balancer: Address
    web_proxy: Address
    upstream: Address
    peer: Address
    trust: ssl.SSLContext


@dataclass
class Wire:
    """One connection, and what was said on it, as it was sent."""

    doors: Doors
    spoiler: Spoiler
    source: random.Random
    said: list[bytes] = field(default_factory=list)
    tls: TlsClient | None = None
    plain: socket.socket | None = None

    async def connect(self, server: Address) -> None:
        """A connection without TLS."""
        self.plain = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        await asyncio.get_running_loop().sock_connect(self.plain, server)

    async def shake_hands(self) -> None:
        """A connection with TLS, whose handshake is not spoiled."""
        self.tls = await TlsClient.open(self.doors.tls, self.doors.trust, SERVER_NAME)

    async def say(self, message: bytes) -> None:
        """Send a message, or what is made of it."""
        for piece in self.spoiler.spoil(message):
            self.said.append(piece)
            if self.tls is not None:
                await self.tls.send(piece)
            elif self.plain is not None:
                await asyncio.get_running_loop().sock_sendall(self.plain, piece)

    async def hear(self) -> bytes:
        """What comes next; empty if nothing does. Raises EOFError at the end."""
        try:
            async with asyncio.timeout(HEAR_S):
                if self.tls is not None:
                    heard = await self.tls.receive()
                else:
                    assert self.plain is not None
                    heard = await asyncio.get_running_loop().sock_recv(self.plain, 65536)
        except TimeoutError:
            return b""
        if not heard:
            raise EOFError
        return heard

    def close(self) -> None:
        """Let it go: in order, or not."""
        if self.tls is not None:
            if self.source.random() < 0.5:
                self.tls.reset()
            else:
                self.tls.abort()
        if self.plain is not None:
            self.plain.close()


# ---- TURN over a carrier


@dataclass
class Framing:
    """How a carrier takes TURN messages, and gives them."""

    build: Callable[[bytes], bytes]
    feed: Callable[[bytes], Iterable[bytes]]


def _masked(wire: Wire, opcode: Opcode, payload: bytes) -> bytes:
    return build_frame(opcode, payload, mask=wire.source.randbytes(4))


def _websocket_framing(wire: Wire) -> Framing:
    cutter = MessageCutter(from_client=False)
    return Framing(
        lambda message: _masked(wire, Opcode.BINARY, message),
        lambda data: [one.payload for one in cutter.feed(data) if one.opcode is Opcode.BINARY],
    )


def _media(number: int) -> bytes:
    """Voice, and now and then what else comes in a call: RTCP, DTLS, STUN, nothing, too much."""
    others = (b"\x80\xc8\0\6" + bytes(24), b"\x16\xfe\xfd" + bytes(40), b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12), b"")
    if number % 5 == 4:
        return others[number // 5 % len(others)]
    return build_packet(RtpHeader(0, number, 160 * number, 7), bytes(172 if number % 7 else 1300))


async def _turn(wire: Wire, framing: Framing) -> None:
    """A whole call: an allocation, permissions, a channel, voice, renewal, the end."""
    client, now = TurnClient(USERNAME, PASSWORD, reliable=True), asyncio.get_running_loop().time()

    async def exchange(rounds: int) -> None:
        for _ in range(rounds):
            asked = client.take_messages()
            for message in asked:
                await wire.say(framing.build(message))
            for _ in asked:
                for message in framing.feed(await wire.hear()):
                    client.receive(now, message)

    client.allocate(now)
    await exchange(3)
    client.create_permission(now, wire.doors.peer, OTHER_PEER)
    client.bind_channel(now, wire.doors.peer)
    await exchange(2)
    for number in range(12):
        await wire.say(framing.build(client.send_data(wire.doors.peer, _media(number))))
    await wire.say(framing.build(client.send_data(OTHER_PEER, b"without a channel")))
    client.refresh(now)
    client.bind(now)
    await exchange(1)
    client.release(now)
    await exchange(1)


async def turn(wire: Wire) -> None:
    """A TURN stream."""
    await wire.shake_hands()
    await _turn(wire, Framing(pad, StreamCutter().feed))


async def _upgrade(wire: Wire, request: bytes) -> bytes:
    """What follows the head of the answer."""
    await wire.shake_hands()
    await wire.say(request)
    heard = b""
    while b"\r\n\r\n" not in heard:
        more = await wire.hear()
        if not more:
            return b""
        heard += more
    return heard.partition(b"\r\n\r\n")[2]


def _websocket_request(wire: Wire, path: str, subprotocol: str) -> bytes:
    key = base64.b64encode(wire.source.randbytes(16)).decode()
    return build_websocket_request(path, SERVER_NAME, key, subprotocol)


async def websocket(wire: Wire) -> None:
    """TURN in a WebSocket, with what else a WebSocket may have."""
    framing = _websocket_framing(wire)
    framing.feed(await _upgrade(wire, _websocket_request(wire, "/turn", "turn")))
    await wire.say(_masked(wire, Opcode.PING, b"?"))
    await _turn(wire, framing)
    await wire.say(_masked(wire, Opcode.CLOSE, build_close(1000, "bye")))
    await wire.hear()


async def connect_udp(wire: Wire) -> None:
    """TURN in capsules."""
    where = wire.doors.upstream
    path = f"/.well-known/masque/udp/{where.host}/{where.port}/"
    cutter = CapsuleCutter()
    cutter.feed(await _upgrade(wire, build_connect_udp_request(path, SERVER_NAME)))
    await wire.say(b"\x17\3abc")
    await _turn(wire, Framing(build_datagram, cutter.feed))


async def session(wire: Wire) -> None:
    """A session of media.v1."""
    cutter = MessageCutter(from_client=False)
    cutter.feed(await _upgrade(wire, _websocket_request(wire, "/media", "media.v1")))

    async def tell(text: str) -> None:
        await wire.say(_masked(wire, Opcode.TEXT, text.encode()))
        cutter.feed(await wire.hear())

    await tell(build_control(Open(USERNAME, PASSWORD, id=1)))
    await tell(build_control(Bind(wire.doors.peer, 0x4001, 2)))
    await tell(build_control(Bind(OTHER_PEER, id="three")))
    for number in range(12):
        await wire.say(_masked(wire, Opcode.BINARY, build_media(0x4001, _media(number))))
    await wire.say(build_frame(Opcode.BINARY, b"\x40\1half", mask=wire.source.randbytes(4), final=False))
    await wire.say(_masked(wire, Opcode.CONTINUATION, b"and half"))
    await tell(build_control(Resume("no-such-token", 4)))
    await tell(build_control(Close(5)))
    await wire.say(_masked(wire, Opcode.CLOSE, build_close(1000)))
    await wire.hear()


# ---- HTTP, and what comes before TLS

REQUESTS = (
    b"GET /healthz HTTP/1.1\r\nHost: relay.test\r\n\r\n",
    b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: relay.test\r\nCookie: a=b\r\n\r\n",
    b"POST /rest/login HTTP/1.1\r\nHost: relay.test\r\nContent-Length: 11\r\n\r\nhello world",
    b"POST /rest/x?y=z HTTP/1.1\r\nHost: relay.test\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
    b"GET /socket.io/?EIO=4&transport=websocket&sid=abc HTTP/1.1\r\nHost: relay.test\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: relay.test\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
)


async def http(wire: Wire) -> None:
    """Requests, one after the other on one connection."""
    await wire.shake_hands()
    for _ in range(4):
        await wire.say(wire.source.choice(REQUESTS))
        await wire.hear()


def _hello(wire: Wire) -> bytes:
    """What OpenSSL says first."""
    outgoing = ssl.MemoryBIO()
    begun = wire.doors.trust.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=SERVER_NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        begun.do_handshake()
    return outgoing.read()


async def hello(wire: Wire) -> None:
    """A handshake that is spoiled from its first byte on."""
    await wire.connect(wire.doors.tls)
    await wire.say(_hello(wire))
    await wire.hear()
    await wire.say(b"\x14\3\3\0\1\1")
    await wire.say(b"\x17\3\3\0\x20" + wire.source.randbytes(32))
    await wire.hear()


async def balancer(wire: Wire) -> None:
    """A PROXY header before the handshake."""
    addresses = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + b"\xc0\0\1\xbb"
    second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14" + addresses + b"\x02\0\5relay"
    await wire.connect(wire.doors.behind_a_balancer)
    await wire.say(wire.source.choice((b"PROXY TCP4 192.0.2.1 192.0.2.2 49152 443\r\n", second)))
    await wire.say(_hello(wire))
    await wire.hear()


async def web_proxy(wire: Wire) -> None:
    """A client of the web proxy: a tunnel to the relay itself, the PAC file, or a page."""
    own = f"{SERVER_NAME}:{wire.doors.tls.port}".encode()
    heads = (
        b"CONNECT " + own + b" HTTP/1.1\r\nHost: " + own + b"\r\nProxy-Authorization: Basic YTpi\r\n\r\n",
        b"GET /proxy.pac HTTP/1.1\r\nHost: " + own + b"\r\n\r\n",
        b"GET http://www.example.test/ HTTP/1.1\r\nHost: www.example.test\r\n\r\n",
    )
    await wire.connect(wire.doors.web_proxy)
    await wire.say(wire.source.choice(heads))
    await wire.hear()
    await wire.say(_hello(wire))
    await wire.hear()


Talk = Callable[[Wire], Awaitable[None]]
TALKS: dict[str, Talk] = {
    "turn": turn,
    "websocket": websocket,
    "connect_udp": connect_udp,
    "session": session,
    "http": http,
    "hello": hello,
    "balancer": balancer,
    "web_proxy": web_proxy,
}


async def hold(talk: Talk, wire: Wire) -> bool:
    """A talk to its end. Returns False if it hangs."""
    try:
        async with asyncio.timeout(TALK_S):
            with contextlib.suppress(*ENDS):
                await talk(wire)
    except TimeoutError:
        return False
    finally:
        wire.close()
    return True
