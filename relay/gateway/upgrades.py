"""Requests that leave HTTP on the TLS port: TURN and sessions over WebSocket (RFC 6455), UDP by CONNECT-UDP (RFC 9298).

Each is judged here as a whole before anything is answered; then the plane sends the 101 and carries the media. A
refusal says in plain text what was expected, and ends the connection: see ``site``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import socket
from collections.abc import Iterable
from typing import NoReturn, Protocol

import structlog
from aiohttp import HttpVersion11, hdrs, web

from relay.addresses import Address, IpNetwork
from relay.errors import UpstreamError
from relay.gateway.flows import Flows, Refused, UpgradeOutcome, Wanted
from relay.gateway.sessions import Sessions
from relay.gateway.site import OPENED, SERVER, Site
from relay.gateway.upstreams import Health, Upstreams
from relay.plane.api import Carrier, CloseReason, ConnectionId, Plane, Upstream
from relay.tasks import Tasks

log = structlog.get_logger()

TURN_PROTOCOL = "turn"
SESSION_PROTOCOL = "media.v1"
UDP_PATH = "/.well-known/masque/udp/{host}/{port}/"
RETRY_AFTER_S = 5
# Beside configured upstreams: the vendor's TURN port, and the range its media hosts relay from.
MEDIA_PORTS = (range(3478, 3479), range(16384, 65536))

_ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NO_STORE = {hdrs.CACHE_CONTROL: "no-store"}


class Resolve(Protocol):
    """Turns a host into addresses that may be connected to, as ``relay.gateway.resolve`` does."""

    async def resolve(self, host: str, port: int) -> list[Address]:
        """At least one. Raises UpstreamError with ``status`` and ``proxy_status``."""
        ...
