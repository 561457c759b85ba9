"""What a client and a stream are to do, checked, and in the words of the native engine."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from relay.addresses import Address

# RFC 8489 section 14.3; a password has no bound, and nobody's is longer.
MAX_USERNAME_BYTES = 508
MAX_PASSWORD_BYTES = 256
# RFC 1035 section 2.3.4.
MAX_NAME_BYTES = 255
RTP_HEADER_BYTES = 12
STAMP_BYTES = 20
MAX_PAYLOAD_BYTES = 1378
# A day. What takes longer is a mistake.
MAX_TIME_S = 86400.0
MASTER_BYTES = 30
# As engine.pxd has it.
MAX_PEERS = 8
# A stream remembers its last 512 packets: 10 s of voice.
MAX_PATIENCE_S = 10.0
# ChannelBind renews the permission as well, which lives five minutes (RFC 8656 section 9).
REBIND_S = 240.0
# As OpenSSL numbers them; 0 is any.
TLS_VERSIONS = {"": 0, "1.2": 0x0303, "1.3": 0x0304}


class PlanError(ValueError):
    """A plan that cannot be carried out: what, and what was expected."""


class Carrier(IntEnum):
    """How units travel. ``PEER`` has no TURN: it is a socket of the far end, and RTP travels in its datagrams."""

    TLS = 0
    WEBSOCKET = 1
    SESSION = 2
    CONNECT_UDP = 3
    UDP = 4
    PEER = 5


# As people call them, in profiles and on command lines. All but the last are over TLS.
CARRIERS = {
    "tls": Carrier.TLS,
    "websocket": Carrier.WEBSOCKET,
    "session": Carrier.SESSION,
    "connect-udp": Carrier.CONNECT_UDP,
    "udp": Carrier.UDP,
}


@dataclass(frozen=True)
class WebProxy:
    """A web proxy that is asked for a tunnel, with Basic credentials if it has any."""

    address: Address
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True)
class ClientPlan:
    """One TURN client, or a peer.

    ``server`` is a literal address. ``server_name`` is for TLS, HTTP and the proxy; without one it is the address. With
    ``authorities``, a PEM file, certificates are verified. ``upstream`` is whom CONNECT-UDP names. ``peers`` are bound
    to channels, in their order; more can be bound later. ``tls_version`` is 1.2 or 1.3; without one, whichever the
    server prefers. ``ipv6`` says what the relayed address is to be; by default the family of the peers.

    ``tunnel`` is what a web proxy is asked for, by default the server's name and port. Of a peer, ``server`` is its own
    address, with port 0 for any that is free; ``Opened.relayed`` then says which. One that ``reflects`` sends
    all RTP back to whom it came from, and has no streams; if it has ``peers``, only theirs, whatever their port.
    """

    server: Address
    carrier: Carrier = Carrier.UDP
    username: str = ""
    password: str = field(default="", repr=False)
    peers: tuple[Address, ...] = ()
    server_name: str = ""
    authorities: str | None = None
    web_proxy: WebProxy | None = None
    tunnel: Address | None = None
    upstream: Address | None = None
    tls_version: str = ""
    ipv6: bool | None = None
    reflects: bool = False
    lifetime_s: int = 0
    patience_s: float = 30.0
    rebind_s: float = REBIND_S

    def __post_init__(self) -> None:
        _require(len(self.username.encode()) <= MAX_USERNAME_BYTES, "username", f"{MAX_USERNAME_BYTES} bytes at most")
        _require(len(self.password.encode()) <= MAX_PASSWORD_BYTES, "password", f"{MAX_PASSWORD_BYTES} bytes at most")
        _require(len(self.server_name) <= MAX_NAME_BYTES, "server_name", f"{MAX_NAME_BYTES} bytes at most")
        _require(self.server_name.isascii() and self.server_name.isprintable(), "server_name", "a name of DNS")
        _require(self.tls_version in TLS_VERSIONS, "tls_version", f"one of {', '.join(filter(None, TLS_VERSIONS))}")
        _require(0 < self.patience_s <= MAX_TIME_S, "patience_s", f"more than 0 and at most {MAX_TIME_S:g}")
        _require(0 < self.rebind_s <= MAX_TIME_S, "rebind_s", f"more than 0 and at most {MAX_TIME_S:g}")
        _require(0 <= self.lifetime_s <= MAX_TIME_S, "lifetime_s", f"0 to {MAX_TIME_S:g}")
        _require(len(self.peers) <= MAX_PEERS, "peers", f"{MAX_PEERS} at most")
        datagrams = self.carrier in {Carrier.UDP, Carrier.PEER}
        _require(not datagrams or self.web_proxy is None, "web_proxy", "a carrier over TLS")
        _require(self.tunnel is None or self.web_proxy is not None, "tunnel", "a web proxy that is asked for it")
        _require(not self.reflects or self.carrier is Carrier.PEER, "reflects", "a peer")
        connect_udp = self.carrier is Carrier.CONNECT_UDP
        _require((self.upstream is not None) == connect_udp, "upstream", "a host for CONNECT-UDP, and for it alone")

    @property
    def name(self) -> str:
        """What the server is called."""
        return self.server_name or self.server.host

    @property
    def wants_ipv6(self) -> bool:
        """Whether the relayed address is to be one of IPv6."""
        return any(":" in peer.host for peer in self.peers[:1]) if self.ipv6 is None else self.ipv6

    def socket_address(self) -> bytes:
        """Where to connect to, as the kernel has it."""
        return pack_address(self.web_proxy.address if self.web_proxy else self.server)

    def texts(self) -> tuple[bytes, ...]:
        """In the order of ``Text`` of ``engine.pxd``."""
        return (
            self.name.encode(),
            self.name.encode() if self.server_name and not is_literal(self.server_name) else b"",
            self.username.encode(),
            self.password.encode(),
            self._connect_request(),
            self._upgrade_request(),
            self._open_message(),
        )

    def _open_message(self) -> bytes:
        family = {"family": "ipv6"} if self.wants_ipv6 else {}
        return json.dumps({"type": "open", "username": self.username, "password": self.password, **family}).encode()

    def _connect_request(self) -> bytes:
        if self.web_proxy is None:
            return b""
        target = self.tunnel or Address(self.name, self.server.port)
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.web_proxy.username:
            pair = f"{self.web_proxy.username}:{self.web_proxy.password}".encode()
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}")
        return _head(lines)

    def _upgrade_request(self) -> bytes:
        make: Callable[[], list[str]] | None = {
            Carrier.WEBSOCKET: lambda: _websocket("/turn", "turn"),
            Carrier.SESSION: lambda: _websocket("/media", "media.v1"),
            Carrier.CONNECT_UDP: self._capsules,
        }.get(self.carrier)
        if make is None:
            return b""
        first, *rest = make()
        return _head([first, f"Host: {self.name}", *rest])

    def _capsules(self) -> list[str]:
        assert self.upstream is not None
        host = self.upstream.host.replace(":", "%3A")
        path = f"/.well-known/masque/udp/{host}/{self.upstream.port}/"
        return [f"GET {path} HTTP/1.1", "Connection: Upgrade", "Upgrade: connect-udp", "Capsule-Protocol: ?1"]


@dataclass(frozen=True)
class StreamPlan:
    """One stream of voice, sent on a channel of a client.

    It arrives at ``receiver``, by default the sender: a peer that reflects. Without ``receive_key`` it arrives as it
    was protected. With ``talk_s`` and ``pause_s`` it is silent between talk spurts, exponential about these means. What
    comes later than ``late_s`` is late, and lost after ``patience_s``. It begins at ``start_s`` of ``time.monotonic``,
    or soon at a random phase, and ends by itself after this many ``packets``, if there is such a number. It outlives
    its client: then its packets are unsent.
    """

    sender: int
    peer: int = 0
    receiver: int | None = None
    payload_bytes: int = 160
    interval_s: float = 0.02
    talk_s: float = 0.0
    pause_s: float = 0.0
    late_s: float = 0.15
    patience_s: float = 2.0
    start_s: float | None = None
    packets: int = 0
    send_key: bytes = field(default_factory=lambda: os.urandom(MASTER_BYTES), repr=False)
    receive_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        bounds = f"{STAMP_BYTES} to {MAX_PAYLOAD_BYTES}"
        _require(STAMP_BYTES <= self.payload_bytes <= MAX_PAYLOAD_BYTES, "payload_bytes", bounds)
        _require(0.0001 <= self.interval_s <= 60, "interval_s", "0.0001 to 60")
        _require(0 <= self.talk_s <= MAX_TIME_S, "talk_s", f"0 to {MAX_TIME_S:g}")
        _require(0 <= self.pause_s <= MAX_TIME_S, "pause_s", f"0 to {MAX_TIME_S:g}")
        _require(0 <= self.late_s <= MAX_TIME_S, "late_s", f"0 to {MAX_TIME_S:g}")
        _require(0 < self.patience_s <= MAX_PATIENCE_S, "patience_s", f"more than 0 and at most {MAX_PATIENCE_S:g}")
        _require(self.packets >= 0, "packets", "0 or more")
        _require(self.start_s is None or self.start_s > 0, "start_s", "a time of the monotonic clock")
        keys = (self.send_key, self.receive_key or self.send_key)
        _require({len(key) for key in keys} == {MASTER_BYTES}, "keys", f"{MASTER_BYTES} bytes")

    @property
    def packet_bytes(self) -> int:
        """Of RTP."""
        return RTP_HEADER_BYTES + self.payload_bytes

    def times_us(self) -> tuple[int, int, int, int, int, int]:
        """As the native engine takes them."""
        seconds = self.interval_s, self.talk_s, self.pause_s, self.late_s, self.patience_s, self.start_s or 0
        interval, talk, pause, late, patience, start = (round(one * 1e6) for one in seconds)
        return interval, talk, pause, late, patience, start


def is_literal(name: str) -> bool:
    """Whether a name is an address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def pack_address(address: Address, what: str = "server") -> bytes:
    """A socket address of Linux. Raises PlanError if it is not a literal one."""
    try:
        if ":" in address.host:
            packed = socket.inet_pton(socket.AF_INET6, address.host)
            return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", address.port, 0, packed, 0)
        packed = socket.inet_pton(socket.AF_INET, address.host)
    except OSError:
        raise PlanError(f"{what}: {address.host!r}; expected an address, not a name") from None
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", address.port, packed)


def _head(lines: list[str]) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


def _websocket(path: str, protocol: str) -> list[str]:
    return [
        f"GET {path} HTTP/1.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        f"Sec-WebSocket-Protocol: {protocol}",
    ]


def _require(holds: bool, what: str, expected: str) -> None:
    if not holds:
        raise PlanError(f"{what}: expected {expected}")
