"""How a client finds its session again: the tokens, the socket that has waited meanwhile, and how it is handed over.

A token is 128 random bits, good once. Only its hash, the key, is kept, so the time that a look-up takes tells nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import socket

from relay.plane.api import ConnectionId
from relay.wire.stun import is_stun

TOKEN_BYTES = 16
# A socket that waited has 10 s of voice in it, which nobody wants to hear: 100 lines are 50,000 packets.
MAX_STALE_DATAGRAMS = 65_536
# The upstream answers few requests in that time. More than this is not kept.
MAX_STALE_MESSAGES = 64
# A worker takes a socket within milliseconds; on a machine that is overloaded, within a second.
HANDOVER_S = 5.0


class Tokens:
    """The tokens of connections that are open. A connection has one at most."""

    def __init__(self) -> None:
        self._connections: dict[bytes, ConnectionId] = {}
        self._keys: dict[ConnectionId, bytes] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def new(self, connection: ConnectionId) -> str:
        """A token for the next return of this session; the one before is no longer good."""
        self.forget(connection)
        token = secrets.token_urlsafe(TOKEN_BYTES)
        key = key_of(token)
        self._connections[key] = connection
        self._keys[connection] = key
        return token

    def forget(self, connection: ConnectionId) -> bytes | None:
        """The token of this connection is no longer good. Returns its key, if there was one."""
        key = self._keys.pop(connection, None)
        if key is not None:
            self._connections.pop(key, None)
        return key

    def connection_of(self, key: bytes) -> ConnectionId | None:
        """The connection whose token this is."""
        return self._connections.get(key)


class Handovers:
    """Duplicates of sockets that the plane was given a moment ago.

    A client may be gone before the plane has taken the socket for it. Then the plane closes the socket, and without a
    duplicate nobody could tell the upstream that its allocation is not needed any more.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._kept: dict[ConnectionId, tuple[socket.socket, asyncio.TimerHandle]] = {}

    def keep(self, connection: ConnectionId, given: socket.socket) -> None:
        """Keep a duplicate for HANDOVER_S, unless no descriptor is left."""
        with contextlib.suppress(OSError):
            duplicate = given.dup()
            expiry = self._loop.call_later(HANDOVER_S, self.forget, connection)
            self._kept[connection] = duplicate, expiry

    def take(self, connection: ConnectionId) -> socket.socket | None:
        """The duplicate of what this connection was given, if it is still kept. The caller owns it then."""
        if (kept := self._kept.pop(connection, None)) is None:
            return None
        duplicate, expiry = kept
        expiry.cancel()
        return duplicate

    def forget(self, connection: ConnectionId) -> None:
        """The plane has its socket, or never will."""
        if (duplicate := self.take(connection)) is not None:
            duplicate.close()

    def stop(self) -> None:
        """Forget all."""
        for connection in list(self._kept):
            self.forget(connection)


def key_of(token: str) -> bytes:
    """The hash of a token, which is kept in its place."""
    return hashlib.sha256(token.encode()).digest()


def drain(left: socket.socket) -> list[bytes]:
    """Read what a socket has received while nobody was there. Returns the STUN messages among it."""
    left.setblocking(False)
    stun: list[bytes] = []
    for _ in range(MAX_STALE_DATAGRAMS):
        try:
            datagram = left.recv(65_535)
        except BlockingIOError:
            break
        except OSError:
            continue  # ICMP: the plane will see for itself
        if is_stun(datagram) and len(stun) < MAX_STALE_MESSAGES:
            stun.append(datagram)
    return stun
