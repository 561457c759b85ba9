"""The listening sockets of the relay, from before it accepts until after: its own, or given to it by who started it.

A relay that hands over gives these very sockets to the next one. New ones for the same addresses would not do: each
socket has a queue of its own, and who waits in the queue of one that is closed is refused.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from relay.addresses import Address, UnixSocket
from relay.config import ListenSettings
from relay.errors import OperatorError
from relay.plane.listening import open_listeners
from relay.sockaddr import from_sockaddr, pack_sockaddr

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Opened:
    """The sockets of one address. They belong to ``Listening``."""

    wanted: Address | UnixSocket
    sockets: Sequence[socket.socket]

    @property
    def address(self) -> Address:
        """Where they listen; not for a unix socket."""
        return from_sockaddr(self.sockets[0].getsockname())

    def copies(self) -> list[socket.socket]:
        """Sockets for whoever accepts, who owns them. All must be served: each has a queue of its own."""
        return [one.dup() for one in self.sockets]


class Listening:
    """Owns all of them."""

    def __init__(self, given: Sequence[socket.socket] = (), *, handed_over: bool = False) -> None:
        """``given`` listen already, and do not block. They are ``handed_over`` by a relay, or else by systemd."""
        self._given = list(given)
        self._handed_over = handed_over
        self._sockets: list[socket.socket] = []

    def open_all(
        self, listen: ListenSettings, threads: int, open_file: Callable[[UnixSocket], socket.socket]
    ) -> tuple[list[Opened], list[Opened], Opened]:
        """The sockets of ``listen.tls``, one for each thread, of ``listen.web_proxy``, and of ``listen.admin``.

        Raises OperatorError, also for sockets that were given and that no setting names.
        """
        where = listen.admin
        if isinstance(where, UnixSocket):
            admin = self._take(where, lambda: [open_file(where)])
        else:
            admin = self.open(where, "listen.admin")
        counts = [1 if address in listen.proxy_protocol else threads for address in listen.tls]
        tls = [self.open(address, "listen.tls", count) for address, count in zip(listen.tls, counts, strict=True)]
        proxies = [self.open(address, "listen.web_proxy") for address in listen.web_proxy]
        self.settle()
        return tls, proxies, admin

    def open(self, address: Address, setting: str, count: int = 1) -> Opened:
        """Take the given sockets of a literal address, or else listen there with so many, on a free port for port 0.

        Raises OperatorError, which names the setting.
        """
        return self._take(address, lambda: open_listeners(address, count, setting))

    def _take(self, wanted: Address | UnixSocket, make: Callable[[], list[socket.socket]]) -> Opened:
        found = [one for one in self._given if _key_of(_place_of(one)) == _key_of(wanted)]
        self._given = [one for one in self._given if one not in found]
        sockets = found or make()
        self._sockets += sockets
        return Opened(wanted, sockets)

    def settle(self) -> None:
        """All settings have their sockets: what is left over is named by none. Raises OperatorError.

        A relay that hands over does not know the new configuration, so its sockets are closed without a word.
        """
        if not self._given:
            return
        addresses = ", ".join(sorted({str(_place_of(one)) for one in self._given}))
        if not self._handed_over:
            expected = "listen.tls, listen.web_proxy and listen.admin"
            raise OperatorError(f"LISTEN_FDS: {addresses}: expected only addresses that are in {expected}")
        log.info("no longer configured, so not listened on", addresses=addresses)
        while self._given:
            self._given.pop().close()

    def sockets(self) -> list[socket.socket]:
        """All that are open, to give them on. They stay ours."""
        return list(self._sockets)

    def close(self) -> None:
        """Let go of all. Ports close when those who accept have let go, too. May be repeated."""
        for one in (*self._sockets, *self._given):
            one.close()
        self._sockets.clear()
        self._given.clear()


def _place_of(listening: socket.socket) -> Address | UnixSocket:
    name = listening.getsockname()
    return UnixSocket(name) if isinstance(name, str) else from_sockaddr(name)


def _key_of(place: Address | UnixSocket) -> bytes:
    """The same for all texts that mean the same place, such as a zone by its name and by its number."""
    return place.path.encode() if isinstance(place, UnixSocket) else pack_sockaddr(place)
