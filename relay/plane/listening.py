"""Sockets that listen, and the accept loop of the reference plane: newcomers are accepted with all they will need."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from relay.addresses import Address
from relay.plane.reserve import Reserve
from relay.sockaddr import from_sockaddr, to_sockaddr

# A login storm is a thousand clients within seconds; the kernel caps this at net.core.somaxconn (4096).
LISTEN_BACKLOG = 1024
# Newcomers before running calls have their turn.
ACCEPTS_A_TURN = 16
# When descriptors have run out.
ACCEPT_PAUSE_S = 0.1
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """Accepts on one socket, which is its own from here. ``welcome`` owns the sockets that it is given."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        welcome: Callable[[socket.socket, Reserve], None],
    ) -> None:
        self._loop = loop
        self._socket = listening
        self._welcome = welcome
        self._pause: asyncio.TimerHandle | None = None
        self._watch()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return from_sockaddr(self._socket.getsockname())

    def _watch(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._on_newcomers)

    def _on_newcomers(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            reserve = Reserve()
            try:
                reserve.fill()
                accepted, _ = self._socket.accept()
            except OSError as error:
                reserve.give_up()
                if error.errno in _EXHAUSTED:
                    # Newcomers wait in the kernel's queue; running calls go on.
                    self._loop.remove_reader(self._socket)
                    self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._watch)
                return
            self._welcome(accepted, reserve)

    def close(self) -> None:
        """Accept nobody any more. May be repeated."""
        if self._socket.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()


def open_listeners(address: Address, count: int) -> list[socket.socket]:
    """``count`` sockets that listen on one address and share its connections. Raises OSError.

    SO_REUSEPORT would let a second relay slip onto a taken port: a socket without it asks first.
    """
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    sockets: list[socket.socket] = []
    try:
        with _bound(family, address, shares=False) as probe:
            port = probe.getsockname()[1]
        for _ in range(count):
            listening = _bound(family, Address(address.host, port), shares=True)
            sockets.append(listening)
            listening.listen(LISTEN_BACKLOG)
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    return sockets


def _bound(family: socket.AddressFamily, address: Address, *, shares: bool) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(to_sockaddr(address))
    except OSError:
        opened.close()
        raise
    return opened
