"""Checks judge what probes saw. Each is a class with a code; ``ALL`` has them in the order of a connection.

base      what a check is
names     DNS
proxy     the web proxy: which one, whether it is there, its login, and what it refuses
web       TCP, TLS and HTTP of sites
sockets   socket.io and WebSocket
udp       STUN and relayed ports
voice     carriers, and how voice sounds
"""

from relay.doctor.checks.base import Check
from relay.doctor.checks.names import NameNotFound, NameWrong
from relay.doctor.checks.proxy import ProxyCannotReach, ProxyLogin, ProxyReachable, ProxyRefuses, ProxySetting
from relay.doctor.checks.sockets import SocketIoPolling, WebSocketFrames, WebSocketUpgrade
from relay.doctor.checks.udp import UdpHighPorts, UdpStun
from relay.doctor.checks.voice import Carriers, VoiceQuality
from relay.doctor.checks.web import HttpAnswer, Tcp443, TlsCertificate, TlsHandshake, TlsInspected

ALL: tuple[type[Check], ...] = (
    NameNotFound,
    NameWrong,
    ProxySetting,
    ProxyReachable,
    ProxyLogin,
    ProxyRefuses,
    ProxyCannotReach,
    Tcp443,
    TlsHandshake,
    TlsInspected,
    TlsCertificate,
    HttpAnswer,
    SocketIoPolling,
    WebSocketUpgrade,
    WebSocketFrames,
    UdpStun,
    UdpHighPorts,
    Carriers,
    VoiceQuality,
)
BY_CODE: dict[str, type[Check]] = {check.code: check for check in ALL}

__all__ = ["ALL", "BY_CODE", "Check"]
