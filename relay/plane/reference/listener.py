"""The accept loop: a newcomer is accepted when its turn has come, and the descriptors that it will need are there."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from relay.addresses import Address
from relay.plane.endings import CANNOT_ACCEPT
from relay.plane.reference.reserve import Reserve
from relay.sockaddr import from_sockaddr

# Newcomers before running calls have their turn.
ACCEPTS_A_TURN = 16
# When accept(2) has failed for lack of descriptors, or of memory for the socket; or while memory is short.
ACCEPT_PAUSE_S = 0.1


class Gate:
    """What newcomers wait for. This one lets everybody in."""

    # With this many descriptors in use they wait; 0 if all may be used.
    max_descriptors = 0
    # Memory is short: they wait until this is over.
    held = False

    def wait_s(self, now: float) -> float:
        """How long the next one is to wait, at this time of the loop."""
        return 0.0

    def on_paused(self, now: float, code: int) -> None:
        """Newcomers wait for a while, because of an errno; 0 if ``wait_s`` said so."""


class Listener:
    """Accepts on one socket, which is its own from here. ``welcome`` owns the sockets that it is given."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        welcome: Callable[[socket.socket, Address, Reserve], None],
        gate: Gate | None = None,
    ) -> None:
        self._loop = loop
        self._socket = listening
        self._welcome = welcome
        self._gate = gate or Gate()
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
            if self._gate.held:
                self._pause_for(ACCEPT_PAUSE_S, errno.ENOMEM)
                return
            if (wait_s := self._gate.wait_s(self._loop.time())) > 0:
                self._pause_for(wait_s, 0)
                return
            reserve = Reserve()
            try:
                reserve.fill(bound=self._gate.max_descriptors)
                accepted, client = self._socket.accept()
            except OSError as error:
                reserve.give_up()
                if error.errno in CANNOT_ACCEPT:
                    self._pause_for(ACCEPT_PAUSE_S, error.errno)
                return
            self._welcome(accepted, Address(*client[:2]), reserve)

    def _pause_for(self, seconds: float, code: int) -> None:
        """Newcomers wait in the kernel's queue; running calls go on."""
        self._gate.on_paused(self._loop.time(), code)
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(seconds, self._watch)

    def close(self) -> None:
        """Accept nobody from now on. May be repeated."""
        if self._socket.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
